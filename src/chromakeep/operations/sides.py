"""Sides: one collection in two places, and which of its records differ, by a hash of each; in constant memory.

A record also equals another one of which Chroma's rounding (``chroma.rounding``), once or twice, makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma.rounding import as_returned
from chromakeep.chroma.spool import Spool, cuts, within
from chromakeep.conditions import Where
from chromakeep.events import Observer, RecordsMoved
from chromakeep.records import Definition, Source
from chromakeep.sets import among, without
from chromakeep.tallying import each_record

if TYPE_CHECKING:
    import pyarrow as pa

Words = NDArray[np.uint64]  # (n,): of each id the first word of its hash


class Side(msgspec.Struct, frozen=True):
    """One collection of the two, as it is read. ``name``: what observers are told."""

    source: Source
    definition: Definition
    name: str
    where: Where | None
    observer: Observer

    def read(self, phase: str) -> Iterator[pa.RecordBatch]:
        """All its records that satisfy ``where``."""
        done = 0
        for some, _ in self.source.batches(self.definition, where=self.where):
            done += len(some)
            self.observer(RecordsMoved(phase, self.name, done, self.definition.count))
            yield some

    def hashes(self, phase: str, *, cosine: bool, folder: Path | None) -> Spool:
        """Of every record: a word of its id's hash, of the hash of all it holds, and of that as Chroma would return it,
        given to it in its own process and over HTTP, where floats are rounded twice; ``cosine``: out of a cosine
        index."""
        found = Spool(np.uint64, folder, width=4)
        for some in self.read(phase):
            hashed = each_record(some)
            shown = as_returned(some, cosine=cosine)
            again = hashed if shown is some else each_record(shown)
            twice = shown if shown is some else as_returned(shown, cosine=False)
            last = again if twice is shown else each_record(twice)
            found.add(np.stack([hashed[:, 0, 0], hashed[:, 1, 0], again[:, 1, 0], last[:, 1, 0]], axis=1))
        return found


class Apart(NamedTuple):
    """Of one range of ids the words of those that only the first has, that only the second has, and whose records
    differ, or of which one has more than the other; each ascending."""

    missing: Words
    extra: Words
    differing: Words


def apart(left: Spool, right: Spool) -> Iterator[Apart]:
    """What differs between two collections, from the ``hashes`` of each, range by range, ascending."""
    for low, high in cuts(left if len(left) >= len(right) else right):
        (here,), (there,) = within(low, high, left), within(low, high, right)
        here, there = here[np.argsort(here[:, 0])], there[np.argsort(there[:, 0])]
        known = among(here[:, 0], there[:, 0])
        mine = here[known]
        theirs = there[np.minimum(np.searchsorted(there[:, 0], mine[:, 0]), max(len(there) - 1, 0))]
        same = (mine[:, 1:] == theirs[:, 1:2]).any(axis=1) | (mine[:, 1:2] == theirs[:, 1:]).any(axis=1)
        strange = there[~among(there[:, 0], here[:, 0]), 0]
        twice, again = (words[1:][words[1:] == words[:-1]] for words in (here[:, 0], there[:, 0]))
        uneven = [] if np.array_equal(twice, again) else [twice, again]
        differing = without(np.concatenate([mine[~same, 0], *uneven]), np.concatenate([here[~known, 0], strange]))
        yield Apart(here[~known, 0], strange, differing)
