"""Creation order: whose element is whose when a kill has torn the only id map.

Chroma gives labels and makes the rows of ``embeddings`` in one order, that of the queue, and a record that is deleted
and added again gets a new one of both (rust/segment/src/local_hnsw.rs and sqlite_metadata.rs). A kill in the last step
of a persist, the pickle, leaves all elements written and the records' segment at the same queue row. Then the living
elements by label and the records by row are the same records in the same order.

That is believed only where it can be seen to hold: as many elements as records, and every vector that is known from
elsewhere (at least the queue has those of the persist, whose newest are the last in the order) in its place. An element
too many or too few anywhere would shift them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import hnsw
from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.queue import ADD, UPSERT, Queue
from chromakeep.errors import SourceBroken
from chromakeep.sets import distinct

ROUNDING = 1e-5  # relative, of a cosine index, which keeps direction and length apart
WITNESSES = 3  # known vectors without which nothing is believed
PORTION = 2048

Batch = tuple[list[str], NDArray[np.float32]]


def salvage_by_order(directory: Path, collection_id: str, known: Mapping[str, NDArray[np.float32]]) -> Iterator[Batch]:
    """Ids and vectors of all records, or nothing at all where the order is not borne out by the ``known`` vectors."""
    with Catalog(directory) as catalog, suppress(SourceBroken, OSError):
        entry = catalog.entry(collection_id)
        segment = directory / (entry.vector_segment or "missing")
        cosine = entry.space == "cosine"
        header = hnsw.read_header(segment)
        rows = catalog.connection.execute(
            "SELECT CAST(embedding_id AS BLOB) FROM embeddings WHERE segment_id = ? ORDER BY id",
            (entry.metadata_segment,),
        )
        ids = [id_.decode() for (id_,) in rows]
        queue = Queue(catalog.connection)
        later = {row.id.decode() for row in queue.rows(queue.pending(entry.topic, entry.metadata_seq))}
        pending = list(queue.rows(queue.pending(entry.topic, entry.vector_seq or 0)))
        labels, living = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for part in hnsw.elements(segment, header, lengths=False):
            living = np.append(living, len(labels) + np.flatnonzero(~part.deleted))
            labels = np.append(labels, part.labels)
        places = living[np.argsort(labels[living], kind="stable")]
        if excess := len(ids) - len(places):
            # Torn between persists: what was added since has a row and no element, what was updated an old one.
            added = {row.id.decode() for row in pending if row.operation in (ADD, UPSERT)}
            if excess < 0 or not added.issuperset(ids[-excess:]):
                return
            ids, later = ids[:-excess], {row.id.decode() for row in pending}
        if len(distinct(labels[living])) != len(living):
            return
        at = {id_: n for n, id_ in enumerate(ids)}
        witnesses = [id_ for id_ in known if id_ in at and id_ not in later]
        if len(witnesses) < min(WITNESSES, len(ids)):
            return
        for start in range(0, len(witnesses), PORTION):
            some = witnesses[start : start + PORTION]
            have = hnsw.read_vectors(segment, header, places[[at[i] for i in some]], lengths=cosine)
            want = np.stack([known[i] for i in some])
            scale = np.abs(want).max(axis=1, keepdims=True) * ROUNDING if cosine else 0.0
            if not (np.abs(have - want) <= scale).all():
                return
        for start in range(0, len(ids), PORTION):
            some = ids[start : start + PORTION]
            yield some, hnsw.read_vectors(segment, header, places[start : start + PORTION], lengths=cosine)
