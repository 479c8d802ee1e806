"""What is under the final name is always whole: a process may die at any step, and another one goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from chromakeep.errors import DiskFull, SourceError, TargetNotEmpty, UsageError
from chromakeep.events import Event, Noted
from chromakeep.exchange import files
from chromakeep.exchange.archive import ParquetArchiveSource
from chromakeep.exchange.archive_sink import ParquetArchiveSink
from chromakeep.exchange.jsonl import JsonlSource
from chromakeep.exchange.open import ExchangeSink, sink_of, source_of
from chromakeep.exchange.parquet import ParquetFileSource
from chromakeep.records import Definition, Mark, Source
from chromakeep.testing.specimens import assert_same, gathered, held, ordinary, records_of
from exchange.scenes import KINDS, SAMPLE, at, cut, listing, read, written

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of fork, from Python 3.12

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "link", "truncate", "open")
OTHER = Definition("other", dimension=3)


def dies_at(step: int, work: Callable[[], object]) -> bool:
    """Do this in a process that dies, as by SIGKILL, just before its so manyth step (of writes, which all go to hidden
    files, five are one). False: it came to its end."""
    child = os.fork()
    if child == 0:
        left: float = step

        def counted(function: Any, each: float = 1) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= each
                if left < 0:
                    os._exit(9)
                return function(*args, **kwargs)

            return call

        status = 1
        try:
            for name in STEPS:
                setattr(os, name, counted(getattr(os, name)))
            files.Output.write = counted(files.Output.write, 0.2)  # type: ignore[method-assign]
            files.swap = counted(files.swap)
            work()
            status = 0
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(waited) in (0, 9)
    return os.waitstatus_to_exitcode(waited) == 9


def opened(address: str) -> ExchangeSink:
    """A sink; of an archive one with small parts."""
    if address.endswith("/"):
        return ParquetArchiveSink(Path(address), part_bytes=4_000)
    return sink_of(address)


def export(address: str, records: pa.RecordBatch, conflict: str) -> None:
    """As a copy does it, with marks; of one collection, or two where the file takes them."""
    with closing(opened(address)) as sink:
        for definition in [SAMPLE] if address.endswith(".parquet") else [SAMPLE, OTHER]:
            intake = sink.collection(definition, conflict=conflict)
            for some in cut(records, 30):
                intake.write(some)
                intake.mark()
            intake.finish()
        sink.publish()


def found(address: str) -> dict[str, dict[str, Any]] | None:
    """All that is there, None if nothing is."""
    if not os.path.lexists(address.rstrip("/")):
        return None
    with closing(source_of(address)) as source:
        return {each.name: held(source, each) for each in source.definitions()}


def kept(folder: Path) -> list[dict[str, dict[str, Any]]]:
    """All that is in what was kept there, whatever kind it is."""
    sources: list[Source] = []
    for path in sorted(folder.glob("*.old-*")):
        if path.is_dir():
            sources.append(ParquetArchiveSource(path))
        else:
            sources.append(ParquetFileSource(path) if ".parquet." in path.name else JsonlSource(path))
    return [{each.name: held(source, each) for each in source.definitions()} for source in sources]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is such a place: syncing it a thousand times takes no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("kind", ["x.parquet", "x.parquet/", "x.jsonl"])
def test_a_process_that_dies_at_any_step(kind: str, before: bool, memory: Path) -> None:
    """At each write, sync, rename and removal: what is there is the old one or the whole new one, never a third, and
    the old one can be found; the same command again makes the new one, leaving nothing but the old one behind."""
    old, new = ordinary(10, start=5000), ordinary(50)
    conflict = "replace" if before else "fail"
    template = memory / "template"
    template.mkdir()
    if before:
        export(at(template, kind), old, "fail")
    was = found(at(template, kind))
    changed = False
    for step in range(10_000):
        place = memory / f"{step}"
        shutil.copytree(template, place)
        address = at(place, kind)
        died = dies_at(step, partial(export, address, new, conflict))
        there = found(address)
        assert there == was or (there and all(each == records_of(new) for each in there.values())), there
        assert not changed or there != was
        changed = there != was
        assert before * [was] in ([there], kept(place)), step
        if not died:
            break
        if not changed and step % 7 == 0:
            export(address, new, conflict)
            assert listing(place)[0] == kind.rstrip("/")
            assert kept(place) == before * [was]
        shutil.rmtree(place)
    assert changed and listing(place)[0] == kind.rstrip("/")
    assert step > 25


@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("kind", ["x.parquet", "x.parquet/", "x.jsonl"])
def test_publishing_that_dies_is_finished_by_another_process(kind: str, before: bool, memory: Path) -> None:
    """At whatever step it was: the new one is there in the end, and the old one does not come back."""
    template, new = memory / "template", ordinary(20)
    was = finished(template, kind, new, before=before)
    died, step = True, 0
    while died:
        place = memory / f"{step}"
        shutil.copytree(template, place)
        died = dies_at(step, partial(published, at(place, kind)))
        for _ in range(2):  # once more is nothing
            published(at(place, kind))
            there = found(at(place, kind))
            assert there and all(each == records_of(new) for each in there.values()), step
            names = [name for name in listing(place) if name != f"{kind.rstrip('/')}/.copying"]
            assert names[0] == kind.rstrip("/"), names
            assert kept(place) == before * [was], step
        step += 1
    assert step > 4


@pytest.mark.parametrize("kind", ["x.parquet", "x.parquet/", "x.jsonl"])
def test_publishing_that_dies_where_there_are_no_links(
    kind: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is the old one or the new one, or for a moment nothing: then the same command ends it. The old one
    can be found at any time, and is there once."""

    def refused(*names: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    template, new = memory / "template", ordinary(20)
    was = finished(template, kind, new, before=True)
    died, step = True, 0
    while died:
        place = memory / f"{step}"
        shutil.copytree(template, place)
        died = dies_at(step, partial(published, at(place, kind)))
        assert was in [found(at(place, kind)), *kept(place)], step
        published(at(place, kind))
        assert kept(place) == [was], step
        there = found(at(place, kind))
        assert there and all(each == records_of(new) for each in there.values()), step
        step += 1
    assert step > 4


def finished(folder: Path, kind: str, new: pa.RecordBatch, *, before: bool) -> dict[str, dict[str, Any]] | None:
    """All that is to be published, but for that; ``before``: over what is there. Returns that."""
    folder.mkdir()
    if before:
        export(at(folder, kind), ordinary(10, start=5000), "fail")
    was = found(at(folder, kind))
    with closing(opened(at(folder, kind))) as sink:
        for definition in [SAMPLE] if kind == "x.parquet" else [SAMPLE, OTHER]:
            intake = sink.collection(definition, conflict="replace")
            intake.write(new)
            intake.finish()
    return was


def published(address: str) -> None:
    """By a process that does nothing else."""
    with closing(opened(address)) as sink:
        sink.publish()


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_is_gone_on_with_from_its_last_mark(kind: str, tmp_path: Path) -> None:
    """SIGKILL while it writes, again and again: in the end every record is there once, in order."""
    address, records = at(tmp_path, kind), ordinary(1500)
    mark: Mark = None
    done = 0
    rounds = 0
    while done < len(records):
        mark, done = killed_after(5, address, records, mark, done)
        rounds += 1
        assert found(address) is None
    assert rounds > 3
    with closing(opened(address)) as sink:
        sink.collection(SAMPLE, mark=mark).finish()
        with closing(sink.reader()) as reader:
            assert_same(records_of(records), held(reader, reader.definitions()[0]))
        sink.publish()
    _, batches = read(address)
    assert [id_ for some in batches for id_ in some.column("id").to_pylist()] == records.column("id").to_pylist()
    assert_same(records_of(records), gathered(batches))
    assert listing(tmp_path)[0] == kind.rstrip("/")


def killed_after(marks: int, address: str, records: pa.RecordBatch, mark: Mark, done: int) -> tuple[Mark, int]:
    """Let a process write, and kill it when it has told of so many marks; the last one, and the records up to there."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sink = opened(address)
            intake = sink.collection(SAMPLE, mark=mark)
            with os.fdopen(writer, "w") as told:
                for start in range(done, len(records), 50):
                    intake.write(records.slice(start, 50))
                    told.write(json.dumps([intake.mark(), min(start + 50, len(records))]) + "\n")
                    told.flush()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        for number, line in enumerate(lines, 1):
            mark, done = json.loads(line)
            if number == marks:
                os.kill(child, signal.SIGKILL)
                break
    os.waitpid(child, 0)
    return mark, done


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_every_mark(kind: str, tmp_path: Path) -> None:
    """Not only from the last one: with what came after it written once more."""
    records = ordinary(400)
    with closing(opened(at(tmp_path, kind))) as sink:
        intake = sink.collection(SAMPLE)
        marks = [(intake.mark(), 0)]
        for start in range(0, 400, 100):
            intake.write(records.slice(start, 100))
            marks.append((intake.mark(), start + 100))
        intake.write(ordinary(50, start=9000))  # which no mark tells of
        intake.finish()
    for number, (mark, done) in enumerate(marks):
        place = tmp_path / f"{number}"
        place.mkdir()
        shutil.copytree(tmp_path / f".{kind.rstrip('/')}.partial", place / f".{kind.rstrip('/')}.partial")
        with closing(opened(at(place, kind))) as sink:
            intake = sink.collection(SAMPLE, mark=json.loads(json.dumps(mark)))
            for some in cut(records.slice(max(0, done - 70)), 60):  # the last 70 are known already
                intake.write(some)
            intake.finish()
            sink.publish()
        definition, batches = read(at(place, kind))
        assert definition.count == 400
        assert_same(records_of(records), gathered(batches))


def test_a_mark_of_what_is_gone(tmp_path: Path) -> None:
    """One line, and nothing is begun anew on the quiet."""
    for kind, marks in {
        "x.parquet": ({"bytes": 100, "journal": 100}, {"bytes": -1}, "x", 7),
        "x.jsonl": (100, -1, "x", {"a": 1}, 1.5, True),
        "x.jsonl.zst": (100, [1]),
    }.items():
        for mark in marks:
            with closing(sink_of(at(tmp_path, kind))) as sink, pytest.raises(UsageError) as raised:
                sink.collection(SAMPLE, mark=mark)
            assert raised.value.hint and len(str(raised.value).splitlines()) == 1


def test_without_resume_nothing_of_an_earlier_process_is_kept(tmp_path: Path) -> None:
    """What it finished would be part of the file otherwise, as a copy that goes on needs it."""
    for kind in ("x.parquet/", "x.jsonl"):
        for resume, names in ((True, ["other", "sample"]), (False, ["sample"])):
            with closing(sink_of(at(tmp_path, kind))) as sink:
                sink.collection(OTHER).finish()
            written(at(tmp_path, kind), SAMPLE, [ordinary(3)], resume=resume)
            with closing(source_of(at(tmp_path, kind))) as source:
                assert sorted(each.name for each in source.definitions()) == names
            files.remove(tmp_path / kind)
            assert not listing(tmp_path)


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Nobody said that it may be."""
    for kind in ("x.parquet", "x.jsonl"):
        with closing(sink_of(at(tmp_path, kind))) as sink:
            sink.collection(SAMPLE).finish()
            (tmp_path / kind).write_text("of another")
            with pytest.raises(TargetNotEmpty):
                sink.publish()
        assert (tmp_path / kind).read_text() == "of another"
        (tmp_path / f"d-{kind}").mkdir()
        with closing(sink_of(at(tmp_path, f"d-{kind}"))) as sink:
            if kind == "x.jsonl":
                with pytest.raises(UsageError, match="no regular file"):
                    sink.collection(SAMPLE, conflict="replace")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replaced_is_kept(kind: str, tmp_path: Path) -> None:
    """Each time under another name, which is told, and byte for byte as it was."""
    noted: list[Event] = []
    address, bytes_of = at(tmp_path, kind), {}
    for n in range(4):  # within a second
        written(address, SAMPLE, [ordinary(3 + n)], conflict="replace", observer=noted.append)
        here = sorted(each for each in (tmp_path / kind).rglob("*") if each.is_file()) or [tmp_path / kind]
        bytes_of[n] = {each.relative_to(tmp_path / kind): each.read_bytes() for each in here}
    assert read(address)[0].count == 6
    assert sorted(each.name for each in tmp_path.iterdir() if ".old-" not in each.name) == [kind.rstrip("/")]
    assert [len(each["sample"]) for each in sorted(kept(tmp_path), key=lambda each: len(each["sample"]))] == [3, 4, 5]
    assert len(noted) == 3
    for n, note in enumerate(noted):
        assert isinstance(note, Noted) and note.level == "warning"
        (path,) = [path for path in tmp_path.glob("*.old-*") if f" {path};" in note.message]
        for name, data in bytes_of[n].items():
            assert (path / name).read_bytes() == data


def test_a_name_that_is_as_long_as_can_be_is_kept_too(tmp_path: Path) -> None:
    """With less of it."""
    address = at(tmp_path, "ä" * 118 + ".jsonl")
    for n in (3, 4):
        written(address, SAMPLE, [ordinary(n)], conflict="replace")
    assert [len(each["sample"]) for each in kept(tmp_path)] == [3]


def test_one_file_takes_one_collection(tmp_path: Path) -> None:
    """Of Parquet; and says how to write more."""
    with closing(sink_of(at(tmp_path, "x.parquet"))) as sink:
        sink.collection(SAMPLE)
        with pytest.raises(UsageError, match="one collection") as raised:
            sink.collection(OTHER)
        assert f"{tmp_path}/x.parquet/" in (raised.value.hint or "")
        with pytest.raises(UsageError, match="not finished"):
            sink.publish()
    with closing(sink_of(at(tmp_path, "x.parquet"))) as sink:  # what was begun of another one is no matter
        sink.collection(OTHER).finish()
        sink.publish()
    assert read(at(tmp_path, "x.parquet"))[0].name == "other"


def test_a_file_that_is_no_parquet_can_be_replaced(tmp_path: Path) -> None:
    """It has no collections, but it is there."""
    for kind in ("x.parquet", "x.jsonl", "x.jsonl.zst"):
        (tmp_path / kind).write_bytes(b"\x28\xb5\x2f\xfd rubbish")
        with closing(sink_of(at(tmp_path, kind))) as sink:
            assert not sink.definitions()
            with pytest.raises(TargetNotEmpty):
                sink.collection(SAMPLE)
        assert read(written(at(tmp_path, kind), SAMPLE, [ordinary(3)], conflict="replace"))[0].count == 3


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel lets this process write no file beyond 1 MiB (EFBIG; Python ignores the signal that goes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(kind: str, tmp_path: Path, small_files: None) -> None:
    """DiskFull, in one line; what was there stays, and with room again the copy goes on from its last mark."""
    address = written(at(tmp_path, kind), SAMPLE, [ordinary(3)])
    records = ordinary(1200, 700)
    definition = Definition("sample", dimension=700)
    with closing(sink_of(address)) as sink:
        intake = sink.collection(definition, conflict="replace")
        intake.write(records.slice(0, 100))
        mark = intake.mark()
        with pytest.raises(DiskFull) as raised:
            intake.write(records.slice(100))
            intake.finish()
        assert raised.value.hint and len(str(raised.value).splitlines()) == 1
    assert read(address)[0].count == 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with closing(sink_of(address)) as sink:
        intake = sink.collection(definition, conflict="replace", mark=mark)
        intake.write(records.slice(100))
        intake.finish()
        sink.publish()
    assert_same(records_of(records), gathered(read(address)[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_places_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    """No such directory, or a name that is too long: one line, with a hint."""
    for address in (at(tmp_path / "none", kind), at(tmp_path, "x" * 250 + kind)):
        with pytest.raises(UsageError) as raised, closing(sink_of(address)) as sink:
            sink.collection(SAMPLE)
        assert raised.value.hint and len(str(raised.value).splitlines()) == 1
    with pytest.raises(SourceError):
        read(at(tmp_path / "none", kind))
