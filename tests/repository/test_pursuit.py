"""Pursuit: whole states as they come, from one epoch into the next; what cannot be followed is told, never skipped."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from chromakeep.changes import Change
from chromakeep.errors import CorruptObject
from chromakeep.repository import Repository
from chromakeep.repository.log import Log, Segment, name_of
from chromakeep.repository.merging import merge
from chromakeep.repository.pursuit import LOOK_ROUND, FellBehind, Pursuit, settled
from chromakeep.repository.route import Route, latest
from chromakeep.store.memory import MemoryStore
from chromakeep.store.metered import MeteredStore
from repository.test_log import change, seconds, snapshot


@pytest.fixture
def log() -> Log:
    """A log of two segments on a snapshot."""
    made = Log(Repository.create(MemoryStore()))
    made.append(1, 1, Segment((change(1, 1, whole=True),), base="base"))
    made.append(1, 2, Segment((change(2, 2),)))
    return made


def begun(second: int, counter: int) -> Change:
    """A change that the next one goes on with."""
    return replace(change(second, counter), more=True)


def pursue(log: Log) -> tuple[Route, Pursuit]:
    """A way to what there is, and the pursuit from there."""
    way = latest(log, [snapshot("base", 0)])
    assert way
    found = settled(log, way)
    assert found
    return found[0], Pursuit(log, *found[1:])


def told(pursuit: Pursuit) -> list[list[int]]:
    """Counters of the changes that lead to each further state."""
    found = []
    while stretch := pursuit.next():
        found.append([c.counter for c in (*stretch.before, stretch.last)])
    return found


def test_states_come_when_they_are_whole(log: Log) -> None:
    """Some changes over several segments, several states in one: each once, none before its end."""
    way, pursuit = pursue(log)
    assert seconds(way, log) == ("base", [1, 2])
    assert told(pursuit) == [] and pursuit.at == (1, 2)
    log.append(1, 3, Segment((begun(3, 3),)))
    assert told(pursuit) == [] and not pursuit.whole
    log.append(1, 4, Segment((begun(4, 4), change(5, 5), change(6, 6), begun(7, 7))))
    assert told(pursuit) == [[3, 4, 5], [6]] and not pursuit.whole
    log.append(1, 5, Segment((change(8, 8),)))
    assert told(pursuit) == [[7, 8]] and pursuit.whole and pursuit.at == (1, 5)


def test_what_was_merged_meanwhile_is_found_at_once_by_who_asks_for_it(log: Log) -> None:
    """One that fell behind, and whose turn it is to write, must not wait for the next listing, nor restore; and what
    was merged into one object is read once, not once a segment."""
    store = MeteredStore(log.repository.store)
    log = Log(Repository(store, log.repository.config, log.repository.keys))
    _, pursuit = pursue(log)
    for number in range(3, 9):
        log.append(1, number, Segment((change(number, number),)))
    log.fence(1, log.pieces(1))
    merge(log.repository, 1, least=2)
    assert pursuit.next() is None
    store.calls.clear()
    found = []
    while stretch := pursuit.next(thorough=True):
        found.append(stretch.last.counter)
    assert found == [3, 4, 5, 6, 7, 8] and pursuit.at == (1, 8)
    assert store.calls["get"] <= 6 and store.calls["list"] <= 5


def test_a_restore_and_a_pursuit_leave_out_what_a_dead_writer_began(log: Log) -> None:
    """Its successor never had it; and the pursuit is at the end all the same."""
    log.append(1, 3, Segment((begun(3, 3),)))
    way, pursuit = pursue(log)
    assert seconds(way, log) == ("base", [1, 2])
    assert told(pursuit) == []
    log.fence(1, log.pieces(1))
    assert told(pursuit) == [] and pursuit.whole and pursuit.at == (1, 3)
    log.fence(2, log.pieces(2))  # taken, and given up before anything was written
    log.append(3, 1, Segment((change(9, 9, whole=True),), after=(1, 3)))
    assert told(pursuit) == [[9]] and pursuit.at == (3, 1)
    log.append(3, 2, Segment((change(10, 10),)))
    assert told(pursuit) == [[10]]
    assert seconds(latest(log, [snapshot("base", 0)]), log) == ("base", [1, 2, 9, 10])


@pytest.mark.parametrize("first", [{"base": "another"}, {"after": (1, 1)}])
def test_an_epoch_on_something_else_is_not_followed(log: Log, first: dict[str, object]) -> None:
    """On a snapshot of a directory that was rebuilt, or on less than what is here."""
    _, pursuit = pursue(log)
    log.fence(1, log.pieces(1))
    assert told(pursuit) == []
    log.append(2, 1, Segment((change(9, 9, whole=True),), **first))  # type: ignore[arg-type]
    with pytest.raises(FellBehind):
        told(pursuit)


def test_what_is_gone_is_not_waited_for(log: Log) -> None:
    """Segments that were taken away before they were read."""
    _, pursuit = pursue(log)
    log.append(1, 4, Segment((change(4, 4),)))
    with pytest.raises(FellBehind):
        for _ in range(LOOK_ROUND):
            assert pursuit.next() is None


def test_damage_is_told(log: Log) -> None:
    """A segment that is none."""
    _, pursuit = pursue(log)
    log.repository.store.put(name_of(1, 3), b"rubbish")
    log.append(1, 4, Segment((change(4, 4),)))
    for _ in range(2):
        with pytest.raises(CorruptObject):
            pursuit.next()


def test_a_snapshot_ahead_of_the_log_must_be_caught_up_with(log: Log) -> None:
    """What it has already is left out; a log that ends before has not all of it, and cannot be built on."""
    ahead = snapshot("ahead", 5, epoch=1, counter=4, number=2)
    for last in (3, 5):
        way = latest(log, [snapshot("base", 0), ahead])
        assert way and way.snapshot.id == "ahead"
        found = settled(log, way)
        assert found
        pursuit = Pursuit(log, *found[1:])
        log.append(1, last, Segment((change(last, last),)))
        if last == 3:
            assert told(pursuit) == []
            log.append(1, 4, Segment((change(4, 4),)))
            assert told(pursuit) == []
        else:
            assert told(pursuit) == [[5]]
            log.fence(1, log.pieces(1))
            assert told(pursuit) == [] and pursuit.at == (1, 5)
    other = Log(Repository.create(MemoryStore()))
    other.append(1, 1, Segment((change(1, 1, whole=True),), base="base"))
    way = latest(other, [snapshot("base", 0), snapshot("ahead", 5, epoch=1, counter=4, number=1)])
    assert way
    found = settled(other, way)
    assert found
    pursuit = Pursuit(other, *found[1:])
    other.fence(1, other.pieces(1))
    with pytest.raises(FellBehind):
        told(pursuit)
