"""Reconciling: what differs is written and nothing else, what is gone is deleted, and memory does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

from chromakeep.batches import batch, encode
from chromakeep.chroma.hnsw import through_cosine
from chromakeep.conditions import Where
from chromakeep.errors import ServerFailed, SourceError, TargetNotEmpty, UsageError
from chromakeep.operations.catch_up import Round, catch_up
from chromakeep.operations.compare import compare_places
from chromakeep.operations.reconcile import TOGETHER, Deletes, Drops, Reconciled, reconcile
from chromakeep.operations.tracked import Options, Tracked
from chromakeep.records import Definition, Limits, Mark
from chromakeep.testing.memory_records import Memory, MemorySink, MemorySource

PLACE = ("default_tenant", "default_database", "books")
BOOKS = Definition("books", "uuid-a", dimension=3)


def records(start: int, stop: int, *, salt: int = 0) -> pa.RecordBatch:
    """Records number ``start`` to ``stop``; ``salt`` makes others of the same ids."""
    numbers = range(start, stop)
    return batch(
        [f"id-{n}" for n in numbers],
        np.array([[n, n + salt, -n / 4] for n in numbers], np.float32),
        [None if n % 5 == 0 else f"text {n} {salt}" for n in numbers],
        [f"file:///{n}" if n % 7 == 0 else None for n in numbers],
        [None if n % 11 == 0 else encode({"n": n, "salt": salt}) for n in numbers],
        3,
    )


class Server(MemorySink):
    """A sink as a server is one: what is written is there at once, and can be deleted. ``deleted`` and ``written``: the
    ids of this sink's requests."""

    def __init__(self, memory: Memory, **extra: Any) -> None:
        super().__init__(memory, atomic=False, **{"limits": Limits(writers=2, records=64), **extra})
        self.deleted: list[str] = []
        self.most = 0

    def delete(self, definition: Definition, ids: Sequence[str]) -> None:
        self.most = max(self.most, len(ids))
        for id_ in ids:
            self.memory.collections[definition.place].records.pop(id_, None)
        self.deleted += ids

    def drop(self, definition: Definition) -> None:
        self.memory.collections.pop(definition.place, None)


def both(a: Memory, b: Memory, sink: MemorySink | None = None, **extra: Any) -> tuple[Reconciled, MemorySink]:
    """Reconcile the books of two places."""
    sink = sink or Server(b)
    (mine,) = MemorySource(a).definitions()
    (theirs,) = MemorySource(b).definitions()
    return reconcile(MemorySource(a), mine, sink, MemorySource(b), theirs, **extra), sink


def place(*some: pa.RecordBatch, definition: Definition = BOOKS) -> Memory:
    memory = Memory()
    memory.put(definition, *some)
    return memory


def same(a: Memory, b: Memory) -> bool:
    return compare_places(MemorySource(a), MemorySource(b)).equal


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    """Of 1,000 records 30 are new, 20 other ones of the same id, 10 gone: 60 are touched, and no other one."""
    a = place(records(0, 990), records(100, 120, salt=3), records(5000, 5030))
    b = place(records(0, 1000))
    found, sink = both(a, b, folder=tmp_path)
    assert found == Reconciled(1020, 50, 10, 0)
    assert sorted(sink.deleted) == sorted(f"id-{n}" for n in range(990, 1000))
    assert same(a, b)
    again, sink = both(a, b)
    assert again == Reconciled(1020, 0, 0, 0)
    assert sink.writes == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [(1, [9.0, 9.0, 9.0]), (2, ""), (2, None), (3, "file:///x"), (4, '{"n":1.0}'), (4, None), (1, None)],
)
def test_any_difference_of_a_record_is_seen(field: int, value: Any) -> None:
    """A bit of its vector, its document, URI or metadata; 1 and 1.0; null and empty."""
    row = ["id-1", [1.0, 1.0, -0.25], "text", "file:///1", '{"n":1}']
    b = place(_row(row))
    row[field] = value
    a = place(_row(row))
    assert not same(a, b)
    found, _ = both(a, b)
    assert found.upserted == 1
    assert same(a, b)


def _row(row: list[Any]) -> pa.RecordBatch:
    return batch(*[[each] for each in row], 3)


def test_a_cosine_index_rounds_and_nothing_is_written() -> None:
    """What such an index shows of what it was given is equal to that."""
    cosine = replace(BOOKS, dimension=64, configuration={"hnsw": {"space": "cosine"}})
    vectors = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)
    ids, none = [f"v{n}" for n in range(300)], [None] * 300
    a = place(batch(ids, vectors, none, none, none, 64), definition=cosine)
    b = place(batch(ids, through_cosine(vectors), none, none, none, 64), definition=cosine)
    found, sink = both(a, b)
    assert (found.moved, sink.writes) == (0, 0)
    vectors[17] += np.float32(1e-3)
    a = place(batch(ids, vectors, none, none, none, 64), definition=cosine)
    assert both(a, b)[0].upserted == 1


