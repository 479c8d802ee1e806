"""The pump: every record once, whatever fails where; a copy that was killed goes on; nothing that stands in the way is
found late; and what is called verified is equal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

from chromakeep.batches import batch, encode
from chromakeep.chroma.rounding import through_json
from chromakeep.conditions import Where
from chromakeep.errors import ServerFailed, SourceError, TargetNotEmpty, UsageError, VerificationFailed
from chromakeep.events import Noted
from chromakeep.operations import pump
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.compare import compare, compare_places
from chromakeep.operations.copy import copy
from chromakeep.operations.dry_run import dry_run
from chromakeep.operations.planning import Plan
from chromakeep.operations.pump import AHEAD
from chromakeep.records import Definition, Limits, Mark
from chromakeep.testing.memory_records import Memory, MemoryIntake, MemorySink, MemorySource

WHOLE = {"from": "a", "to": "b"}


def records(start: int, stop: int, *, dimension: int = 3, salt: int = 0) -> pa.RecordBatch:
    """Records number ``start`` to ``stop``; ``salt`` makes others of the same ids."""
    numbers = range(start, stop)
    return batch(
        [f"id-{n}" for n in numbers],
        np.array([[n, n + salt, -n / 3] for n in numbers], np.float32)[:, :dimension],
        [None if n % 5 == 0 else f"text {n} {salt}" for n in numbers],
        [f"file:///{n}" if n % 7 == 0 else None for n in numbers],
        [None if n % 11 == 0 else encode({"n": n, "even": n % 2 == 0, "salt": float(salt)}) for n in numbers],
        dimension,
    )


def place(*, count: int = 500, names: tuple[str, ...] = ("books", "laws")) -> Memory:
    memory = Memory()
    for number, name in enumerate(names):
        memory.put(Definition(name, f"uuid-{number}", dimension=3), records(0, count // (number + 1), salt=number))
    return memory


def same(one: Memory, other: Memory) -> bool:
    return compare_places(MemorySource(one), MemorySource(other)).equal


def run(source: Memory, target: Memory, plan: Plan | None = None, **extra: Any) -> Any:
    plan = plan or Plan(verify=True)
    sink = MemorySink(target, atomic=False, limits=Limits(writers=2, records=37))
    return copy(MemorySource(source), sink, plan, read_back=lambda: MemorySource(target), **extra)


def test_all_of_it_arrives_and_is_verified() -> None:
    """Two collections, in batches larger than the sink takes."""
    source, target = place(), Memory()
    done = run(source, target)
    assert same(source, target)
    assert [(c.name, c.records) for c in done.collections] == [("books", 500), ("laws", 250)]
    assert done.records == 750
    assert done.verified is True
    assert all(c.comparison.equal for c in done.collections)


@pytest.mark.parametrize("writers", [1, 3])
def test_a_copy_killed_at_any_write_goes_on(tmp_path: Path, writers: int) -> None:
    """What is written down is never more than what arrived; the second process reads only what is behind it."""
    source = place(count=400)
    for n in range(1, 13):
        target, file = Memory(), tmp_path / f"{n}.json"
        reading = MemorySource(source, rows=50)
        limits = Limits(writers=writers, records=50)
        with pytest.raises(ServerFailed):
            sink = MemorySink(target, atomic=False, limits=limits, fail_at=n)
            copy(reading, sink, Plan(verify=True), checkpoint=Checkpoint(file, WHOLE))
        again = Checkpoint(file, WHOLE)
        known = sum(part.records for part in again.parts.values())
        counted = Counting(source, rows=50)
        done = copy(
            counted,
            MemorySink(target, atomic=False, limits=limits),
            Plan(verify=True),
            read_back=lambda target=target: MemorySource(target),
            checkpoint=again,
        )
        assert same(source, target), n
        assert done.resumed
        assert done.records == 600
        assert counted.given == 600 - known
        assert known >= (n - 1) * 50 - writers * 50  # all that was accepted but what was beside the write that failed
        assert not file.exists()


class Counting(MemorySource):
    """Counts the records that it gives to copies (not to comparisons: those ask for no mark)."""

    given = 0

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        for some, mark in super().batches(definition, after=after, where=where):
            self.given += len(some)
            yield some, mark


def test_a_source_that_fails_is_told_and_gone_on_with(tmp_path: Path) -> None:
    """Its own error, with what came before accepted."""
    source, target, file = place(), Memory(), tmp_path / "c.json"
    with pytest.raises(SourceError, match="injected"):
        copy(
            MemorySource(source, rows=50, fail_at=4),
            MemorySink(target, atomic=False),
            Plan(),
            checkpoint=Checkpoint(file, WHOLE),
        )
    assert Checkpoint(file, WHOLE).part(("default_tenant", "default_database", "books")).records == 150
    run(source, target, checkpoint=Checkpoint(file, WHOLE))
    assert same(source, target)


def test_a_copy_that_goes_on_says_since_when_it_has_not_all(tmp_path: Path) -> None:
    """A source that keeps its word, as a list of a server's ids does, may have changed all the same."""
    source, target, told = place(), Memory(), []

    class Server(MemorySource):
        def state(self) -> str:
            return "list of ids"

    def one(fail_at: int | None) -> Any:
        checkpoint = Checkpoint(tmp_path / "c.json", WHOLE)
        sink = MemorySink(target, atomic=False)
        return copy(Server(source, fail_at=fail_at), sink, Plan(), checkpoint=checkpoint, observer=told.append)

    with pytest.raises(SourceError):
        one(4)
    since = Checkpoint(tmp_path / "c.json", WHOLE).since
    assert since
    assert not any(isinstance(event, Noted) for event in told)
    done = one(None)
    assert (done.resumed, done.as_of) == (True, since)
    (noted,) = (event for event in told if isinstance(event, Noted))
    assert since in noted.message and "not all copied" in noted.message
    assert run(source, Memory()).as_of is None


