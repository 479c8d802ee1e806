"""Makes ``plain/``, ``encrypted/`` (password ``old-bytes``) and ``expected.json`` beside this script, in format 1.

They are committed and never made again: a later version must read what this one wrote. A change of the format gets a
folder and a script of its own. Run once, with ``PYTHONPATH=src:tests python tests/data/repository-v1/make.py``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from chromakeep.layout import plain
from chromakeep.operations.backup import backup
from chromakeep.operations.prune import Retention, prune
from chromakeep.repository import Repository
from chromakeep.repository.sessions import Session, fence
from chromakeep.repository.writer import SnapshotWriter
from chromakeep.store.local import LocalStore

HERE = Path(__file__).parent
PASSWORD = "old-bytes"


def directories(folder: Path) -> None:
    """Three generations of a directory: index files, a queue, cosine and l2, every type of metadata."""
    import chromadb

    client = chromadb.PersistentClient(str(folder / "live"))
    rng = np.random.default_rng(1)
    flushed = client.create_collection("flushed", configuration={"hnsw": {"space": "cosine", "sync_threshold": 10}})
    queued = client.create_collection("queued")
    for generation in range(3):
        ids = [f"{generation}-{n}" for n in range(25)]
        flushed.add(
            ids=ids,
            embeddings=rng.standard_normal((25, 12)).astype("<f4"),
            documents=[f"document {i} äöü" for i in ids],
            metadatas=[{"n": n, "half": n / 2, "odd": n % 2 == 1, "text": "x" * n, "tags": ["a"]} for n in range(25)],
        )
        queued.upsert(ids=["one", f"g{generation}"], embeddings=rng.standard_normal((2, 5)).astype("<f4"))
        if generation:
            flushed.delete(ids=[f"{generation - 1}-3"])
        shutil.copytree(folder / "live", folder / f"g{generation}")


def repository(place: Path, folder: Path, password: str | None) -> dict[str, object]:
    """A repository that was backed up to, pruned and left by a fenced writer; snapshot -> what it holds."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    made = Repository.create(LocalStore(place), password=password)
    expected: dict[str, object] = {}
    for generation in range(3):
        stage = folder / f"stage-{place.name}"
        done = backup(folder / f"g{generation}", made, stage=stage)
        files = {
            str(p.relative_to(stage)): [p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()]
            for p in sorted(stage.rglob("*"))
            if p.is_file()
        }
        expected[done.snapshot] = {"files": files, "collections": msgspec.to_builtins(done.collections)}
        if generation == 0:
            session = Session.start(made)  # of a backup that never came to its end
            (folder / "rubbish").write_bytes(os.urandom(9000))
            writer = SnapshotWriter(made, session, None)
            writer.add_file(folder / "rubbish", "rubbish", plain(), lambda n: None)
            writer.publish()
            writer.close()
            fence(made, session.id)
            session.end()
    removed = prune(made, Retention(last=2), wait=0).removed
    return {i: e for i, e in expected.items() if i not in removed}


if __name__ == "__main__":
    socket.gethostname = lambda: "example"
    with tempfile.TemporaryDirectory() as scratch:
        if (child := os.fork()) == 0:
            directories(Path(scratch))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit("chromadb could not write the directories")
        expected = {n: repository(HERE / n, Path(scratch), p) for n, p in (("plain", None), ("encrypted", PASSWORD))}
    (HERE / "expected.json").write_bytes(msgspec.json.format(msgspec.json.encode(expected)) + b"\n")
