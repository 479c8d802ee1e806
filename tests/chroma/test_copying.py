"""What copying promises: equal files, and no more written than differs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.chroma.copying import CHUNK, PAGE, Copier, apply, clone, copy_file

EDITS = st.lists(st.tuples(st.integers(0, 3 * CHUNK), st.binary(min_size=1, max_size=3 * PAGE)), max_size=6)


def edited(content: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(content)
    for offset, piece in edits:
        changed[offset : offset + len(piece)] = piece
    return bytes(changed)


@pytest.fixture(scope="module")
def copier() -> Iterator[Copier]:
    with Copier() as copier:
        yield copier


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    place = tmp_path_factory.mktemp("copying")
    opened = [os.open(place / name, os.O_RDWR | os.O_CREAT) for name in ("source", "target")]
    yield opened[0], opened[1]
    for descriptor in opened:
        os.close(descriptor)


def fill(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * CHUNK + 5), st.integers(0, 3 * CHUNK + 5), EDITS, st.booleans())
def test_whatever_differs(
    copier: Copier, files: tuple[int, int], old: int, new: int, edits: list[tuple[int, bytes]], keep: bool
) -> None:
    """Either way of copying makes files equal: shorter, longer, edited anywhere, patches kept or written at once."""
    source, target = files
    base = os.urandom(1024) * (3 * CHUNK // 1024 + 1)
    content = edited(base[:new], edits)
    for way in ("rewrite", "differences"):
        fill(source, content)
        fill(target, base[:old])
        if way == "rewrite":
            copier.rewrite(source, target)
        else:
            size, patches, _ = copier.differences(source, target, limit=1 << 30 if keep else 2 * PAGE)
            apply(target, size, patches)
        assert os.pread(target, 2 * len(content) + 1, 0) == content


def test_only_pages_that_differ_are_written(copier: Copier, files: tuple[int, int]) -> None:
    """One changed byte costs one page; none costs nothing."""
    source, target = files
    content = os.urandom(5 * CHUNK)
    fill(source, content)
    fill(target, content)
    assert copier.rewrite(source, target) == 0
    os.pwrite(source, b"x" if content[CHUNK + 7 : CHUNK + 8] != b"x" else b"y", CHUNK + 7)
    assert copier.differences(source, target, limit=1 << 20)[2] == PAGE
    assert copier.rewrite(source, target) == PAGE


def test_under_the_limit_nothing_is_written(copier: Copier, files: tuple[int, int]) -> None:
    """While patches fit the limit the target is untouched: who holds a lock waits for no disk."""
    source, target = files
    fill(source, os.urandom(2 * CHUNK))
    fill(target, bytes(2 * CHUNK))
    copier.differences(source, target, limit=8 * CHUNK)
    assert os.pread(target, 2 * CHUNK, 0) == bytes(2 * CHUNK)


def test_holes_stay_holes(copier: Copier, tmp_path: Path) -> None:
    """A file of 100 MB with three pages of data takes three pages in the copy."""
    with (tmp_path / "bloated").open("wb") as file:
        for offset in (0, 30 << 20, 99 << 20):
            file.seek(offset)
            file.write(b"data" * 1024)
        file.truncate(100 << 20)
    copy_file(copier, tmp_path / "bloated", tmp_path / "copy", reflink=False)
    assert (tmp_path / "copy").stat().st_blocks * 512 <= 16 * PAGE
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "bloated").read_bytes()


def test_times_are_taken_over(copier: Copier, tmp_path: Path) -> None:
    """The copy of a file has the source's mtime, to the nanosecond."""
    (tmp_path / "a").write_bytes(b"abc")
    os.utime(tmp_path / "a", ns=(1, 1_234_567_890_123_456_789))
    copy_file(copier, tmp_path / "a", tmp_path / "b", reflink=False)
    assert (tmp_path / "b").stat().st_mtime_ns == 1_234_567_890_123_456_789


def test_where_nothing_can_be_cloned(tmp_path: Path) -> None:
    """Where the file system knows no reflinks, clone says so, and copy_file copies."""
    with (tmp_path / "a").open("wb") as a, Path(os.devnull).open("rb") as device:
        assert clone(device.fileno(), a.fileno()) is False


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A loop-mounted file system with reflinks."""
    if os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        pytest.skip("mounting a file system with reflinks takes root and xfsprogs")
    image, place = tmp_path / "image", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    place.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False).returncode:
        pytest.skip("this machine mounts no loop devices")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_clones_share_blocks(copier: Copier, xfs: Path) -> None:
    """On xfs a clone costs no space, and writing to the source afterwards does not change it; a file that is there
    already is not replaced by one, only its differing pages are written."""
    (xfs / "a").write_bytes(content := os.urandom(50 << 20))
    os.sync()
    free = shutil.disk_usage(xfs).free
    assert copy_file(copier, xfs / "a", xfs / "b", reflink=True) == 0
    with (xfs / "a").open("r+b") as file:
        file.write(b"changed")
    os.sync()
    assert free - shutil.disk_usage(xfs).free < 10 << 20
    assert (xfs / "b").read_bytes() == content
    assert copy_file(copier, xfs / "a", xfs / "b", reflink=True) == PAGE
    assert (xfs / "b").read_bytes() == (xfs / "a").read_bytes()