def test_a_source_that_has_changed_is_begun_anew(tmp_path: Path) -> None:
    """Marks of another state lead nowhere: what is there already is ours, and written again."""
    source, target, file = place(), Memory(), tmp_path / "c.json"
    with pytest.raises(ServerFailed):
        copy(
            MemorySource(source, rows=50),
            MemorySink(target, atomic=False, limits=Limits(records=50), fail_at=5),
            Plan(),
            checkpoint=Checkpoint(file, WHOLE),
        )
    source.put(Definition("books", "uuid-0", dimension=3), records(100, 600, salt=9))
    with pytest.raises(TargetNotEmpty):
        run(source, target, checkpoint=Checkpoint(file, WHOLE))
    run(source, target, Plan(verify=True, conflict="replace"), checkpoint=Checkpoint(file, WHOLE))
    assert same(source, target)


def test_conflicts_are_found_before_anything_is_written() -> None:
    """The last collection of three stands in the way: the first is not begun."""
    source, target = place(names=("a", "b", "c")), Memory()
    target.put(Definition("c", "old", dimension=3), records(0, 10, salt=5))
    with pytest.raises(TargetNotEmpty, match="collection c already"):
        run(source, target)
    assert list(target.collections) == [("default_tenant", "default_database", "c")]
    target.put(Definition("c", "old", dimension=2), records(0, 10, dimension=2))
    with pytest.raises(UsageError, match="dimensions"):
        run(source, target, Plan(conflict="upsert"))
    assert len(target.collections) == 1


