"""Bytes outlive code: what earlier versions wrote is read, checked, restored and gone on with by this one."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chromakeep.errors import WrongPassword
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore
from operations.by_the_page import Page
from operations.directories import as_chroma_tells, everything

DATA = Path(__file__).parent.parent / "data"
REPOSITORIES = [("repository-v1", "plain", None), ("repository-v1", "encrypted", "old-bytes")]

pytestmark = pytest.mark.parametrize(("folder", "name", "password"), REPOSITORIES)


def expected(folder: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((DATA / folder / "expected.json").read_bytes())[name]
    return found


def digests(content: dict[str, bytes]) -> dict[str, list[object]]:
    return {path: [len(data), hashlib.sha256(data).hexdigest()] for path, data in content.items()}


def test_it_is_read_checked_and_restored_exactly(folder: str, name: str, password: str | None, tmp_path: Path) -> None:
    """Every snapshot: its collections with their digests, a full check without a problem, every byte of every file."""
    before = digests(everything(DATA / folder / name))
    repository = Repository.open(LocalStore(DATA / folder / name), password=password)
    wanted = expected(folder, name)
    told = {s.id: msgspec.json.decode(msgspec.json.encode(s.collections)) for s in repository.snapshots()}
    assert told == {i: e["collections"] for i, e in wanted.items()}
    report = check(repository, read_data=True)
    assert report.problems == () and report.snapshots == len(wanted) == 2
    for identity, one in wanted.items():
        restore(repository, identity, tmp_path / identity)
        assert digests(everything(tmp_path / identity)) == one["files"]
    if password:
        with pytest.raises(WrongPassword):
            Repository.open(LocalStore(DATA / folder / name), password="new-bytes")
    assert digests(everything(DATA / folder / name)) == before, "reading wrote"
    (opened,) = as_chroma_tells(tmp_path / max(wanted), scratch=tmp_path)
    assert {n.split("/")[1]: len(r) for n, r in opened.items()} == {
        c["name"]: c["count"] for c in wanted[max(wanted)]["collections"]
    }


def test_it_is_gone_on_with(
    folder: str, name: str, password: str | None, generations: list[Path], tmp_path: Path
) -> None:
    """This version backs up into it and prunes it; the old snapshot that stays is still exact."""
    shutil.copytree(DATA / folder / name, tmp_path / "repo")
    repository = Repository.open(LocalStore(tmp_path / "repo"), password=password)
    added = backup(generations[0], repository).snapshot
    old = max(expected(folder, name))
    prune(repository, Retention(last=2), wait=0)
    assert [s.id for s in repository.snapshots()] == [old, added]
    assert check(repository, read_data=True).problems == ()
    restore(repository, old, tmp_path / "out")
    assert digests(everything(tmp_path / "out")) == expected(folder, name)[old]["files"]


def test_the_page_is_enough(folder: str, name: str, password: str | None) -> None:
    """A reader that knows docs/format.md and none of our code reads every byte of every snapshot."""
    found = Page(DATA / folder / name, password).snapshots()
    assert {i: digests(files) for i, files in found.items()} == {
        i: one["files"] for i, one in expected(folder, name).items()
    }