def test_what_the_target_had_before_is_left(tmp_path: Path) -> None:
    """``delete=False``, and a sink that cannot delete: what is only there stays, and is told."""
    a, b = place(records(0, 50)), place(records(40, 70, salt=1))
    found, sink = both(a, b, delete=False)
    assert found == Reconciled(50, 50, 0, 20)
    assert sink.deleted == []
    plain = MemorySink(b, atomic=False)
    assert isinstance(sink, Deletes)
    assert isinstance(sink, Drops)
    assert not isinstance(plain, Deletes)
    assert both(a, b, plain)[0] == Reconciled(50, 0, 0, 20)
    assert both(a, b)[0] == Reconciled(50, 0, 20, 0)
    assert same(a, b)


def test_long_collections_are_taken_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists of hashes are in files, what is written and deleted comes in portions."""
    monkeypatch.setattr("chromakeep.chroma.spool.IN_MEMORY", 1000)
    monkeypatch.setattr("chromakeep.chroma.spool.AT_ONCE", 256)
    monkeypatch.setattr("chromakeep.chroma.spool.SAMPLE", 64)
    a, b = place(records(0, 6000)), place(records(3000, 12000), records(3000, 3100, salt=2))
    held: list[int] = []

    class Watched(MemorySource):
        def batches(
            self, definition: Definition, *, after: Mark = None, where: Where | None = None
        ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
            for some, mark in super().batches(definition, after=after, where=where):
                held.append(len(some))
                yield some, mark

    sink = Server(b)
    found = reconcile(Watched(a), BOOKS, sink, Watched(b), replace(BOOKS, id="uuid-b"), folder=tmp_path)
    assert found == Reconciled(6000, 3100, 6000, 0)
    assert same(a, b)
    assert sink.most == TOGETHER
    assert max(held) == 100
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_write_it_is_made_again() -> None:
    """Every second call finds less to do, and the last one nothing; no record is lost or strange after any of them."""
    for n in range(1, 12):
        a, b = place(records(0, 400), records(600, 900)), place(records(300, 700, salt=1))
        with pytest.raises(ServerFailed):
            both(a, b, Server(b, fail_at=n))
        found, _ = both(a, b)
        assert found.upserted <= 700
        assert same(a, b)


# -- whole places -----------------------------------------------------------------------------------------------------


class Places:
    """Two places, and what a transfer knows of them; ``round()`` is one round of a process of its own, which knows what
    the last one had saved."""

    def __init__(self, a: Memory, b: Memory, **options: Any) -> None:
        self.a, self.b, self.options = a, b, Options(**options)
        self.saved = b"{}"
        self.saves = 0

    def round(self, sink: MemorySink | None = None, **extra: Any) -> Round:
        tracked = msgspec.json.decode(self.saved, type=dict[str, Tracked])

        def save() -> None:
            self.saved = msgspec.json.encode(tracked)
            self.saves += 1

        return catch_up(
            MemorySource(self.a),
            sink or Server(self.b),
            MemorySource(self.b),
            self.options,
            tracked,
            save,
            **extra,
        )


def test_collections_come_and_go() -> None:
    """Created, dropped, renamed, made anew with another dimension: the target has the same each time."""
    a, b = place(records(0, 100)), Memory()
    places = Places(a, b)
    assert places.round().created == 1
    assert same(a, b)
    a.put(Definition("laws", "uuid-l", dimension=3), records(0, 10))
    found = places.round()
    assert (found.created, found.upserted) == (1, 10)
    assert same(a, b)
    a.put(Definition("novels", "uuid-a", dimension=3), records(0, 90))
    del a.collections[PLACE]
    found = places.round()
    assert (found.created, found.dropped) == (1, 1)
    assert same(a, b)
    a.put(
        Definition("laws", "uuid-m", dimension=2),
        batch(["x"], np.ones((1, 2), np.float32), [None], [None], [None], 2),
    )
    assert places.round().created == 1
    assert same(a, b)
    assert [d.dimension for d in MemorySource(b).definitions() if d.name == "laws"] == [2]
    before = places.saves
    assert places.round().quiet
    assert places.saves == before


def test_made_anew_alike_costs_only_what_differs() -> None:
    """Another id, the same shape: the records are brought over, nothing is dropped."""
    a, b = place(records(0, 100)), Memory()
    places = Places(a, b)
    places.round()
    a.put(replace(BOOKS, id="uuid-z"), records(0, 95), records(200, 205))
    found = places.round()
    assert (found.created, found.dropped, found.upserted, found.deleted) == (0, 0, 5, 5)
    assert same(a, b)


def test_other_metadata_means_a_copy() -> None:
    """What cannot be changed through a sink is made anew; a target that cannot drop keeps the old one aside."""
    a, b = place(records(0, 100)), Memory()
    places = Places(a, b)
    places.round()
    a.put(replace(BOOKS, metadata={"topic": "novels"}), records(0, 100))
    assert places.round().created == 1
    assert [d.metadata for d in MemorySource(b).definitions()] == [{"topic": "novels"}]


def test_what_was_there_before_is_never_deleted() -> None:
    """``upsert``: neither records nor the collection, and that is told; ``fail`` refuses a new one of that name."""
    a, b = place(records(0, 100)), place(records(50, 150, salt=1))
    places = Places(a, b, on_conflict="upsert")
    found = places.round()
    assert (found.upserted, found.deleted) == (100, 0)
    assert "50 records of books are only at the target" in found.told[0]
    del a.collections[PLACE]
    a.put(Definition("laws", "uuid-l", dimension=3), records(0, 10))
    found = places.round(allow_empty=True)
    assert (found.dropped, len(b.collections)) == (0, 2)
    assert "stays" in found.told[0]
    assert places.round().told == []
    a, b = place(records(0, 100)), place(records(50, 150, salt=1))
    with pytest.raises(TargetNotEmpty):
        Places(a, b).round()
    assert len(b.collections[PLACE].records) == 100


def test_a_target_that_cannot_drop_tells() -> None:
    """Each round again, until somebody has deleted it."""

    class Keeps(MemorySink):
        def delete(self, definition: Definition, ids: Sequence[str]) -> None:
            raise AssertionError

    a, b = place(records(0, 10)), Memory()
    a.put(Definition("laws", "uuid-l", dimension=3), records(0, 10))
    places = Places(a, b)
    places.round(Keeps(b, atomic=False))
    del a.collections[PLACE]
    for _ in range(2):
        assert "delete books at the target" in places.round(Keeps(b, atomic=False)).told[0]
    del b.collections[PLACE]
    assert places.round(Keeps(b, atomic=False)).told == []
    assert places.round(Keeps(b, atomic=False)).quiet


def test_a_source_without_anything_is_not_believed() -> None:
    """A server on a wrong directory has no collection: nothing is dropped unless somebody says so."""
    a, b = place(records(0, 10)), Memory()
    places = Places(a, b)
    places.round()
    a.collections.clear()
    with pytest.raises(SourceError, match="none of the 1 collections"):
        places.round()
    assert len(b.collections) == 1
    assert places.round(allow_empty=True).dropped == 1


def test_names_that_would_become_one_are_refused() -> None:
    """Two databases into one, and a tenant of which nobody said where it goes."""
    a = place(records(0, 10))
    a.put(replace(BOOKS, id="other", database="second"), records(0, 3))
    with pytest.raises(UsageError, match="both become"):
        Places(a, Memory(), database="one").round()
    a = place(records(0, 10), definition=replace(BOOKS, tenant="acme"))
    with pytest.raises(UsageError, match="tenant acme"):
        Places(a, Memory()).round()
    places = Places(a, Memory(), tenant="other", rename={"books": "novels"})
    places.round()
    assert list(places.b.collections) == [("other", "default_database", "novels")]
    assert places.round().quiet


@pytest.mark.parametrize("conflict", ["fail", "replace"])
def test_a_round_killed_at_any_write_goes_on(conflict: str) -> None:
    """While a collection is copied, one made anew and one reconciled: the next round completes it, with no second half
    beside it."""
    for n in range(1, 30):
        a, b = place(records(0, 300)), Memory()
        a.put(Definition("laws", "uuid-l", dimension=3), records(0, 200))
        if conflict == "replace":
            b.put(Definition("laws", "foreign", dimension=3), records(500, 700))
        places = Places(a, b, on_conflict=conflict)
        try:
            places.round(Server(b, fail_at=n))
            a.put(replace(BOOKS, id="anew", metadata={"a": 1}), records(100, 350))
            a.put(Definition("laws", "uuid-l", dimension=3), records(50, 250, salt=1))
            places.round(Server(b, fail_at=n - 14 if n > 14 else None))
        except ServerFailed:
            places.round()
        places.round()
        assert same(a, b), n
        assert places.round().quiet
        assert not b.unfinished
