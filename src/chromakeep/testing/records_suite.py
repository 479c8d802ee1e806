"""SourceSuite and SinkSuite: what every Source and every Sink of records must do, as pytest tests to subclass.

A subclass says how a place is filled, opened and read::

    class TestMine(SinkSuite):
        def make_sink(self, tmp_path): return MySink(tmp_path / "place")
        def read_back(self, tmp_path): return MySource(tmp_path / "place")

A call with the same ``tmp_path`` is about the same place. Class attributes say what a place cannot hold or do; the less
they are changed, the more is promised.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chromakeep.conditions import Where
from chromakeep.errors import TargetNotEmpty, UsageError
from chromakeep.records import CONFLICTS, Intake, Mark, Sink, Source
from chromakeep.testing.place_suite import Contents, PlaceSuite
from chromakeep.testing.specimens import (
    assert_same,
    complete,
    differences,
    gathered,
    held,
    joined,
    marked,
    numbered,
    ordinary,
    records_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

WHERE: tuple[Mapping[str, Any], ...] = (
    {"k": 1},
    {"k": True},
    {"k": {"$eq": "1"}},
    {"k": {"$ne": 1}},
    {"k": {"$gt": 0}},
    {"k": {"$lte": 2.0}},
    {"k": {"$lt": 2.25}},
    {"k": {"$in": ["1", "null"]}},
    {"k": {"$nin": [1, 2]}},
    {"text": {"$contains": "a"}},
    {"whole": {"$not_contains": 3}},
    {"$or": [{"a b": 1}, {"$and": [{"k": {"$gte": 1}}, {"k": {"$lt": 2}}]}]},
    {"absent": {"$gt": 0}},
)


class SourceSuite(PlaceSuite):
    """One test per guarantee of ``chromakeep.records.Source``."""

    def fill(self, tmp_path: Path, contents: Contents) -> None:
        """Make a place that holds just these collections, each with these records (None: it never had one)."""
        raise NotImplementedError("a subclass of SourceSuite says how a place is filled")

    def make_source(self, tmp_path: Path) -> Source:
        """A new source of that place."""
        raise NotImplementedError("a subclass of SourceSuite says how a source is made")

    def change(self, tmp_path: Path) -> None:
        """Change, at that place, any one record of the collection that was filled. May be left out."""
        pytest.skip("no change was defined")

    def test_every_record_comes_once_and_exactly(self, tmp_path: Path) -> None:
        """Vectors to the bit, null and empty texts, every kind of metadata and every id; with the definition."""
        self._fill_and_check(tmp_path, [(self.definition(), self.specimens())])

    def test_a_long_collection_comes_whole(self, tmp_path: Path) -> None:
        """More records than fit a page or a batch come once each."""
        self._fill_and_check(tmp_path, [(self.definition(), ordinary(self.many))])

    @pytest.mark.parametrize("dimension", [1, 2, 1536])
    def test_vectors_of_any_dimension(self, tmp_path: Path, dimension: int) -> None:
        """From 1 dimension to those of usual models."""
        self._fill_and_check(tmp_path, [(self.definition("sized", dimension), ordinary(20, dimension))])

    def test_an_empty_collection_has_no_batches(self, tmp_path: Path) -> None:
        """One that never had a record is told of, has no dimension, and gives no batch."""
        self._fill_and_check(tmp_path, [(self.definition("empty", None), None)])

    def test_collections_are_kept_apart(self, tmp_path: Path) -> None:
        """Each gives its own records, though ids and names are the same."""
        self._fill_and_check(tmp_path, self.neighbours())

    def test_a_reader_goes_on_behind_every_mark(self, tmp_path: Path) -> None:
        """From each mark another source of the same state gives what had not come yet, no more and no less."""
        self._go_on(tmp_path, ordinary(self.many), None)

    def test_a_reader_with_a_condition_goes_on_behind_every_mark(self, tmp_path: Path) -> None:
        """The same, where whole parts may hold nothing that satisfies the condition."""
        self._go_on(tmp_path, ordinary(self.many), Where(json.dumps({"n": {"$gte": self.many - self.many // 4}})))

    def test_strange_ids_do_not_disturb_marks(self, tmp_path: Path) -> None:
        """A mark leads on behind any id."""
        self._go_on(tmp_path, self.specimens(), None)

    def test_the_state_is_the_same_until_something_changes(self, tmp_path: Path) -> None:
        """Two sources of an unchanged place say the same; after a change another word, or none at all."""
        self.fill(tmp_path, [(self.definition(), ordinary(5))])
        with closing(self.make_source(tmp_path)) as source:
            before = source.state()
            marked(source, source.definitions()[0])
            assert source.state() == before
        with closing(self.make_source(tmp_path)) as source:
            assert source.state() == before
        self.change(tmp_path)
        with closing(self.make_source(tmp_path)) as source:
            assert source.state() != before or not before

    def test_a_condition_chooses_among_records(self, tmp_path: Path) -> None:
        """What ``conditions.Where`` says of a record's metadata, also where the place can be asked itself."""
        records = self.specimens()
        self.fill(tmp_path, [(self.definition(), records)])
        with closing(self.make_source(tmp_path)) as source:
            (definition,) = source.definitions()
            for where in map(json.dumps, WHERE):
                lines = differences(
                    records_of(Where(where).select(records)), held(source, definition, where=Where(where))
                )
                assert not lines, "\n".join([where, *lines])

    def test_a_reader_that_stops_disturbs_no_other(self, tmp_path: Path) -> None:
        """One that was left after its first batch is followed by one that gives everything, twice."""
        records = ordinary(self.many)
        self.fill(tmp_path, [(self.definition(), records)])
        with closing(self.make_source(tmp_path)) as source:
            (definition,) = source.definitions()
            reader = iter(source.batches(definition))
            next(reader)
            getattr(reader, "close", lambda: None)()
            for _ in range(2):
                assert_same(records_of(records), held(source, definition))

    def test_closing_twice_is_once(self, tmp_path: Path) -> None:
        """Also with a reader under way."""
        self.fill(tmp_path, [(self.definition(), ordinary(self.many))])
        source = self.make_source(tmp_path)
        reader = iter(source.batches(source.definitions()[0]))
        next(reader)
        getattr(reader, "close", lambda: None)()
        source.close()
        source.close()

    def _fill_and_check(self, tmp_path: Path, contents: Contents) -> None:
        self.fill(tmp_path, contents)
        with closing(self.make_source(tmp_path)) as source:
            self.check(source, contents)

    def _go_on(self, tmp_path: Path, records: pa.RecordBatch, where: Where | None) -> None:
        self.fill(tmp_path, [(self.definition(), records)])
        with closing(self.make_source(tmp_path)) as source:
            if not (state := source.state()):
                pytest.skip("the marks of this source never lead on")
            given = marked(source, source.definitions()[0], where=where)
        wanted = records_of(where.select(records) if where else records)
        for n, (_, mark) in enumerate(given):
            before = gathered(some for some, _ in given[: n + 1])
            with closing(self.make_source(tmp_path)) as source:
                assert source.state() == state
                after = held(source, source.definitions()[0], where=where, after=as_kept(mark))
            assert not before.keys() & after.keys(), (
                f"mark {n} leads back to {sorted(before.keys() & after.keys())[:5]}"
            )
            assert_same(wanted, before | after)


