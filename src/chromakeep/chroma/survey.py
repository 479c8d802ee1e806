"""Survey: one pass over all that a data directory holds, comparing SQLite, the indexes and the queue as it goes.

A collection's records are what Chroma shows after its next start: its two segments with the pending queue rows applied.
Ids are compared by their hashes, so memory is some 100 bytes a record, whatever the records are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import hnsw
from chromakeep.chroma.catalog import DATABASE, Catalog, Entry
from chromakeep.chroma.digests import Tally, encode, hashes, key_hash, value_hashes
from chromakeep.chroma.metadata import HIDDEN, URI, Fields, Records, value_of
from chromakeep.chroma.problems import MAX_IDS, Problem
from chromakeep.chroma.queue import DOCUMENT, Queue
from chromakeep.chroma.vectors import Vectors
from chromakeep.records import Collection

_PORTION = 8192


class Survey:
    """The findings: ``collections`` (with digests if asked for), ``problems`` and ``warnings``."""

    def __init__(self, catalog: Catalog, *, digests: bool, index_files: Callable[[], None] = lambda: None) -> None:
        """``index_files``: see ``inspect``."""
        self.catalog, self.digests = catalog, digests
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._queue = Queue(catalog.connection)
        tallies = [Tally() for _ in catalog.entries]
        records = [Records(catalog, entry, self._queue) for entry in catalog.entries]
        living = [np.sort(each.lanes[:, 0]) for each in records]
        for each, tally in zip(records, tallies, strict=True):
            tally.ids += each.lanes.sum(axis=0)
        if digests:
            _Scan(catalog, records, tallies).run()
        stages = iter((index_files, index_files))
        for entry, each, here, tally in zip(catalog.entries, records, living, tallies, strict=True):
            self._compare(entry, each, here, tally, stages)
        self.collections = tuple(
            Collection(
                e.id,
                e.name,
                e.tenant,
                e.database,
                r.count,
                e.dimension,
                e.space,
                e.configuration.model,
                t.digest() if digests else None,
            )
            for e, r, t in zip(catalog.entries, records, tallies, strict=True)
        )

    def _compare(
        self,
        entry: Entry,
        records: Records,
        here: NDArray[np.uint64],
        tally: Tally,
        stages: Iterator[Callable[[], None]],
    ) -> None:
        """One collection's index and queue with its records, ``here`` being the first words of their ids' hashes.

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
        there = np.sort(vectors.living())
        if not np.array_equal(here, there):  # every record has a vector, every vector a record
            if len(lost := np.setdiff1d(here, there)):
                self._report(
                    entry,
                    None,
                    "vector-missing",
                    f"{len(lost)} records have no vector, neither in the index nor in the queue",
                    records.names(lost[:MAX_IDS]),
                )
            if len(lost := np.setdiff1d(there, here)):
                self._report(
                    entry,
                    None,
                    "record-missing",
                    f"{len(lost)} vectors have no record in {DATABASE}",
                    vectors.names(lost[:MAX_IDS]),
                )

    def _report(self, entry: Entry, file: str | None, code: str, message: str, ids: tuple[str, ...] = ()) -> None:
        self.problems.append(self._problem(entry, file, code, message, ids))

    @staticmethod
    def _problem(entry: Entry, file: str | None, code: str, message: str, ids: tuple[str, ...] = ()) -> Problem:
        path = f"{entry.vector_segment}/{file}" if file in hnsw.FILES else DATABASE
        return Problem(entry.name, entry.id, entry.vector_segment, path, code, message, ids[:MAX_IDS])


def _there() -> None:
    """What has once been waited for is there."""


_IS_DOCUMENT, _IS_HIDDEN = 0, 1  # numbers of keys that are not metadata


