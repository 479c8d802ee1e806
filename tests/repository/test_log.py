"""The log and the lease: one writer at a time, whatever it was doing when another took over; the way to a moment."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from functools import partial

import msgspec
import pytest
from msgspec.structs import replace

from chromakeep.changes import Change, Row
from chromakeep.errors import CorruptObject, LeaseLost, MissingObject
from chromakeep.operations import reign
from chromakeep.repository import Repository
from chromakeep.repository import lease as lease_
from chromakeep.repository.lease import Lease, holder, newest
from chromakeep.repository.lineage import lineage
from chromakeep.repository.log import FENCED, Log, Piece, Segment, name_of, parse_name
from chromakeep.repository.merging import merge
from chromakeep.repository.pursuit import Pursuit, settled
from chromakeep.repository.route import Route, latest
from chromakeep.repository.snapshots import Snapshot
from chromakeep.store.base import ObjectInfo
from chromakeep.store.memory import MemoryStore
from chromakeep.store.metered import MeteredStore


@pytest.fixture
def repository() -> Repository:
    return Repository.create(MemoryStore())


def at(second: int) -> str:
    return f"2026-08-01T12:{second // 60:02d}:{second % 60:02d}.000Z"


def change(second: int, counter: int, *, whole: bool = False) -> Change:
    row = Row(counter, "", 0, "topic", b"id\0\xc3\xbc", b"\1\2\3\4", "FLOAT32", b"{}")
    return Change(at(second), counter, (row,), whole=whole)


def snapshot(name: str, second: int, *, epoch: int | None = None, counter: int = -1, number: int = 0) -> Snapshot:
    return Snapshot(
        id=name, time=at(second), source="/d", hostname="", program_version="", chroma_version="", parent=None,
        collections=(), files=(), total_bytes=0, new_bytes=0, seconds=0, epoch=epoch, counter=counter,
        log_number=number,
    )  # fmt: skip


def seconds(route: Route | None, log: Log) -> tuple[str, list[int]]:
    """The snapshot and the seconds of the changes that lead from it."""
    assert route
    times = [c.time for c in route.changes(log)]
    return route.snapshot.id, [int(t[14:16]) * 60 + int(t[17:19]) for t in times]


@pytest.mark.parametrize("password", [None, "secret"])
def test_segments_come_back_as_they_were(password: str | None) -> None:
    """Texts with NUL and of any bytes, vectors, numbers: equal, in order; encrypted where the repository is."""
    store = MemoryStore()
    log = Log(Repository.create(store, password=password))
    segments = [Segment((change(n, n),), base="b" if n == 1 else None) for n in range(1, 6)]
    for number, segment in enumerate(segments, 1):
        assert log.append(3, number, segment) > 0
    again = Log(Repository.open(store, password=password))
    assert list(again.segments(3)) == list(enumerate(segments, 1))
    assert list(again.segments(3, 3)) == list(enumerate(segments, 1))[3:]
    assert again.epochs() == [3] and again.end(3) == (5, False)
    assert (b"FLOAT32" in store.get(name_of(3, 1))) is False or password is None


def test_names_are_what_they_say() -> None:
    """Only what was made by ``name_of`` is a segment's name."""
    assert parse_name(name_of(7, 123)) == (7, 123)
    for name in ("log/7/123", "log/00000007/x", "log/00000007/0000000123/1", "logs/00000007/0000000123", "log/a"):
        assert parse_name(name) is None


def test_a_gap_and_damage_are_told(repository: Repository) -> None:
    """A missing segment, one under another's name, one that is no segment."""
    log = Log(repository)
    for number in (1, 2, 4):
        log.append(1, number, Segment((change(number, number),)))
    with pytest.raises(MissingObject, match="0000000003"):
        list(log.segments(1))
    repository.store.put(name_of(1, 3), repository.store.get(name_of(1, 2)))
    with pytest.raises(CorruptObject):
        list(log.segments(1))
    repository.put_sealed("L", name_of(1, 3), msgspec.msgpack.encode({"changes": 7}), if_absent=False)
    with pytest.raises(CorruptObject, match="no segment"):
        list(log.segments(1))


