"""What of the log a prune keeps: every moment that was asked for, the newest state, and all that leads there."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from chromakeep.errors import CorruptObject, LeaseLost, MissingObject, RepositoryBusy
from chromakeep.operations.check import check
from chromakeep.operations.prune import PruneReport, Retention, prune
from chromakeep.operations.unlock import unlock
from chromakeep.repository import Repository, collector, horizon, merging, sessions, trimming
from chromakeep.repository.lease import Lease, newest
from chromakeep.repository.log import Log, Segment, name_of
from chromakeep.repository.merging import merge
from chromakeep.repository.route import Route, find, latest
from chromakeep.repository.sessions import Session
from chromakeep.repository.snapshots import Snapshot, encode
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from chromakeep.testing.faults import Died, FaultyStore
from operations.worlds import copied
from repository.interleaving import Actor
from repository.logs import at, change, names, snapshot
from repository.test_collection import Interrupted


class Life:
    """A database that lives on: the state after change n is "state n", made in second n, in whichever epoch."""

    def __init__(self, seed: int = 0) -> None:
        self.store, self.random = MemoryStore(), random.Random(seed)
        self.repository = Repository.create(self.store)
        self.log, self.now, self.number = Log(self.repository), 0, 0
        self.lease: Lease | None = None
        self.base: str | None = None

    def publish(self, state: int | None = None, *, number: int | None = None, source: str = "/d") -> str:
        """A snapshot of the epoch under way, or of none before it has begun."""
        self.now += 1
        identity = f"20260801T{self.now:09d}Z-{self.random.getrandbits(64):016x}"
        own = self.number > 0 and source == "/d"
        one = snapshot(
            identity,
            self.now,
            epoch=self.lease.epoch if self.lease and own else None,
            counter=self.now if state is None else state,
            number=(self.number if number is None else number) if own else 0,
            source=source,
        )
        self.repository.put_sealed("S", f"snapshots/{identity}", encode(one))
        return identity

    def reign(self, *, build_on: str | None = None) -> None:
        """Another instance takes over; it builds on a snapshot, or on the log before."""
        self.lease, self.number, self.base = Lease.take(self.repository), 0, build_on

    def write(self, count: int = 1) -> None:
        """Some changes, a segment each."""
        assert self.lease
        for _ in range(count):
            self.now += 1
            first = self.number == 0
            self.number += 1
            one = Segment(
                (change(self.now, self.now, whole=first),),
                base=self.base if first else None,
                after=self.lease.after if first and self.base is None else None,
            )
            self.log.append(self.lease.epoch, self.number, one)


def own(store: Store) -> list[Snapshot]:
    return [s for s in Repository.open(store).snapshots() if s.source == "/d"]


def reached(store: Store, second: int | None = None) -> tuple[int, Route] | None:
    """The state that a moment (or the newest) leads to, and how."""
    log = Log(Repository.open(store))
    way = latest(log, own(store), None if second is None else at(second))
    if way is None:
        return None
    state = way.snapshot.counter
    for one in way.changes(log):
        state = one.counter
    return state, way


def ended(store: MemoryStore) -> int | None:
    """The newest state if another instance took over now."""
    other = copied(store)
    Lease.take(Repository.open(other))
    return states(reached(other))


def pruned(store: Store, policy: Retention) -> PruneReport:
    return prune(Repository.open(store), policy, wait=0.0)


def lived(seed: int) -> Life:
    """Epochs that build on snapshots and on each other, ended and not; snapshots in time, late, and of others."""
    life = Life(seed)
    chance = life.random
    first = life.publish()
    for epoch in range(chance.randrange(1, 5)):
        if epoch == 0:
            life.reign(build_on=first)
        elif chance.random() < 0.3:
            life.number, life.lease = 0, None
            life.reign(build_on=life.publish())
        else:
            life.reign()
            if chance.random() < 0.2:
                life.reign()  # the one before died before it wrote anything
        for _ in range(chance.randrange(1, 5)):
            life.write(chance.randrange(1, 6))
            what = chance.random()
            if what < 0.6:
                life.publish(life.now, number=max(0, life.number - chance.randrange(3)))
            elif what < 0.7:
                life.publish(source="/other")
        if chance.random() < 0.3:
            life.publish(life.now + 1)  # holds more than the log will ever have
    if chance.random() < 0.3:
        assert life.lease
        life.log.finish(life.lease.epoch, life.number + 1)
    return life


def policies(chance: random.Random) -> Retention:
    return chance.choice(
        [
            Retention(last=1),
            Retention(last=2),
            Retention(last=4),
            Retention(hourly=3),
            Retention(daily=2),
            Retention(hourly=1, within=timedelta(seconds=chance.randrange(1, 30))),
        ]
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MOST", 6)


@pytest.mark.parametrize("seed", range(30))
def test_any_life_under_any_policies(seed: int) -> None:
    """Prunes, and life goes on: the newest state is never touched; every moment stays behind what is kept for being
    recent; any other moment leads to no earlier state than that of the newest snapshot before it that is kept."""
    life = lived(seed)
    for _ in range(3):
        policy, store = policies(life.random), life.store
        before = {t: reached(store, t) for t in range(life.now + 2)}
        now, settled = reached(store), ended(store)
        told = prune(Repository.open(store), policy, dry_run=True)
        done = pruned(store, policy)
        assert (told.kept, told.removed) == (done.kept, done.removed)
        assert told.deleted_log_objects == done.deleted_log_objects
        assert not check(Repository.open(store), read_data=True).problems
        kept = {k.id: k.reasons for k in done.kept}
        recent = {i for i, why in kept.items() if any(r == "within" or r.startswith("last") for r in why)}
        assert now and states(reached(store)) == states(now)
        staying = [s for s in own(store) if s.id in kept]
        for second, was in before.items():
            found = reached(store, second)
            if was is None:
                assert found is None
                continue
            if was[1].snapshot.id in recent or second >= life.now:
                assert states(found) == states(was), f"second {second}"
            if found:
                assert found[0] <= was[0]
            refused = {s.id for s in staying if s.counter > (was[0] if s.time <= at(second) else 0)}
            floor = [s.counter for s in staying if s.time <= at(second) and s.id not in refused]
            assert not floor or (found and found[0] >= max(floor)), f"second {second}"
        life.reign()
        assert states(reached(store)) == settled
        life.write(2)
        after = reached(store)
        assert after and after[0] == life.now
        life.publish(life.now)


def states(found: tuple[int, Route] | None) -> int | None:
    return found[0] if found else None


def test_the_log_behind_what_is_kept_by_the_hour_goes() -> None:
    """Only the snapshots are left of it, each for itself, and a few objects that say where it was."""
    life = Life()
    life.reign(build_on=life.publish())
    made = []
    for _ in range(5):
        life.write(20)
        made.append(life.publish(life.now))
    life.write(5)
    done = pruned(life.store, Retention(last=2, hourly=9))
    assert [k.id for k in done.kept] == made[3:]
    ahead = [str(n) for n in range(101, 106)]
    assert names(life.store, "log/00000001/") == ["1", *_numbers(merging.MOST, 81, 100), *ahead]
    assert horizon.read(life.repository) == (1, 81)
    life.publish(life.now)
    pruned(life.store, Retention(last=1))
    assert names(life.store, "log/00000001/") == ["1", "104", "105"]
    assert [n for n in names(life.store) if "-" in n] == ["1-106"]
    life.write(1)
    assert states(reached(life.store)) == life.now


def _numbers(most: int, first: int, last: int) -> list[str]:
    return [f"{n}-{min(n + most - 1, last)}" for n in range(first, last + 1, most)]


def test_what_the_newest_epoch_builds_on_is_kept_whatever_the_policy() -> None:
    """A younger snapshot of another directory is the only one wanted: the log's own stays, and says why."""
    life = Life()
    base = life.publish()
    life.reign(build_on=base)
    life.write(3)
    other = life.publish(source="/other")
    done = pruned(life.store, Retention(last=1))
    assert {k.id: k.reasons for k in done.kept} == {base: ("log",), other: ("last 1",)}
    assert states(reached(life.store)) == life.now - 1


