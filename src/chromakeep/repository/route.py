"""Route: from which snapshot, and by which segments of the log, a moment is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from chromakeep.changes import CREATED, DELETED, RENAMED, Change, Table
from chromakeep.errors import MissingObject
from chromakeep.records import Collection
from chromakeep.repository import horizon as horizon_
from chromakeep.repository.log import Log, Segment, covering
from chromakeep.repository.moments import SELECTOR, before
from chromakeep.repository.repository import Repository
from chromakeep.repository.snapshots import Snapshot, instant, rfc3339


class Leg(msgspec.Struct, frozen=True):
    """Segments of one epoch behind ``start`` and up to ``stop`` (None: the last), of states later than ``counter``."""

    epoch: int
    start: int
    stop: int | None = None
    counter: int = -1


class Route(msgspec.Struct, frozen=True):
    """A snapshot and what leads from it to the moment, RFC 3339 (None: the newest state there is)."""

    snapshot: Snapshot
    legs: tuple[Leg, ...] = ()
    until: str | None = None

    def changes(self, log: Log) -> Iterator[Change]:
        """The changes to apply, in order. Raises ``MissingObject`` for a gap, ``CorruptObject``."""
        for leg in self.legs:
            for _, segment in log.segments(leg.epoch, leg.start, leg.stop):
                for change in segment.changes:
                    if self.until is not None and change.time > self.until:
                        return
                    if change.counter > leg.counter:
                        yield change

    def collections(self, log: Log) -> tuple[Collection, ...]:
        """Those that there are at the moment, under their names of then; all else of them as the snapshot has it, and
        nothing of one that is younger. Raises as ``changes``."""
        had = {c.id: c for c in self.snapshot.collections}
        named = {c.id: (c.tenant, c.database, c.name) for c in self.snapshot.collections}
        for change in self.changes(log):
            if change.whole:
                named = _named(change.tables)
            for moment in change.moments:
                if moment.kind == DELETED:
                    named.pop(moment.collection, None)
                elif moment.kind in (CREATED, RENAMED):
                    named[moment.collection] = moment.tenant, moment.database, moment.name
        return tuple(
            replace(had[i], tenant=tenant, database=database, name=name)
            if i in had
            else Collection(i, name, tenant, database, 0)
            for i, (tenant, database, name) in named.items()
        )


T = TypeVar("T")
TRIES = 3  # while prunes take away what was listed
Way = tuple[Snapshot, tuple[Leg, ...]]


def find(repository: Repository, selector: str | None) -> Route:
    """What a selector means: ``latest``, an instant and ``before:WHAT`` (``moments.before``) reach through the log, all
    others are a snapshot by itself.

    Raises ``SnapshotNotFound``, ``UsageError``, and for a damaged snapshot ``CorruptObject``.
    """
    log = Log(repository)
    if selector and selector.startswith(SELECTOR):
        selector = before(repository, selector)
    moment = instant(selector) if selector else None
    if selector and moment and any(n.startswith(f"snapshots/{selector}") for n in repository.snapshot_names()):
        moment = None  # the beginning of an id may read like an instant
    if (selector in (None, "latest") or moment) and log.epochs():
        until = rfc3339(moment) if moment else None
        way = undisturbed(repository, lambda: latest(log, repository.readable_snapshots()[0], until))
        if way:
            return way
    return Route(repository.find(selector))


def undisturbed(repository: Repository, look: Callable[[], T]) -> T:
    """What ``look`` finds in snapshots and log while no snapshot comes or goes; as far as they ever rest.

    Else one that was listed may be the newest no more, and the log behind it be gone: it would stand for itself, for a
    state that is older than what there was at any moment.
    """
    for _ in range(TRIES):
        names = repository.snapshot_names()
        found = look()
        if repository.snapshot_names() == names:
            break
    return found


def latest(log: Log, snapshots: Sequence[Snapshot], until: str | None = None) -> Route | None:
    """The way to the newest state not after ``until`` that any of these snapshots, and the log, lead to; None if none
    does.

    An epoch whose snapshots are all gone is passed over for what comes before it, and a snapshot behind which the log
    was taken away stands for itself.
    """
    for _ in range(TRIES):
        ground = Ground(log)
        try:
            return _latest(ground, snapshots, until)
        except MissingObject:
            if not ground.moved():
                raise
    return _latest(Ground(log), snapshots, until)


def _latest(ground: Ground, snapshots: Sequence[Snapshot], until: str | None) -> Route | None:
    usable = [s for s in snapshots if until is None or s.time <= until]
    for epoch in reversed(ground.epochs):
        first = ground.first(epoch)
        if first is None or not first.changes or (until is not None and first.changes[0].time > until):
            continue
        found = ground.through(epoch, usable)
        if found is None:
            continue
        newest = max(usable, key=lambda s: s.id)
        if newest.epoch is None and newest.time > found[0].time and newest.time > _last_time(ground.log, found, until):
            return Route(newest)
        return Route(*found, until if found[1] else None)
    return Route(max(usable, key=lambda s: s.id)) if usable else None


def _named(tables: dict[str, Table]) -> dict[str, tuple[str, str, str]]:
    """Tenant, database and name of each collection, by its id, of a change that holds whole tables."""

    def rows(name: str) -> Iterator[dict[str, object]]:
        if table := tables.get(name):
            yield from (dict(zip(table.columns, row[1:], strict=False)) for row in table.put)

    places = {row.get("id"): (str(row.get("tenant_id")), str(row.get("name"))) for row in rows("databases")}
    return {
        str(row.get("id")): (*places.get(row.get("database_id"), ("", "")), str(row.get("name")))
        for row in rows("collections")
    }


class Ground:
    """The log as it was listed once, and what was read of it to find a way.

    ``settled``: the epoch that is not over is taken as if it ended now, for what must be right whatever comes.
    """

    def __init__(self, log: Log, *, settled: bool = False) -> None:
        self.log, self.settled = log, settled
        self.pieces = log.survey()  # before the horizon is read: so that one tells of all that is gone from here
        self.horizon = horizon_.read(log.repository)
        self.epochs = sorted(self.pieces)
        self._first: dict[int, Segment | None] = {}
        self._end: dict[int, tuple[int, bool]] = {}

    def moved(self) -> bool:
        """Whether part of the log was taken away since."""
        return horizon_.read(self.log.repository) != self.horizon

    def first(self, epoch: int) -> Segment | None:
        """What an epoch begins with; None if it was taken away, or the epoch ended before it began. Raises
        ``MissingObject`` where it should be there: without it what the epoch holds would be passed over in silence."""
        if epoch not in self._first:
            try:
                self._first[epoch] = self.log.read(epoch, 1)
            except MissingObject:
                if epoch >= self.horizon[0]:
                    raise
                self._first[epoch] = None
        return self._first[epoch]

    def end(self, epoch: int) -> tuple[int, bool]:
        """As ``Log.end``."""
        if epoch not in self._end:
            self._end[epoch] = self.log.end_of(self.pieces.get(epoch, ()))
        return self._end[epoch]

    def bound(self, epoch: int, stop: int | None = None) -> int | None:
        """The counter of the last state that counts of an epoch; None while that may still rise.

        Of an epoch that is over, a snapshot may hold more than its log: published after its time, it is refused.
        """
        last, ended = self.end(epoch)
        if not last or not (ended or self.settled or stop is not None):
            return None
        final = self.log.read(epoch, last_whole(self.log, epoch, 1, last if stop is None else stop))
        return final.changes[-1].counter if final and final.changes else None

    def through(self, epoch: int, snapshots: Sequence[Snapshot], stop: int | None = None) -> Way | None:
        """A snapshot that leads through this epoch up to the segment ``stop``, and the legs from it.

        Without ``stop`` the legs are none where the log behind the snapshot was taken away.
        """
        first = self.first(epoch)
        if first is None:
            return None
        bound = self.bound(epoch, stop)
        own = [s for s in snapshots if s.epoch == epoch and (bound is None or s.counter <= bound)]
        if own:
            start = max(own, key=lambda s: (s.counter, s.id))
            stop = self._whole(epoch, start.log_number, stop)
            return self._leg(start, Leg(epoch, start.log_number, stop, start.counter))
        stop = self._whole(epoch, 0, stop)
        if first.base is not None:
            found = next((s for s in snapshots if s.id == first.base), None)
            return self._leg(found, Leg(epoch, 0, stop)) if found else None
        if first.after is None:
            return None
        earlier, number = first.after
        way = self.through(earlier, snapshots, number)
        return (way[0], (*way[1], Leg(epoch, 0, stop))) if way and self._is_there(Leg(epoch, 0, stop)) else None

    def _whole(self, epoch: int, start: int, stop: int | None) -> int | None:
        """Where the last state ends that is there up to ``stop``."""
        return None if stop is None or stop <= start else last_whole(self.log, epoch, start, stop)

    def _leg(self, start: Snapshot, leg: Leg) -> Way | None:
        if self._is_there(leg):
            return start, (leg,)
        return (start, ()) if leg.stop is None else None

    def _is_there(self, leg: Leg) -> bool:
        """Whether nothing of it was taken away. Of one that has no segments nothing can be."""
        last = leg.stop if leg.stop is not None else self.end(leg.epoch)[0]
        return leg.start >= last or (leg.epoch, leg.start + 1) >= self.horizon


def last_whole(log: Log, epoch: int, start: int, last: int) -> int:
    """The last segment behind ``start`` and up to ``last`` that completes a state, else ``start``.

    What a writer that died had begun to put is no state, and whoever took over has built on the one before it.
    """
    while last > start:
        segment = log.read(epoch, last)
        if segment is None or not segment.changes or not segment.changes[-1].more:
            return last
        last -= 1
    return start


def _last_time(log: Log, found: Way, until: str | None) -> str:
    """When the state was that these legs lead to."""
    for leg in found[1][-1:]:
        pieces = log.pieces(leg.epoch)
        last = leg.stop if leg.stop is not None else log.end_of(pieces)[0]
        while last > leg.start:
            piece = covering(pieces, last)
            first = max(piece.first if piece else last, leg.start + 1)
            for _, segment in reversed(list(log.segments(leg.epoch, first - 1, last))):
                for change in reversed(segment.changes):
                    if until is None or change.time <= until:
                        return change.time
            last = first - 1
    return found[0].time
