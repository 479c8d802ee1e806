"""Pursuit: the log as it grows, read from a position on, one whole state after another."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from chromakeep.changes import Change
from chromakeep.errors import ChromakeepError, MissingObject
from chromakeep.repository.log import Log, Segment, name_of
from chromakeep.repository.route import Leg, Route, last_whole

LOOK_ROUND = 25  # tries in vain after which the log is listed: what is gone is not waited for for ever


class FellBehind(ChromakeepError):
    """The log goes on from something else than what was read, or what is next is gone: a restore leads there."""

    def __init__(self, epoch: int, number: int) -> None:
        super().__init__(f"{name_of(epoch, number)} does not follow what was read before it")


class Stretch(msgspec.Struct, frozen=True):
    """What leads to one state: ``last`` completes it, ``before`` reads again from the store what it continues."""

    log: Log
    last: Change
    parts: tuple[tuple[int, int, int], ...] = ()  # epoch, number, and which change of that segment

    @property
    def before(self) -> Iterator[Change]:
        """The changes that ``last`` continues, in order, one segment in memory at a time."""
        for epoch, number, which in self.parts:
            segment = self.log.read(epoch, number)
            if segment is None:
                raise MissingObject(name_of(epoch, number))
            yield segment.changes[which]


class Pursuit:
    """Behind the last segment that was read, ``at``: epoch and number. Not for several threads.

    ``whole`` is false while the last change read is continued by one not yet there. What is never continued, because
    its writer ended, is left out, as a restore does.
    """

    def __init__(self, log: Log, leg: Leg, at: int) -> None:
        """From a directory that was restored up to the segment ``at`` of this leg (``settled``)."""
        self._log, self._counter = log, leg.counter
        segment = log.read(leg.epoch, at) if at else None
        self._reached = segment.changes[-1].counter if segment and segment.changes else -1
        self.at = leg.epoch, at
        self._parts: list[tuple[int, int, int]] = []
        self._ready: list[Stretch] = []
        self._over = False
        self._vain = 0
        self._run: Iterator[tuple[int, Segment]] = iter(())

    @property
    def whole(self) -> bool:
        """Whether no state is begun that is not ended."""
        return not self._parts

    def next(self, *, thorough: bool = False) -> Stretch | None:
        """What leads to the next state; None where the log has no more for now.

        What was merged while one fell behind is found now and then; ``thorough``: at once, by a listing.

        Raises ``FellBehind``, ``CorruptObject``, ``StoreError``. After any of these but ``StoreError`` there is no
        going on.
        """
        while not self._ready:
            if not self._read(thorough):
                return None
        return self._ready.pop(0)

    def _read(self, thorough: bool) -> bool:
        epoch, number = self.at
        if self._over:
            return self._enter()
        try:
            segment = self._next(epoch, number + 1, thorough)
        except MissingObject:
            return False
        self._vain = 0
        if segment is None:
            if self._reached < self._counter:  # the snapshot has what its writer did not come to put into the log
                raise FellBehind(epoch, number + 1)
            self._over = True
            self._parts.clear()
            return self._enter()
        self._take(epoch, number + 1, segment)
        return True

    def _next(self, epoch: int, number: int, thorough: bool) -> Segment | None:
        """A segment, None for a tombstone. Raises ``MissingObject`` for one that is not there yet."""
        if found := next(self._run, None):
            return found[1]
        try:
            return self._log.read(epoch, number, merged=False)
        except MissingObject:
            self._vain += 1
            if not thorough and self._vain % LOOK_ROUND:
                raise
            self._look_round()
            # What was merged is read as a run: each object once, however many segments it holds.
            self._run = self._log.segments(epoch, number - 1)
            if found := next(self._run, None):
                return found[1]
            raise

    def _take(self, epoch: int, number: int, segment: Segment) -> None:
        self.at = epoch, number
        for which, change in enumerate(segment.changes):
            if change.more:
                self._parts.append((epoch, number, which))
                continue
            parts, self._parts = tuple(self._parts), []
            self._reached = change.counter
            if change.counter > self._counter:
                self._ready.append(Stretch(self._log, change, parts))

    def _look_round(self) -> None:
        """See whether what is waited for was taken away: then there are later ones, or none at all."""
        epoch, number = self.at
        numbers = self._log.numbers(epoch)
        later = [n for n in numbers if n > number]
        if (later and later[0] != number + 1) or (not numbers and self._later()):
            raise FellBehind(epoch, number + 1)

    def _later(self) -> list[int]:
        return [epoch for epoch in self._log.epochs() if epoch > self.at[0]]

    def _enter(self) -> bool:
        """Go on in the epoch that builds on the end of this one, once it has begun."""
        for epoch in self._later():
            try:
                first = self._log.read(epoch, 1)
            except MissingObject:
                return False
            if first is None:
                continue  # it was taken and given up before anything was written
            if first.after != self.at:
                raise FellBehind(epoch, 1)
            self._counter, self._reached, self._over, self._run = -1, -1, False, iter(())
            self._take(epoch, 1, first)
            return True
        return False


def settled(log: Log, way: Route) -> tuple[Route, Leg, int] | None:
    """A way to the last whole state that the log has now, the leg to pursue from there and the segment reached.

    None where no log leads on from the snapshot.
    """
    if not way.legs or way.until is not None:
        return None
    leg = way.legs[-1]
    last = last_whole(log, leg.epoch, leg.start, leg.stop if leg.stop is not None else log.end(leg.epoch)[0])
    return replace(way, legs=(*way.legs[:-1], replace(leg, stop=last))), leg, last
