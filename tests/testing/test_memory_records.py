"""MemorySource and MemorySink fail when they are told to, and tell a program that does not keep to the Protocol."""

from __future__ import annotations

import pytest

from chromakeep.errors import ServerFailed, SourceError, UsageError
from chromakeep.records import Definition, Limits
from chromakeep.testing.faults import Died
from chromakeep.testing.memory_records import Memory, MemorySink, MemorySource
from chromakeep.testing.specimens import assert_same, gathered, held, ordinary, records_of

DEFINITION = Definition("sample", dimension=3)


def test_the_nth_write_fails_with_half_of_it_written() -> None:
    """Nothing before it is lost, and writing it again is enough."""
    memory = Memory()
    sink = MemorySink(memory, fail_at=2)
    intake = sink.collection(DEFINITION)
    intake.write(ordinary(10))
    with pytest.raises(ServerFailed):
        intake.write(ordinary(10, start=10))
    assert sink.writes == 2
    intake.mark()
    assert len(memory.unfinished[intake.mark()].records) == 15
    intake.write(ordinary(10, start=10))
    intake.finish()
    sink.publish()
    assert_same(records_of(ordinary(20)), held(MemorySource(memory), DEFINITION))


def test_the_nth_write_raises_what_it_is_told_to() -> None:
    """Such as what a killed process would see."""
    intake = MemorySink(Memory(), fail_at=1, error=Died()).collection(DEFINITION)
    with pytest.raises(Died):
        intake.write(ordinary(1))


def test_the_nth_batch_is_not_read() -> None:
    """Those before it are, and a reader that goes on behind the last mark gets the rest."""
    memory = Memory()
    memory.put(DEFINITION, ordinary(25))
    source = MemorySource(memory, rows=10, fail_at=2)
    reader = source.batches(DEFINITION)
    first, mark = next(reader)
    with pytest.raises(SourceError):
        next(reader)
    rest = [some for some, _ in source.batches(DEFINITION, after=mark)]
    assert_same(records_of(ordinary(25)), gathered([first, *rest]))


def test_what_no_mark_told_of_is_lost() -> None:
    """As if the machine had been switched off."""
    memory = Memory()
    intake = MemorySink(memory).collection(DEFINITION)
    intake.write(ordinary(10))
    mark = intake.mark()
    intake.write(ordinary(10, start=10))
    other = MemorySink(memory)
    other.collection(DEFINITION, mark=mark).finish()
    other.publish()
    assert_same(records_of(ordinary(10)), held(MemorySource(memory), DEFINITION))


def test_limits_are_held_against_the_writer() -> None:
    """More records, or another schema, than the intake takes is a fault of the program under test."""
    intake = MemorySink(Memory(), limits=Limits(records=5)).collection(DEFINITION)
    intake.write(ordinary(5))
    with pytest.raises(AssertionError, match="6 records"):
        intake.write(ordinary(6))
    with pytest.raises(AssertionError, match="schema"):
        intake.write(ordinary(1, 2))


def test_too_many_threads_are_held_against_the_writer() -> None:
    """One that writes while another one does, where the intake takes one at a time."""
    intake = MemorySink(Memory()).collection(DEFINITION)
    intake._writers = 1  # as while another thread is in ``write``
    with pytest.raises(AssertionError, match="2 threads"):
        intake.write(ordinary(1))


def test_a_mark_of_nothing_is_refused() -> None:
    """What was published or begun anew cannot be gone on with."""
    memory = Memory()
    sink = MemorySink(memory)
    mark = sink.collection(DEFINITION).mark()
    sink.collection(DEFINITION)
    with pytest.raises(UsageError):
        sink.collection(DEFINITION, mark=mark)
