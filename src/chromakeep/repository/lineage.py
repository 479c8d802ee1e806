"""Lineage: which directories the newest state of the log was handed down through, from one instance to the next."""

from __future__ import annotations

from collections.abc import Sequence

from chromakeep.errors import MissingObject
from chromakeep.repository.log import Log
from chromakeep.repository.snapshots import Snapshot


def lineage(log: Log, snapshots: Sequence[Snapshot]) -> set[str]:
    """Their sources. An epoch belongs to it if a later one builds on it, or was written from the same directory.

    Costs one get an epoch, and only as many as it takes to find all sources of these snapshots.
    """
    wanted = {s.source for s in snapshots}
    sources = {s.id: s.source for s in snapshots}
    found: set[str] = set()
    before: int | None = None  # the epoch that a later one goes on from
    for epoch in reversed(log.epochs() if len(wanted) > 1 else []):
        if wanted <= found:
            break
        try:
            first = log.read(epoch, 1)
        except MissingObject:
            break  # taken away, with all before it
        if first is None or first.source is None:
            continue  # ended before it began
        if found and epoch != before and first.source not in found:
            continue
        found.add(first.source)
        if first.base in sources:
            found.add(sources[first.base])
        if first.after:
            before = first.after[0]
    return found
