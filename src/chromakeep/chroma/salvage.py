"""Salvage the vectors of a collection that Chroma cannot open: what can be proven to be an id's vector, and no more.

The ids are those of the METADATA segment after replay. Each vector comes from the newest queue row that gives it, else
from the element that an id map names:

* Elements. A persist writes whole elements at their own place, and only those that changed; one it tore belongs to an
  id that the queue names, for rows are purged only after the persist. So the element of any other id is what it was.
* Id map. Chroma never gives a label twice, and an element lives until its id is deleted. So an entry of any complete or
  cut-off map of this index is right as long as its element is alive. An older map is believed only if the collection
  was not emptied since, for an emptied index starts its labels anew.
* Queue. Where it still has every row since an earlier state, as it does while ``chroma.purge`` holds them, only what
  that state's map leads to hangs on the files: the rows, replayed, say what became of all other ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from chromakeep.chroma import hnsw, pickles
from chromakeep.chroma.catalog import Catalog, Entry, untrusted_rows
from chromakeep.chroma.metadata import Records
from chromakeep.chroma.pickles import IdMap
from chromakeep.chroma.purge import held_after
from chromakeep.chroma.queue import Queue, Row, replay
from chromakeep.digests import hashes
from chromakeep.errors import ChromakeepError, SourceBroken

PORTION = 2048
INDEX, QUEUE = "index", "queue"


class Salvaged(msgspec.Struct, frozen=True, eq=False):
    """Ids with their vectors, (n, dimension) float32 as ``collection.get`` would return them, where each came from
    (``index`` or ``queue``), and the ids for which there is none."""

    ids: list[str]
    vectors: NDArray[np.float32]
    sources: list[str]
    missing: tuple[str, ...]


def salvage(
    directory: Path, collection: str | Entry, *, older: Path | None = None
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Ids and vectors of a collection in a directory at rest, some thousand at a time, ordered as ``collection.get``.

    ``older`` is an earlier, sound state of the directory: its id map serves where the present one is unreadable. Works
    on sound collections as well. Raises UsageError for an unknown collection, SourceBroken when SQLite cannot be read.
    """
    for portion in portions(directory, collection, older=older):
        if portion.ids:
            yield portion.ids, portion.vectors


def salvage_all(directory: Path, collection: str | Entry, *, older: Path | None = None) -> Salvaged:
    """The same in one piece, with sources and what is missing."""
    found = list(portions(directory, collection, older=older))
    return Salvaged(
        [id_ for portion in found for id_ in portion.ids],
        np.concatenate([portion.vectors for portion in found]) if found else np.zeros((0, 0), np.float32),
        [source for portion in found for source in portion.sources],
        tuple(id_ for portion in found for id_ in portion.missing),
    )


def portions(directory: Path, collection: str | Entry, *, older: Path | None = None) -> Iterator[Salvaged]:
    """What ``salvage`` gives, with sources and what is missing."""
    with Catalog(directory) as catalog, untrusted_rows():
        entry = catalog.entry(collection)
        if entry.dimension is not None:
            wreck = _Wreck(catalog, entry, older)
            for ids in wreck.records.id_portions(PORTION):
                yield wreck.take(ids)


