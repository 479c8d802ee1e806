"""What a signature promises: equal means that nothing was written."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chromakeep.chroma.signature import Signature, signature
from chromakeep.errors import NotAChromaDirectory, SourceBroken

SEGMENT = "0f1e2d3c-0000-4000-8000-00000000beef"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A database and a segment's files, written a moment ago."""
    place = tmp_path / "chroma"
    (place / SEGMENT).mkdir(parents=True)
    with sqlite3.connect(place / "chroma.sqlite3") as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    for name in ("header.bin", "data_level0.bin", "index_metadata.pickle"):
        (place / SEGMENT / name).write_bytes(bytes(100))
    time.sleep(0.05)
    return place


def commit(source: Path) -> None:
    connection = sqlite3.connect(source / "chroma.sqlite3")
    with connection:
        connection.execute("INSERT INTO t VALUES (1)")
    connection.close()


def test_equal_while_nothing_is_written(source: Path) -> None:
    """Looking twice at a directory at rest gives the same, also through JSON, and as a key."""
    first = signature(source)
    assert signature(source) == first == Signature.from_json(first.to_json())
    assert len({first, signature(source)}) == 1


def test_a_commit_shows(source: Path) -> None:
    """One committed row is another signature, even if the database keeps its size."""
    commit(source)
    first, size = signature(source), (source / "chroma.sqlite3").stat().st_size
    commit(source)
    assert (source / "chroma.sqlite3").stat().st_size == size
    assert signature(source) != first


def test_a_persist_shows(source: Path) -> None:
    """Four bytes rewritten in place in an index file are another signature."""
    first = signature(source)
    with (source / SEGMENT / "data_level0.bin").open("r+b") as file:
        file.write(b"1234")
    assert signature(source) != first


def test_a_commit_to_the_log_shows(source: Path) -> None:
    """In WAL mode a commit touches only chroma.sqlite3-wal."""
    connection = sqlite3.connect(source / "chroma.sqlite3")
    connection.execute("PRAGMA journal_mode = WAL")
    with connection:
        connection.execute("INSERT INTO t VALUES (1)")
    first, before = signature(source), (source / "chroma.sqlite3").stat()
    with connection:
        connection.execute("INSERT INTO t VALUES (2)")
    assert (source / "chroma.sqlite3").stat() == before
    assert signature(source) != first
    connection.close()


def test_within_a_tick_of_a_write_no_two_are_equal(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While writes come faster than file times can tell, a signature equals none taken later; afterwards it does."""
    written = max(path.stat().st_ctime_ns for path in source.rglob("*"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(time, "time_ns", lambda: written + 1_000_000)
    assert len({signature(source) for _ in range(5)}) == 5
    monkeypatch.setattr(time, "time_ns", lambda: written + 3_000_000_000)
    assert len({signature(source) for _ in range(5)}) == 1


def test_what_is_not_chromas_does_not_show(source: Path) -> None:
    """Other files, hidden folders and files of a folder that is no segment's make no difference."""
    first = signature(source)
    (source / ".chromakeep").mkdir()
    (source / ".chromakeep" / "header.bin").write_bytes(b"ours")
    (source / "notes.txt").write_text("theirs")
    assert signature(source) == first


def test_it_drops_no_lock_of_this_process(source: Path) -> None:
    """A process that holds SQLite's lock and asks for a signature still holds it (POSIX locks go with any close)."""
    descriptor = os.open(source / "chroma.sqlite3", os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0x40000000)
        signature(source)
        ask = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0x40000000)"
        done = subprocess.run(
            [sys.executable, "-c", ask, str(source / "chroma.sqlite3")], capture_output=True, check=False
        )
        assert b"BlockingIOError" in done.stderr
    finally:
        os.close(descriptor)


def test_no_database(tmp_path: Path) -> None:
    """A directory without chroma.sqlite3 has no signature."""
    with pytest.raises(NotAChromaDirectory, match=r"no chroma\.sqlite3"):
        signature(tmp_path)


def test_a_pipe_in_place_of_a_file(source: Path) -> None:
    """A FIFO under the name of an index file is refused, not opened (that would wait for ever)."""
    (source / SEGMENT / "header.bin").unlink()
    os.mkfifo(source / SEGMENT / "header.bin")
    with pytest.raises(SourceBroken, match="not a regular file"):
        signature(source)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": [["x", 1]], "fresh": ""}', '{"files": 3, "fresh": ""}'])
def test_json_of_others(text: str) -> None:
    """What to_json did not write is a ValueError."""
    with pytest.raises(ValueError):
        Signature.from_json(text)
