"""What goes into a repository comes out of it, bit for bit, however files change between snapshots."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chromakeep.layout import FLOAT32, Column, Layout, plain
from chromakeep.repository import Repository, Snapshot
from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.sessions import Session
from chromakeep.repository.writer import SnapshotWriter
from chromakeep.store.memory import MemoryStore

ROWS = Layout(132 + 96 + 8, (Column(132), Column(96, FLOAT32), Column(8)))


def save(repository: Repository, files: dict[str, tuple[Path, Layout]], parent: Snapshot | None) -> Snapshot:
    """One snapshot of some files, committed."""
    session = Session.start(repository)
    writer = SnapshotWriter(repository, session, parent)
    try:
        entries = tuple(writer.add_file(path, name, layout, lambda n: None) for name, (path, layout) in files.items())
        new = writer.publish()
    finally:
        writer.close()
    snapshot = Snapshot(
        session.id, "2026-01-01T00:00:00.000Z", "x", "h", "0", "1.5", parent.id if parent else None, (), entries,
        sum(e.size for e in entries), new, 0.0,
    )  # fmt: skip
    session.commit(snapshot)
    return snapshot


def load(repository: Repository, snapshot: Snapshot, into: Path, local: Path | None = None) -> int:
    """Read all files of a snapshot into a folder; bytes fetched."""
    reader = SnapshotReader(repository)
    try:
        for file in snapshot.files:
            target = into / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                reader.read(file, out, lambda n: None, local / file.path if local else None)
    finally:
        reader.close()
    return reader.fetched_bytes


@pytest.mark.parametrize("password", [None, "correct horse"])
def test_generations_come_back_exactly(tmp_path: Path, password: str | None) -> None:
    """Ten generations of pages and rows with scattered changes, growth and shrinking: each reads back bit for bit,
    from a repository opened anew, and each stores far less than a full copy when little changed."""
    rng = random.Random(5)
    store = MemoryStore()
    Repository.create(store, password=password)
    repository = Repository.open(store, password=password)
    pages = bytearray(rng.randbytes(3_000_000))
    rows = bytearray(np.random.default_rng(1).standard_normal(12_000 * 59).astype("<f4").tobytes())
    history, parent = [], None
    for generation in range(10):
        a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
        a.write_bytes(pages)
        b.write_bytes(rows)
        c.write_bytes(bytes(generation * 37))
        files = {"chroma.sqlite3": (a, plain()), "seg/data_level0.bin": (b, ROWS), "seg/header.bin": (c, plain())}
        parent = save(repository, files, parent)
        history.append((parent, bytes(pages), bytes(rows), c.read_bytes()))
        if generation:
            assert parent.new_bytes < 600_000
        for _ in range(20):
            at = rng.randrange(len(pages) - 100)
            pages[at : at + 100] = rng.randbytes(100)
            row = rng.randrange(len(rows) // ROWS.stride)
            rows[row * ROWS.stride : row * ROWS.stride + 10] = rng.randbytes(10)
        pages = pages + bytearray(rng.randbytes(rng.randrange(9000))) if generation % 3 else pages[:-70_001]
        rows = rows + bytearray(rng.randbytes(ROWS.stride * rng.randrange(1, 40) + generation % 2))
    again = Repository.open(store, password=password)
    assert [s.id for s in again.snapshots()] == sorted(s.id for s, *_ in history)
    for number, (snapshot, first, second, third) in enumerate(history):
        into = tmp_path / f"out{number}"
        load(again, again.find(snapshot.id), into)
        assert (into / "chroma.sqlite3").read_bytes() == first
        assert (into / "seg/data_level0.bin").read_bytes() == second
        assert (into / "seg/header.bin").read_bytes() == third


def test_what_is_at_hand_is_not_fetched(tmp_path: Path) -> None:
    """Restoring beside a file that differs in a few units fetches about these, and the result is still exact."""
    store = MemoryStore()
    repository = Repository.create(store)
    data = np.random.default_rng(2).integers(0, 255, 20_000_000, dtype=np.uint8).tobytes()
    source, local = tmp_path / "s", tmp_path / "local"
    source.write_bytes(data)
    first = save(repository, {"f": (source, plain())}, None)
    changed = bytearray(data)
    for at in (5, 7_000_000, 19_999_999):
        changed[at] ^= 1
    source.write_bytes(changed)
    second = save(repository, {"f": (source, plain())}, first)
    local.mkdir()
    (local / "f").write_bytes(data)
    fetched = load(repository, second, tmp_path / "out", local)
    assert (tmp_path / "out" / "f").read_bytes() == bytes(changed)
    assert fetched < 100_000
    assert load(repository, second, tmp_path / "full") > 19_000_000


def test_two_directories_share_what_is_equal(tmp_path: Path) -> None:
    """A copy of a directory, stored without knowing the first as parent, costs next to nothing."""
    store = MemoryStore()
    repository = Repository.create(store)
    source = tmp_path / "s"
    source.write_bytes(random.Random(3).randbytes(9_000_000))
    first = save(repository, {"a/f": (source, plain())}, None)
    second = save(repository, {"b/g": (source, plain())}, None)
    assert first.new_bytes > 9_000_000
    assert second.new_bytes < 5_000


def test_many_threads_may_read_their_first_objects_at_once() -> None:
    """In a new process, with threads that take turns at every instruction: no crash. With decoders made at the first
    use one start of `run` in a hundred ended in SIGSEGV."""
    code = """
import sys, threading
sys.setswitchinterval(1e-6)
from chromakeep.repository import snapshots
from chromakeep.repository.snapshots import Snapshot, encode, decode
one = encode(Snapshot("a", "2026-01-01T00:00:00Z", "", "", "", "", None, (), (), 0, 0, 0.0))
ready = threading.Barrier(8)
def read():
    ready.wait()
    decode("snapshots/a", one)
threads = [threading.Thread(target=read) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    for _ in range(8):
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
