"""Index files are believed only as far as they agree with each other and with their sizes."""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from chroma.conftest import Known
from chromakeep.chroma import hnsw
from chromakeep.chroma.hnsw import check_segment, read_header
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.layout import file_layouts
from chromakeep.errors import SourceBroken
from chromakeep.layout import Column, plain


@pytest.fixture(scope="module")
def segment(random_directories: list[Known]) -> Path:
    """The largest persisted segment; not to be changed."""
    found = [p.parent for known in random_directories for p in known.directory.glob("*/index_metadata.pickle")]
    return max(found, key=lambda path: read_header(path).count)


@pytest.fixture
def copy(segment: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(segment, tmp_path / segment.name))


def test_segments_of_chroma_are_sound(random_directories: list[Known]) -> None:
    """No segment that Chroma wrote has a structural fault, persisted or not."""
    segments = [p.parent for known in random_directories for p in known.directory.glob("*/header.bin")]
    assert len(segments) > 15
    for path in segments:
        assert check_segment(path) == []
        header = read_header(path)
        assert header.element_size == 4 + 4 * header.max_links0 + 4 * header.dimension + 8


@pytest.mark.parametrize("name", hnsw.FILES)
def test_a_short_file_is_told_by_name(name: str, copy: Path) -> None:
    """Whichever file is cut off, the fault names it."""
    os.truncate(copy / name, (copy / name).stat().st_size // 3)
    faults = check_segment(copy)
    assert faults and name in faults[0]


@pytest.mark.parametrize("name", [n for n in hnsw.FILES if n != "index_metadata.pickle"])
def test_a_missing_file_is_told_by_name(name: str, copy: Path) -> None:
    """With ids in the pickle all index files must be there."""
    (copy / name).unlink()
    assert check_segment(copy) == [f"{name} is missing"]


def test_without_ids_nothing_else_matters(copy: Path) -> None:
    """No pickle: Chroma writes the other files anew, whatever they hold."""
    (copy / "index_metadata.pickle").unlink()
    (copy / "header.bin").write_bytes(b"torn")
    assert check_segment(copy) == []


def test_a_damaged_header_is_refused_or_harmless(segment: Path, copy: Path) -> None:
    """Of headers with any byte changed none leads out of the files, and nothing but SourceBroken is raised."""
    data, refused = (segment / "header.bin").read_bytes(), 0
    for position in range(len(data)):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] = value
            (copy / "header.bin").write_bytes(damaged)
            try:
                header = read_header(copy)
            except SourceBroken:
                refused += 1
            else:
                assert header.count * header.element_size <= (copy / "data_level0.bin").stat().st_size
                assert header.entry_point < max(1, header.count)
    assert refused > 200


@pytest.mark.parametrize("field", range(13))
def test_a_huge_field_allocates_nothing(field: int, copy: Path) -> None:
    """Every number of the header at its maximum: refused before anything is allocated for it."""
    layout = struct.Struct("<iQQQQQQiIQQQdQ")
    values = list(layout.unpack((copy / "header.bin").read_bytes()))
    values[field] = (
        float("inf") if field == 12 else (1 << 31) - 1 if field in (0, 7) else (1 << (32 if field == 8 else 64)) - 1
    )
    (copy / "header.bin").write_bytes(layout.pack(*values))
    if field != 12:  # the level multiplier, of which nothing here depends
        with pytest.raises(SourceBroken):
            read_header(copy)
        assert check_segment(copy)


def elements(path: Path) -> tuple[hnsw.Header, np.ndarray]:
    header = read_header(path)
    return header, np.memmap(path / "data_level0.bin", header.element, "r+", shape=(header.count,))


def test_faults_among_the_elements_are_found(copy: Path) -> None:
    """A link to nowhere, an element twice, one never written, too many links, a deleted id that lives in the map."""
    original = (copy / "data_level0.bin").read_bytes()
    for damage, told in (
        (lambda rows: rows["links"].__setitem__((5, 0), 1 << 30), "link to elements that do not exist"),
        (lambda rows: rows["label"].__setitem__(5, rows["label"][6]), "the same one twice"),
        (lambda rows: rows.__setitem__(5, np.zeros((), rows.dtype)), "never written"),
        (lambda rows: rows["head"].__setitem__(5, rows["head"][5] & 0xFFFF0000 | 0xFFFF), "link to elements"),
        (lambda rows: rows["head"].__setitem__(5, rows["head"][5] ^ 0x10000), "does not name exactly the elements"),
    ):
        (copy / "data_level0.bin").write_bytes(original)
        _, rows = elements(copy)
        damage(rows)
        rows.flush()
        assert any(told in fault for fault in check_segment(copy)), told


