"""Route: from which snapshot, and by which segments of the log, a moment is reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chromakeep.changes import Change
from chromakeep.errors import MissingObject
from chromakeep.repository.log import Log, Segment
from chromakeep.repository.moments import SELECTOR, before
from chromakeep.repository.repository import Repository
from chromakeep.repository.snapshots import Snapshot, instant, rfc3339


@dataclass(frozen=True, slots=True)
class Leg:
    """Segments of one epoch behind ``start`` and up to ``stop`` (None: the last), of states later than ``counter``."""

    epoch: int
    start: int
    stop: int | None = None
    counter: int = -1


@dataclass(frozen=True, slots=True)
class Route:
    """A snapshot and what leads from it to the moment, RFC 3339 (None: the newest state there is)."""

    snapshot: Snapshot
    legs: tuple[Leg, ...] = ()
    until: str | None = None

    def changes(self, log: Log) -> Iterator[Change]:
        """The changes to apply, in order. Raises ``MissingObject`` for a gap, ``CorruptObject``."""
        for leg in self.legs:
            for number, segment in log.segments(leg.epoch, leg.start):
                if leg.stop is not None and number > leg.stop:
                    break
                for change in segment.changes:
                    if self.until is not None and change.time > self.until:
                        return
                    if change.counter > leg.counter or change.whole:
                        yield change


def find(repository: Repository, selector: str | None) -> Route:
    """What a selector means: ``latest``, an instant and ``before:WHAT`` (``moments.before``) reach through the log, all
    others are a snapshot by itself.

    Raises ``SnapshotNotFound``, ``UsageError``, and for a damaged snapshot ``CorruptObject``.
    """
    log = Log(repository)
    if selector and selector.startswith(SELECTOR):
        selector = before(repository, selector)
    moment = instant(selector) if selector else None
    if (selector in (None, "latest") or moment) and log.epochs():
        readable, _ = repository.readable_snapshots()
        way = latest(log, readable, rfc3339(moment) if moment else None)
        if way:
            return way
    return Route(repository.find(selector))


def latest(log: Log, snapshots: Sequence[Snapshot], until: str | None = None) -> Route | None:
    """The way to the newest state not after ``until`` that any of these snapshots, and the log, lead to; None if none
    does.

    An epoch whose snapshots are all gone is passed over for what comes before it.
    """
    usable = [s for s in snapshots if until is None or s.time <= until]
    for epoch in reversed(log.epochs()):
        first = _first(log, epoch)
        if first is None or not first.changes or (until is not None and first.changes[0].time > until):
            continue
        found = _through(log, epoch, first, usable, None)
        if found is None:
            continue
        newest = max(usable, key=lambda s: (s.time, s.id))
        alone = newest.epoch is None and newest.time > _last_time(log, found, until)
        return Route(newest) if alone else Route(*found, until)
    return Route(max(usable, key=lambda s: (s.time, s.id))) if usable else None


def _through(
    log: Log, epoch: int, first: Segment, snapshots: Sequence[Snapshot], stop: int | None
) -> tuple[Snapshot, tuple[Leg, ...]] | None:
    """A snapshot that leads through this epoch up to the segment ``stop``, and the legs from it."""
    last, ended = log.end(epoch)
    last = last if stop is None else stop
    # Of an epoch that is over, a snapshot may hold more than its log: published after its time, it is refused.
    final = log.read(epoch, last_whole(log, epoch, 1, last)) if ended or stop is not None else None
    bound = final.changes[-1].counter if final and final.changes else None
    own = [s for s in snapshots if s.epoch == epoch and (bound is None or s.counter <= bound)]
    if own:
        start = max(own, key=lambda s: (s.counter, s.id))
        if stop is not None:
            stop = last_whole(log, epoch, start.log_number, stop)
        return start, (Leg(epoch, start.log_number, stop, start.counter),)
    if stop is not None:
        stop = last_whole(log, epoch, 0, stop)
    if first.base is not None:
        found = next((s for s in snapshots if s.id == first.base), None)
        return (found, (Leg(epoch, 0, stop),)) if found else None
    if first.after is None:
        return None
    earlier, number = first.after
    opening = _first(log, earlier)
    way = _through(log, earlier, opening, snapshots, number) if opening else None
    return (way[0], (*way[1], Leg(epoch, 0, stop))) if way else None


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


def _first(log: Log, epoch: int) -> Segment | None:
    try:
        return log.read(epoch, 1)
    except MissingObject:
        return None


def _last_time(log: Log, found: tuple[Snapshot, tuple[Leg, ...]], until: str | None) -> str:
    """When the state was that these legs lead to."""
    leg = found[1][-1]
    last = leg.stop if leg.stop is not None else log.end(leg.epoch)[0]
    while last > leg.start:
        segment = log.read(leg.epoch, last)
        for change in reversed(segment.changes if segment else ()):
            if until is None or change.time <= until:
                return change.time
        last -= 1
    return found[0].time