def test_everything_that_stands_in_the_way_is_named() -> None:
    """What the target has, and what it would take under no such name, before the first collection is begun."""

    class Sink(MemorySink):
        def check(self, definition: Definition, *, conflict: str = "fail") -> None:
            if len(definition.name) < 3:
                raise UsageError(f"{definition.name!r} is too short", hint="--rename")

    source, target = place(names=("first", "ab", "laws", "books", "c")), Memory()
    for name in ("laws", "books"):
        target.put(Definition(name, "old", dimension=3), records(0, 1))
    for run in (copy, dry_run):
        with pytest.raises(UsageError) as told:
            run(MemorySource(source), Sink(target, atomic=False), Plan())
        assert told.value.message == (
            "'ab' is too short; the target has a collection laws already;"
            " the target has a collection books already; 'c' is too short"
        )
        assert "--rename; say what" in (told.value.hint or "")
        assert len(target.collections) == 2


@pytest.mark.parametrize("conflict", ["skip", "upsert", "replace"])
def test_what_becomes_of_records_that_are_there(conflict: str) -> None:
    """Ids 0 to 99 come, 50 to 149 are there."""
    source, target = Memory(), Memory()
    source.put(Definition("x", "new", dimension=3), records(0, 100))
    target.put(Definition("x", "old", dimension=3), records(50, 150, salt=1))
    run(source, target, Plan(conflict=conflict, verify=True))
    (kept,) = target.collections.values()
    salts = {
        id_: "salt" in str(r.to_pylist()) and '"salt":1.0' in str(r.to_pylist()) for id_, r in kept.records.items()
    }
    assert len(kept.records) == {"skip": 150, "upsert": 150, "replace": 100}[conflict]
    assert salts["id-60"] is (conflict == "skip")
    assert salts["id-1"] is False


@pytest.mark.parametrize("conflict", ["skip", "upsert"])
def test_a_copy_into_what_was_there_is_verified_when_it_is_gone_on_with(tmp_path: Path, conflict: str) -> None:
    """Records that the target had before are no difference, in whichever process."""
    source, target, file = place(names=("books",)), Memory(), tmp_path / "c.json"
    target.put(Definition("books", "other", dimension=3), records(450, 600, salt=7))
    plan = Plan(conflict=conflict, verify=True)
    limits = Limits(records=50)
    with pytest.raises(ServerFailed):
        sink = MemorySink(target, atomic=False, limits=limits, fail_at=3)
        copy(MemorySource(source, rows=50), sink, plan, checkpoint=Checkpoint(file, WHOLE))
    done = run(source, target, plan, checkpoint=Checkpoint(file, WHOLE))
    assert (done.resumed, done.verified, done.collections[0].exists) == (True, True, True)
    assert compare_places(MemorySource(source), MemorySource(target)).comparisons[0].extra == 100


def test_names_and_places_are_mapped() -> None:
    """--rename, --tenant, --database, --collections; what makes no sense is refused before anything happens."""
    source, target = place(), Memory()
    run(source, target, Plan(("books",), rename={"books": "novels"}, tenant="acme", database="prod"))
    assert list(target.collections) == [("acme", "prod", "novels")]
    for plan, told in (
        (Plan(("nobody",)), "no collection 'nobody'"),
        (Plan(("books",), rename={"laws": "x"}), "laws"),
        (Plan(rename={"books": "laws"}), "two collections would become"),
    ):
        with pytest.raises(UsageError, match=told):
            run(source, Memory(), plan)
    twice = place(names=("a",))
    twice.put(Definition("a", "other", database="second", dimension=3), records(0, 3))
    with pytest.raises(UsageError, match="two collections"):
        run(twice, Memory(), Plan(database="one"))
    assert len(run(twice, Memory(), Plan(("second/a",))).collections) == 1


def test_only_what_satisfies_a_condition() -> None:
    """The copy and its verification both choose."""
    source, target = place(names=("a",)), Memory()
    done = run(source, target, Plan(where=Where('{"even": true}'), verify=True))
    assert 0 < done.records < 250
    assert done.verified


