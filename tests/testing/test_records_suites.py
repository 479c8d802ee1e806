"""MemorySource and MemorySink pass the shipped SourceSuite and SinkSuite, and places with a fault do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chromakeep.batches import COLUMNS, batch, decode, encode, schema, vectors_of
from chromakeep.conditions import Where
from chromakeep.errors import TargetNotEmpty
from chromakeep.records import Definition, Limits, Mark
from chromakeep.testing.memory_records import Memory, MemoryIntake, MemorySink, MemorySource
from chromakeep.testing.records_suite import Contents, SinkSuite, SourceSuite
from chromakeep.testing.specimens import ordinary


class TestMemorySource(SourceSuite):
    memory: Memory

    def fill(self, tmp_path: Path, contents: Contents) -> None:
        self.memory = Memory()
        for definition, records in contents:
            self.memory.put(definition, *([] if records is None else [records]))

    def make_source(self, tmp_path: Path) -> MemorySource:
        return MemorySource(self.memory)

    def change(self, tmp_path: Path) -> None:
        self.memory.put(self.definition(), ordinary(5, start=1))


class TestMemorySink(SinkSuite):
    def setup_method(self) -> None:
        self.memory = Memory()

    def make_sink(self, tmp_path: Path) -> MemorySink:
        return MemorySink(self.memory, limits=Limits(writers=4, records=300))

    def read_back(self, tmp_path: Path) -> MemorySource:
        return MemorySource(self.memory)


class TestVisibleAtOnce(TestMemorySink):
    """Without a hidden place everything else holds."""

    atomic = False

    def make_sink(self, tmp_path: Path) -> MemorySink:
        return MemorySink(self.memory, atomic=False)


# -- sources with a fault ---------------------------------------------------------------------------------------------

Batches = Iterator[tuple[Any, Mark]]


class Spoilt(MemorySource):
    """Gives what ``spoil`` makes of each batch and its mark."""

    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        return records, mark

    def batches(self, definition: Definition, *, after: Mark = None, where: Where | None = None) -> Batches:
        for records, mark in super().batches(definition, after=after, where=where):
            yield self.spoil(records, mark)


def with_column(records: Any, name: str, change: Callable[[Any], Any]) -> Any:
    """The batch with every value of a column changed."""
    columns = {each: records.column(each).to_pylist() for each in COLUMNS if each != "embedding"}
    columns[name] = [change(value) for value in columns[name]]
    vectors, present = vectors_of(records)
    rows = [row if there else None for row, there in zip(vectors, present, strict=True)]
    return batch(columns["id"], rows, *[columns[each] for each in COLUMNS[2:]], records.schema[1].type.list_size)


class NullIsEmpty(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        return with_column(records, "document", lambda text: text or ""), mark


class FloatIsWhole(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        def cut(text: str | None) -> str | None:
            return encode({k: int(v) if v == 1.0 else v for k, v in (decode(text) or {}).items()})

        return with_column(records, "metadata", cut), mark


class IdsAreTrimmed(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        return with_column(records, "id", lambda id_: id_.replace("\0", "").strip() or "-"), mark


class LosesASign(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        vectors, present = vectors_of(records)
        rows = [row + 0 if there else None for row, there in zip(vectors, present, strict=True)]
        columns = [records.column(each) for each in COLUMNS[2:]]
        return batch(records.column("id"), rows, *columns, records.schema[1].type.list_size), mark


class MakesUpVectors(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        columns = [records.column(each) for each in COLUMNS[2:]]
        return batch(records.column("id"), vectors_of(records)[0], *columns, records.schema[1].type.list_size), mark


class HasNoDimension(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        return records.cast(schema(None)), mark


class MarksTooFar(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        return records, mark + 1


class MarksTooShort(Spoilt):
    def spoil(self, records: Any, mark: Mark) -> tuple[Any, Mark]:
        return records, mark - 1


class OverlappingPages(MemorySource):
    def batches(self, definition: Definition, *, after: Mark = None, where: Where | None = None) -> Batches:
        for records, mark in super().batches(definition, after=after, where=where):
            yield from super().batches(definition, after=max(0, mark - len(records) - 1), where=where)


class FirstPageOnly(MemorySource):
    def batches(self, definition: Definition, *, after: Mark = None, where: Where | None = None) -> Batches:
        yield from list(super().batches(definition, after=after, where=where))[:1]


class EverythingSatisfies(MemorySource):
    def batches(self, definition: Definition, *, after: Mark = None, where: Where | None = None) -> Batches:
        return super().batches(definition, after=after)


class NeverChanges(MemorySource):
    def state(self) -> str:
        return "always"


class OneDatabase(MemorySource):
    def definitions(self) -> Sequence[Definition]:
        return [replace(each, database="default_database") for each in super().definitions()]


class DefinesWholeNumbers(MemorySource):
    def definitions(self) -> Sequence[Definition]:
        return [replace(each, metadata={**(each.metadata or {}), "real": 3}) for each in super().definitions()]


@pytest.mark.parametrize(
    ("faulty", "test"),
    [
        (DefinesWholeNumbers, "every_record_comes_once_and_exactly"),
        (NullIsEmpty, "every_record_comes_once_and_exactly"),
        (FloatIsWhole, "every_record_comes_once_and_exactly"),
        (IdsAreTrimmed, "every_record_comes_once_and_exactly"),
        (LosesASign, "every_record_comes_once_and_exactly"),
        (MakesUpVectors, "every_record_comes_once_and_exactly"),
        (HasNoDimension, "vectors_of_any_dimension"),
        (MarksTooFar, "a_reader_goes_on_behind_every_mark"),
        (MarksTooShort, "a_reader_goes_on_behind_every_mark"),
        (MarksTooFar, "a_reader_with_a_condition_goes_on_behind_every_mark"),
        (OverlappingPages, "a_long_collection_comes_whole"),
        (FirstPageOnly, "a_long_collection_comes_whole"),
        (EverythingSatisfies, "a_condition_chooses_among_records"),
        (NeverChanges, "the_state_is_the_same_until_something_changes"),
        (OneDatabase, "collections_are_kept_apart"),
    ],
)
def test_a_source_with_a_fault_is_found_out(faulty: type[MemorySource], test: str, tmp_path: Path) -> None:
    """The test of the guarantee that it breaks fails."""

    class Faulty(TestMemorySource):
        def make_source(self, tmp_path: Path) -> MemorySource:
            return faulty(self.memory)

    found_out(Faulty(), test, tmp_path)


# -- sinks with a fault -----------------------------------------------------------------------------------------------


class ShowsWhatIsFinished(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        intake = super().collection(definition, conflict=conflict, mark=mark)
        whole = intake.finish

        def finish() -> None:
            whole()
            self.publish()

        intake.finish = finish  # type: ignore[method-assign]
        return intake


class Overwrites(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        return super().collection(definition, conflict="upsert", mark=mark)


class ClearsAndRefuses(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        try:
            return super().collection(definition, conflict=conflict, mark=mark)
        except TargetNotEmpty:
            del self.memory.collections[definition.place]
            raise


class KeepsWhatIsReplaced(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        return super().collection(definition, conflict="upsert" if conflict == "replace" else conflict, mark=mark)


class SkipsAll(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        intake = super().collection(definition, conflict=conflict, mark=mark)
        if conflict == "skip":
            intake.write = lambda batch: None  # type: ignore[method-assign]
        return intake


class ForgetsMarks(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        return super().collection(definition, conflict=conflict)


class PublishesItsOwn(MemorySink):
    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.others = set(memory.unfinished)

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        self.others.discard(mark)
        return super().collection(definition, conflict=conflict, mark=mark)

    def publish(self) -> None:
        for number in self.others:
            self.memory.unfinished.pop(number, None)
        super().publish()


class GoesOnWithoutAMark(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        places = {kept.definition.place: number for number, kept in self.memory.unfinished.items()}
        return super().collection(definition, conflict=conflict, mark=mark or places.get(definition.place))


class ForgetsItsMetadata(MemorySink):
    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> MemoryIntake:
        return super().collection(replace(definition, metadata=None), conflict=conflict, mark=mark)


@pytest.mark.parametrize(
    ("faulty", "test"),
    [
        (ShowsWhatIsFinished, "nothing_is_visible_before_it_is_published"),
        (ShowsWhatIsFinished, "a_collection_is_replaced"),
        (Overwrites, "a_name_that_is_taken_is_refused"),
        (ClearsAndRefuses, "a_name_that_is_taken_is_refused"),
        (KeepsWhatIsReplaced, "a_collection_is_replaced"),
        (Overwrites, "the_records_that_are_there_win"),
        (SkipsAll, "the_records_that_are_there_win"),
        (ForgetsMarks, "another_process_goes_on"),
        (PublishesItsOwn, "what_was_finished_is_published_by_another_process"),
        (GoesOnWithoutAMark, "what_a_killed_process_left_is_not_in_what_is_begun_anew"),
        (ForgetsItsMetadata, "what_is_written_comes_back"),
    ],
)
def test_a_sink_with_a_fault_is_found_out(faulty: type[MemorySink], test: str, tmp_path: Path) -> None:
    """The test of the guarantee that it breaks fails."""

    class Faulty(TestMemorySink):
        def make_sink(self, tmp_path: Path) -> MemorySink:
            return faulty(self.memory)

    suite = Faulty()
    suite.setup_method()
    found_out(suite, test, tmp_path)


PARAMETERS: dict[str, list[Any]] = {
    "a_collection_is_replaced": [3],
    "vectors_of_any_dimension": [2],
    "another_process_goes_on": [0.5, True],
    "what_was_finished_is_published_by_another_process": [False],
}


def found_out(suite: SourceSuite | SinkSuite, test: str, tmp_path: Path) -> None:
    """The suite's test of that name fails."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(suite, f"test_{test}")(tmp_path, *PARAMETERS.get(test, []))
