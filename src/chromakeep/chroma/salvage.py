"""Salvage the vectors of a collection that Chroma cannot open: what can be proven to be an id's vector, and no more.

The ids are those of the METADATA segment after replay. Each vector comes from the newest queue row that gives it, else
from the element that an id map names:

* Elements. A persist writes whole elements at their own place, and only those that changed; one it tore belongs to an
  id that the queue names, for rows are purged only after the persist. So the element of any other id is what it was.
* Id map. Chroma never gives a label twice, and an element lives until its id is deleted. So an entry of any complete or
  cut-off map of this index is right as long as its element is alive. An older map is believed only if the collection
  was not emptied since, for an emptied index starts its labels anew.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import hnsw, pickles
from chromakeep.chroma.catalog import Catalog, Entry
from chromakeep.chroma.digests import hashes
from chromakeep.chroma.metadata import Records
from chromakeep.chroma.pickles import IdMap
from chromakeep.chroma.queue import Queue, Row, replay
from chromakeep.errors import SourceBroken, UsageError

PORTION = 2048
INDEX, QUEUE = "index", "queue"


@dataclass(frozen=True, slots=True, eq=False)
class Salvaged:
    """Ids with their vectors, (n, dimension) float32 as ``collection.get`` would return them, where each came from
    (``index`` or ``queue``), and the ids for which there is none."""

    ids: list[str]
    vectors: NDArray[np.float32]
    sources: list[str]
    missing: tuple[str, ...]


def salvage(
    directory: Path, collection: str | Entry, *, older_pickle: bytes | None = None, older_seq: int | None = None
) -> Salvaged:
    """All that ``salvage_portions`` yields, in one piece."""
    portions = list(salvage_portions(directory, collection, older_pickle=older_pickle, older_seq=older_seq))
    return Salvaged(
        [id_ for portion in portions for id_ in portion.ids],
        np.concatenate([portion.vectors for portion in portions]) if portions else np.zeros((0, 0), np.float32),
        [source for portion in portions for source in portion.sources],
        tuple(id_ for portion in portions for id_ in portion.missing),
    )


def salvage_portions(
    directory: Path, collection: str | Entry, *, older_pickle: bytes | None = None, older_seq: int | None = None
) -> Iterator[Salvaged]:
    """Salvage a collection of a directory at rest, some thousand records at a time, in the order of ``collection.get``.

    ``older_pickle`` is index_metadata.pickle of an earlier state of the same segment and ``older_seq`` the number of
    the last queue row that this state had applied (``Entry.vector_seq``); it serves where the present one is unreadable.
    Works on sound collections as well. Raises UsageError for an unknown collection and SourceBroken when SQLite itself
    cannot be read.
    """
    with Catalog(directory) as catalog:
        wanted = collection if isinstance(collection, str) else collection.id
        entry = next((entry for entry in catalog.entries if entry.id == wanted), None)
        if entry is None:
            raise UsageError(f"there is no collection {wanted} in {directory}")
        if entry.dimension is None:
            return
        found = _Wreck(catalog, entry, older_pickle, older_seq)
        for ids in found.records.id_portions(PORTION):
            yield found.take(ids)


class _Wreck:
    """What is left of one collection."""

    def __init__(self, catalog: Catalog, entry: Entry, older_pickle: bytes | None, older_seq: int | None) -> None:
        self.catalog, self.entry, self.queue = catalog, entry, Queue(catalog.connection)
        self.records = Records(catalog, entry, self.queue)
        self.path = catalog.directory / (entry.vector_segment or "missing")
        self.dimension = entry.dimension or 0
        self.ids, whole = self._id_map(older_pickle, older_seq)
        self.header = self._header()
        self.places = self._places()
        after = (entry.vector_seq or self.ids.max_seq_id or 0) if whole else entry.vector_seq or 0
        self.queued = self._queued(list(self.queue.rows(self.queue.pending(entry.topic, after))), whole or not after)

    def _id_map(self, older_pickle: bytes | None, older_seq: int | None) -> tuple[IdMap, bool]:
        """The best id map there is, and whether it is whole: then an id it does not name was not there."""
        path = self.path / pickles.FILE
        try:
            ids = pickles.read_id_map(path)
            if ids.one_to_one:
                return ids, True
        except (SourceBroken, OSError):
            pass
        if older_pickle and older_seq and self._never_emptied_since(older_seq):
            try:
                ids = pickles.parse_id_map(io.BytesIO(older_pickle), len(older_pickle))
                if ids.one_to_one:
                    return ids, False
            except SourceBroken:
                pass
        try:
            return pickles.read_cut_off(path), False
        except (SourceBroken, OSError):
            return pickles.EMPTY, False

    def _never_emptied_since(self, seq: int) -> bool:
        """Some record has not been written since that queue row, so the collection was never empty after it."""
        oldest = self.catalog.connection.execute(
            "SELECT min(CASE typeof(seq_id) WHEN 'blob' THEN NULL ELSE seq_id END) FROM embeddings WHERE segment_id = ?",
            (self.entry.metadata_segment,),
        ).fetchone()[0]
        return oldest is not None and oldest <= seq

    def _header(self) -> hnsw.Header | None:
        """header.bin, or what it must say by the collection's configuration; of as many elements as lie in the file."""
        try:
            size = (self.path / hnsw.LEVEL0).stat().st_size
            cosine = self.entry.space == "cosine"
            norms = (self.path / hnsw.LENGTH).stat().st_size // 4 if cosine else 1 << 32
        except OSError:
            return None
        try:
            header = hnsw.parse_header((self.path / hnsw.HEADER).read_bytes()[:4096])
            if header.dimension != self.dimension:
                raise SourceBroken("of another collection")
            most = header.count
        except (SourceBroken, OSError):
            header, most = hnsw.expected_header(self.dimension, self.entry.max_neighbors), 1 << 32
        return hnsw.resized(header, min(most, size // header.element_size, norms))

    def _places(self) -> NDArray[np.int64]:
        """Of each position in the id map the number of its living element; -1 where there is none, or more than one."""
        places = np.full(len(self.ids), -1, np.int64)
        if self.header is None or not len(self.ids):
            return places
        times = np.zeros(len(self.ids), np.int64)
        start = 0
        for portion in hnsw.elements(self.path, self.header, lengths=False):
            at = np.minimum(np.searchsorted(self.ids.labels, portion.labels), len(self.ids) - 1)
            known = np.flatnonzero(self.ids.labels[at] == portion.labels)
            np.add.at(times, at[known], 1)
            places[at[known]] = np.where(portion.deleted[known], -1, start + known)
            start += len(portion)
        places[times > 1] = -1
        return places

    def _queued(self, rows: list[Row], known: bool) -> dict[bytes, int]:
        """Id -> queue row of its vector; 0 where the element still has it, -1 where that cannot be told.

        Whether an ``add`` took effect depends on whether the id was there before. Where the id map cannot tell, both are
        played through; if they disagree, the record's own row tells: it was made after the add, or last written by it.
        """
        rows = [row for row in rows if row.floats in (None, self.dimension)]
        named = list({row.id for row in rows})
        mapped = {id_ for id_, at in zip(named, self._find(named), strict=True) if at >= 0}
        absent = replay(rows, mapped).alive
        if known:
            return absent
        present = replay(rows, set(named)).alive
        unsure = [id_ for id_ in named if absent.get(id_) != present.get(id_) and id_ not in mapped]
        certain = {id_: seq for id_, seq in present.items() if id_ not in unsure}
        for id_ in unsure:
            certain[id_] = absent[id_] if id_ in absent and self._made_by(id_, absent[id_]) else -1
        return certain

    def _made_by(self, id_: bytes, seq: int) -> bool:
        """Whether the record of this id came into being with, or was last written by, that queue row."""
        row = self.catalog.connection.execute(
            "SELECT e.seq_id = q.seq_id OR e.created_at >= q.created_at FROM embeddings e, embeddings_queue q "
            "WHERE e.segment_id = ? AND e.embedding_id = ? AND q.seq_id = ?",
            (self.entry.metadata_segment, id_.decode(errors="replace"), seq),
        ).fetchone()
        return bool(row and row[0])

    def _find(self, ids: list[bytes]) -> list[int]:
        return pickles.find(self.ids, hashes(ids)) if ids else []

    def take(self, ids: list[bytes]) -> Salvaged:
        """What there is of these ids."""
        out = np.empty((len(ids), self.dimension), np.float32)
        sources: list[str | None] = [None] * len(ids)
        by_row = {seq: i for i, id_ in enumerate(ids) if (seq := self.queued.get(id_, 0)) > 0}
        for seq, data in self.queue.vectors(np.array(sorted(by_row), np.int64)):
            vector = np.frombuffer(data, "<f4")
            out[by_row[seq]] = hnsw.through_cosine(vector) if self.entry.space == "cosine" else vector
            sources[by_row[seq]] = QUEUE
        found = [(i, int(self.places[at])) for i, at in enumerate(self._find(ids)) if at >= 0]
        found = [(i, place) for i, place in found if place >= 0 and self.queued.get(ids[i], 0) == 0]
        if found and self.header:
            where, places = np.array(found).T
            out[where] = hnsw.read_vectors(self.path, self.header, places, lengths=self.entry.space == "cosine")
            for i in where.tolist():
                sources[i] = INDEX
        good = np.isfinite(out).all(axis=1) if len(ids) else np.zeros(0, bool)
        kept = [i for i, source in enumerate(sources) if source and good[i]]
        names = [id_.decode(errors="replace") for id_ in ids]
        missing = tuple(names[i] for i in sorted(set(range(len(ids))) - set(kept)))
        return Salvaged([names[i] for i in kept], out[kept], [sources[i] or INDEX for i in kept], missing)
