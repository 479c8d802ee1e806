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
from chromakeep.errors import StoreUnavailable
from chromakeep.operations.beside import Beside
from chromakeep.operations.boot import newest_state
from chromakeep.operations.keep import Keeping
from chromakeep.operations.restore import restore
from chromakeep.operations.tenure import Tenure
from chromakeep.repository import Repository
from chromakeep.repository.lease import Lease
from chromakeep.store.memory import MemoryStore
from run.running import ENV, add, create, eventually, held

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