class Together(MemoryStore):
    """No read of the log is answered before two were asked for: who asks for one after the other never gets any."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.two = threading.Event()

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        if name.startswith("log/"):
            self.asked += 1
            if self.asked > 1:
                self.two.set()
            assert self.two.wait(30), "one after the other"
        return super().get(name, start=start, length=length)


def test_a_long_log_is_read_ahead() -> None:
    """In a bucket each segment costs a round trip: several are asked for at once, and come in order; the reader that
    stops in the middle leaves nothing behind, and a gap or damage comes at its place."""
    store = Together()
    log = Log(Repository.create(store))
    for number in range(1, 25):
        log.append(1, number, Segment((change(number, number),)))
    store.asked = 0
    store.two.clear()
    assert [number for number, _ in log.segments(1)] == list(range(1, 25))
    reader = log.segments(1, 3)
    assert next(reader)[0] == 4
    reader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("log")]
    store.delete(name_of(1, 20))
    seen = []
    with pytest.raises(MissingObject, match="0000000020"):
        for number, _ in log.segments(1):
            seen.append(number)
    assert seen == list(range(1, 20))


def test_a_lost_answer_is_no_lost_lease(repository: Repository) -> None:
    """The same segment twice is once; another one under its name is the end."""
    log = Log(repository)
    one = Segment((change(1, 1),))
    log.append(1, 1, one)
    log.append(1, 1, one)
    with pytest.raises(LeaseLost):
        log.append(1, 1, Segment((change(2, 2),)))


def test_whoever_takes_over_ends_what_was_before(repository: Repository) -> None:
    """The former holder's next put fails, and the new one builds on all that was put before."""
    first = Lease.take(repository)
    assert (first.epoch, first.after) == (1, None)
    log = Log(repository)
    for number in (1, 2, 3):
        log.append(1, number, Segment((change(number, number),), base="s"))
    first.renew()
    second = Lease.take(repository)
    assert (second.epoch, second.after) == (2, (1, 3))
    with pytest.raises(LeaseLost):
        log.append(1, 4, Segment((change(4, 4),)))
    with pytest.raises(LeaseLost):
        first.renew()
    third = Lease.take(repository)  # the second did nothing: what counts is still the first's
    assert third.after == (1, 3)
    log.append(3, 1, Segment((change(5, 5),), after=third.after))
    log.finish(3, 2)
    assert Lease.take(repository).after == (3, 1)
    assert log.end(3) == (1, True) and log.end(2) == (0, True)


