"""Merging the log: whoever dies, reads, writes or merges meanwhile, every segment is read once, in its order."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from chromakeep.errors import CorruptObject, LeaseLost
from chromakeep.repository import Repository, merging
from chromakeep.repository.lease import Lease
from chromakeep.repository.log import Log, Piece, Segment, covering, merged_name, name_of, parse_name, parse_piece
from chromakeep.repository.merging import merge
from chromakeep.store.memory import MemoryStore
from chromakeep.testing.faults import Died, FaultyStore
from repository.logs import change, counters, names, write
from repository.test_collection import Interrupted

LAST = 20
ALL = list(range(1, LAST + 1))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few segments in an object, so that few are enough to see all that can happen."""
    monkeypatch.setattr(merging, "MOST", 8)
    monkeypatch.setattr(merging, "AT_ONCE", 3)
    yield


def prepared(last: int = LAST, *, ended: bool = False) -> MemoryStore:
    store = MemoryStore()
    repository = Repository.create(store)
    write(store, 1, range(1, last + 1))
    if ended:
        Log(repository).finish(1, last + 1)
    return store


def do(store: object, upto: int | None = None, least: int = 2) -> None:
    merge(Repository.open(store), 1, upto, least=least)  # type: ignore[arg-type]


def test_names_of_merged_objects() -> None:
    """First and last, no other spelling; they are no segments' names."""
    name = merged_name(7, 2, 1001)
    assert parse_piece(name) == Piece(7, 2, 1001, name) and parse_name(name) is None
    assert parse_piece(name_of(7, 2)) == Piece(7, 2, 2, name_of(7, 2))
    for wrong in (f"{name}-", name[:-1], f"{name_of(7, 2)}-{1:010d}", f"{name_of(7, 2)}-{2:010d}", f"{name}/1"):
        assert parse_piece(wrong) is None
    one, two = parse_piece(name_of(7, 2)), parse_piece(name)
    assert one and two and covering([one, two], 2) == two and covering([one], 3) is None


@pytest.mark.parametrize("ended", [False, True])
def test_the_first_and_the_last_stay_objects_of_their_own(ended: bool) -> None:
    """What says on what an epoch builds, what can be followed, and what ends it."""
    store = prepared(ended=ended)
    before = list(Log(Repository.open(store)).segments(1))
    do(store)
    tail = ["20", "21"] if ended else ["19", "20"]
    middle = ["2-9", "10-17", "18-19" if ended else "18"]
    assert names(store) == ["1", *middle, *tail]
    log = Log(Repository.open(store))
    assert list(log.segments(1)) == before and log.end(1) == (LAST, ended)
    assert log.numbers(1) == [*ALL, *([LAST + 1] if ended else [])]
    for number in ALL:
        assert counters(store, 1, number) == ALL[number:] and counters(store, 1, 3, number) == ALL[3:number]
        assert log.read(1, number) == dict(before)[number]
    opening = log.read(1, 1)
    assert opening and opening.base == "base"


def test_only_what_lies_before_is_merged_and_only_where_it_is_worth_it() -> None:
    """Up to a number; not of a few objects. What is full is not written again, what is not, is."""
    store = prepared()
    do(store, upto=6)
    assert names(store)[:4] == ["1", "2-6", "7", "8"]
    do(store, upto=2, least=2)
    do(store, least=30)
    assert names(store)[:3] == ["1", "2-6", "7"]  # 5 of 8: full enough
    do(store, upto=20)
    assert names(store)[:5] == ["1", "2-6", "7-14", "15-18", "19"]
    store = prepared()
    do(store, upto=4)
    do(store, upto=6)
    assert names(store)[:3] == ["1", "2-6", "7"]  # 3 of 8 were not
    for upto in range(6, LAST):
        do(store, upto)
        assert counters(store, 1) == ALL


