"""MemorySource and MemorySink: collections in memory, to test what reads and writes them.

The sink is as unkind as its Protocol allows: what no mark told of is lost with the sink object, it fails with half a
batch written when it is told to, and a program that does not keep to the Protocol gets an AssertionError.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from chromakeep.batches import schema
from chromakeep.errors import ServerFailed, SourceError, TargetNotEmpty, UsageError
from chromakeep.records import Definition, Limits, Mark, Speed, check_conflict

if TYPE_CHECKING:
    import pyarrow as pa

    from chromakeep.conditions import Where

Place = tuple[str, str, str]  # tenant, database, name
_NUMBERS = count(1)


class Kept(msgspec.Struct):
    """One collection: records in the order in which they came first, each a batch of one."""

    definition: Definition
    records: dict[str, pa.RecordBatch] = msgspec.field(default_factory=dict)
    kept: frozenset[str] = frozenset()  # ids that were there and stay as they are
    finished: bool = False

    def put(self, records: Mapping[str, pa.RecordBatch]) -> None:
        """Take these, in place of those of the same ids."""
        self.records.update((id_, record) for id_, record in records.items() if id_ not in self.kept)


class Memory:
    """A place: ``collections`` that are visible, and ``unfinished`` ones, by number."""

    def __init__(self) -> None:
        self.collections: dict[Place, Kept] = {}
        self.unfinished: dict[int, Kept] = {}
        self.version = next(_NUMBERS)
        self.lock = threading.Lock()

    def changed(self) -> None:
        """Another ``state()`` from now on."""
        self.version = next(_NUMBERS)

    def put(self, definition: Definition, *batches: pa.RecordBatch) -> None:
        """Make this collection visible, with these records; in place of one of that name."""
        kept = self.collections[definition.place] = Kept(definition)
        for records in batches:
            kept.put(_single(records))
        self.changed()


class MemorySource:
    """Reads a ``Memory``; a mark is the number of records before it.

    ``rows``: records a batch at most. ``fail_at``: the so manyth batch that any reader would give (from 1) raises
    ``error`` instead, a SourceError if None; the next one is given again.
    """

    def __init__(
        self, memory: Memory, *, rows: int = 100, fail_at: int | None = None, error: BaseException | None = None
    ) -> None:
        self.memory, self.rows = memory, rows
        self._fail_at, self._error = fail_at, error or SourceError("injected fault")
        self._given = 0

    def definitions(self) -> Sequence[Definition]:
        return [replace(kept.definition, count=len(kept.records)) for kept in self.memory.collections.values()]

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        records = islice(list(self.memory.collections[definition.place].records.values()), after or 0, None)
        done = after or 0
        while some := list(islice(records, self.rows)):
            done += len(some)
            self._given += 1
            if self._given == self._fail_at:
                raise self._error
            found = _joined(some)
            yield (where.select(found) if where else found), done

    def state(self) -> str:
        return str(self.memory.version)

    def close(self) -> None:
        """There is nothing to let go of."""


class MemorySink:
    """Writes a ``Memory``.

    ``atomic``: all becomes visible in ``publish``; else each collection is visible from its beginning, as at a server.
    ``limits``: those of every intake, and breaking them is an AssertionError. ``fail_at``: the so manyth write (from 1)
    raises ``error``, a ServerFailed if None, with the first half of its records written; ``writes`` counts them.
    """

    several = True
    speed = Speed(1_000_000, 1 << 30)

    def __init__(
        self,
        memory: Memory,
        *,
        atomic: bool = True,
        limits: Limits | None = None,
        fail_at: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.memory, self.atomic, self.limits = memory, atomic, limits or Limits()
        self.fail_at, self.error = fail_at, error or ServerFailed("injected fault")
        self.writes = 0
        self.lock = threading.Lock()

    def definitions(self) -> Sequence[Definition]:
        return MemorySource(self.memory).definitions()

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        check_conflict(conflict)

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        self.check(definition, conflict=conflict)
        if mark is not None:
            if mark not in self.memory.unfinished:
                raise UsageError("there is nothing unfinished of that mark")
            return MemoryIntake(self, mark)
        there = self.memory.collections.get(definition.place)
        if there is not None and conflict == "fail":
            raise TargetNotEmpty(f"there is a collection {definition.name!r} already")
        kept = Kept(definition)
        if there is not None and conflict != "replace":
            if there.definition.dimension != definition.dimension and there.records:
                raise UsageError(f"the collection {definition.name!r} has another dimension")
            kept.records = dict(there.records)
            kept.kept = frozenset(there.records) if conflict == "skip" else frozenset()
        for number in [n for n, one in self.memory.unfinished.items() if one.definition.place == definition.place]:
            del self.memory.unfinished[number]
        number = next(_NUMBERS)
        self.memory.unfinished[number] = kept
        if not self.atomic:
            self.memory.collections[definition.place] = kept
            self.memory.changed()
        return MemoryIntake(self, number)

    def publish(self) -> None:
        with self.memory.lock:
            finished = {number: kept for number, kept in self.memory.unfinished.items() if kept.finished}
            for number, kept in finished.items():
                self.memory.collections[kept.definition.place] = kept
                del self.memory.unfinished[number]
            self.memory.changed()

    def close(self) -> None:
        """What no mark told of is lost now."""


class MemoryIntake:
    """A collection of a ``MemorySink`` while it is written; a mark is its number."""

    def __init__(self, sink: MemorySink, number: int) -> None:
        self.limits = sink.limits
        self._sink, self._number = sink, number
        self._kept = sink.memory.unfinished[number]
        self._kept.finished = False
        self._since: dict[str, pa.RecordBatch] = {}  # the last mark
        self._writers = 0

    def write(self, batch: pa.RecordBatch) -> None:
        with self._sink.lock:
            self._writers += 1
            self._sink.writes += 1
            fails = self._sink.writes == self._sink.fail_at
            writers = self._writers
        try:
            if writers > self.limits.writers:
                raise AssertionError(f"{writers} threads write at a time, of at most {self.limits.writers}")
            if len(batch) > self.limits.records:
                raise AssertionError(f"{len(batch)} records are written at a time, of at most {self.limits.records}")
            if not batch.schema.equals(schema(self._kept.definition.dimension)):
                raise AssertionError(f"a batch has the schema {batch.schema}")
            records = _single(batch.slice(0, len(batch) // 2) if fails else batch)
            with self._sink.lock:
                self._since.update(records)
            if fails:
                raise self._sink.error
        finally:
            with self._sink.lock:
                self._writers -= 1

    def mark(self) -> Mark:
        with self._sink.lock:
            self._kept.put(self._since)
            self._since = {}
        return self._number

    def finish(self) -> None:
        self.mark()
        self._kept.finished = True


def _single(records: pa.RecordBatch) -> dict[str, pa.RecordBatch]:
    return {id_: records.slice(n, 1) for n, id_ in enumerate(records.column("id").to_pylist())}


def _joined(records: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    (found,) = pa.Table.from_batches(records).combine_chunks().to_batches()
    return found
