"""A copy that is gone on with publishes all of it, whatever became of the target meanwhile: what an earlier process has
finished is there and is published, or it is copied anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chromakeep.chroma.connection import Connection
from chromakeep.chroma.directory_source import DirectorySource
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.server_sink import ServerSink
from chromakeep.errors import RepositoryBusy, SourceBusy, SourceError
from chromakeep.exchange.archive_sink import ParquetArchiveSink
from chromakeep.exchange.file_sink import FileSink
from chromakeep.exchange.jsonl_sink import JsonlSink
from chromakeep.operations import place as directory_place
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.copy import CopyResult, copy
from chromakeep.operations.directory_sink import DirectorySink
from chromakeep.operations.planning import Plan
from chromakeep.records import Definition, Sink
from chromakeep.testing.memory_records import Memory, MemorySource
from operations.namespaces import on_small_disk
from operations.test_copy import WHOLE, place, records

Opened = Callable[[], Sink]


def url(server: ChromaServer) -> str:
    return f"http://127.0.0.1:{server.client.port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("server"), env=os.environ) as running:
        yield running


@pytest.fixture(params=["directory", "archive", "lines", "server"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """A target, for one process after the other."""
    if request.param != "server":
        yield {
            "directory": lambda: DirectorySink(
                tmp_path / "x",
                lambda client: ServerSink(Connection(f"http://{client.host}:{client.port}")),
                env=os.environ,
                resume=True,
            ),
            "archive": lambda: ParquetArchiveSink(tmp_path / "x.parquet"),
            "lines": lambda: JsonlSink(tmp_path / "x.jsonl"),
        }[request.param]
        return
    server = request.getfixturevalue("server")
    yield lambda: ServerSink(Connection(url(server)))
    drop_all(server)


def begun(source: Memory, sink: Sink, file: Path, *, at: int) -> Checkpoint:
    """A copy of which the batch ``at`` cannot be read; each has 100 records, and ``books`` 500."""
    with closing(sink), pytest.raises(SourceError, match="injected"):
        copy(MemorySource(source, fail_at=at), sink, Plan(), checkpoint=Checkpoint(file, WHOLE))
    left = Checkpoint(file, WHOLE)
    assert left.parts["default_tenant/default_database/books"].done == (at > 5)
    return left


def ended(source: MemorySource, sink: Sink, file: Path) -> CopyResult:
    with closing(sink):
        return copy(source, sink, Plan(), checkpoint=Checkpoint(file, WHOLE))


def names(sink: Sink) -> set[str]:
    """Of the collections that are visible."""
    with closing(sink):
        return {each.name for each in sink.definitions()}


def drop_all(server: ChromaServer) -> None:
    for each in server.client.list_collections():
        server.client.request("DELETE", f"{each.path.rsplit('/', 1)[0]}/{each.name}")


@pytest.mark.parametrize("at", [3, 6, 7])
def test_what_was_taken_away_meanwhile_is_copied_anew(
    opened: Opened, tmp_path: Path, server: ChromaServer, at: int
) -> None:
    """In the middle of the first collection, before the second one, in the middle of that."""
    source, file = place(), tmp_path / "c.json"
    left = begun(source, opened(), file, at=at)
    if at == 6:
        left.anew(("default_tenant", "default_database", "laws"))
        left.save()
    for hidden in tmp_path.glob(".x*"):
        shutil.rmtree(hidden)
    drop_all(server)
    assert ended(MemorySource(source), opened(), file).records == 750
    assert names(opened()) == {"books", "laws"}


@pytest.mark.parametrize("opened", ["archive", "lines"], indirect=True)
def test_what_was_to_be_replaced_is_not_taken_for_what_was_finished(opened: Opened, tmp_path: Path) -> None:
    """Its name is the same."""
    source, file, former = place(), tmp_path / "c.json", Memory()
    former.put(Definition("books", "uuid-0", dimension=3), records(0, 10, salt=7))
    plan = Plan(conflict="replace", verify=True)
    with closing(opened()) as sink:
        copy(MemorySource(former), sink, Plan())
    with closing(opened()) as sink, pytest.raises(SourceError, match="injected"):
        copy(MemorySource(source, fail_at=7), sink, plan, checkpoint=Checkpoint(file, WHOLE))
    for hidden in tmp_path.glob(".x*"):
        shutil.rmtree(hidden)
    with closing(opened()) as sink:
        assert isinstance(sink, FileSink | ParquetArchiveSink)
        copy(MemorySource(source), sink, plan, read_back=sink.reader, checkpoint=Checkpoint(file, WHOLE))


def test_what_was_finished_is_not_copied_twice(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that failed, and by one that was killed when it had published all."""
    source, file = place(), tmp_path / "c.json"
    begun(source, opened(), file, at=7)
    monkeypatch.setattr(Checkpoint, "remove", lambda self: None)
    for rest in (2, 0):
        reading = MemorySource(source, fail_at=rest + 1)
        assert ended(reading, opened(), file).records == 750
        assert names(opened()) == {"books", "laws"}


