"""Which blocks a set of snapshots needs: the mark of mark and sweep, and the walk of a check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.snapshots import Snapshot

BATCH = 2048  # span maps decoded at a time


def live(reader: SnapshotReader, snapshots: Iterable[Snapshot]) -> set[bytes]:
    """Ids of all span lists, span maps and blocks the snapshots need.

    Reads every map (about 0.5 % of the data). Raises ``MissingObject`` / ``CorruptObject`` where one is not to be had:
    what is needed cannot be known then, and nothing may be deleted.
    """
    lists = {file.spans for s in snapshots for file in s.files}
    spans: set[bytes] = set()
    for batch in _batches(lists):
        for listing in reader.blocks(batch).values():
            spans.update(listing[i : i + 32] for i in range(0, len(listing), 32))
    blocks: set[bytes] = set()
    for batch in _batches(spans):
        for found in reader.maps(batch).values():
            blocks.update(found.blocks)
    return lists | spans | blocks


def _batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    ordered = sorted(ids)
    for first in range(0, len(ordered), BATCH):
        yield ordered[first : first + BATCH]