class Lossy(MemoryIntake):
    """Accepts everything, and does something else."""

    how = ""

    def write(self, batch: pa.RecordBatch) -> None:
        if self.how == "loses" and "id-7" in batch.column("id").to_pylist():
            batch = batch.filter(pa.array([id_ != "id-7" for id_ in batch.column("id").to_pylist()]))
        if self.how == "changes":
            texts = [t and t.replace("text 8", "Text 8") for t in batch.column("document").to_pylist()]
            batch = batch.set_column(2, batch.schema.field(2), pa.array(texts, pa.string()))
        super().write(batch)


@pytest.mark.parametrize(("how", "named"), [("loses", "1 only in the first (id-7)"), ("changes", "different (id-8")])
def test_a_target_that_lies_is_found_out_by_id(how: str, named: str) -> None:
    """One record of 500 lost, or one word changed: told with the id, and not published."""
    source, target = place(names=("a",)), Memory()
    published = []

    class Sink(MemorySink):
        def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
            intake = super().collection(definition, conflict=conflict, mark=mark)
            intake.__class__ = type("_Lossy", (Lossy,), {"how": how})
            return intake

        def publish(self) -> None:
            published.append(1)

    with pytest.raises(VerificationFailed) as told:
        copy(
            MemorySource(source), Sink(target, atomic=False), Plan(verify=True), read_back=lambda: MemorySource(target)
        )
    assert named in told.value.message
    assert not published