class _Scan:
    """Documents and metadata of all collections, in one scan of their table in whatever order its rows lie."""

    def __init__(self, catalog: Catalog, records: list[Records], tallies: list[Tally]) -> None:
        self.catalog, self.records, self.tallies = catalog, records, tallies
        # One column after the other: all of it twice at a time would be the peak of the whole inspection.
        sizes = [1, *[len(r.rowids) for r in records]]  # a first row of nothing: no array is empty
        rowids = np.concatenate([np.array([-1]), *[r.rowids for r in records]])
        order = np.argsort(rowids, kind="stable")
        self.rowids = rowids[order]
        del rowids
        self.still = np.concatenate([np.zeros(1, bool), *[r.unchanged for r in records]])[order]
        lanes = np.concatenate([np.zeros((1, 2), np.uint64), *[r.base_lanes for r in records]])
        for each in records:
            each.forget()
        self.lanes = lanes[order]
        del lanes
        self.owners = np.repeat(np.arange(-1, len(records), dtype=np.int32), sizes)[order]
        self._forget_keys()

    def _forget_keys(self) -> None:
        self.keys = {DOCUMENT.encode(): _IS_DOCUMENT}
        self.key_lanes = [np.ones(2, np.uint64), np.zeros(2, np.uint64)]

    def run(self) -> None:
        cursor = self.catalog.connection.execute(
            "SELECT id, CAST(key AS BLOB), CASE WHEN key = ? THEN CAST(string_value AS BLOB) ELSE "
            "coalesce(CAST(string_value AS BLOB), int_value, float_value, "
            "CASE WHEN bool_value THEN 'b1' WHEN bool_value IS NOT NULL THEN 'b0' END) END FROM embedding_metadata",
            (DOCUMENT,),
        )
        while rows := cursor.fetchmany(_PORTION):
            self._take(rows)
        if self.catalog.has_arrays:
            for rows in self._arrays():
                self._take(rows)
        for records, tally in zip(self.records, self.tallies, strict=True):
            for id_, fields in records.changed.items():
                add_fields(tally, id_, fields or {})

    def _take(self, rows: list[tuple[int, bytes, Any]]) -> None:
        rowids, names, values = zip(*rows, strict=True)
        if len(self.keys) > _PORTION:
            self._forget_keys()
        keys = self.keys
        kinds = [keys[name] if name in keys else self._number(name) for name in names]
        if None in values:  # a document that is no text, or NaN, which is stored as NULL: shown to nobody
            kinds = [_IS_HIDDEN if value is None else kind for kind, value in zip(kinds, values, strict=True)]
        encoded = [
            (b"s" + value if kind else value)
            if type(value) is bytes
            else value.encode()
            if type(value) is str
            else encode(value)
            if kind > _IS_HIDDEN
            else b""
            for kind, value in zip(kinds, values, strict=True)
        ]
        number = np.array(kinds)
        at = np.minimum(np.searchsorted(self.rowids, rowids), len(self.rowids) - 1)
        known = (self.rowids[at] == rowids) & self.still[at] & (number != _IS_HIDDEN)
        terms = self.lanes[at] * value_hashes(encoded) * np.array(self.key_lanes)[number]
        owners = self.owners[at]
        for owner in np.unique(owners[known]).tolist():
            mine = known & (owners == owner)
            document = mine & (number == _IS_DOCUMENT)
            self.tallies[owner].documents += terms[document].sum(axis=0)
            self.tallies[owner].metadata += terms[mine & ~document].sum(axis=0)

    def _number(self, key: bytes) -> int:
        hidden = key.startswith(HIDDEN.encode()) and key != URI.encode()
        number = self.keys[key] = _IS_HIDDEN if hidden else len(self.key_lanes)
        if not hidden:
            self.key_lanes.append(key_hash(key))
        return number

    def _arrays(self) -> Iterator[list[tuple[int, bytes, Any]]]:
        cursor = self.catalog.connection.execute(
            "SELECT id, key, string_value, int_value, float_value, bool_value FROM embedding_metadata_array "
            "ORDER BY id, key, rowid"
        )
        portion: list[tuple[int, bytes, Any]] = []
        for (rowid, key), items in groupby(cursor, key=lambda row: row[:2]):
            portion.append((rowid, key.encode(), None if key == DOCUMENT else [value_of(*item[2:]) for item in items]))
            if len(portion) == _PORTION:
                yield portion
                portion = []
        if portion:
            yield portion


def add_fields(tally: Tally, id_: bytes, fields: Fields) -> None:
    """Add one record's document and metadata, given as values."""
    lanes = hashes([id_])[0]
    for key, value in fields.items():
        if key == DOCUMENT:
            tally.documents += lanes * value_hashes([value.encode()])[0]
        elif key == URI or not key.startswith(HIDDEN):
            tally.metadata += lanes * key_hash(key.encode()) * value_hashes([encode(value)])[0]