def test_faults_in_the_upper_links_are_found(copy: Path) -> None:
    """Of link lists with a changed word each is found, or the word was padding behind the last link of a list."""
    data = bytearray((copy / "link_lists.bin").read_bytes())
    words = np.frombuffer(data, "<u4")
    chance, found = random.Random(3), 0
    for position in chance.sample(range(len(words)), min(200, len(words))):
        before = int(words[position])
        words[position] = before + (1 << 20)
        (copy / "link_lists.bin").write_bytes(data)
        found += bool(check_segment(copy))
        words[position] = before
    assert found > 100


def test_a_link_to_an_element_below_its_level_is_found(copy: Path) -> None:
    """Following one is what kills Chroma with SIGSEGV: the element has no links on that level."""
    header = read_header(copy)
    data = bytearray((copy / "link_lists.bin").read_bytes())
    words = np.frombuffer(data, "<u4")
    at, heights, first = 0, [], []
    for _ in range(header.count):
        heights.append(int(words[at]) // (4 + 4 * header.max_links))
        first.append(at + 1)
        at += 1 + int(words[at]) // 4
    linked = next(n for n, height in enumerate(heights) if height and words[first[n]])
    words[first[linked] + 1] = heights.index(0)
    (copy / "link_lists.bin").write_bytes(data)
    assert check_segment(copy) == ["link_lists.bin has links to elements that are not on their level"]


def test_a_walk_in_small_portions_is_the_same(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the portions are cut does not matter."""
    for size in (1, 4096, 1 << 20):
        monkeypatch.setattr(hnsw, "PORTION", size)
        assert check_segment(copy) == []


def test_bloat_is_a_warning(random_directories: list[Known], segment: Path, tmp_path: Path) -> None:
    """A sparse link_lists.bin of a GiB: Chroma can live with it, so a warning and no problem."""
    directory = Path(shutil.copytree(segment.parent, tmp_path / "directory"))
    os.truncate(directory / segment.name / "link_lists.bin", 1 << 30)
    found = inspect(directory)
    assert found.problems == ()
    assert [warning.code for warning in found.warnings] == ["link-lists-bloat"]
    assert "1073741824 bytes" in found.warnings[0].message


def test_layouts_are_those_of_the_header(random_directories: list[Known], tmp_path: Path) -> None:
    """Every file Chroma needs is listed with its layout; foreign and hidden files and dead segments are not."""
    for known in random_directories[:4]:
        directory = Path(shutil.copytree(known.directory, tmp_path / known.directory.name))
        needed = {p.relative_to(directory).as_posix() for p in directory.glob("*/*")} | {"chroma.sqlite3"}
        (directory / "0f0f0f0f-0000-4000-8000-000000000000").mkdir()
        for name in (
            ".hidden",
            "notes.txt",
            "0f0f0f0f-0000-4000-8000-000000000000/header.bin",
            "chroma.sqlite3-journal",
        ):
            (directory / name).touch()
        live = list(directory.glob("*/length.bin"))
        for path in live:
            (path.parent / ".DS_Store").touch()
            (path.parent / "extra").symlink_to("/etc/passwd")
        layouts = file_layouts(directory)
        assert layouts.keys() == needed
        for name, layout in layouts.items():
            if name.endswith("data_level0.bin"):
                header = read_header(directory / Path(name).parent)
                assert layout.columns == (
                    Column(header.vector_offset),
                    Column(4 * header.dimension, "float32"),
                    Column(8),
                )
            else:
                assert layout == plain()
        for path in live:
            (path.parent / "header.bin").write_bytes(b"\xff" * 100)
        assert {name for name, layout in file_layouts(directory).items() if layout != plain()} == set()
