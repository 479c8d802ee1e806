"""Addresses as the ends of a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from chromakeep.operations.endpoints import is_same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("chroma", "./chroma/", True),
        ("chroma", "link", True),
        ("chroma", "chroma2", False),
        ("chroma@latest", "chroma", False),  # a moment of a repository
        ("x.parquet/", "./x.parquet/", True),
        ("x.jsonl", "x.jsonl.zst", False),
        ("-", "-", False),  # standard input and output
        ("http://h:8000/a/b", "http://H:8000", True),
        ("http://localhost:8000", "http://127.0.0.1:8000/a", True),
        ("http://h", "http://h:80", True),
        ("http://h", "https://h", False),
        ("http://h:8000", "http://h:8001", False),
        ("chroma-cloud://a/b", "chroma-cloud://a/c", True),
        ("chroma-cloud://a/b", "http://h", False),
        ("postgresql://u@h/d", "postgres://v@h:5432/d", True),
        ("postgresql://u@h/d", "postgresql://u@h/e", False),
    ],
)
def test_two_addresses_of_one_place(
    one: str, other: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tenant and database of a server are no part of it: a copy from the one to the other is one within it."""
    monkeypatch.chdir(tmp_path)
    Path("chroma").mkdir()
    Path("link").symlink_to("chroma")
    assert is_same(one, other) is is_same(other, one) is same