def test_bytes_bound_an_object_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 16 MiB in one; what is larger by itself stays as it is."""
    monkeypatch.setattr(merging, "LARGEST", 1000)
    store = MemoryStore()
    Repository.create(store)
    for number in range(1, 12):
        write(store, 1, [number], size=2000 if number == 5 else 250)
    do(store)
    assert names(store) == ["1", "2-3", "4", "5", "6-7", "8-9", "10", "11"] and counters(store, 1) == list(range(1, 12))


@pytest.mark.parametrize("password", [None, "secret"])
def test_in_an_encrypted_repository_too(password: str | None) -> None:
    store = MemoryStore()
    log = Log(Repository.create(store, password=password))
    for n in range(1, 10):
        log.append(1, n, Segment((change(n, n),)))
    before = list(log.segments(1))
    assert merge(log.repository, 1, least=2) == 5
    assert list(log.segments(1)) == before and names(store) == ["1", "2-7", "8", "9"]
    assert (b"topic" in store.get(merged_name(1, 2, 7))) is False or password is None


@pytest.mark.parametrize("after", [False, True])
def test_death_at_every_store_call(after: bool) -> None:
    """Before or after its n-th call: all is read once, and the next merge leaves what a whole one would have."""
    clean = prepared()
    do(clean)
    n = 0
    while True:
        n += 1
        store = prepared()
        faulty, done = FaultyStore(store, die_at=n, after=after), False
        try:
            do(faulty)
            done = True
        except Died:
            pass
        assert counters(store, 1) == ALL
        assert Log(Repository.open(store)).end(1) == (LAST, False)
        do(store)
        assert names(store) == names(clean) and counters(store, 1) == ALL
        if done:
            break
    assert n > 40


@pytest.mark.parametrize("partly", [None, 12])
def test_a_merge_at_every_moment_of_a_read(partly: int | None) -> None:
    """Listed, then gone: found in another object. From the start, from the middle, by number; and the end."""
    for after, stop in ((0, None), (11, None), (4, 20)):
        n = 0
        while True:
            n += 1
            store = prepared()
            if partly:
                do(store, partly)
            between = Interrupted(store, n, lambda store=store: do(store))  # type: ignore[misc]
            assert counters(between, 1, after, stop) == ALL[after:stop]
            if between.calls < n:
                break
        assert n > 6
    for number in ALL:
        for n in range(1, 5):
            store = prepared()
            between = Interrupted(store, n, lambda store=store: do(store))  # type: ignore[misc]
            log = Log(Repository(between, Repository.open(store).config, Repository.open(store).keys))
            found = log.read(1, number)
            assert found and found.changes[0].counter == number and log.end(1) == (LAST, False)


@pytest.mark.parametrize("upto", [None, 6, 17, 23])
def test_a_merge_at_every_moment_of_a_merge(upto: int | None) -> None:
    """Two at once, of as much or of less: nothing is lost, and the next one tidies up."""
    n = 0
    while True:
        n += 1
        store = prepared()
        between = Interrupted(store, n, lambda store=store: do(store, upto))  # type: ignore[misc]
        do(between)
        assert counters(store, 1) == ALL
        do(store)
        do(store)
        assert counters(store, 1) == ALL and len(names(store)) < 14
        if between.calls < n:
            break
    assert n > 40


def test_a_takeover_at_every_moment_of_a_merge() -> None:
    """The taker builds on the last segment, the former holder cannot go on, and all is there."""
    n = 0
    while True:
        n += 1
        store = prepared()
        Repository.open(store).store.put("lease/00000001", b"")
        taken: list[Lease] = []
        between = Interrupted(store, n, lambda s=store, t=taken: t.append(Lease.take(Repository.open(s))))  # type: ignore[misc]
        do(between)
        if between.calls < n:
            break
        assert taken[0].after == (1, LAST) and counters(store, 1) == ALL
        with pytest.raises(LeaseLost):
            write(store, 1, [LAST + 1])
        do(store)
        assert Lease.take(Repository.open(store)).after == (1, LAST) and counters(store, 1) == ALL


def test_damage_stays_where_it_is() -> None:
    """A damaged segment is named and not merged, its neighbours are; one under the name of a merged object stops it."""
    store = prepared()
    store.put(name_of(1, 12), store.get(name_of(1, 13)))
    with pytest.raises(CorruptObject, match="0000000012"):
        do(store)
    assert names(store) == ["1", "2-9", "10-11", "12", "13-18", "19", "20"]
    store = prepared()
    store.put(merged_name(1, 2, 9), store.get(name_of(1, 13)))
    with pytest.raises(CorruptObject, match="0000000002-0000000009"):
        do(store)
    assert {str(n) for n in range(1, 10)} <= set(names(store))


def test_a_merged_object_that_holds_other_segments_takes_nothing_away() -> None:
    """Well-formed and wrong: what it would replace is kept, and the object is named."""
    store = prepared()
    log = Log(Repository.open(store))
    payloads = [log.payloads(p)[0] for p in log.pieces(1)]  # type: ignore[index]
    log.put_merged(1, 2, payloads[2:10])
    with pytest.raises(CorruptObject, match="0000000002-0000000009"):
        do(store)
    assert {str(n) for n in range(2, 10)} <= set(names(store))


def test_a_late_copy_of_a_merged_segment_is_read_once() -> None:
    """A put that was on its way for long arrives when its segment was merged long ago."""
    store = prepared()
    late = store.get(name_of(1, 5))
    do(store)
    store.put(name_of(1, 5), late)
    assert counters(store, 1) == ALL
    do(store)
    assert "5" not in names(store)


def test_writers_readers_and_mergers_at_once() -> None:
    """One appends, two merge, two read: every read sees all that was there when it began, once, in order."""
    store = prepared(3)
    written, done, wrong = [3], threading.Event(), []
    chance = random.Random(2)

    def write_on() -> None:
        for n in range(4, 400):
            write(store, 1, [n])
            written[0] = n
        done.set()

    def merge_on() -> None:
        while not done.is_set():
            do(store, chance.choice([None, written[0] - 5]), chance.choice([2, 5, 8]))

    def read_on() -> None:
        while not done.is_set():
            least = written[0]
            found = counters(store, 1)
            if found != list(range(1, len(found) + 1)) or len(found) < least:
                wrong.append((least, found))

    threads = [threading.Thread(target=t) for t in (write_on, merge_on, merge_on, read_on, read_on)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and counters(store, 1) == list(range(1, 400))
    do(store)
    assert len(names(store)) < 100