class _Wreck:
    """What is left of one collection."""

    def __init__(self, catalog: Catalog, entry: Entry, older: Path | None) -> None:
        self.catalog, self.entry, self.queue = catalog, entry, Queue(catalog.connection, catalog.directory)
        self.records = Records(catalog, entry, self.queue)
        self.path = catalog.directory / (entry.vector_segment or "missing")
        self.dimension = entry.dimension or 0
        self.cosine = entry.space == "cosine"
        self.header = self._header()
        maps, whole, after = self._start(older)
        self.maps = [(ids, self._places(ids)) for ids in maps]
        rows = list(self.queue.rows(self.queue.pending(entry.topic, after)))
        misfits = {row.seq for row in rows if row.floats not in (None, self.dimension)}
        # with a whole map, and before the first persist, it is known which ids the index had
        queued = self._queued(rows, known=whole or not after)
        self.queued = {id_: -1 if seq in misfits else seq for id_, seq in queued.items()}

    def _header(self) -> hnsw.Header | None:
        """header.bin, or what it must say by the collection's configuration; of as many elements as the files have."""
        try:
            size = (self.path / hnsw.LEVEL0).stat().st_size
            norms = (self.path / hnsw.LENGTH).stat().st_size // 4 if self.cosine else size
        except OSError:
            return None
        try:
            header = hnsw.parse_header((self.path / hnsw.HEADER).read_bytes()[:4096])
            if header.dimension != self.dimension:
                raise SourceBroken(f"{hnsw.HEADER} is of another collection")
            most = header.count
        except (SourceBroken, OSError):
            header, most = hnsw.expected_header(self.dimension, self.entry.configuration.max_neighbors, 0), size
        return replace(header, count=min(most, norms, size // header.element_size))

    def _start(self, older: Path | None) -> tuple[list[IdMap], bool, int]:
        """The id maps there are, the best first; whether that is whole: an id it does not name was not there; and the
        queue row after which rows matter."""
        path, found = self.path / pickles.FILE, []
        after = self.entry.vector_seq or 0
        for read in (pickles.read_id_map, pickles.read_cut_off):
            try:
                ids = read(path)
            except (SourceBroken, OSError):
                continue
            if ids.one_to_one:
                if read is pickles.read_id_map:
                    return [ids], True, after or ids.max_seq_id or 0
                found.append(ids)
        if self._complete_from_birth():
            return [], True, 0
        before = self._before(older) if older else None
        if before:
            seq, ids, first = before
            if self._complete_since(seq, first):
                return [ids], True, seq
            if seq and self._same_labels(seq):
                found.append(ids)
        return found, False, after

    def _before(self, older: Path) -> tuple[int, IdMap, int | None] | None:
        """Of an earlier state: the last row its index had, its id map, and the first row of its queue."""
        try:
            with Catalog(older) as catalog:
                before = catalog.entry(self.entry.id)
                rows = Queue(catalog.connection).pending(before.topic, 0)
            if before.vector_segment != self.entry.vector_segment:
                return None
            first = int(rows[0]) if len(rows) else None
            if before.vector_seq is None:
                return 0, pickles.EMPTY, first
            ids = pickles.read_id_map(older / (before.vector_segment or "missing") / pickles.FILE)
        except (ChromakeepError, OSError):
            return None
        return (before.vector_seq, ids, first) if ids.one_to_one else None

    def _same_labels(self, seq: int) -> bool:
        """An index starts its labels anew once all ids are deleted; that cannot have happened since an earlier state if
        some record was last written before it."""
        last_written = self.catalog.connection.execute(
            "SELECT min(seq_id) FROM embeddings WHERE segment_id = ? AND typeof(seq_id) = 'integer'",
            (self.entry.metadata_segment,),
        ).fetchone()[0]
        return last_written is not None and bool(last_written <= seq)

    def _complete_from_birth(self) -> bool:
        """Whether the queue has every row that this collection ever had.

        A purge, Chroma's and ours, leaves of a collection that was ever written to at least one row. So one that has
        none from before the last purge came into being afterwards.
        """
        since = held_after(self.catalog.connection)
        rows = self.queue.pending(self.entry.topic, 0)
        return since is not None and len(rows) > 0 and bool(rows[0] > since)

    def _complete_since(self, seq: int, first: int | None) -> bool:
        """Whether the queue has every row after ``seq`` of an earlier state, whose queue began with row ``first``.

        Rows are purged from the front, and numbers of a topic only rise; so where one is left that is no younger,
        none after it is missing.
        """
        rows = self.queue.pending(self.entry.topic, 0)
        bound = seq or first
        return bound is not None and len(rows) > 0 and bool(rows[0] <= bound)

    def _places(self, ids: IdMap) -> NDArray[np.int64]:
        """Of each position in the id map the number of its living element; -1 where there is none, or more than one."""
        places, times = np.full(len(ids), -1, np.int64), np.zeros(len(ids), np.int64)
        if self.header and len(ids):
            start = 0
            for portion in hnsw.elements(self.path, self.header, lengths=False):
                at = np.minimum(np.searchsorted(ids.labels, portion.labels), len(ids) - 1)
                known = np.flatnonzero(ids.labels[at] == portion.labels)
                np.add.at(times, at[known], 1)
                places[at[known]] = np.where(portion.deleted[known], -1, start + known)
                start += len(portion)
        return np.where(times == 1, places, -1)

    def _elements(self, ids: list[bytes]) -> NDArray[np.int64]:
        """Numbers of the elements of these ids, -1 where no map leads to a living one."""
        found, lanes = np.full(len(ids), -1, np.int64), hashes(ids)
        for map_, places in self.maps:
            positions = np.array(map_.find(lanes), np.int64)
            led = np.where(positions >= 0, places[positions] if len(places) else -1, -1)
            found = np.where(found < 0, led, found)
        return found

    def _queued(self, rows: list[Row], *, known: bool) -> dict[bytes, int]:
        """Id -> the queue row of its vector; 0 where its element has it, -1 where that cannot be told.

        Whether an ``add`` took effect depends on whether the id was there before. Where no map can tell, both cases
        are played through. If they disagree, the record itself tells whether that row made it.
        """
        named = list({row.id for row in rows})
        if known and self.maps:
            mapped = {id_ for id_, at in zip(named, self.maps[0][0].find(hashes(named)), strict=True) if at >= 0}
        else:
            mapped = {id_ for id_, at in zip(named, self._elements(named).tolist(), strict=True) if at >= 0}
        absent = replay(rows, mapped).alive
        if known:
            return absent
        present = replay(rows, set(named)).alive
        for id_ in present:
            if id_ in mapped:
                present[id_] = absent[id_]
            elif absent.get(id_, present[id_]) != present[id_]:  # a living id that could only have been there: present
                present[id_] = absent[id_] if self._made_by(id_, absent[id_]) else -1
        return present

    def _made_by(self, id_: bytes, seq: int) -> bool:
        """Whether the record of this id came into being with that queue row: it was last written by it; or later, and
        all records last written before it are older rows of their table."""
        row = self.catalog.connection.execute(
            "SELECT e.id, e.seq_id, e.created_at >= q.created_at FROM embeddings e, embeddings_queue q "
            "WHERE e.segment_id = ? AND e.embedding_id = ? AND q.seq_id = ?",
            (self.entry.metadata_segment, id_.decode(errors="replace"), seq),
        ).fetchone()
        if row is None or row[1] <= seq:
            return row is not None and row[1] == seq
        seqs, newest = self._history
        before = int(np.searchsorted(seqs, seq))
        return bool(row[2]) and (before == 0 or row[0] > newest[before - 1])

    @cached_property
    def _history(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By the row that last wrote them, ascending: the highest row number of the records up to there."""
        rows = self.catalog.connection.execute(
            "SELECT seq_id, id FROM embeddings WHERE segment_id = ? AND typeof(seq_id) = 'integer' ORDER BY seq_id",
            (self.entry.metadata_segment,),
        )
        seqs, ids = np.array(rows.fetchall(), np.int64).reshape(-1, 2).T
        return seqs, np.maximum.accumulate(ids)

    def take(self, ids: list[bytes]) -> Salvaged:
        """What there is of these ids."""
        out = np.full((len(ids), self.dimension), np.nan, np.float32)  # Chroma admits no NaN: what stays so is missing
        rows = [self.queued.get(id_, 0) for id_ in ids]
        by_row = {seq: i for i, seq in enumerate(rows) if seq > 0}
        for seq, data in self.queue.vectors(np.array(sorted(by_row), np.int64)):
            vector = np.frombuffer(data, "<f4")
            out[by_row[seq]] = hnsw.through_cosine(vector) if self.cosine else vector
        places = np.where(np.array(rows) == 0, self._elements(ids), -1)
        if self.header and (led := np.flatnonzero(places >= 0)).size:
            out[led] = hnsw.read_vectors(self.path, self.header, places[led], lengths=self.cosine)
        good: NDArray[np.bool_] = np.asarray(np.isfinite(out).all(axis=1))
        names = [id_.decode(errors="replace") for id_ in ids]
        return Salvaged(
            [name for name, kept in zip(names, good, strict=True) if kept],
            out[good],
            [QUEUE if seq > 0 else INDEX for seq, kept in zip(rows, good, strict=True) if kept],
            tuple(name for name, kept in zip(names, good, strict=True) if not kept),
        )