def test_a_snapshot_that_holds_more_than_the_log_is_not_relied_on() -> None:
    """Its writer is ahead of its own log. If it dies now the snapshot will be refused; the one before leads on."""
    life = Life()
    base = life.publish()
    life.reign(build_on=base)
    life.write(3)
    ahead = life.publish(life.now + 10)
    done = pruned(life.store, Retention(last=1))
    assert {k.id: k.reasons for k in done.kept} == {base: ("log",), ahead: ("last 1",)}
    life.reign()
    assert states(reached(life.store)) == 4


def test_before_a_new_epoch_has_begun_the_newest_of_each_directory_stays() -> None:
    """It may be what the epoch will be said to build on, a moment from now."""
    life = Life()
    life.reign()
    one, two = life.publish(), life.publish(source="/other")
    assert {k.id: k.reasons for k in pruned(life.store, Retention(last=1)).kept} == {one: ("log",), two: ("last 1",)}
    life.base = one
    life.write(1)
    assert states(reached(life.store)) == life.now


def test_what_a_writer_has_just_begun_on_stays_or_it_finds_out() -> None:
    """It begins on a snapshot that is not the newest of its directory any more, while a prune is at any of its steps:
    either that one leaves the snapshot, or the writer sees that it may go, and begins on a new one."""
    first, over = 0, False
    outcomes = set()
    while not over:
        between, over = 0, True
        while True:
            life = Life()
            base = life.publish()
            life.reign(build_on=base)
            life.publish()

            def begins(store: Store, base: str = base, second: int = life.now + 1) -> bool:
                repository = Repository.open(store)
                Log(repository).append(1, 1, Segment((change(second, second, whole=True),), base=base))
                return trimming.stands(repository, base)

            def prunes(store: Store) -> None:
                with suppress(RepositoryBusy):
                    pruned(store, Retention(last=1))

            one, other = Actor(life.store, prunes), Actor(life.store, begins)
            over &= one.go(first)
            begun = other.go(between)
            one.go()
            other.go()
            assert one.error is None and other.error is None
            outcomes.add(other.result)
            if other.result:
                assert ended(life.store) == life.now + 1
            if begun:
                break
            between += 1
        first += 1
    assert first > 15 and outcomes == {True, False}


