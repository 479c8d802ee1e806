"""What zeroing free pages promises: nothing that SQLite can see changes, and deleted rows are gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.chroma.freelist import zero_free_pages

SECRET = b"deleted-but-still-there"


def build(path: Path, auto_vacuum: int, page: int, rows: int = 900) -> None:
    """Rows with overflow pages, two thirds of them deleted again, so that trunks have many leaves."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page}")
        connection.execute(f"PRAGMA auto_vacuum = {auto_vacuum}")
        connection.execute("PRAGMA secure_delete = OFF")  # Chroma's SQLite; Debian's overwrites by default
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB)")
        connection.execute("BEGIN")
        for n in range(rows):
            connection.execute("INSERT INTO t VALUES (?, ?)", (n, b"kept" * 500 if n < rows // 3 else SECRET * 200))
        connection.execute("COMMIT")
        connection.execute("DELETE FROM t WHERE id >= ?", (rows // 3,))


def content(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT * FROM t ORDER BY id").fetchall()


def zero(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return zero_free_pages(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("page", [512, 4096, 65536])
@pytest.mark.parametrize("auto_vacuum", [0, 2], ids=["plain", "incremental"])
def test_content_stays_and_garbage_goes(tmp_path: Path, auto_vacuum: int, page: int) -> None:
    """Pages that hold only deleted rows become zeros; every row, integrity_check and later writes are as before."""
    path = tmp_path / "db"
    build(path, auto_vacuum, page)
    before, garbage = content(path), path.read_bytes().count(SECRET)
    with closing(sqlite3.connect(path)) as connection:
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    zeroed = zero(path)
    assert free * 0.9 <= zeroed < free
    assert path.read_bytes().count(SECRET) < garbage / 10
    assert content(path) == before
    with closing(sqlite3.connect(path)) as connection, connection:  # the pages are taken into use again
        connection.executemany("INSERT INTO t (x) VALUES (?)", [(os.urandom(5000),) for _ in range(400)])
    assert content(path)[: len(before)] == before


def test_full_auto_vacuum_has_no_free_pages(tmp_path: Path) -> None:
    """With auto_vacuum FULL there is nothing to do, and pointer-map pages are not mistaken for free ones."""
    path = tmp_path / "db"
    build(path, 1, 4096)
    before = path.read_bytes()
    assert zero(path) == 0
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("freelist") / "db"
    build(path, 0, 512, rows=200)
    return path


@pytest.mark.parametrize(
    ("what", "at", "value"),
    [("count too high", 36, 10**6), ("count too low", 36, 1), ("trunk outside", 32, 2**31), ("trunk is page 1", 32, 1)],
)
def test_a_header_that_lies(original: Path, tmp_path: Path, what: str, at: int, value: int) -> None:
    """A freelist that does not add up is left alone, to the byte."""
    path = tmp_path / "db"
    path.write_bytes(changed := original.read_bytes()[:at] + struct.pack(">I", value) + original.read_bytes()[at + 4 :])
    assert zero(path) == 0, what
    assert path.read_bytes() == changed


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 127), st.integers(0, 2**32 - 1) | st.integers(0, 600)),
        min_size=1,
        max_size=4,
    )
)
def test_trunks_that_lie(
    original: Path, tmp_path_factory: pytest.TempPathFactory, lies: list[tuple[int, int, int]]
) -> None:
    """Cycles, twice-named and absurd pages in the trunk chain end in nothing written, or in pages it does name once."""
    path = tmp_path_factory.mktemp("lie") / "db"
    shutil.copy(original, path)
    content = bytearray(path.read_bytes())
    trunks, next_one = [], struct.unpack_from(">I", content, 32)[0]
    while next_one:
        trunks.append(next_one)
        (next_one,) = struct.unpack_from(">I", content, (next_one - 1) * 512)
    for trunk, word, value in lies:
        struct.pack_into(">I", content, (trunks[trunk % len(trunks)] - 1) * 512 + 4 * word, value)
    path.write_bytes(content)
    zeroed = zero(path)
    after = path.read_bytes()
    changed = {
        n for n in range(len(content) // 512) if content[n * 512 : n * 512 + 512] != after[n * 512 : n * 512 + 512]
    }
    assert len(changed) <= zeroed
    assert 0 not in changed
    assert all(after[n * 512 : n * 512 + 512] == bytes(512) for n in changed)


def test_what_is_no_database(tmp_path: Path) -> None:
    """Anything else, the empty file included, stays as it is."""
    for content in (b"", b"hello", b"SQLite format 3\0", bytes(4096)):
        (tmp_path / "x").write_bytes(content)
        assert zero(tmp_path / "x") == 0
        assert (tmp_path / "x").read_bytes() == content
