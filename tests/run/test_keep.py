"""Keeping: which states of the directory become snapshots."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from chromakeep.operations.beside import Beside
from chromakeep.operations.keep import Keeping
from chromakeep.repository import Repository
from chromakeep.store.memory import MemoryStore

CREATE = """
import sys, chromadb
client = chromadb.PersistentClient(sys.argv[1])
client.create_collection("only", embedding_function=None).add(ids=["a"], embeddings=[[1, 2]])
"""
DELETE = "import sys, chromadb; chromadb.PersistentClient(sys.argv[1]).delete_collection('only')"
TOUCH = "import sys, chromadb; chromadb.PersistentClient(sys.argv[1]).list_collections()"


def keep_once(data: Path, repository: Repository) -> None:
    """What a run does at its end: a last snapshot, if something changed."""
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=60, stage=None)
        assert keeping.finish(60, threading.Event())


def test_the_deletion_of_the_last_collection_is_kept_too(tmp_path: Path) -> None:
    """A directory that never had a collection gives no snapshot; one whose last collection was deleted does, so that
    a later restore does not bring back what was deleted."""
    data, repository = tmp_path / "data", Repository.create(MemoryStore())
    for program, expected in ((TOUCH, []), (CREATE, [1]), (DELETE, [1, 0])):
        subprocess.run([sys.executable, "-c", program, str(data)], check=True, timeout=120)
        keep_once(data, repository)
        assert [len(s.collections) for s in repository.snapshots()] == expected