def test_a_prune_that_is_under_way_spares_what_is_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has found that its base may go is not kept from beginning by a prune that has died meanwhile, not even by
    one of a machine whose clock is ahead."""
    life = Life()
    base = life.publish()
    ahead = sessions.now() + timedelta(hours=1)
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "now", lambda: ahead)
        Session.start(life.repository, "prune")
    assert not trimming.stands(life.repository, base)
    later = Session.start(life.repository)
    life.repository.put_sealed("S", f"snapshots/{later.id}", encode(snapshot(later.id, life.now)))
    assert trimming.stands(life.repository, later.id)


def test_leases_and_tombstones_go_when_nobody_can_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest lease stays. A writer that wakes up finds its name taken, for a month by the store's clock."""
    life = Life()
    life.reign(build_on=life.publish())
    life.write(3)
    for _ in range(3):
        life.reign()
        life.write(3)
        life.publish(life.now)
    life.store.put("lease/readme", b"foreign")
    pruned(life.store, Retention(last=1))
    assert names(life.store, "lease/") == ["4", "readme"] and newest(life.repository) == 4
    assert names(life.store, "log/00000001/") == names(life.store, "log/00000002/") == ["4"]
    with pytest.raises(LeaseLost):
        life.log.append(2, 4, Segment(()))
    monkeypatch.setattr(trimming, "TOMBSTONE_LIFE", -1.0)
    pruned(life.store, Retention(last=1))
    assert life.log.epochs() == [4] and Lease.take(life.repository).after == (4, 3)


def test_a_horizon_only_moves_on_and_is_not_believed_by_its_name() -> None:
    life = Life()
    life.reign(build_on=life.publish())
    for _ in range(4):
        life.write(5)
        life.publish(life.now)
    pruned(life.store, Retention(last=1))
    far = horizon.read(life.repository)
    pruned(life.store, Retention(last=9))
    horizon.declare(life.repository, (1, 2))
    assert horizon.read(life.repository) == far
    life.store.put(horizon.name_of((7, 7)), life.store.get(horizon.name_of(far)))
    for act in (lambda: pruned(life.store, Retention(last=1)), lambda: reached(life.store)):
        with pytest.raises(CorruptObject, match="horizon/00000007"):
            act()


def scene(seed: int = 3) -> Life:
    """Two epochs; the second goes on. Of six snapshots two are wanted."""
    life = Life(seed)
    life.reign(build_on=life.publish())
    for _ in range(2):
        for _ in range(3):
            life.write(2)
            life.publish(life.now)
        life.reign()
    life.write(2)
    life.publish(life.now)
    life.write(2)
    return life


KEEP = Retention(last=2)


def every_moment(store: Store, life: Life, since: int) -> list[int | None]:
    return [states(reached(store, second)) for second in range(since, life.now + 1)]


@pytest.mark.parametrize("after", [False, True])
def test_a_prune_dies_at_every_store_call(after: bool) -> None:
    """Whatever it had done: no moment is lost that it would have kept, and the next ends where a whole one does."""
    whole = scene()
    pruned(whole.store, KEEP)
    n = 0
    while True:
        n += 1
        life = scene()
        wanted = life.repository.snapshots()[-2]
        since = int(wanted.id[9:18])
        before = every_moment(life.store, life, since)
        done = False
        try:
            prune(Repository.open(FaultyStore(life.store, die_at=n, after=after)), KEEP, wait=0.0)
            done = True
        except Died:
            pass
        assert every_moment(life.store, life, since) == before
        assert not check(Repository.open(life.store), read_data=True).problems
        for second in range(since):
            reached(life.store, second)  # something, or nothing: never an error
        unlock(Repository.open(life.store), everything=True)
        pruned(life.store, KEEP)
        assert every_moment(life.store, life, since) == before
        assert [o.name for o in life.store.list("log/")] == [o.name for o in whole.store.list("log/")]
        assert [o.name for o in life.store.list("lease/")] == [o.name for o in whole.store.list("lease/")]
        if done:
            break
    assert n > 40


