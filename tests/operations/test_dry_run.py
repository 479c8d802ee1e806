"""A dry run: what it tells is what the copy would do, and it does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

from chromakeep.batches import batch, encode
from chromakeep.conditions import Where
from chromakeep.errors import TargetNotEmpty, UsageError
from chromakeep.operations.copy import CopyResult, copy
from chromakeep.operations.dry_run import SAMPLE, dry_run
from chromakeep.operations.planning import Plan
from chromakeep.records import Definition, Speed
from chromakeep.testing.memory_records import Memory, MemorySink, MemorySource

ROWS = 50


def records(count: int, text: str = "text") -> pa.RecordBatch:
    ids = [f"id-{n}" for n in range(count)]
    metadatas = [encode({"n": n}) for n in range(count)]
    return batch(ids, np.ones((count, 3), np.float32), [text] * count, [None] * count, metadatas, 3)


def place(count: int = 1000, text: str = "text") -> Memory:
    memory = Memory()
    memory.put(Definition("books", "1", dimension=3), records(count, text))
    memory.put(Definition("laws", "2", dimension=3), records(20, text))
    return memory


def look(source: Memory, plan: Plan | None = None, target: Memory | None = None, **options: Any) -> CopyResult:
    sink = MemorySink(target or Memory(), atomic=False)
    for name, value in options.items():
        setattr(sink, name, value)
    done = dry_run(MemorySource(source, rows=ROWS), sink, plan or Plan())
    assert done.dry_run and sink.writes == 0
    return done


def test_it_changes_nothing_and_tells_what_is_there() -> None:
    """What exists, and what would be in the way, as an error of the same kind."""
    source, target = place(), Memory()
    assert (look(source, target=target).records, target.collections) == (1020, {})
    target.put(Definition("laws", "old", dimension=3), records(1))
    with pytest.raises(TargetNotEmpty):
        look(source, target=target)
    done = look(source, Plan(conflict="upsert"), target)
    assert [c.exists for c in done.collections] == [False, True]


@pytest.mark.parametrize("text", ["text", "t" * 30_000])
def test_the_size_is_that_of_the_records(text: str) -> None:
    """By the first batches of each collection, whatever is in them."""
    source = place(text=text)
    done = look(source)
    assert done.estimate and done.estimate.read == SAMPLE * ROWS + 20
    moved = copy(MemorySource(source, rows=ROWS), MemorySink(Memory()), Plan())
    assert (done.records, len(done.collections)) == (moved.records, 2)
    assert abs(done.bytes - moved.bytes) < moved.bytes / 50


def test_what_a_condition_leaves_is_counted() -> None:
    """By reading all of it."""
    source, plan = place(), Plan(where=Where('{"n": {"$gte": 992}}'))
    done = look(source, plan)
    assert [c.records for c in done.collections] == [8, 0]
    assert done.bytes == copy(MemorySource(source, rows=ROWS), MemorySink(Memory()), plan).bytes


def test_what_no_source_knows_is_counted() -> None:
    """A stream tells of no number."""

    class Stream(MemorySource):
        def definitions(self) -> Sequence[Definition]:
            return [replace(each, count=None) for each in super().definitions()]

    done = dry_run(Stream(place(), rows=ROWS), MemorySink(Memory()), Plan())
    assert (done.records, done.estimate and done.estimate.read) == (1020, 1020)


def test_the_time_is_that_of_the_slower_side() -> None:
    """The target's speed in records or in bytes, the rate that was asked for; and what a verification reads again."""
    source = place()
    size = look(source).bytes
    for speed in (Speed(0.102, 1e9), Speed(1e9, size / 10_000)):
        done = look(source, speed=speed)
        assert done.estimate and done.estimate.writing == pytest.approx(10_000)
        assert done.seconds == pytest.approx(max(10_000, done.estimate.reading))
    assert look(source, Plan(rate=0.01)).seconds == pytest.approx(102_000)
    assert look(source, Plan(rate=0.01, verify=True)).seconds > 102_000


def test_records_that_would_be_refused_are_named() -> None:
    """All are read for that; how many they are is told, and the first are named."""

    class Picky(MemorySink):
        examines = True

        def refused(self, records: pa.RecordBatch) -> Sequence[str]:
            return [f"{id_!r}: no nines" for id_ in records.column("id").to_pylist() if "99" in id_]

    with pytest.raises(UsageError) as told:
        dry_run(MemorySource(place(), rows=ROWS), Picky(Memory()), Plan())
    assert told.value.message.startswith("19 records would be refused: books: 'id-99': no nines; books: 'id-199': no")
    with pytest.raises(UsageError, match=r"'id-999': no nines$"):
        dry_run(MemorySource(place(), rows=ROWS), Picky(Memory()), Plan(where=Where('{"n": {"$gte": 999}}')))
    memory = Memory()
    memory.put(Definition("many", dimension=3), records(3000))
    with pytest.raises(UsageError, match=r"^57 records .*; and 37 more$"):
        dry_run(MemorySource(memory, rows=ROWS), Picky(Memory()), Plan())
