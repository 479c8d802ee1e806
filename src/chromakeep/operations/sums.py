"""Sums: the digest of a collection's records while they stream past, and the digest that Chroma would show of them.

Chroma rounds some of what it is given (``chroma.rounding``): the last bit of one float in ten of its metadata, and all
vectors of a cosine index. Both digests are kept, so that a copy into it is proven all the same, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from chromakeep.chroma.rounding import as_returned
from chromakeep.digests import Lanes, Tally
from chromakeep.records import Definition, Digest
from chromakeep.tallying import Adder

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = list[list[int]]
"""Sums as plain numbers, for a checkpoint."""

_NAMES = ("ids", "vectors", "documents", "metadata")


class Sums:
    """Of the records added so far: their count, and the two digests. For one thread at a time."""

    def __init__(self, *, cosine: bool, numbers: Numbers | None = None) -> None:
        """``cosine``: whether a collection with a cosine index is in play. ``numbers``: go on from these."""
        self.count, self._cosine = 0, cosine
        self._tally, self._shown = Tally(), Tally()
        if numbers:
            (self.count,) = numbers[0]
            sums: Any = np.array(numbers[1:], np.uint64)
            for tally, some in ((self._tally, sums[:4]), (self._shown, sums[4:])):
                for name, lanes in zip(_NAMES, some, strict=True):
                    setattr(tally, name, lanes)
        self._adder, self._again = Adder(self._tally), Adder(self._shown)

    def add(self, records: pa.RecordBatch) -> None:
        """Add the records of a batch."""
        if not len(records):
            return
        self.count += len(records)
        before = _words(self._tally)
        self._adder.add(records)
        shown = as_returned(records, cosine=self._cosine)
        if shown is records:  # nearly always, where there is no cosine index
            for name, old in zip(_NAMES, before, strict=True):
                setattr(self._shown, name, getattr(self._shown, name) + getattr(self._tally, name) - old)
        else:
            self._again.add(shown)

    def numbers(self) -> Numbers:
        """What ``numbers`` takes."""
        words = [*_words(self._tally), *_words(self._shown)]
        return [[self.count], *([int(word) for word in lanes] for lanes in words)]

    def digest(self) -> Digest:
        """Of the records as they are."""
        return self._tally.digest()

    def equals(self, other: Sums) -> bool:
        """Whether both are of the same records, as they are or as Chroma returns those of one of the two."""
        return self.count == other.count and (self.digest() == other.digest() or self.rounds_to(other))

    def rounds_to(self, other: Sums) -> bool:
        """Whether what Chroma makes of one of the two is the other."""
        return self._shown.digest() == other.digest() or self.digest() == other._shown.digest()


def _words(tally: Tally) -> list[Lanes]:
    return [getattr(tally, name).copy() for name in _NAMES]


def in_cosine(*definitions: Definition) -> bool:
    """Whether one of these collections has a cosine index."""
    return "cosine" in [definition.space for definition in definitions]