def writes_on(life: Life) -> None:
    life.write(2)
    life.publish(life.now)
    life.write(1)


def takes_over(life: Life) -> None:
    life.reign()
    life.write(2)


def takes_over_and_is_slow(life: Life) -> None:
    life.reign()


def dies_ahead(life: Life) -> None:
    life.publish(life.now + 5)
    life.now += 5
    life.reign()
    life.write(1)


def merges(life: Life) -> None:
    for epoch in life.log.epochs():
        merge(Repository.open(life.store), epoch, least=2)


def prunes_too(life: Life) -> None:
    with suppress(RepositoryBusy):
        pruned(life.store, Retention(last=1))


@pytest.mark.parametrize("other", [writes_on, takes_over, takes_over_and_is_slow, dies_ahead, merges])
def test_others_at_every_moment_of_a_prune(other: Callable[[Life], None]) -> None:
    """Whoever writes, takes over, dies or merges meanwhile: all that was written is reached, and what was wanted."""
    n = 0
    while True:
        n += 1
        life = scene()
        since = int(life.repository.snapshots()[-2].id[9:18])
        before = every_moment(life.store, life, since)
        until = life.now
        between = Interrupted(life.store, n, lambda life=life: other(life))  # type: ignore[misc]
        done = prune(Repository.open(between), KEEP, wait=0.0)
        later = min(int(k.id[9:18]) for k in done.kept if "log" not in k.reasons) - since
        assert every_moment(life.store, life, since)[later : len(before)] == before[later:]
        found = reached(life.store)
        assert found
        if other is not dies_ahead:
            assert found[0] >= max(until, life.log.read(*last(life)).changes[-1].counter)  # type: ignore[union-attr]
        life.reign()
        life.write(1)
        assert states(reached(life.store)) == life.now
        assert not check(Repository.open(life.store), read_data=True).problems
        if between.calls < n:
            break
    assert n > 40


def last(life: Life) -> tuple[int, int]:
    """The last segment of all."""
    epoch = max(e for e in life.log.epochs() if life.log.end(e)[0])
    return epoch, life.log.end(epoch)[0]


def test_a_prune_at_every_moment_of_a_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps less, and takes the first for dead: the newest state stays, no moment is an error."""
    n = 0
    while True:
        n += 1
        life = scene()

        def other(life: Life = life) -> None:
            monkeypatch.setattr(collector, "STALE", -1.0)
            prunes_too(life)
            monkeypatch.setattr(collector, "STALE", 3600.0)

        between = Interrupted(life.store, n, other)
        with suppress(RepositoryBusy):
            prune(Repository.open(between), KEEP, wait=0.0)
        assert states(reached(life.store)) == life.now
        for second in range(life.now):
            reached(life.store, second)
        if between.calls < n:
            break


def test_a_look_for_the_newest_state_beside_a_snapshot_and_a_prune() -> None:
    """Both come between any two of its steps: what it knew as the newest snapshot stays, for the hour, and the log
    behind it is gone. It does not take that one for the newest state."""

    def newest_state(store: Store) -> int:
        way = find(Repository.open(store), None)
        return [way.snapshot.counter, *(c.counter for c in way.changes(Log(Repository.open(store))))][-1]

    at, over = 0, False
    while not over:
        at += 1
        life = scene()
        looks = Actor(life.store, newest_state, page=2)
        over, before = looks.go(at), life.now
        life.publish(life.now)
        life.write(1)
        pruned(life.store, Retention(last=1, hourly=1))
        looks.go()
        if looks.error is None:
            assert isinstance(looks.result, int) and before <= looks.result <= life.now, f"stopped at {at}"
        else:
            assert isinstance(looks.error, MissingObject)  # what it had found and began to read was taken away
    assert at > 20


def test_a_damaged_log_stops_a_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed cannot be known: nothing is removed."""
    life = scene()
    life.store.put(name_of(3, 1), life.store.get(name_of(3, 2)))
    before = [o.name for o in life.store.list()]
    with pytest.raises(CorruptObject, match="00000003/0000000001"):
        pruned(life.store, KEEP)
    assert [o.name for o in life.store.list()] == before
