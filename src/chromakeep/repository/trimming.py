"""Trimming: which part of the log is kept, and taking away the rest.

What is kept reaches without a gap from the horizon to the end. It begins at the oldest snapshot that fine-grained
recovery is wanted behind, and never later than at the snapshot from which the newest state is reached, were the log to
end now: one that holds more than the log has so far does not count, for if its writer dies it will be refused.

Before the horizon stay: of the horizon's own epoch and of each that a kept snapshot is of the first segment and the two
highest objects (on what it builds, where it ends, that it has ended); of any other the highest, for as long as a writer
could sleep that must find its name taken. If a prune dies it leaves the horizon, and the next one goes on.

A writer that begins on a snapshot puts its first segment, and then looks whether that ``stands``. A prune announces
itself, and then looks for such segments before it removes: one of the two sees the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from chromakeep.errors import MissingObject, RepositoryBusy
from chromakeep.repository import horizon as horizon_
from chromakeep.repository import lease
from chromakeep.repository.horizon import Position
from chromakeep.repository.log import Log, Piece
from chromakeep.repository.repository import Repository
from chromakeep.repository.route import Ground
from chromakeep.repository.sessions import open_sessions
from chromakeep.repository.snapshots import Snapshot
from chromakeep.store.base import ObjectInfo

TOMBSTONE_LIFE = 30 * 86400.0  # seconds


class Trim(msgspec.Struct, frozen=True):
    """Where the log is to begin, and the ids of the snapshots that it needs, wanted or not. ``newest``: the highest
    epoch that it had then, 0 if none."""

    horizon: Position
    needed: frozenset[str]
    newest: int


def plan(repository: Repository, snapshots: Sequence[Snapshot], fine: Collection[str]) -> Trim:
    """What the log of these snapshots, oldest first, needs; ``fine`` are the ids of those behind which every moment is
    wanted. Raises ``MissingObject`` / ``CorruptObject`` where damage hides it: then nothing may be removed; and
    ``RepositoryBusy`` where another one takes away what this one looks at."""
    ground = Ground(Log(repository), settled=True)
    try:
        return _plan(repository, ground, snapshots, fine)
    except MissingObject:
        if ground.moved():
            raise RepositoryBusy("another prune has taken over", hint="let it finish") from None
        raise


def _plan(repository: Repository, ground: Ground, snapshots: Sequence[Snapshot], fine: Collection[str]) -> Trim:
    needed = _not_begun(repository, ground, snapshots)
    origin, newest, highest = None, 0, max(ground.epochs, default=0)
    for epoch in reversed(ground.epochs):
        if ground.end(epoch)[0]:
            newest = newest or epoch
            if origin := ground.through(epoch, snapshots):
                break
    if origin is None:
        return Trim(ground.horizon, frozenset(needed), highest)
    # These may come to be what the next epoch builds on.
    bound = ground.bound(newest)
    needed |= {s.id for s in snapshots if s.epoch == newest and bound is not None and s.counter > bound}
    bases = {e: first.base for e in ground.epochs if (first := ground.first(e)) and first.base}
    ways = [origin]
    for one in (s for s in snapshots if s.id in fine):
        if one.epoch is not None and (way := ground.through(one.epoch, snapshots)):
            limit = ground.bound(one.epoch)
            # One that is refused stands for the one that a restore would start from in its place.
            ways.append(way if limit is not None and one.counter > limit else (one, ()))
        else:
            ways.append((one, ()))
    begins: list[Position] = []
    for start, legs in ways:
        needed |= {start.id} if legs else set()
        begins += [(leg.epoch, leg.start + 1) for leg in legs[:1]]
        if start.epoch is not None:
            begins.append((start.epoch, start.log_number + 1))
        begins += [(epoch, 1) for epoch, base in bases.items() if base == start.id]
    needed.add(origin[0].id)
    horizon = max(min(begins), ground.horizon) if begins else ground.horizon
    needed |= {base for epoch, base in bases.items() if (epoch, 1) >= horizon}
    return Trim(horizon, frozenset(needed & {s.id for s in snapshots}), highest)


def _not_begun(repository: Repository, ground: Ground, snapshots: Sequence[Snapshot]) -> set[str]:
    """While a writer has taken its epoch and put nothing yet, it may be about to build on the newest of its source."""
    taken = lease.newest(repository)
    if not taken or taken in ground.pieces:
        return set()
    return set({s.source: s.id for s in snapshots}.values())


def stands(repository: Repository, base: str) -> bool:
    """Whether a snapshot on which the first segment of an epoch was just put is there, and no prune may still remove it
    that has not seen that segment. One that began before the snapshot does not know it."""
    for identity, info in open_sessions(repository).items():
        if identity > base and (info is None or info.kind == "prune"):
            return False
    return f"snapshots/{base}" in repository.snapshot_names()  # not what was read before


class Trimming:
    """The removal of what a plan does not need. ``kept``: the snapshots that stay."""

    def __init__(self, repository: Repository, plan: Trim, kept: Sequence[Snapshot]) -> None:
        self.repository, self.horizon, self._newest = repository, plan.horizon, plan.newest
        self._marked = {s.epoch for s in kept if s.epoch is not None}

    def declare(self, remove: Collection[str]) -> None:
        """Before anything goes that others may rely on. Where the horizon stays what it was there is nothing to say.

        Raises ``RepositoryBusy`` where a writer has begun since the plan on one of the snapshots ``remove``.
        """
        log = Log(self.repository)
        for epoch in log.epochs():
            if epoch > self._newest and (first := log.read(epoch, 1)) and first.base in remove:
                raise RepositoryBusy("a writer has just begun on a snapshot that would go", hint="run it again")
        if self.horizon > max(horizon_.START, horizon_.read(self.repository)):
            horizon_.declare(self.repository, self.horizon)

    def doomed(self, now: float) -> list[ObjectInfo]:
        """What goes, in the order in which it has to; ``now`` by the store's clock."""
        found: list[ObjectInfo] = []
        survey = Log(self.repository).survey()
        for epoch, pieces in survey.items():
            if epoch <= self.horizon[0]:
                marked = epoch in self._marked or epoch == self.horizon[0]
                found += [ObjectInfo(p.name, p.size, p.modified) for p in self._before(pieces, marked, now)]
        taken = lease.name_of(lease.newest(self.repository))
        found += [o for o in self.repository.store.list(lease.PREFIX) if o.name < taken]
        mark = horizon_.name_of(self.horizon)
        return found + [o for o in self.repository.store.list(horizon_.PREFIX) if o.name < mark]

    def _before(self, pieces: Sequence[Piece], marked: bool, now: float) -> Iterator[Piece]:
        top = max(p.last for p in pieces)
        for piece in pieces:
            if (piece.epoch, piece.last) >= self.horizon:
                continue
            if marked:
                stays = piece.first == 1 or piece.last >= top - 1
            else:
                stays = piece.last == top and now - piece.modified < TOMBSTONE_LIFE
            if not stays:
                yield piece

    def sweep(self, now: float) -> tuple[int, int]:
        """Delete it; how many objects and bytes of the log went. The first segment of an epoch goes before all others
        of it: an epoch of which that is gone is passed over, and not taken for a shorter one."""
        doomed = self.doomed(now)
        with ThreadPoolExecutor(8, thread_name_prefix="trim") as pool:
            for opening in (True, False):
                names = [o.name for o in doomed if o.name.endswith(f"/{1:010d}") is opening]
                list(pool.map(self.repository.store.delete, names))
        return len(doomed), sum(o.size for o in doomed)
