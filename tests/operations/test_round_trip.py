"""Backup, restore, and chromadb in a fresh process finds every record as it was, bit for bit."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chromakeep.errors import UsageError
from chromakeep.operations.backup import backup
from chromakeep.operations.restore import restore
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from operations.chroma_process import TWICE
from operations.directories import as_chroma_tells

OLD = Path(__file__).parent.parent / "data" / "old-versions"


@pytest.mark.parametrize("password", [None, "open sesame"])
def test_every_generation_comes_back_as_chroma_had_it(
    generations: list[Path], tmp_path: Path, password: str | None
) -> None:
    """Three generations in one repository on a disk, opened anew for each restore: ids, embeddings, documents and
    metadata of every collection of every database are what chromadb finds in the originals."""
    (tmp_path / "repo").mkdir()
    store = LocalStore(tmp_path / "repo")
    Repository.create(store, password=password)
    made = [backup(g, Repository.open(store, password=password)) for g in generations]
    assert made[1].parent == made[0].snapshot and made[1].new_bytes < made[0].new_bytes / 2
    for number, one in enumerate(made):
        restore(Repository.open(store, password=password), one.snapshot, tmp_path / f"g{number}")
    found = as_chroma_tells(*generations, *(tmp_path / f"g{n}" for n in range(3)), scratch=tmp_path)
    assert all(sum(map(len, tell.values())) > 800 for tell in found), found
    assert found[3:] == found[:3]
    assert {c.name: c.count for c in made[2].collections if c.name != TWICE} == {
        name.split("/")[1]: len(records) for name, records in found[2].items() if not name.endswith(TWICE)
    }


def test_some_of_the_collections(generations: list[Path], backed_up: Callable[..., Repository], tmp_path: Path) -> None:
    """Chosen by name, or by tenant/database/name where a name is used twice: these come back as they were, the others
    are not there, and what is there works."""
    repository = backed_up(2)
    with pytest.raises(UsageError) as raised:
        restore(repository, None, tmp_path / "x", collections=[TWICE])
    assert f"default_tenant/other/{TWICE}" in (raised.value.hint or "")
    with pytest.raises(UsageError, match="no collection is named"):
        restore(repository, None, tmp_path / "x", collections=[])
    with pytest.raises(UsageError, match="no collection 'none'"):
        restore(repository, None, tmp_path / "x", collections=["cosine", "none"])
    assert not (tmp_path / "x").exists()
    restore(repository, None, tmp_path / "one", collections=[f"default_tenant/other/{TWICE}"])
    restore(repository, None, tmp_path / "two", collections=["cosine", "queued"])
    whole, one, two = as_chroma_tells(generations[2], tmp_path / "one", tmp_path / "two", scratch=tmp_path)
    assert one == {f"other/{TWICE}": whole[f"other/{TWICE}"]}
    assert two == {n: whole[n] for n in ("default_database/cosine", "default_database/queued")}
    assert len([p for p in (tmp_path / "one").iterdir() if p.is_dir()]) == 1, "segments of the others were not written"


@pytest.mark.parametrize("version", ["0.4.24", "0.5.23", "0.6.3", "1.0.0"])
def test_directories_of_old_versions(version: str, tmp_path: Path) -> None:
    """Written by an old chromadb, backed up, restored: the same files' worth of records, exactly what that version
    itself told, as the chromadb of today reads them."""
    with tarfile.open(OLD / f"chroma-{version}.tar.gz") as tar:
        tar.extractall(tmp_path)
    source = tmp_path / f"chroma-{version}"
    expected = json.loads(gzip.decompress((OLD / f"chroma-{version}.expected.json.gz").read_bytes()))
    repository = Repository.create(MemoryStore())
    made = backup(source, repository)
    restore(repository, None, tmp_path / "out")
    before, after = as_chroma_tells(source, tmp_path / "out", scratch=tmp_path)
    assert before == after
    assert {c.name: c.count for c in made.collections} == {name: len(records) for name, records in expected.items()}
    for name, records in expected.items():
        found = after[f"default_database/{name}"]
        assert found.keys() == records.keys()
        for identity, (vector, document, metadata) in records.items():
            assert found[identity][1:] == (document, metadata or {})
            assert np.allclose(np.frombuffer(found[identity][0], "<f4"), np.float32(vector), rtol=1e-6, atol=0)
