"""A directory at rest is read where it lies: the same snapshot as of a copy, and never one of two moments."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from chromakeep.chroma import purge, spool
from chromakeep.chroma.standstill import QUIET, Standstill, standstill
from chromakeep.operations import backup as operation
from chromakeep.operations.backup import backup
from chromakeep.operations.restore import restore
from chromakeep.repository import Repository
from chromakeep.repository.writer import SnapshotWriter
from chromakeep.store.memory import MemoryStore
from operations.directories import everything

HOUR = 3600
SECRET = b"deleted-but-still-there"


@pytest.fixture
def rested(generations: list[Path], tmp_path: Path) -> Path:
    """A directory of Chroma's, an hour old, with pages that hold what was deleted."""
    source = tmp_path / "chroma"
    shutil.copytree(generations[-1], source)
    with closing(sqlite3.connect(source / "chroma.sqlite3", isolation_level=None)) as db:
        db.execute("PRAGMA secure_delete = OFF")
        db.execute("CREATE TABLE gone (x BLOB)")
        db.executemany("INSERT INTO gone VALUES (?)", [(SECRET * 100,)] * 300)
        db.execute("DROP TABLE gone")
    age(source)
    return source


def age(source: Path, seconds: float = HOUR) -> None:
    then = time.time() - seconds
    for path in [source, *source.rglob("*")]:
        os.utime(path, (then, then))
    time.sleep(0.05)  # a write from now on has another ctime


def nobody_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was copied")

    monkeypatch.setattr(operation, "capture", refuse)


def brought_back(repository: Repository, to: Path) -> dict[str, bytes]:
    restore(repository, None, to)
    return {str(p.relative_to(to)): p.read_bytes() for p in sorted(to.rglob("*")) if p.is_file()}


def test_what_is_read_is_what_would_have_been_copied(
    rested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, deleted rows zeroed; the source and all around it are as they were."""
    copied, read = Repository.create(MemoryStore()), Repository.create(MemoryStore())
    first = backup(rested, copied, stage=tmp_path / "stage")
    assert (rested / "chroma.sqlite3").read_bytes().count(SECRET) > 1000
    before = everything(rested)
    nobody_copies(monkeypatch)
    second = backup(rested, read)
    assert everything(rested) == before
    assert not [p for p in tmp_path.iterdir() if ".capture-" in p.name]
    assert second.collections == first.collections
    assert brought_back(read, tmp_path / "a") == (same := brought_back(copied, tmp_path / "b"))
    assert same["chroma.sqlite3"].count(SECRET) < 500  # the page that lists the others stays
    (one,), (two,) = read.snapshots(), copied.snapshots()
    assert (one.counter, one.schema) == (two.counter, two.schema)
    assert [(f.path, f.size, f.mtime_ns, f.layout) for f in one.files] == [
        (f.path, f.size, f.mtime_ns, f.layout) for f in two.files
    ]
    assert backup(rested, read).new_bytes == 0


def write(source: Path) -> None:
    with closing(sqlite3.connect(source / "chroma.sqlite3")) as db:
        db.execute("UPDATE embedding_metadata SET string_value = 'changed' WHERE key = 'chroma:document'")
        db.commit()


def persist(source: Path) -> None:
    for level0 in source.glob("*/data_level0.bin"):
        data = level0.read_bytes()
        level0.write_bytes(data)
        if (pickle := level0.parent / "index_metadata.pickle").exists():
            pickle.touch()


@pytest.mark.parametrize("change", [write, persist])
@pytest.mark.parametrize("when", ["while it is stored", "at the end"])
def test_what_was_written_meanwhile_is_captured(
    rested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], when: str
) -> None:
    """Nothing of the first reading is in the snapshot; there is one snapshot, and it is the later state."""
    done: list[str] = []

    def once(which: str) -> None:
        if which == when and not done:
            done.append(when)
            change(rested)

    confirm, add_file = Standstill.confirm, SnapshotWriter.add_file

    def late(self: Standstill) -> None:
        once("at the end")
        confirm(self)

    def during(self: SnapshotWriter, *args: object, **kwargs: object) -> object:
        try:
            return add_file(self, *args, **kwargs)  # type: ignore[arg-type]
        finally:
            once("while it is stored")

    monkeypatch.setattr(Standstill, "confirm", late)
    monkeypatch.setattr(SnapshotWriter, "add_file", during)
    repository, fresh = Repository.create(MemoryStore()), Repository.create(MemoryStore())
    taken = backup(rested, repository)
    assert done
    assert [s.id for s in repository.snapshots()] == [taken.snapshot]
    assert not list(repository.store.list("sessions/"))
    backup(rested, fresh, stage=tmp_path / "stage")
    assert brought_back(repository, tmp_path / "a") == brought_back(fresh, tmp_path / "b")


def lately(source: Path) -> None:
    age(source, 3)
    assert QUIET > 3


def journal(source: Path) -> None:
    (source / "chroma.sqlite3-journal").write_bytes(b"\0" * 512)


def wal(source: Path) -> None:
    with closing(sqlite3.connect(source / "chroma.sqlite3")) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
    age(source)


def held(source: Path) -> None:
    assert purge.hold(source / "chroma.sqlite3")
    age(source)


def out_of_order(source: Path) -> None:
    then = time.time() - HOUR / 2
    for level0 in source.glob("*/data_level0.bin"):
        os.utime(level0, (then, then))


def damaged(source: Path) -> None:
    (source / "chroma.sqlite3").write_bytes(b"no database" * 100)
    age(source)


@pytest.mark.parametrize("oddity", [lately, journal, wal, held, out_of_order, damaged, shutil.rmtree])
def test_what_is_odd_is_left_to_a_capture(
    rested: Path, oddity: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chromakeep.chroma.standstill.QUIET", HOUR / 4)  # what is of lately stays so on a busy machine
    with standstill(rested) or pytest.fail("at rest, it is read where it lies"):
        pass
    oddity(rested)
    assert standstill(rested) is None


def test_what_this_process_has_open_is_left_to_a_capture(rested: Path) -> None:
    """Our closing it would drop the other's lock (fcntl)."""
    with (rested / "chroma.sqlite3").open("rb"):
        assert standstill(rested) is None


def test_a_large_directory_must_have_been_left_alone_for_longer(rested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it takes to read it."""
    monkeypatch.setattr("chromakeep.chroma.standstill.PACE", 1.0)
    assert standstill(rested) is None


def test_a_writer_that_holds_it_locked_at_the_end(rested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not written yet and may do so: what was read counts for nothing."""
    monkeypatch.setattr("chromakeep.chroma.standstill.WAIT", 0.1)
    still = standstill(rested)
    assert still
    with still, closing(sqlite3.connect(rested / "chroma.sqlite3", isolation_level=None)) as db:
        still.confirm()
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(operation.SourceError, match="locked"):
            still.confirm()
        db.execute("ROLLBACK")
        still.confirm()


def test_lists_of_the_inspection_lie_elsewhere(rested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even files without a name are not made in a directory that is only read."""
    made = tempfile.TemporaryFile

    def elsewhere(*args: object, dir: Path | None = None, **kwargs: object) -> object:
        assert dir and not dir.is_relative_to(rested)
        return made(*args, dir=dir, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(spool, "IN_MEMORY", 1)
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", elsewhere)
    nobody_copies(monkeypatch)
    assert backup(rested, Repository.create(MemoryStore())).collections
    with pytest.raises(AssertionError):
        monkeypatch.setattr(operation, "standstill", lambda source: None)
        backup(rested, Repository.create(MemoryStore()))
