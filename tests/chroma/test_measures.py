"""Measures: counts that Chroma would give, of directories of every version, and files as large as they are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chroma.directories import VERSIONS
from chromakeep.chroma import measures
from chromakeep.chroma.catalog import DATABASE
from chromakeep.chroma.measures import link_lists_ratio, measure, size_of
from chromakeep.errors import SourceBusy


@pytest.mark.parametrize("version", VERSIONS)
def test_records_are_counted_in_directories_of_any_version(
    old_version: Callable[[str], tuple[Path, dict[str, Any]]], version: str
) -> None:
    """By collection, in one that nobody writes to."""
    directory, expected = old_version(version)
    found = measure(directory / DATABASE)
    assert {name: count for _, _, name, count in found.records} == {n: len(r) for n, r in expected.items()}
    assert found.collections == len(expected)
    with closing(sqlite3.connect(f"file:{directory / DATABASE}?mode=ro", uri=True)) as connection:
        assert (found.queue,) == connection.execute("SELECT count(*) FROM embeddings_queue").fetchone()


def test_so_many_collections_are_counted_and_no_more(
    old_version: Callable[[str], tuple[Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many there are is told all the same."""
    directory, expected = old_version(VERSIONS[-1])
    monkeypatch.setattr(measures, "MOST_COLLECTIONS", 1)
    found = measure(directory / DATABASE)
    assert (len(found.records), found.collections) == (1, len(expected))


def test_what_is_no_database_of_chroma_is_told(tmp_path: Path) -> None:
    """Nothing there, garbage, other tables; nothing is made where there was nothing."""
    for content in (None, b"garbage" * 100, b""):
        if content is not None:
            (tmp_path / DATABASE).write_bytes(content)
        with pytest.raises(SourceBusy):
            measure(tmp_path / DATABASE)
    assert (tmp_path / DATABASE).read_bytes() == b""


def test_sizes_of_files(tmp_path: Path) -> None:
    """The largest ratio of any index counts, one without elements does not."""
    assert (size_of(tmp_path), link_lists_ratio(tmp_path)) == (0, None)
    (tmp_path / DATABASE).write_bytes(b"x" * 10)
    for name, links, elements in (("a", 1, 100), ("b", 300, 100), ("c", 5, 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link_lists.bin").write_bytes(b"x" * links)
        (tmp_path / name / "data_level0.bin").write_bytes(b"x" * elements)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link_lists.bin").write_bytes(b"x")
    assert link_lists_ratio(tmp_path) == 3.0
    assert size_of(tmp_path) == 10 + 1 + 100 + 300 + 100 + 5 + 1