class Hesitant(MemoryStore):
    """A store that takes its time now and then, before and after it has done what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = random.Random(4)

    def _wait(self) -> None:
        if self._chance.random() < 0.3:
            threading.Event().wait(self._chance.uniform(0, 0.004))

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self._wait()
        super().put(name, data, if_absent=if_absent)
        self._wait()

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        found = super().get(name, start=start, length=length)
        self._wait()
        return found

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = list(super().list(prefix))
        self._wait()
        return iter(found)


@pytest.mark.parametrize("seed", range(30))
def test_a_put_beside_a_takeover_is_before_it_or_fails(seed: int) -> None:
    """Writers that never stop, takers at any moment, in each other's way: what a writer was told is in the log that its
    successor reads."""
    repository, chance = Repository.create(Hesitant()), random.Random(seed)
    log = Log(repository)
    acknowledged: list[tuple[int, int]] = []

    def reign() -> None:
        try:
            lease = Lease.take(repository)
        except LeaseLost:
            return
        try:
            for number in range(1, 60):
                log.append(lease.epoch, number, Segment((change(1, number),), after=lease.after))
                acknowledged.append((lease.epoch, number))
        except LeaseLost:
            return

    threads = []
    for _ in range(12):
        thread = threading.Thread(target=reign)
        thread.start()
        threads.append(thread)
        threading.Event().wait(chance.uniform(0, 0.01))
    for thread in threads:
        thread.join()
    # from the end back: each epoch builds on the last segment of the one before, and nothing acknowledged is beyond it
    at_: tuple[int, int] | None = Lease.take(repository).after
    reached: dict[int, int] = {}
    while at_:
        reached[at_[0]] = at_[1]
        opening = log.read(at_[0], 1)
        assert opening
        at_ = opening.after
    assert [(e, n) for e, n in acknowledged if n > reached.get(e, 0)] == []
    assert reached


def test_a_taker_that_is_slow_leaves_no_writer_behind(repository: Repository) -> None:
    """One takes over and has ended nothing yet, a third takes over from it: the first, of which the log has no object,
    is ended all the same. Else it would acknowledge what no successor reads."""
    log = Log(repository)
    first = Lease.take(repository)
    log.append(1, 1, Segment((change(1, 1),), base="s"))
    second = Lease.take(repository)  # has put nothing yet
    lease_._put(repository, lease_.Holder(3, "slow", 1, ""), if_absent=True)  # the third has taken, and stands there
    fourth = Lease.take(repository)
    assert (second.after, fourth.epoch, fourth.after) == ((1, 1), 4, (1, 1))
    for epoch in (2, 3):
        with pytest.raises(LeaseLost):
            log.append(epoch, 1, Segment((change(2, 2),), after=second.after))
    with pytest.raises(LeaseLost):
        log.append(first.epoch, 2, Segment((change(2, 2),)))


def outslept(repository: Repository) -> tuple[Log, list[Piece]]:
    """A log of twenty segments, and a listing of its first five, which have been merged with what came after since."""
    log = Log(repository)
    for number in range(1, 6):
        log.append(1, number, Segment((change(number, number),), base="s"))
    old = log.pieces(1)
    for number in range(6, 21):
        log.append(1, number, Segment((change(number, number),)))
    assert merge(repository, 1, least=2)
    return log, old


def test_an_old_listing_ends_no_epoch_in_its_middle(repository: Repository) -> None:
    """A taker that slept behind its listing, while what it had seen as the end was merged with what came after."""
    log, old = outslept(repository)
    assert log.fence(1, old) == 20
    assert log.end(1) == (20, True) and [n for n, _ in log.segments(1)] == list(range(1, 21))
    with pytest.raises(LeaseLost):
        log.append(1, 21, Segment((change(21, 21),)))


def test_a_tombstone_in_the_middle_ends_nothing_for_anybody(repository: Repository) -> None:
    """Two takers slept behind their listings; the first has put its tombstone where a merge had made room, and is
    stopped there, or dead. The second, which finds it, does not take it for the end of what was written since."""
    log, old = outslept(repository)
    repository.put_sealed("L", name_of(1, 6), FENCED)
    assert log.fence(1, old) == 20
    assert log.end(1) == (20, True) and [n for n, _ in log.segments(1)] == list(range(1, 21))
    merge(repository, 1, least=2)  # and nobody is told of damage for what the dead one left
    assert log.read(1, 6) == Segment((change(6, 6),))


def test_what_a_takeover_costs_is_one_request_an_idle_epoch() -> None:
    """Reigns without a write, as of a container that dies at its start, are passed over by one look each."""
    store = MeteredStore(MemoryStore())
    repository = Repository.create(store)
    Lease.take(repository)
    Log(repository).append(1, 1, Segment((change(1, 1),), base="s"))
    for _ in range(20):
        Lease.take(repository)
    before = store.calls.total()
    assert Lease.take(repository).after == (1, 1)
    assert store.calls.total() - before <= 20 + 6


def test_a_watcher_sees_the_holder_beat(repository: Repository) -> None:
    """The object changes with each renewal, and says who and where."""
    assert newest(repository) == 0 and holder(repository, 1) is None
    lease = Lease.take(repository, address="http://10.0.0.1:8000")
    before = holder(repository, 1)
    lease.renew()
    after = holder(repository, 1)
    assert before and after and before != after and replace_beat(before) == replace_beat(after)
    assert after.address == "http://10.0.0.1:8000" and not after.gone
    assert msgspec.structs.replace(after, pid=2**22 + 1).gone
    assert not msgspec.structs.replace(after, pid=2**22 + 1, world="another container's").gone


def replace_beat(one: lease_.Holder) -> lease_.Holder:
    return msgspec.structs.replace(one, beat=0)


def test_the_way_to_a_moment(repository: Repository) -> None:
    """One epoch on a snapshot, one after it, one with snapshots of its own: every moment by the nearest snapshot."""
    log = Log(repository)
    base = snapshot("base", 10)
    log.append(1, 1, Segment((change(11, 1, whole=True),), base="base"))
    log.append(1, 2, Segment((change(12, 2),)))
    log.fence(1, log.pieces(1))
    log.append(2, 1, Segment((change(20, 9, whole=True),), after=(1, 2)))
    for number in range(2, 8):
        log.append(2, number, Segment((change(20 + number, 9 + number),)))
    own = snapshot("own", 25, epoch=2, counter=13, number=3)
    late = snapshot("late", 40, epoch=2, counter=99, number=7)  # published by a writer that has lost its lease
    snapshots = [base, own, late]
    assert seconds(latest(log, snapshots), log)[0] == "late"  # the epoch is not over
    log.fence(2, log.pieces(2))
    assert seconds(latest(log, snapshots), log) == ("own", [25, 26, 27])
    assert seconds(latest(log, snapshots, at(26)), log) == ("own", [25, 26])
    assert seconds(latest(log, snapshots, at(24)), log) == ("base", [11, 12, 20, 22, 23, 24])
    assert seconds(latest(log, snapshots, at(12)), log) == ("base", [11, 12])
    assert seconds(latest(log, snapshots, at(10)), log) == ("base", [])
    assert latest(log, snapshots, at(9)) is None
    foreign = snapshot("strange", 50)
    assert seconds(latest(log, [*snapshots, foreign]), log) == ("strange", [])
    assert seconds(latest(log, [*snapshots, replace_time(foreign, 15)]), log) == ("own", [25, 26, 27])
    assert seconds(latest(log, [own]), log) == ("own", [25, 26, 27])
    assert latest(log, []) is None


def replace_time(one: Snapshot, second: int) -> Snapshot:
    return msgspec.structs.replace(one, time=at(second))


def test_what_goes_on_is_not_cut(repository: Repository) -> None:
    """A change that lies past the moment is left out with all that follows it."""
    log = Log(repository)
    log.append(1, 1, Segment((change(1, 1, whole=True), replace(change(2, 2), more=True), change(3, 3)), base="base"))
    base = snapshot("base", 0)
    assert seconds(latest(log, [base], at(2)), log) == ("base", [1, 2])
    assert seconds(latest(log, [base]), log) == ("base", [1, 2, 3])


def test_of_two_that_saw_one_holder_lapse_only_one_takes_over(repository: Repository) -> None:
    """The second must not put an end to the first's reign, which it has not watched yet."""
    Lease.take(repository)
    assert Lease.take(repository, over=1).epoch == 2
    with pytest.raises(LeaseLost):
        Lease.take(repository, over=1)
    assert newest(repository) == 2


