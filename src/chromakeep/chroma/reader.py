"""Read the records of one collection straight from its files, as ``collection.get`` would return them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import hnsw
from chromakeep.chroma.catalog import Catalog, Entry, untrusted_rows
from chromakeep.chroma.columns import read_columns
from chromakeep.chroma.metadata import Records
from chromakeep.chroma.places import Places
from chromakeep.chroma.queue import Queue
from chromakeep.chroma.vectors import Vectors
from chromakeep.digests import hashes
from chromakeep.errors import SourceBroken

PORTION = 2048


class Portion(msgspec.Struct, frozen=True, eq=False):
    """Some records; position ``i`` is one record throughout. ``vectors`` is (n, dimension) float32.

    Metadata values are str, int, float, bool or a list of one of them; None where there is no metadata at all.
    """

    ids: list[str]
    vectors: NDArray[np.float32]
    documents: list[str | None]
    uris: list[str | None]
    metadatas: list[dict[str, Any] | None]


def read_collection(directory: Path, collection: str | Entry, *, portion: int = PORTION) -> Iterator[Portion]:
    """All records of a collection, in the order of ``collection.get``, ``portion`` at a time and no more in memory.

    ``collection`` is its id or catalog entry; the directory must be at rest. Vectors are bit for bit those that Chroma
    returns, except that queued vectors of a cosine collection may differ in the last place on machines other than
    x86-64 (see ``hnsw.through_cosine``). Raises UsageError for an unknown collection, SourceBroken when any record
    cannot be read exactly.
    """
    with Catalog(directory) as catalog, untrusted_rows():
        records, vectors = open_collection(catalog, collection)
        for row in records.poisoned + vectors.poisoned + vectors.misfits:
            raise SourceBroken(f"queue row {row.seq} stops Chroma: {row.poison or 'its vector has another dimension'}")
        index = Index(vectors)
        for some in read_columns(records, portion):
            ids = [id_.decode() for id_ in some.ids]
            yield Portion(ids, index.vectors(some.ids), some.documents, some.uris, some.metadatas)


def read_vectors(directory: Path, collection: str | Entry) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Ids and vectors only, as ``read_collection`` gives them."""
    with Catalog(directory) as catalog, untrusted_rows():
        records, vectors = open_collection(catalog, collection)
        index = Index(vectors)
        for ids in records.id_portions(PORTION):
            yield [id_.decode() for id_ in ids], index.vectors(ids)


def open_collection(catalog: Catalog, collection: str | Entry) -> tuple[Records, Vectors]:
    """The two sides of a collection. Raises UsageError when the catalog has none of that id."""
    entry, queue = catalog.entry(collection), Queue(catalog.connection, catalog.directory)
    return Records(catalog, entry, queue), Vectors(catalog.directory, entry, queue)


class Index:
    """Random access to the vectors of a sound collection by id."""

    def __init__(self, vectors: Vectors) -> None:
        """Passes once over the index. Raises SourceBroken when it has faults."""
        self.held = vectors
        seen = vectors.check()
        for fault in vectors.faults:
            raise SourceBroken(fault.message)
        self.places = Places(vectors, seen)
        cosine = vectors.entry.space == "cosine"
        self.mapped = hnsw.Mapped(vectors.path, vectors.header, lengths=cosine) if vectors.header else None

    def vectors(self, ids: list[bytes]) -> NDArray[np.float32]:
        """The vectors of these ids, (n, dimension). Raises SourceBroken when one has none."""
        held = self.held
        out = np.empty((len(ids), held.entry.dimension or 0), np.float32)
        alive = held.replay.alive
        queued = {id_: i for i, id_ in enumerate(ids) if alive.get(id_)} if alive else {}
        for id_, vector in held.queued(set(queued)) if queued else ():
            out[queued[id_]] = vector
        rest = np.array([i for i, id_ in enumerate(ids) if id_ not in queued], np.int64)
        sought = [ids[i] for i in rest.tolist()] if queued else ids
        places = self.places.find(hashes(sought))
        if len(lost := np.flatnonzero(places < 0)):
            raise SourceBroken(f"{sought[lost[0]].decode()} has no vector in index or queue")
        if self.mapped and len(places):
            out[rest] = self.mapped.take(places)
        return out
