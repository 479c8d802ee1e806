"""Sums: the digest of a collection's records while they stream past, also as a cosine index of Chroma shows them.

A cosine index keeps a vector's direction and length apart, so what it returns is rounded once more than what it was
given. Both digests are kept, so that a copy into such a collection is proven bit for bit all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from chromakeep.batches import Adder, batch, vectors_of
from chromakeep.chroma.hnsw import through_cosine
from chromakeep.digests import Tally, hashes, row_hashes
from chromakeep.records import Definition, Digest

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = list[list[int]]
"""Sums as plain numbers, for a checkpoint."""


class Sums:
    """Of the records added so far: their count, and the two digests. For one thread at a time."""

    def __init__(self, *, rounded: bool, numbers: Numbers | None = None) -> None:
        """``rounded``: whether there is a cosine collection in play. ``numbers``: go on from these."""
        self.count, self.rounded = 0, rounded
        self._tally, self._again = Tally(), Tally()
        if numbers:
            (self.count,) = numbers[0]
            sums: Any = np.array(numbers[1:], np.uint64)
            self._tally.ids, self._tally.vectors, self._tally.documents, self._tally.metadata, self._again.vectors = (
                sums
            )
        self._adder = Adder(self._tally)

    def add(self, records: pa.RecordBatch) -> None:
        """Add the records of a batch."""
        self.count += len(records)
        self._adder.add(records)
        if self.rounded and len(records):
            lanes = hashes([id_.encode() for id_ in records.column("id").to_pylist()])
            vectors, present = vectors_of(as_cosine(records))
            self._again.vectors += (lanes[present] * row_hashes(np.ascontiguousarray(vectors[present]))).sum(axis=0)

    def numbers(self) -> Numbers:
        """What ``numbers`` takes."""
        tally = self._tally
        sums = (tally.ids, tally.vectors, tally.documents, tally.metadata, self._again.vectors)
        return [[self.count], *([int(word) for word in lanes] for lanes in sums)]

    def digest(self) -> Digest:
        """Of the records as they are."""
        return self._tally.digest()

    def equals(self, other: Sums) -> bool:
        """Whether both are of the same records, as they are or as a cosine index shows those of one of the two."""
        if self.count != other.count:
            return False
        pairs = [(self.digest(), other.digest())]
        if self.rounded:
            pairs += [(self._as_shown(), other.digest()), (self.digest(), other._as_shown())]
        return any(one == two for one, two in pairs)

    def _as_shown(self) -> Digest:
        shown = Tally()
        shown.ids, shown.documents, shown.metadata = self._tally.ids, self._tally.documents, self._tally.metadata
        shown.vectors = self._again.vectors
        return shown.digest()


def rounded(*definitions: Definition) -> bool:
    """Whether one of these collections has a cosine index."""
    return "cosine" in [definition.space for definition in definitions]


def as_cosine(records: pa.RecordBatch) -> pa.RecordBatch:
    """The records as a cosine index returns them."""
    vectors, present = vectors_of(records)
    if not present.all() or not vectors.size:
        return records
    id_, document, uri, metadata = (records.column(name) for name in ("id", "document", "uri", "metadata"))
    return batch(id_, through_cosine(vectors), document, uri, metadata, vectors.shape[1])