def test_a_signal_does_not_wait_for_a_target_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was given counts as nothing, also when it speaks again later on; the copy is gone on with."""
    source, target, file = place(names=("books",)), Memory(), tmp_path / "c.json"
    silent, begun = threading.Event(), threading.Event()
    writers: list[threading.Thread] = []

    class Intake(MemoryIntake):
        def write(self, batch: pa.RecordBatch) -> None:
            writers.append(threading.current_thread())
            begun.set()
            assert silent.wait(60)
            super().write(batch)

    class Sink(MemorySink):
        def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
            return Intake(self, super().collection(definition, conflict=conflict, mark=mark).mark())

    class Interrupted(MemorySource):
        def batches(self, definition: Definition, **given: Any) -> Iterator[tuple[pa.RecordBatch, Mark]]:
            for found in super().batches(definition, **given):
                yield found
                assert begun.wait(60)
                raise KeyboardInterrupt

    monkeypatch.setattr(pump, "LEAVE", 0.01)
    monkeypatch.setattr(pump, "SAVE", -1.0)  # as if all that were long ago
    monkeypatch.setattr(pump, "DURABLE", -1.0)
    with pytest.raises(KeyboardInterrupt):
        copy(
            Interrupted(source),
            Sink(target, atomic=False),
            Plan(),
            checkpoint=Checkpoint(file, WHOLE),
        )
    assert not silent.is_set() and Checkpoint(file, WHOLE).parts["default_tenant/default_database/books"].records == 0
    before = file.read_bytes()
    silent.set()
    (late,) = writers
    late.join(60)
    assert not late.is_alive() and file.read_bytes() == before
    run(source, target, checkpoint=Checkpoint(file, WHOLE))
    assert same(source, target)


def test_a_failure_ends_all_of_many_writers() -> None:
    """Of more than the queue has room for, too, those that are in the middle of a write when one fails."""
    failed, writers = threading.Event(), 3 * AHEAD
    barrier = threading.Barrier(writers)

    class Intake(MemoryIntake):
        def write(self, batch: pa.RecordBatch) -> None:
            if barrier.wait(60) == 0:
                failed.set()
                raise ServerFailed("no room")
            assert failed.wait(60)
            time.sleep(0.5)  # others have been told to end meanwhile

    class Sink(MemorySink):
        def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
            return Intake(self, super().collection(definition, conflict=conflict, mark=mark).mark())

    seen = []

    def copied() -> None:
        try:
            sink = Sink(Memory(), atomic=False, limits=Limits(writers=writers))
            copy(MemorySource(place(names=("books",)), rows=1), sink, Plan())
        except ServerFailed as error:
            seen.append(error)

    thread = threading.Thread(target=copied, daemon=True)
    thread.start()
    thread.join(60)
    assert seen


def test_memory_is_bounded_by_the_queue() -> None:
    """While the sink takes nothing, the source is asked for no more than the queue and the writers hold."""
    full, released = threading.Event(), threading.Event()
    asked, early = 0, 0
    most = AHEAD + 2 + 1  # in the queue, with the writers, and with who waits for room in the queue

    class Endless(MemorySource):
        def batches(
            self, definition: Definition, *, after: Mark = None, where: Where | None = None
        ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
            nonlocal asked, early
            for n in range(60):
                asked += 1
                if asked == most:
                    full.set()
                early += asked > most and not released.is_set()
                yield records(10 * n, 10 * n + 10), n

    class Slow(MemoryIntake):
        def write(self, batch: pa.RecordBatch) -> None:
            assert full.wait(60)
            time.sleep(0.3)  # so long it could be asked for more
            released.set()
            super().write(batch)

    class Sink(MemorySink):
        def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
            intake = super().collection(definition, conflict=conflict, mark=mark)
            intake.__class__ = Slow
            return intake

    target = Memory()
    copy(Endless(place(names=("a",))), Sink(target, atomic=False, limits=Limits(writers=2)), Plan())
    assert len(next(iter(target.collections.values())).records) == 600
    assert (asked, early) == (60, 0)


def test_a_checkpoint_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    """Another plan begins anew; what is no checkpoint is refused in one line, and stays."""
    file = tmp_path / "c.json"
    one = Checkpoint(file, WHOLE)
    one.begin("state")
    one.part(("t", "d", "n"))
    one.save()
    assert Checkpoint(file, WHOLE).parts
    other = Checkpoint(file, {**WHOLE, "where": "x"})
    assert other.given_up and not other.parts and not other.begin("state")
    file.write_text('{"version": 1}')
    with pytest.raises(UsageError, match="no checkpoint"):
        Checkpoint(file, WHOLE)
    assert file.exists()


def test_comparing_names_what_differs() -> None:
    """Lost, strange and changed records, in a collection long enough that not all ids are named."""
    one, other = Memory(), Memory()
    one.put(Definition("a", dimension=3), records(0, 3000))
    other.put(Definition("a", dimension=3), records(100, 3000), records(5000, 5001))
    changed = records(200, 201, salt=4)
    other.collections[("default_tenant", "default_database", "a")].put({"id-200": changed})
    found = compare_places(MemorySource(one), MemorySource(other))
    (only,) = found.comparisons
    assert (only.missing, only.extra, only.differing) == (100, 1, 1)
    assert len(only.missing_ids) == 20
    assert set(only.missing_ids) <= {f"id-{n}" for n in range(100)}
    assert (only.extra_ids, only.differing_ids) == (("id-5000",), ("id-200",))
    assert not found.equal
    assert "100 only in the first" in only.line()


@pytest.mark.parametrize("salt", [0, 4])
def test_an_id_that_one_side_has_twice_is_a_difference(salt: int) -> None:
    """As a file can that was put together of two; with the same values, or others."""

    class Twice(MemorySource):
        def batches(self, definition: Definition, **given: Any) -> Iterator[tuple[pa.RecordBatch, Mark]]:
            yield from super().batches(definition, **given)
            yield records(1, 2, salt=salt), None

    memory = Memory()
    memory.put(Definition("a", dimension=3), records(0, 3))
    for one, other in ((Twice, MemorySource), (MemorySource, Twice)):
        (only,) = compare_places(one(memory), other(memory)).comparisons
        assert not only.equal and only.differing_ids == ("id-1",)
    assert compare_places(Twice(memory), Twice(memory)).equal


def test_a_long_collection_is_compared_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists of hashes are in files, and each range is compared by itself."""
    monkeypatch.setattr("chromakeep.chroma.spool.IN_MEMORY", 1000)
    monkeypatch.setattr("chromakeep.chroma.spool.AT_ONCE", 256)
    monkeypatch.setattr("chromakeep.chroma.spool.SAMPLE", 64)
    one, other = Memory(), Memory()
    one.put(Definition("a", dimension=3), records(0, 3000))
    other.put(Definition("a", dimension=3), records(1, 3001))
    (only,) = compare_places(MemorySource(one), MemorySource(other), folder=tmp_path).comparisons
    assert (only.missing_ids, only.extra_ids, only.differing) == (("id-0",), ("id-3000",), 0)


