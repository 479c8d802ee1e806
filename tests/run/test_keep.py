"""Keeping: which states of the directory become snapshots."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

from chromakeep.chroma.purge import holding
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


def test_a_directory_that_is_read_just_then_is_let_go_all_the_same(tmp_path: Path) -> None:
    """A snapshot may take a while to copy it, on a machine that has much else to do: else Chroma would never purge its
    queue again, whoever serves it next. Not in a hurry."""
    data, repository, hurry = tmp_path / "data", Repository.create(MemoryStore()), threading.Event()
    subprocess.run([sys.executable, "-c", CREATE, str(data)], check=True, timeout=120)
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=60, stage=None)
        assert keeping.hold()
        keeping.access.acquire()
        hurry.set()
        keeping.release(60, hurry)
        assert held(data)
        threading.Timer(1.5, keeping.access.release).start()
        keeping.release()
        assert not held(data)
        assert not keeping.access.locked()


def held(data: Path) -> bool:
    """Whether the purge of its queue is."""
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        return bool(holding(db))
