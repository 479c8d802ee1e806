"""Small repositories to break: files of pages whose every snapshot is remembered and can be compared."""

from __future__ import annotations

import random
from pathlib import Path

from chromakeep.layout import plain
from chromakeep.operations.check import check
from chromakeep.repository import Repository, Snapshot
from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.sessions import Session
from chromakeep.repository.snapshots import now, rfc3339
from chromakeep.repository.writer import SnapshotWriter
from chromakeep.store.base import Store


class Scene:
    """A file that changes, snapshots of it, and what each of them must give back."""

    def __init__(self, folder: Path, seed: int = 0, pages: int = 60) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.content = bytearray(self.random.randbytes(pages * 4096))
        self.expected: dict[str, bytes] = {}

    def change(self, pages: int = 3) -> None:
        """Some pages get new content."""
        for _ in range(pages):
            at = self.random.randrange(len(self.content) // 4096) * 4096
            self.content[at : at + 4096] = self.random.randbytes(4096)

    def backup(self, store: Store) -> Snapshot:
        """One snapshot through the repository's own writer, opened anew as another process would."""
        repository = Repository.open(store)
        path = self.folder / "file"
        path.write_bytes(self.content)
        held = bytes(self.content)
        session = Session.start(repository)
        parents = repository.snapshots()
        writer = SnapshotWriter(repository, session, parents[-1] if parents else None)
        try:
            entry = writer.add_file(path, "file", plain(), lambda n: None)
            new = writer.publish()
        finally:
            writer.close()
        # Known before the commit: an answer that is lost must not make a committed snapshot a stranger.
        self.expected[session.id] = held
        snapshot = Snapshot(
            session.id, rfc3339(now()), "x", "h", "0", "1.5", None, (), (entry,), len(held), new, 0.0,
        )  # fmt: skip
        session.commit(snapshot)
        return snapshot

    def verify(self, store: Store) -> list[str]:
        """Every snapshot the repository shows reads back exactly, and a full check finds nothing; their ids."""
        repository = Repository.open(store)
        report = check(repository, read_data=True)
        assert not report.problems, report.problems
        found = repository.snapshots()
        for snapshot in found:
            reader = SnapshotReader(repository)
            out = self.folder / "out"
            try:
                with out.open("wb") as f:
                    reader.read(snapshot.files[0], f, lambda n: None)
            finally:
                reader.close()
            assert out.read_bytes() == self.expected[snapshot.id]
        return [s.id for s in found]
