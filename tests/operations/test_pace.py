"""--rate: no second has more records than that, whatever they belong to; by a clock of the tests' own."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chromakeep.batches import batch
from chromakeep.operations import pace, pump
from chromakeep.operations.catch_up import catch_up
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.copy import Plan, copy
from chromakeep.operations.tracked import Options
from chromakeep.records import Definition, Mark
from chromakeep.testing.memory_records import Memory, MemoryIntake, MemorySink, MemorySource


class Clock:
    """Goes on when somebody sleeps, and when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(pace, "time", found := Clock())
    return found


class Noting(MemorySink):
    """Takes down when how many records were given; ``slow``: how long each write takes."""

    def __init__(self, memory: Memory, clock: Clock, *, slow: float = 0.0) -> None:
        super().__init__(memory, atomic=False)
        self.clock, self.slow = clock, slow
        self.given: list[tuple[float, int]] = []

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        noting = self

        class Intake(MemoryIntake):
            def write(self, some: pa.RecordBatch) -> None:
                noting.given.append((noting.clock.now, len(some)))
                noting.clock.now += noting.slow
                super().write(some)

        return Intake(self, super().collection(definition, conflict=conflict, mark=mark).mark())

    def keeps_to(self, rate: float) -> bool:
        """Whether no second has more than the rate, beside the portion that it begins with."""
        spans = [sum(n for at, n in self.given if start <= at < start + 1) for start, _ in self.given]
        return max(spans) <= rate + max(1, rate / 10)


def place(*counts: int) -> Memory:
    memory = Memory()
    for number, count in enumerate(counts):
        ids = [f"id-{n}" for n in range(count)]
        records = batch(ids, np.ones((count, 3), np.float32), *([None] * count for _ in range(3)), 3)
        memory.put(Definition(f"c{number}", f"uuid-{number}", dimension=3), records)
    return memory


@pytest.mark.parametrize(("counts", "rate"), [((900,), 200.0), ((350, 350, 350), 300.0), ((9, 3), 2.5)])
def test_no_second_has_more_than_the_rate(clock: Clock, counts: tuple[int, ...], rate: float) -> None:
    """Of one long batch as of three collections that follow each other; and not much less, either."""
    sink = Noting(Memory(), clock)
    done = copy(MemorySource(place(*counts), rows=500), sink, Plan(rate=rate))
    assert done.records == sum(counts) == sum(n for _, n in sink.given)
    assert sink.keeps_to(rate)
    assert clock.now - 1000 == pytest.approx(sum(counts) / rate, rel=0.1)


def test_what_a_slow_target_did_not_take_is_not_made_up_for(clock: Clock) -> None:
    """It would be a burst just when the target has come to its breath."""
    sink = Noting(Memory(), clock, slow=5.0)
    copy(MemorySource(place(100), rows=50), sink, Plan(rate=100.0))
    sink.slow, sink.given = 0.0, []
    copy(MemorySource(place(300), rows=50), sink, Plan(rate=100.0, conflict="upsert"))
    assert sink.keeps_to(100)


def test_rounds_of_a_transfer_keep_to_it(clock: Clock) -> None:
    """All collections of a round together, as many and as small as they may be."""
    target = Memory()
    sink = Noting(target, clock)
    catch_up(MemorySource(place(*[7] * 20)), sink, MemorySource(target), Options(rate=10.0), {}, lambda: None)
    assert sum(n for _, n in sink.given) == 140
    assert sink.keeps_to(10)


def test_without_a_rate_nothing_waits(clock: Clock) -> None:
    """Batches are as large as the target takes them."""
    sink = Noting(Memory(), clock)
    copy(MemorySource(place(900), rows=450), sink, Plan())
    assert sink.given == [(1000.0, 450), (1000.0, 450)]


def test_a_signal_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when all was read, and only the pace is waited for: for years, at this one."""
    writers = []

    class Intake(MemoryIntake):
        def write(self, some: pa.RecordBatch) -> None:
            super().write(some)
            writers.append(threading.current_thread())
            _thread.interrupt_main()

    class Sink(MemorySink):
        def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> Any:
            return Intake(self, super().collection(definition, conflict=conflict, mark=mark).mark())

    monkeypatch.setattr(pump, "LEAVE", 60.0)
    file = tmp_path / "c.json"
    with pytest.raises(KeyboardInterrupt):
        checkpoint = Checkpoint(file, {})
        copy(MemorySource(place(40), rows=1), Sink(Memory(), atomic=False), Plan(rate=1e-9), checkpoint=checkpoint)
    (writer,) = writers
    assert not writer.is_alive()
    assert sum(part.records for part in Checkpoint(file, {}).parts.values()) == 1