@pytest.mark.parametrize("opened", ["directory", "archive", "lines"], indirect=True)
def test_what_a_killed_process_has_published_is_verified(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is now, and it is not put in place once more."""
    source, file = place(), tmp_path / "c.json"
    monkeypatch.setattr(Checkpoint, "remove", lambda self: None)
    for _ in range(2):
        with closing(opened()) as sink:
            assert isinstance(sink, DirectorySink | FileSink | ParquetArchiveSink)
            done = copy(
                MemorySource(source), sink, Plan(verify=True), read_back=sink.reader, checkpoint=Checkpoint(file, WHOLE)
            )
        assert done.verified and done.records == 750
        assert not list(tmp_path.glob("x*.old-*"))


@pytest.mark.parametrize("opened", ["directory", "server"], indirect=True)
def test_a_collection_of_another_tenant_is_found_again(opened: Opened, tmp_path: Path, server: ChromaServer) -> None:
    """A server does not list its tenants."""
    source, file = Memory(), tmp_path / "c.json"
    for number, name in enumerate(("books", "laws")):
        source.put(Definition(name, f"uuid-{number}", "acme", "prod", 3), records(0, 200))
    with closing(opened()) as sink, pytest.raises(SourceError, match="injected"):
        copy(MemorySource(source, fail_at=4), sink, Plan(), checkpoint=Checkpoint(file, WHOLE))
    assert ended(MemorySource(source, fail_at=2), opened(), file).records == 400


@pytest.mark.parametrize("opened", ["directory"], indirect=True)
def test_two_copies_into_one_directory_do_not_meet(opened: Opened, tmp_path: Path) -> None:
    """The second one is refused, and takes nothing away from the first."""
    source = place()
    (books, _) = MemorySource(source).definitions()
    with closing(opened()) as first:
        intake = first.collection(books)
        for resume in (True, False):
            with closing(opened()) as second:
                second._resume = resume  # type: ignore[attr-defined]
                with pytest.raises(RepositoryBusy, match="another process is writing there"):
                    second.collection(books)
        for some, _ in MemorySource(source).batches(books):
            intake.write(some)
        intake.finish()
        first.publish()
    assert names(opened()) == {"books"}


class Death(BaseException):
    """What nothing lives on after."""


def occupied(opened: Opened) -> None:
    """Fill the target with collections of its own, one of them of a name that comes, of an older state."""
    there = Memory()
    there.put(Definition("books", "uuid-0", dimension=3), records(0, 10, salt=7))
    there.put(Definition("mine", "uuid-9", dimension=3), records(0, 10))
    with closing(opened()) as sink:
        copy(MemorySource(there), sink, Plan())


def dies_at(number: int, act: Callable[[], object]) -> bool:
    """Whether it came so far: to the rename of this number, of those that put the directory in place."""
    with pytest.MonkeyPatch.context() as patched:

        def counting(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*names: Path) -> Any:
                nonlocal number
                number -= names[0].name != "capture"
                if not number:
                    raise Death
                return real(*names)

            return call

        patched.setattr(Path, "rename", counting(Path.rename))
        patched.setattr(directory_place, "exchange", counting(directory_place.exchange))
        try:
            act()
        except Death:
            return True
    return False


def counts(directory: Path) -> dict[str, int]:
    with closing(DirectorySource(directory)) as source:
        return {d.name: sum(len(some) for some, _ in source.batches(d)) for d in source.definitions()}


def dies_everywhere(path: Path, way: str, kept: Callable[[], list[Path]]) -> int:
    """Copy into directories below ``path``, dying at every rename, and go on; at how many that was."""

    def sink() -> DirectorySink:
        return DirectorySink(
            target, lambda c: ServerSink(Connection(f"http://{c.host}:{c.port}")), env=os.environ, resume=True
        )

    source, target = place(), path / "x"
    occupied(sink)
    seed = path / "seed"
    shutil.copytree(target, seed, ignore=shutil.ignore_patterns(".*"))
    for number in range(1, 100):
        for each in (*target.iterdir(), *kept()):
            shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
        shutil.copytree(seed, target, dirs_exist_ok=True)
        file = path / f"{number}.json"

        def go(file: Path = file) -> CopyResult:
            with closing(sink()) as one:
                return copy(MemorySource(source), one, Plan(conflict=way), checkpoint=Checkpoint(file, WHOLE))

        dead = dies_at(number, go)
        if dead:
            assert go().records == 750
        assert counts(target) == {"books": 500, "laws": 250, "mine": 10}
        assert counts(max(kept())) == counts(seed), "the old content is what a rollback finds"
        if not dead:
            return number - 1
    raise AssertionError


def test_killed_at_any_rename_a_copy_into_a_directory_is_published_the_next_time(tmp_path: Path) -> None:
    """What was there and is written into has the same id in the old and in the new directory."""
    assert dies_everywhere(tmp_path, "upsert", lambda: list(tmp_path.glob("x.old-*"))) == 2


def test_killed_at_any_rename_a_copy_into_a_mount_point_is_completed(tmp_path: Path) -> None:
    """A volume cannot be renamed, and nothing can be renamed into it from beside it: its content moves, within it."""
    (tmp_path / "x").mkdir()

    def act() -> None:
        assert (tmp_path / "x").is_mount()
        assert dies_everywhere(tmp_path, "upsert", lambda: list((tmp_path / "x").glob(".old-*"))) > 5

    on_small_disk(tmp_path / "x", 64 << 20, act)
    assert not list(tmp_path.glob(".x*")), "it wrote beside the volume"


@pytest.mark.parametrize("opened", ["directory"], indirect=True)
@pytest.mark.parametrize("at", [3, 7])
def test_what_was_written_into_a_collection_of_the_target_is_written_again(
    opened: Opened, tmp_path: Path, at: int
) -> None:
    """Where it was taken away meanwhile: the target's own has the id that was noted, and none of it."""
    source, file = place(), tmp_path / "c.json"
    occupied(opened)
    plan = Plan(conflict="upsert")
    with closing(opened()) as sink, pytest.raises(SourceError, match="injected"):
        copy(MemorySource(source, fail_at=at), sink, plan, checkpoint=Checkpoint(file, WHOLE))
    assert Checkpoint(file, WHOLE).parts["default_tenant/default_database/books"].records
    shutil.rmtree(tmp_path / ".x.copying")
    with closing(opened()) as sink:
        copy(MemorySource(source), sink, plan, checkpoint=Checkpoint(file, WHOLE))
    assert counts(tmp_path / "x") == {"books": 500, "laws": 250, "mine": 10}


@pytest.mark.parametrize("opened", ["directory"], indirect=True)
def test_a_target_that_was_written_to_meanwhile_is_read_again_the_next_time(opened: Opened, tmp_path: Path) -> None:
    source, file = place(), tmp_path / "c.json"
    occupied(opened)
    with closing(opened()) as sink, pytest.raises(SourceError, match="injected"):
        copy(MemorySource(source, fail_at=7), sink, Plan(conflict="upsert"), checkpoint=Checkpoint(file, WHOLE))
    with ChromaServer(tmp_path / "x", env=os.environ) as server:
        made = server.client.request(
            "POST", "/tenants/default_tenant/databases/default_database/collections", {"name": "since"}
        )
        assert made
    with closing(opened()) as sink, pytest.raises(SourceBusy, match="was written to"):
        copy(MemorySource(source), sink, Plan(conflict="upsert"), checkpoint=Checkpoint(file, WHOLE))
    with closing(opened()) as sink:
        copy(MemorySource(source), sink, Plan(conflict="upsert"), checkpoint=Checkpoint(file, WHOLE))
    assert counts(tmp_path / "x") == {"books": 500, "laws": 250, "mine": 10, "since": 0}
