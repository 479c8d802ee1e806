"""The keeping of a directory, interrupted: a bucket or a disk that fails in the wrong moment, another directory that
appears beneath it. What it says of itself afterwards is true, and what it said was kept is found again."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from chromakeep.chroma.client import Ref
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.tail import Tail
from chromakeep.errors import StoreUnavailable, UsageError
from chromakeep.operations.backup import backup
from chromakeep.operations.beside import Beside, Process
from chromakeep.operations.boot import newest_state
from chromakeep.operations.keep import Keeping
from chromakeep.operations.restore import restore
from chromakeep.operations.tenure import Tenure
from chromakeep.repository import Repository
from chromakeep.repository.lease import Lease
from chromakeep.server.front import open_door
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from run.running import ENV, add, create, eventually, held, running

LONG = 3600.0


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ref]:
    """A directory at rest with a collection of three records."""
    data = tmp_path_factory.mktemp("template") / "data"
    with ChromaServer(data, env=ENV) as server:
        ref = create(server.client, "one")
        add(server.client, ref, 0, 3)
    return data, ref


@pytest.fixture
def data(template: tuple[Path, Ref], tmp_path: Path) -> Path:
    return Path(shutil.copytree(template[0], tmp_path / "data"))


def write(data: Path, ref: Ref, number: int) -> None:
    """A record ``i<number>``, committed as Chroma's server commits one."""
    topic = f"persistent://default/default/{ref.id}"
    vector = struct.pack("<4f", number, 1, 1, 1)
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as connection, connection:
        connection.execute(
            "INSERT INTO embeddings_queue (operation, topic, id, vector, encoding, metadata) VALUES (0, ?, ?, ?, ?, ?)",
            (topic, f"i{number}", vector, "FLOAT32", "{}"),
        )


class Bucket(MemoryStore):
    """A store whose puts ask ``trouble`` first, which may raise or wait."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Callable[[str], None] = lambda name: None

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self.trouble(name)
        super().put(name, data, if_absent=if_absent)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@contextmanager
def kept(data: Path, bucket: Bucket) -> Iterator[tuple[Keeping, list[str]]]:
    """A directory whose log has begun on a snapshot, and what is said."""
    said: list[str] = []
    repository = Repository.open(bucket) if "config" in {o.name for o in bucket.list()} else Repository.create(bucket)
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=LONG, stage=None, observer=lambda e: said.append(str(e)))
        keeping.lease = Tenure(Lease.take(repository))
        keeping.hold()
        keeping.start()
        keeping.soon()
        eventually(lambda: keeping.shipping and keeping.shipping.line[1], "the log")
        try:
            yield keeping, said
        finally:
            bucket.trouble = lambda name: None
            keeping.finish(10, threading.Event())
            keeping.end()


def found_again(bucket: Bucket, ref: Ref, place: Path) -> set[str]:
    """What another instance, without that disk, finds when it has taken over."""
    bucket.trouble = lambda name: None
    repository = Repository.open(bucket)
    Lease.take(repository)
    restore(repository, newest_state(repository, "elsewhere"), place)
    return set(held(place, ref))


@pytest.mark.parametrize(("failures", "patience"), [(6, 60.0), (10_000, 1.0)])
def test_a_bucket_that_is_away_at_the_end(
    data: Path, template: tuple[Path, Ref], bucket: Bucket, tmp_path: Path, failures: int, patience: float
) -> None:
    """What was written last is in the log if it comes back in time, and else it is not said that all is kept: a last
    snapshot that holds more than its log counts for nothing once another instance has taken over."""
    ref, left = template[1], iter(range(failures))

    def trouble(name: str) -> None:
        if name.startswith("log/") and next(left, None) is not None:
            raise StoreUnavailable("away")

    with kept(data, bucket) as (keeping, _):
        bucket.trouble = trouble
        write(data, ref, 7)
        said = keeping.finish(patience, threading.Event())
        assert said == ("i7" in found_again(bucket, ref, tmp_path / "found")) == (failures == 6)


def test_a_disk_that_fails_for_a_moment_does_not_end_the_log(
    data: Path, template: tuple[Path, Ref], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system says ESTALE once: writes go on to be acknowledged, so the log has to go on too."""
    ref, failed, changed = template[1], threading.Event(), Tail.changed

    def fail_once(tail: Tail) -> bool:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, "Stale file handle")
        return changed(tail)

    with kept(data, bucket) as (keeping, _):
        monkeypatch.setattr(Tail, "changed", fail_once)
        eventually(failed.is_set, "a look")
        write(data, ref, 7)
        assert keeping.shipping
        keeping.shipping.shipped().result(60)
        assert keeping.finish(60, threading.Event())
        assert "i7" in found_again(bucket, ref, tmp_path / "found")


def exchanged(data: Path, template: tuple[Path, Ref]) -> None:
    """Somebody puts another directory in its place."""
    data.rename(data.with_name("aside"))
    shutil.copytree(template[0], data)


def test_what_is_written_to_another_directory_is_not_taken_for_shipped(
    data: Path, template: tuple[Path, Ref], bucket: Bucket
) -> None:
    """Whose log is written lies elsewhere now: nothing more is acknowledged by it, and its end is not all."""
    with kept(data, bucket) as (keeping, said):
        exchanged(data, template)
        write(data, template[1], 7)
        assert keeping.shipping
        ticket = keeping.shipping.shipped()
        eventually(lambda: ticket.done() or any("not the database any more" in one for one in said), "the notice")
        assert not ticket.done()
        assert not keeping.finish(60, threading.Event())


def test_a_run_goes_on_with_the_directory_that_was_put_beneath_it(
    data: Path, template: tuple[Path, Ref], tmp_path: Path
) -> None:
    """By another container, say. What it acknowledges in sync from then on outlives that disk."""
    ref, keep = template[1], tmp_path / "keep"
    keep.mkdir()
    repository = Repository.create(LocalStore(keep))
    with running(data, keep, every=LONG, door=open_door, durability="sync", grace=30.0) as one:
        one.until("serving on")
        add(one.client, ref, 10, 3)
        exchanged(data, template)
        one.until("was replaced beneath it")
        one.until("serving on", 2)
        add(one.client, ref, 20, 3)
        restore(repository, newest_state(repository, str(data)), tmp_path / "found")
    assert set(held(tmp_path / "found", ref)) == {f"i{n}" for n in (0, 1, 2, 20, 21, 22)}


def test_what_another_run_serves_is_not_replaced(data: Path, bucket: Bucket) -> None:
    """In another container, where its processes are not seen: its lock is."""
    repository = Repository.create(bucket)
    backup(data, repository)
    with Beside(data) as beside:
        beside.take(1)
        beside.remember(keeper=Process(1, 1), server=Process(7, 7))
        with pytest.raises(UsageError, match="another chromakeep serves it"):
            restore(repository, None, data, replace=True)
    restore(repository, None, data, replace=True)
    with Beside(data) as beside:  # a run that boots, or one that keeps what others serve
        beside.take(1)
        assert restore(repository, None, data, replace=True).old