def test_a_cosine_index_is_compared_through_its_rounding() -> None:
    """What such an index returns is rounded once more: equal to what it was given, and to nothing else."""
    from chromakeep.chroma.hnsw import through_cosine

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 64)).astype(np.float32)
    ids = [f"v{n}" for n in range(200)]
    none = [None] * 200
    shown = through_cosine(vectors)
    assert np.array_equal(shown[7], through_cosine(vectors[7]))
    assert (shown != vectors).any()
    definition = Definition("a", dimension=64, configuration={"hnsw": {"space": "cosine"}})
    places = []
    for some in (vectors, shown, shown + np.float32(1e-3)):
        memory = Memory()
        memory.put(definition, batch(ids, some, none, none, none, 64))
        places.append(MemorySource(memory))
    given, returned, other = places

    def equal(a: MemorySource, b: MemorySource, what: Definition = definition) -> bool:
        return compare(a, what, b, what).equal

    assert equal(given, returned)
    assert equal(returned, given)
    assert not equal(given, other)
    assert not equal(given, returned, replace(definition, configuration=None))
    assert compare(given, definition, returned, definition).rounded


def test_floats_that_chroma_rounds_are_told_from_others() -> None:
    """One in ten full floats comes back with another last bit: equal, and said to be rounded; one bit more is not."""
    numbers = np.random.default_rng(5).random(500).tolist()
    rounded = [through_json(number) for number in numbers]
    assert 10 < sum(a != b for a, b in zip(numbers, rounded, strict=True)) < 200
    definition = Definition("a", dimension=1)
    places = []
    for values in (numbers, rounded, [*rounded[:-1], float(np.nextafter(rounded[-1], 2))]):
        memory = Memory()
        none = [None] * 500
        ones = np.ones((500, 1), np.float32)
        metadatas = [encode({"f": value, "l": [value]}) for value in values]
        memory.put(definition, batch([f"v{n}" for n in range(500)], ones, none, none, metadatas, 1))
        places.append(MemorySource(memory))
    given, returned, other = places
    there, back = (compare(a, definition, b, definition) for a, b in ((given, returned), (returned, given)))
    assert there.equal and there.rounded and back.equal and back.rounded
    assert not compare(given, definition, given, definition).rounded
    only = compare(given, definition, other, definition)
    assert (only.differing, only.differing_ids) == (1, ("v499",))


def test_floats_that_are_rounded_twice_are_told_from_others() -> None:
    """Over HTTP Chroma reads them as JSON once more: some have then another last bit again."""
    numbers = [9.041384003555922e-08, 4.921633583444544e-19, 4.921029135697173e-13, 2.1761521622503645e-10]
    twice = [through_json(through_json(number)) for number in numbers]
    assert not {*twice} & {*map(through_json, numbers)}
    definition = Definition("a", dimension=1)

    def holding(values: list[float]) -> MemorySource:
        memory, none = Memory(), [None] * len(values)
        metadatas = [encode({"f": value}) for value in values]
        ids = [f"v{n}" for n in range(len(values))]
        memory.put(definition, batch(ids, np.ones((len(values), 1), np.float32), none, none, metadatas, 1))
        return MemorySource(memory)

    given, returned = holding(numbers), holding(twice)
    for a, b in ((given, returned), (returned, given)):
        found = compare(a, definition, b, definition)
        assert found.equal and found.rounded
    other = holding([*twice[:-1], float(np.nextafter(twice[-1], 0))])
    assert compare(given, definition, other, definition).differing_ids == ("v3",)