class SinkSuite(PlaceSuite):
    """One test per guarantee of ``chromakeep.records.Sink`` and ``Intake``.

    ``atomic``: nothing is visible before ``publish``. ``conflicts``: those that the sink can deal with, of
    ``records.CONFLICTS``; any other one is a ``UsageError``. ``replaces``: with "upsert" a record becomes the new one
    in all it has; False where what the new one lacks stays.
    """

    atomic = True
    conflicts: tuple[str, ...] = CONFLICTS
    replaces = True

    def make_sink(self, tmp_path: Path) -> Sink:
        """A new sink into that place, which at first is empty."""
        raise NotImplementedError("a subclass of SinkSuite says how a sink is made")

    def killed(self, sink: Any) -> None:
        """The process that had this sink is gone: what the system does then, that is what it would close."""

    def read_back(self, tmp_path: Path) -> Source | None:
        """A new source of what is visible at that place; None if there is nothing that could be read."""
        raise NotImplementedError("a subclass of SinkSuite says how it is read back")

    # -- what is written ------------------------------------------------------------------------------------------

    def test_what_is_written_comes_back(self, tmp_path: Path) -> None:
        """Vectors to the bit, null and empty texts, every kind of metadata and every id; with the definition."""
        self._write(tmp_path, [(self.definition(), self.specimens())])
        self._check(tmp_path, [(self.definition(), self.specimens())])

    def test_many_batches_are_one_collection(self, tmp_path: Path) -> None:
        """More records than one write takes, written in batches of many sizes."""
        records = ordinary(self.many)
        cuts = [0, 1, 3, 10, 110, self.many // 2, self.many]
        with closing(self.make_sink(tmp_path)) as sink:
            intake = sink.collection(self.definition())
            assert intake.limits.records >= 1 and intake.limits.writers >= 1
            for low, high in pairwise(cuts):
                put(intake, records.slice(low, high - low))
            intake.finish()
            sink.publish()
        self._check(tmp_path, [(self.definition(), records)])

    @pytest.mark.parametrize("dimension", [1, 2, 1536])
    def test_vectors_of_any_dimension(self, tmp_path: Path, dimension: int) -> None:
        """From 1 dimension to those of usual models."""
        contents = [(self.definition("sized", dimension), ordinary(20, dimension))]
        self._write(tmp_path, contents)
        self._check(tmp_path, contents)

    def test_an_empty_collection_is_one(self, tmp_path: Path) -> None:
        """One without any record is there, and has no dimension."""
        contents = [(self.definition("empty", None), None)]
        self._write(tmp_path, contents)
        self._check(tmp_path, contents)

    def test_collections_are_kept_apart(self, tmp_path: Path) -> None:
        """Each has its own records, though ids and names are the same; also written in turn."""
        contents = self.neighbours()
        with closing(self.make_sink(tmp_path)) as sink:
            intakes = [sink.collection(definition) for definition, _ in contents]
            for n in range(12):
                for intake, (_, records) in zip(intakes, contents, strict=True):
                    if records is not None and n < len(records):
                        put(intake, records.slice(n, 1))
            for intake in intakes:
                intake.finish()
            sink.publish()
        self._check(tmp_path, contents)

    def test_the_same_records_twice_are_once(self, tmp_path: Path) -> None:
        """A batch that is written again changes nothing, nor does it cut in another way."""
        records = self.specimens()
        with closing(self.make_sink(tmp_path)) as sink:
            intake = sink.collection(self.definition())
            for part in (records, records, records.slice(5, 20), records.slice(0, 1), records.slice(len(records) - 2)):
                put(intake, part)
            intake.mark()
            put(intake, records.slice(1))
            intake.finish()
            sink.publish()
        self._check(tmp_path, [(self.definition(), records)])

    def test_as_many_threads_write_as_it_says(self, tmp_path: Path) -> None:
        """``limits.writers`` threads write different batches while marks are taken: each record is there once."""
        records = ordinary(self.many)
        with closing(self.make_sink(tmp_path)) as sink:
            intake = sink.collection(self.definition())
            size = max(1, min(intake.limits.records, self.many // 20))
            starts = iter(range(0, self.many, size))
            lock = threading.Lock()

            def work() -> None:
                while True:
                    with lock:
                        start = next(starts, None)
                        if start is not None and start % (4 * size) == 0:
                            intake.mark()
                    if start is None:
                        return
                    intake.write(records.slice(start, size))

            with ThreadPoolExecutor(intake.limits.writers) as pool:
                for done in [pool.submit(work) for _ in range(intake.limits.writers)]:
                    done.result()
            intake.finish()
            sink.publish()
        self._check(tmp_path, [(self.definition(), records)])

    # -- when it is visible -----------------------------------------------------------------------------------------

    def test_nothing_is_visible_before_it_is_published(self, tmp_path: Path) -> None:
        """Not when it was begun, written, marked or finished, nor when the sink was closed. Where ``atomic``."""
        self._needs_atomic()
        with closing(self.make_sink(tmp_path)) as sink:
            intake = sink.collection(self.definition())
            self._check(tmp_path, [])
            put(intake, ordinary(20))
            self._check(tmp_path, [])
            intake.mark()
            intake.finish()
            self._check(tmp_path, [])
            assert not sink.definitions()
        self._check(tmp_path, [])

    def test_what_a_killed_process_left_is_not_in_what_is_begun_anew(self, tmp_path: Path) -> None:
        """Without a mark a collection begins with nothing. Where ``atomic``."""
        self._needs_atomic()
        sink = self.make_sink(tmp_path)
        intake = sink.collection(self.definition())
        put(intake, ordinary(20))
        intake.mark()
        sink.close()
        contents = [(self.definition(), ordinary(10, start=15))]
        self._write(tmp_path, contents)
        self._check(tmp_path, contents)

    def test_closing_and_publishing_twice_is_once(self, tmp_path: Path) -> None:
        """Also by another sink that has nothing to publish."""
        contents = [(self.definition(), ordinary(20))]
        sink = self._write(tmp_path, contents)
        sink.close()
        with closing(self.make_sink(tmp_path)) as sink:
            sink.publish()
        self._check(tmp_path, contents)
        sink = self.make_sink(tmp_path)
        sink.close()
        sink.close()

    def test_what_is_there_is_told(self, tmp_path: Path) -> None:
        """``definitions`` has what was published, and nothing else."""
        contents = self.neighbours()
        with closing(self.make_sink(tmp_path)) as sink:
            assert not sink.definitions()
        self._write(tmp_path, contents)
        with closing(self.make_sink(tmp_path)) as sink:
            there = {definition.place: definition.dimension for definition in sink.definitions()}
        assert there == {self.place(definition): definition.dimension for definition, _ in contents}

    # -- what is there already --------------------------------------------------------------------------------------

    def test_a_name_that_is_taken_is_refused(self, tmp_path: Path) -> None:
        """``fail``: TargetNotEmpty, and what is there stays as it is."""
        contents = [(self.definition(), ordinary(20))]
        self._write(tmp_path, contents)
        with closing(self.make_sink(tmp_path)) as sink, pytest.raises(TargetNotEmpty):
            sink.collection(self.definition(), conflict="fail")
        self._check(tmp_path, contents)

    def test_the_records_that_are_there_win(self, tmp_path: Path) -> None:
        """``skip``: ids that are there keep their records, others are added."""
        self._needs("skip")
        old, new = ordinary(20), numbered(ordinary(20, start=1003), 10)
        self._write(tmp_path, [(self.definition(), old)])
        self._write(tmp_path, [(self.definition(), new)], "skip")
        self._check(tmp_path, [(self.definition(), joined(old, new.slice(10)))])

    def test_the_records_that_come_win(self, tmp_path: Path) -> None:
        """``upsert``: ids that are there get the new records, others stay or are added."""
        self._needs("upsert")
        old, new = ordinary(20), numbered(ordinary(20, start=1003), 10)
        if not self.replaces:
            old = numbered(complete(ordinary(150)).slice(0, 20), 0)
            new = numbered(complete(ordinary(150, start=1000)).slice(0, 20), 10)
        self._write(tmp_path, [(self.definition(), old)])
        self._write(tmp_path, [(self.definition(), new)], "upsert")
        self._check(tmp_path, [(self.definition(), joined(old.slice(0, 10), new))])

    @pytest.mark.parametrize("dimension", [3, 2])
    def test_a_collection_is_replaced(self, tmp_path: Path, dimension: int) -> None:
        """``replace``: only what was written is there, of whatever dimension; where ``atomic``, not before publish."""
        self._needs("replace")
        old = [(self.definition(), ordinary(20))]
        changed = self.definition(dimension=dimension, metadata={"topic": "new"})
        new = (changed, ordinary(5, dimension, start=18))
        self._write(tmp_path, old)
        with closing(self.make_sink(tmp_path)) as sink:
            intake = sink.collection(new[0], conflict="replace")
            put(intake, new[1])
            intake.finish()
            if self.atomic:
                self._check(tmp_path, old)
            sink.publish()
        self._check(tmp_path, [new])

    @pytest.mark.parametrize("conflict", [*CONFLICTS, "other"])
    def test_any_conflict_is_no_matter_where_there_is_none(self, tmp_path: Path, conflict: str) -> None:
        """Into an empty place all of them write the same; one that the sink does not know is a UsageError."""
        contents = [(self.definition(), ordinary(5))]
        if conflict in self.conflicts:
            self._write(tmp_path, contents, conflict)
            self._check(tmp_path, contents)
        else:
            with closing(self.make_sink(tmp_path)) as sink, pytest.raises(UsageError):
                sink.collection(self.definition(), conflict=conflict)

    @pytest.mark.parametrize("conflict", [*CONFLICTS, "other"])
    def test_what_would_be_refused_is_known_before(self, tmp_path: Path, conflict: str) -> None:
        """``check`` raises where ``collection`` would, and neither it nor what it lets pass leaves anything."""
        with closing(self.make_sink(tmp_path)) as sink:
            with nullcontext() if conflict in self.conflicts else pytest.raises(UsageError):
                sink.check(self.definition(), conflict=conflict)
            assert sink.speed.records > 0 and sink.speed.bytes > 0
        self._check(tmp_path, [])

    # -- what another process goes on with --------------------------------------------------------------------------

    @pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
    @pytest.mark.parametrize("written", [0, 0.5, 1])
    def test_another_process_goes_on(self, tmp_path: Path, written: float, closed: bool) -> None:
        """What an intake has written before a mark, and what another one of that mark writes, are one collection; also
        if what came after the mark was written once before."""
        records = ordinary(self.many)
        half = int(self.many * written)
        sink = self.make_sink(tmp_path)
        intake = sink.collection(self.definition())
        if half:
            put(intake, records.slice(0, half))
        mark = as_kept(intake.mark())
        if half < self.many:
            put(intake, records.slice(half, 10))
        if closed:
            sink.close()
        else:
            self.killed(sink)
        with closing(self.make_sink(tmp_path)) as other:
            intake = other.collection(self.definition(), mark=mark)
            if half < self.many:
                put(intake, records.slice(half))
            intake.finish()
            other.publish()
        self._check(tmp_path, [(self.definition(), records)])

    @pytest.mark.parametrize("reopened", [True, False], ids=["reopened", "left alone"])
    def test_what_was_finished_is_published_by_another_process(self, tmp_path: Path, reopened: bool) -> None:
        """Whether or not it goes on with the collection that was finished, and with another one beside it."""
        contents = self.neighbours()[:2]
        sink = self.make_sink(tmp_path)
        intakes = [sink.collection(definition) for definition, _ in contents]
        for intake, (_, records) in zip(intakes, contents, strict=True):
            put(intake, _given(records).slice(0, 5))
        put(intakes[0], _given(contents[0][1]).slice(5))
        marks = [as_kept(intake.mark()) for intake in intakes]
        intakes[0].finish()
        sink.close()
        with closing(self.make_sink(tmp_path)) as other:
            for n in range(0 if reopened else 1, len(contents)):
                intake = other.collection(contents[n][0], mark=marks[n])
                put(intake, _given(contents[n][1]).slice(5))
                intake.finish()
            other.publish()
        self._check(tmp_path, contents)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _needs_atomic(self) -> None:
        if not self.atomic:
            pytest.skip("this sink is not atomic")

    def _needs(self, conflict: str) -> None:
        if conflict not in self.conflicts:
            pytest.skip(f"this sink does not know {conflict}")

    def _write(self, tmp_path: Path, contents: Contents, conflict: str = "fail") -> Sink:
        """Write and publish these; the closed sink."""
        with closing(self.make_sink(tmp_path)) as sink:
            for definition, records in contents:
                intake = sink.collection(definition, conflict=conflict)
                if records is not None:
                    put(intake, records)
                intake.finish()
            sink.publish()
        return sink

    def _check(self, tmp_path: Path, contents: Contents) -> None:
        """That these are visible and nothing else."""
        source = self.read_back(tmp_path)
        if source is None:
            assert not contents, "there is nothing that could be read"
            return
        with closing(source):
            self.check(source, contents)


def put(intake: Intake, records: pa.RecordBatch) -> None:
    """Write records in as many batches as the intake needs."""
    for start in range(0, len(records), intake.limits.records):
        intake.write(records.slice(start, intake.limits.records))


def as_kept(mark: Mark) -> Mark:
    """A mark after it was in a file."""
    return json.loads(json.dumps(mark))


def _given(records: pa.RecordBatch | None) -> pa.RecordBatch:
    assert records is not None
    return records
