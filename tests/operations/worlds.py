"""A repository with every kind of object in it, and copies of it to be damaged."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from chromakeep.layout import plain
from chromakeep.operations.backup import backup
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore
from chromakeep.repository import Repository
from chromakeep.repository.repository import add_key
from chromakeep.repository.sessions import Session, fence
from chromakeep.repository.writer import SnapshotWriter
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from operations.directories import everything

PASSWORD = "first password"
KINDS = ("config", "gc/", "index/", "keys/", "meta/", "packs/", "sessions/", "snapshots/")


def copied(store: Store, into: Store | None = None, *, without: str = "") -> Store:
    """The same objects in another store."""
    into = into or MemoryStore()
    for info in store.list():
        if info.name != without:
            into.put(info.name, store.get(info.name))
    return into


def leave_rubbish(repository: Repository, file: Path) -> None:
    """What a backup leaves that gave up just before its commit: a prune will condemn it."""
    file.write_bytes(random.Random(1).randbytes(70_000))
    session = Session.start(repository)
    writer = SnapshotWriter(repository, session, None)
    writer.add_file(file, "rubbish", plain(), lambda n: None)
    writer.publish()
    writer.close()
    session.end()


@dataclass(frozen=True)
class World:
    """A store, how to open it, and what its snapshots hold. It was pruned once, a writer died and another was fenced,
    so that it has objects of every kind."""

    store: MemoryStore
    repository: Repository
    password: str | None
    expected: dict[str, dict[str, bytes]]  # snapshot -> file -> bytes
    tombstone: str
    session: str

    @staticmethod
    def build(generations: list[Path], scratch: Path, password: str | None) -> World:
        store = MemoryStore()
        repository = Repository.create(store, password=password)
        expected = {}
        for generation in generations:
            made = backup(generation, repository, stage=scratch / "stage").snapshot
            expected[made] = everything(scratch / "stage")  # the source's, but for pages that SQLite calls free
        leave_rubbish(repository, scratch / "rubbish")
        prune(repository, Retention(last=2), wait=0)
        if password:
            add_key(store, repository.config, repository.keys.master, "second password")
        fenced = Session.start(repository)
        fence(repository, fenced.id)
        fenced.end()
        dead = Session.start(repository)
        del expected[min(expected)]
        world = World(store, repository, password, expected, f"snapshots/{fenced.id}", f"sessions/{dead.id}")
        names = [o.name for o in store.list()]
        assert all(any(n.startswith(k) for n in names) for k in KINDS if k != "keys/" or password)
        return world

    def names(self, kind: str = "") -> list[str]:
        """Objects of one kind that have bytes to be damaged."""
        return [o.name for o in self.store.list(kind) if o.size]

    def reopened(self, store: Store) -> Repository:
        """``store`` opened as this repository, without the cost of deriving the key from the password again."""
        return Repository(store, self.repository.config, self.repository.keys)

    def with_object(self, name: str, data: bytes | None) -> Store:
        """A copy in which one object holds other bytes, or is missing."""
        store = copied(self.store, without=name)
        if data is not None:
            store.put(name, data)
        return store

    def restores(self, repository: Repository, snapshot: str, target: Path) -> None:
        """Restore a snapshot and compare every byte with what was backed up."""
        restore(repository, snapshot, target)
        assert everything(target) == self.expected[snapshot]