def test_a_released_lease_stays_released(repository: Repository) -> None:
    """Its log is ended, a late beat of its holder does not take that back, and the next one builds on its end."""
    lease = Lease.take(repository)
    Log(repository).append(1, 1, Segment((change(1, 1, whole=True),), base="base"))
    lease.release(1)
    lease.renew()
    found = holder(repository, 1)
    assert found and found.released and found.number == 1 and Log(repository).end(1) == (1, True)
    assert Lease.take(repository, over=1).after == (1, 1)
    with pytest.raises(LeaseLost):
        lease.renew()


def test_who_waits_asks_little_and_takes_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is one get, however long the log is; after a release, or an end without one, the lease is taken."""
    monkeypatch.setattr(reign, "WATCH", 0.001)
    monkeypatch.setattr(reign, "ROUND", 50)
    for released in (True, False):
        store = MeteredStore(MemoryStore())
        Repository.create(store)
        lease = Lease.take(Repository.open(store))
        store.calls.clear()
        stop = threading.Event()
        waiting = reign.Reigning(partial(Repository.open, store), stop=stop)
        while store.calls["get"] < 300:
            time.sleep(0.001)
        assert store.calls["list"] < store.calls["get"] / 10 and not waiting.done.is_set()
        if released:
            lease.release(0)
        else:
            Log(Repository.open(store)).finish(1, 1)
        assert waiting.done.wait(30) and waiting.lease and waiting.lease.epoch == 2


def test_a_snapshot_that_is_ahead_of_the_first_segment_is_not_led_back_by_it(repository: Repository) -> None:
    """It was begun before that segment was put, and has what two looks found: the catalog of the first look is no way
    to what came after the second."""
    log = Log(repository)
    log.append(1, 1, Segment((change(10, 1, whole=True),), base="base"))
    log.append(1, 2, Segment((change(11, 2),)))
    log.append(1, 3, Segment((change(12, 3),)))
    way = latest(log, [snapshot("base", 9), snapshot("own", 12, epoch=1, counter=2, number=0)])
    assert seconds(way, log) == ("own", [12])
    found = settled(log, way) if way else None
    assert found
    pursuit = Pursuit(log, *found[1:])
    log.append(1, 4, Segment((change(13, 4),)))
    stretch = pursuit.next()
    assert stretch and stretch.last.counter == 4 and pursuit.next() is None


def test_directories_that_a_log_was_handed_through_are_one_lineage(repository: Repository) -> None:
    """By an epoch that builds on another one's end, or that was written from the same directory; a stranger is not."""

    def reign(epoch: int, source: str, *, base: str | None = None, after: tuple[int, int] | None = None) -> None:
        log.append(epoch, 1, Segment((change(epoch, epoch, whole=True),), base=base, after=after, source=source))
        log.fence(epoch, log.pieces(epoch))

    def of(name: str, source: str) -> Snapshot:
        return msgspec.structs.replace(snapshot(name, 1), source=source)

    log = Log(repository)
    reign(1, "/strange", base="s")
    reign(2, "/a", base="a")
    reign(3, "/b", after=(2, 1))
    log.fence(4, log.pieces(4))  # ended before it began
    reign(5, "/b", base="b")  # mended, and begun anew
    reign(6, "/c", base="moved")  # begun on a snapshot of another directory
    snapshots = [of("s", "/strange"), of("a", "/a"), of("b", "/b"), of("moved", "/b")]
    assert lineage(log, snapshots) == {"/a", "/b", "/c"}
    assert lineage(log, snapshots[1:]) == {"/a", "/b", "/c"}
    assert lineage(log, snapshots[:1]) == set()  # nothing to choose between
    log.repository.store.delete(name_of(3, 1))
    assert lineage(log, snapshots) == {"/b", "/c"}
