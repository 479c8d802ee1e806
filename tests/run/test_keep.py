"""Keeping: which states of the directory become snapshots."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from chromakeep.chroma.purge import hold, holding, release
from chromakeep.errors import SourceBusy
from chromakeep.events import ignore
from chromakeep.operations import held_queue
from chromakeep.operations.beside import Beside
from chromakeep.operations.held_queue import HeldQueue
from chromakeep.operations.keep import Keeping
from chromakeep.operations.ship import Shipping
from chromakeep.operations.tenure import Tenure
from chromakeep.repository import Repository
from chromakeep.repository.lease import Lease
from chromakeep.repository.log import Log
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


def test_a_look_just_when_the_queue_is_let_go_is_no_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purge is not held any more, and the log has not been told that yet: what it took for a reset of Chroma, as
    the run ended in that very moment, left what was written last out of the log."""
    data, repository, said = tmp_path / "data", Repository.create(MemoryStore()), list[str]()
    subprocess.run([sys.executable, "-c", CREATE, str(data)], check=True, timeout=120)

    def in_between(database: Path) -> str:
        found = release(database)
        assert keeping.shipping
        keeping.shipping.shipped()  # a look, if there can be one
        end = time.monotonic() + 1.0
        while time.monotonic() < end and not any("the log is not written" in one for one in said):
            time.sleep(0.005)
        return found

    monkeypatch.setattr(held_queue, "release", in_between)
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=3600, stage=None, observer=lambda e: said.append(str(e)))
        keeping.lease = Tenure(Lease.take(repository))
        keeping.hold()
        keeping.start()
        keeping.snapshot().result(60)
        assert keeping.shipping
        keeping.shipping.shipped().result(60)
        keeping.release()
        assert keeping.finish(60, threading.Event())
        keeping.end()
    assert not any("the log is not written" in one for one in said)
    assert Log(repository).end(1)[1]


def test_a_queue_that_was_let_go_for_an_exchange_that_failed_is_watched_again(tmp_path: Path) -> None:
    """The server that begins again goes on with the same log. Where that still took the purge for let go on purpose, it
    did not see that a reset of Chroma had let go, and of what was acknowledged since Chroma purged what it had not."""
    data, repository = tmp_path / "data", Repository.create(MemoryStore())
    subprocess.run([sys.executable, "-c", CREATE, str(data)], check=True, timeout=120)
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=3600, stage=None)
        keeping.lease = Tenure(Lease.take(repository))
        keeping.hold()
        keeping.start()
        keeping.snapshot().result(60)
        assert keeping.shipping
        keeping.release()
        keeping.shipping.shipped().result(60)
        assert not held(data)
        keeping.hold(anew=True)
        release(data / "chroma.sqlite3")  # as a reset does
        keeping.shipping.shipped().result(60)
        assert held(data)
        assert keeping.finish(60, threading.Event())
        keeping.end()
    assert Log(repository).end(1)[1]


def test_a_queue_that_chroma_never_purges_is_not_let_go(tmp_path: Path) -> None:
    """A full disk changes nothing about it. A reset does, for the next one is purged: which the log must see."""
    data, repository, holds = tmp_path / "data", Repository.create(MemoryStore()), list[str | None]()
    database = data / "chroma.sqlite3"
    subprocess.run([sys.executable, "-c", CREATE, str(data)], check=True, timeout=120)

    def configure(statement: str) -> None:
        with closing(sqlite3.connect(database)) as db, db:
            db.execute(statement)

    configure("DELETE FROM embeddings_queue_config")
    queue = HeldQueue(database, ignore)
    shipping = Shipping(
        database,
        Tenure(Lease.take(repository)),
        source="",
        base="x",
        held=queue.hold(),
        hold=lambda: holds.append(hold(database)),
        on_broken=list,
    )
    try:
        assert shipping._look(False) and queue.hold() == ""
        assert not queue.release(shipping)
        configure("INSERT INTO embeddings_queue_config (config_json_str) VALUES ('{\"automatically_purge\":true}')")
        with pytest.raises(SourceBusy):
            shipping._look(False)
        shipping._look(False)
        assert len(holds) == 1 and holds[0]
    finally:
        shipping.close()
    assert not shipping.replaced  # is still asked by who watches; its descriptor may be another file's by now


def held(data: Path) -> bool:
    """Whether the purge of its queue is."""
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        return bool(holding(db))
