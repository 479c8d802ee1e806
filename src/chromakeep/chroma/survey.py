"""Survey: one pass over all that a data directory holds, comparing SQLite, the indexes and the queue as it goes.

A collection's records are what Chroma shows after its next start: its two segments with the pending queue rows applied.
Ids are compared by the sums of their hashes, those of one collection after the other; only if these differ is it looked
for which are missing. Lists as long as a collection are spooled (``spool``), so memory is the same for any number of
records; what grows with it is a byte an element (their levels), a queue row that is not applied yet, and old pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import hnsw, spool
from chromakeep.chroma.catalog import DATABASE, Catalog, Entry
from chromakeep.chroma.metadata import Records
from chromakeep.chroma.problems import MAX_IDS, Problem
from chromakeep.chroma.queue import Queue
from chromakeep.chroma.scan import Scan
from chromakeep.chroma.spool import Spool
from chromakeep.chroma.vectors import Vectors
from chromakeep.digests import Lanes, Tally, hashes
from chromakeep.records import Collection
from chromakeep.sets import without


class Survey:
    """The findings: ``collections`` (with digests if asked for), ``problems`` and ``warnings``."""

    def __init__(self, catalog: Catalog, *, digests: bool, index_files: Callable[[], None] = lambda: None) -> None:
        """``index_files``: see ``inspect``."""
        self.catalog, self.digests = catalog, digests
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._queue = Queue(catalog.connection, catalog.directory)
        tallies = [Tally() for _ in catalog.entries]
        records = [Records(catalog, entry, self._queue) for entry in catalog.entries]
        counts = Scan(catalog, records, tallies, fields=digests).counts
        stages = iter((index_files, index_files))
        for entry, each, count, tally in zip(catalog.entries, records, counts, tallies, strict=True):
            self._compare(entry, each, count, tally, stages)
        self.collections = tuple(
            Collection(
                e.id,
                e.name,
                e.tenant,
                e.database,
                count,
                e.dimension,
                e.space,
                e.configuration.model,
                t.digest() if digests else None,
            )
            for e, count, t in zip(catalog.entries, counts, tallies, strict=True)
        )

    def _compare(
        self,
        entry: Entry,
        records: Records,
        count: int,
        tally: Tally,
        stages: Iterator[Callable[[], None]],
    ) -> None:
        """One collection's index and queue with its ``count`` records, whose ids' hashes the tally has added up.

        The first of the ``stages`` waits for the files that are read first, the other for the elements.
        """
        if not entry.vector_segment or not entry.metadata_segment:
            self._report(entry, DATABASE, "catalog", "the collection has not both its segments")
            return
        next(stages, _there)()
        vectors = Vectors(self.catalog.directory, entry, self._queue)
        next(stages, _there)()
        try:
            vectors.check(tally if self.digests else None)
        except OSError as error:
            vectors.faults.append(hnsw.Fault(hnsw.LEVEL0, "level0", f"the index cannot be read: {error.strerror}"))
        for fault in vectors.faults:
            self._report(entry, fault.file, fault.code, fault.message)
        for rows, what in (
            (vectors.poisoned + records.poisoned, None),
            (vectors.misfits, "its vector is not of the collection's dimension"),
        ):
            if rows:
                ids = tuple(dict.fromkeys(row.id.decode(errors="replace") for row in rows))
                self._report(
                    entry, None, "queue", f"queue row {rows[0].seq} stops Chroma: {what or rows[0].poison}", ids
                )
        if vectors.header and (bloat := hnsw.bloat(vectors.path, vectors.header)):
            self.warnings.append(self._problem(entry, hnsw.LINKS, "link-lists-bloat", bloat))
        there, vectors_count = np.zeros(2, np.uint64), 0
        for lanes in vectors.living():
            there += lanes.sum(axis=0)
            vectors_count += len(lanes)
        if count != vectors_count or (there != tally.ids).any():
            self._missing(entry, records, vectors)

    def _missing(self, entry: Entry, records: Records, vectors: Vectors) -> None:
        """Every record has a vector, every vector a record: which do not?"""
        here = self._words(hashes(ids) for ids in records.living())
        there = self._words(vectors.living())
        lost, first = _difference(here, there)
        if lost:
            message = f"{lost} records have no vector, neither in the index nor in the queue"
            self._report(entry, None, "vector-missing", message, records.names(first))
        lost, first = _difference(there, here)
        if lost:
            message = f"{lost} vectors have no record in {DATABASE}"
            self._report(entry, None, "record-missing", message, vectors.names(first))

    def _words(self, portions: Iterable[Lanes]) -> Spool:
        """The first words of hashes."""
        words = Spool(np.uint64, self.catalog.directory)
        for lanes in portions:
            words.add(lanes[:, 0].copy())
        return words

    def _report(self, entry: Entry, file: str | None, code: str, message: str, ids: tuple[str, ...] = ()) -> None:
        self.problems.append(self._problem(entry, file, code, message, ids))

    @staticmethod
    def _problem(entry: Entry, file: str | None, code: str, message: str, ids: tuple[str, ...] = ()) -> Problem:
        path = f"{entry.vector_segment}/{file}" if file in hnsw.FILES else DATABASE
        return Problem(entry.name, entry.id, entry.vector_segment, path, code, message, ids[:MAX_IDS])


def _difference(some: Spool, others: Spool) -> tuple[int, NDArray[np.uint64]]:
    """How many of these numbers are not among the others, and the lowest of them, as many as a problem lists."""
    lost, first = 0, [np.zeros(0, np.uint64)]
    for low, high in spool.cuts(max(some, others, key=len)):
        missing = without(spool.within(low, high, some)[0], spool.within(low, high, others)[0])
        first.append(missing[: max(0, MAX_IDS - lost)])
        lost += len(missing)
    return lost, np.concatenate(first)


def _there() -> None:
    """What has once been waited for is there."""