OWN = {
    "keys": {
        "#embedding": {"float_list": {"vector_index": {"enabled": True, "config": {"space": "l2"}}}},
        "text": {"string": {"fts_index": {"enabled": True, "config": {}}}},
    }
}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"metadata": {"n": 1.0, "of": "us"}}, "the metadata n is 1 and 1.0"),
        ({"metadata": None}, "the metadata n is 1 and not there"),
        ({"configuration": {"hnsw": {"space": "cosine"}}}, "the space is l2 and cosine"),
        ({"configuration": {"hnsw": {"space": "l2"}}}, "the embedding function is {'name': 'default'} and not there"),
        ({"schema": None}, "the schema of the first is one of its own, of the second plain"),
    ],
)
def test_what_a_collection_is_must_come_too(change: dict[str, Any], what: str) -> None:
    """A target that keeps the records and loses something of the collection is no lossless copy."""
    function = {"type": "known", "name": "default", "config": {}}
    whole = Definition(
        "books",
        metadata={"n": 1, "of": "us"},
        configuration={"hnsw": {"space": "l2", "ef_search": 100}, "embedding_function": function},
        schema=OWN if "schema" in change else None,
        dimension=3,
    )
    source, target, some = Memory(), Memory(), records(0, 5)
    source.put(whole, some)
    target.put(whole, some)
    assert same(source, target)
    target.put(replace(whole, **change), some)
    (found,) = compare_places(MemorySource(source), MemorySource(target)).comparisons
    assert not found.equal
    assert what in found.unlike
    with pytest.raises(VerificationFailed, match="differ: the"):
        copy(MemorySource(source), MemorySink(Memory()), Plan(verify=True), read_back=lambda: MemorySource(target))


def test_what_is_told_otherwise_is_no_difference() -> None:
    """Settings in the metadata or the configuration, floats as Chroma rounds them, a file that tells nothing."""
    rounded = next(value for n in range(1, 1000) if through_json(value := n / 997) != value)
    one, other, silent, some = Memory(), Memory(), Memory(), records(0, 5)
    one.put(Definition("books", metadata={"hnsw:space": "ip", "f": rounded}, configuration={"hnsw": {}}), some)
    told = {"hnsw": {"space": "ip", "ef_search": 100}, "embedding_function": {"type": "legacy"}}
    other.put(Definition("books", metadata={"hnsw:space": "ip", "f": through_json(rounded)}, configuration=told), some)
    silent.put(Definition("books"), some)
    assert same(one, other)
    assert same(one, silent)


@pytest.mark.parametrize(
    "shape",
    [
        {"configuration": {"hnsw": 5, "spann": [1], "embedding_function": 7}},
        {"configuration": {"hnsw": "cosine"}, "schema": {"keys": {"#embedding": []}}},
        {"schema": {"keys": 5, "defaults": "x"}, "metadata": {"a": {"b": [1]}}},
    ],
)
def test_settings_of_no_shape_are_compared(shape: dict[str, Any]) -> None:
    """From a file that somebody made: they are no space, and no bug."""
    source, target, some = Memory(), Memory(), records(0, 5)
    source.put(Definition("books", dimension=3, **shape), some)
    assert run(source, target).verified
    assert next(iter(MemorySource(source).definitions())).space == "l2"


def test_what_a_copy_has_left_at_the_source_is_told() -> None:
    """Half of a collection under a name of its own is not taken for one in silence."""
    source, told = place(names=("books", "laws.new-1a2b3c4d")), list[str]()
    run(source, Memory(), observer=lambda event: told.append(getattr(event, "message", "")))
    (line,) = [each for each in told if "did not finish" in each]
    assert line.startswith("laws.new-1a2b3c4d looks like")
