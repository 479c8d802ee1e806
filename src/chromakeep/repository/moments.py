"""Moments: what happened in a repository's log that one may want to go back to, and the instant just before it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec
from msgspec.structs import replace

from chromakeep.changes import CREATED, DELETED, RENAMED, WROTE, Moment
from chromakeep.errors import MissingObject, SnapshotNotFound
from chromakeep.repository import horizon
from chromakeep.repository.log import Log
from chromakeep.repository.repository import Repository

IMPORT, REMOVAL = "imported", "removed"
MANY = 100  # records that make a write worth telling
BURST = 10.0  # seconds without a write that end an import, or the removal of many records
SELECTOR = "before:"


class Happening(msgspec.Struct, frozen=True):
    """``kind``: a collection ``created``, ``deleted`` or ``renamed`` (to ``name``), records ``imported`` (added or
    replaced) or ``removed`` (``records`` of them, from ``time`` to ``until``).

    ``before`` is the instant of the last state without it: what follows ``@`` to go back there. RFC 3339, UTC.
    """

    time: str
    until: str
    before: str
    kind: str
    tenant: str
    database: str
    name: str
    collection: str
    records: int = 0


def happenings(repository: Repository, *, many: int = MANY) -> list[Happening]:
    """All of them that the log still holds, oldest first. Raises ``CorruptObject`` for a damaged segment."""
    found: list[Happening] = []
    running: dict[tuple[str, str], Happening] = {}  # by kind and collection: imports and removals that may go on

    def over(keys: list[tuple[str, str]]) -> None:
        found.extend(ended for key in keys if (ended := running.pop(key)).records >= many)

    for time, before, moment in _moments(repository):
        over([key for key, one in running.items() if _seconds(one.until, time) > BURST])
        where = moment.tenant, moment.database, moment.name, moment.collection
        if moment.kind in (CREATED, DELETED, RENAMED):
            over([key for key in running if key[1] == moment.collection])
            found.append(Happening(time, time, before, moment.kind, *where))
        elif moment.kind == WROTE:
            for kind, records in ((IMPORT, moment.added), (REMOVAL, moment.deleted)):
                if records:
                    one = running.get((kind, moment.collection)) or Happening(time, time, before, kind, *where)
                    running[kind, moment.collection] = replace(one, until=time, records=one.records + records)
    over(list(running))
    return sorted(found, key=lambda one: (one.time, one.kind))


def before(repository: Repository, text: str) -> str:
    """The instant that ``before:WHAT`` means: ``NAME-KIND`` (``books-deleted``: the last time that happened),
    ``collection-KIND``, for any collection, or ``KIND`` alone; letters of any case. Raises ``SnapshotNotFound``.
    """
    name, _, kind = text.removeprefix(SELECTOR).rpartition("-")
    for one in reversed(happenings(repository)):
        same = not name or name.lower() == "collection" or name in (one.name, one.collection)
        if same and one.kind == kind.lower():
            return one.before
    raise SnapshotNotFound(f"the log knows no {text}", hint="see what it knows: chromakeep history REPO")


def _moments(repository: Repository) -> Iterator[tuple[str, str, Moment]]:
    """Time, time of the state before, and moment, from the horizon on; but for what a prune takes away meanwhile."""
    log, last = Log(repository), ""
    begins, number = horizon.read(repository)
    for epoch in log.epochs():
        try:
            for _, segment in log.segments(epoch, number - 1 if epoch == begins else 0) if epoch >= begins else ():
                for change in segment.changes:
                    for moment in change.moments:
                        yield change.time, last or change.time, moment
                    if not change.more:
                        last = change.time
        except MissingObject:
            continue


def _seconds(start: str, end: str) -> float:
    first, last = (datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (start, end))
    return (last - first).total_seconds()
