"""What a set of snapshots needs: the mark of mark and sweep, and the walk of a check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.snapshots import Snapshot

BATCH = 1024  # span maps decoded at a time


class Needs(msgspec.Struct):
    """Ids of span lists, of spans (their maps), and of blocks with the units of each that are needed."""

    lists: set[bytes] = msgspec.field(default_factory=set)
    spans: set[bytes] = msgspec.field(default_factory=set)
    blocks: dict[bytes, npt.NDArray[np.bool_]] = msgspec.field(default_factory=dict)

    def __contains__(self, identity: bytes) -> bool:
        return identity in self.blocks or identity in self.spans or identity in self.lists

    def __iter__(self) -> Iterator[bytes]:
        yield from self.lists
        yield from self.spans
        yield from self.blocks


def needs(reader: SnapshotReader, snapshots: Iterable[Snapshot]) -> Needs:
    """Everything the snapshots need. Memory: a byte for each unit, some MiB for each GB of directory.

    Reads every map (about 0.5 % of the data). Raises ``MissingObject`` / ``CorruptObject`` where one is not to be had:
    what is needed cannot be known then, and nothing may be deleted.
    """
    found = Needs(lists={file.spans for s in snapshots for file in s.files})
    for batch in batches(found.lists):
        for listing in reader.blocks(batch).values():
            found.spans.update(listing[i : i + 32] for i in range(0, len(listing), 32))
    for batch in batches(found.spans):
        for one in reader.maps(batch).values():
            for number, identity in enumerate(one.blocks):
                slots = one.slot[one.block == number]
                _mark(found.blocks, identity, slots, -(-reader.place(identity).length // one.unit))
    return found


def _mark(
    blocks: dict[bytes, npt.NDArray[np.bool_]], identity: bytes, slots: npt.NDArray[np.uint32], units: int
) -> None:
    used = blocks.get(identity)
    if used is None:
        used = blocks[identity] = np.zeros(units, dtype=bool)
    used[slots[slots < units]] = True  # a slot beyond the block is damage, which reading the span will name


def batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Sorted ids, some at a time."""
    ordered = sorted(ids)
    for first in range(0, len(ordered), BATCH):
        yield ordered[first : first + BATCH]
