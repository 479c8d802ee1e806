"""Run in a process of its own: writes generations of a small Chroma directory, or tells what directories hold.

``write FOLDER`` makes ``FOLDER/g0``, ``g1``, ``g2``: one directory at rest after each of three rounds of changes; and
``FOLDER/empty``, in which there is no collection.
``read OUT DIRECTORY...`` opens each with chromadb and puts a dictionary, directory -> collection -> id -> record, in
``OUT`` (pickle: embeddings are bytes). Of a directory that chromadb cannot open the value is the error's text.
"""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MARKER = "zebra-quartz-7391"  # in a collection's name, documents and metadata: must not be seen in encrypted objects
TWICE = "twice"  # a collection of that name in two databases

Record = tuple[bytes, str | None, dict[str, Any]]


def write(folder: Path) -> None:
    import chromadb

    chromadb.PersistentClient(str(folder / "empty"))
    live = folder / "live"
    rng = np.random.default_rng(7)
    admin = chromadb.PersistentClient(str(live))
    chromadb.AdminClient(chromadb.Settings(is_persistent=True, persist_directory=str(live))).create_database("other")
    other = chromadb.PersistentClient(str(live), database="other")

    def vectors(n: int, dim: int) -> Any:
        return rng.standard_normal((n, dim)).astype(np.float32)

    def rows(prefix: str, numbers: range, dim: int) -> dict[str, Any]:
        return {
            "ids": [f"{prefix}{n}" for n in numbers],
            "embeddings": vectors(len(numbers), dim),
            "documents": [f"{MARKER} document {n} of {prefix}: " + "äöü " * (n % 7) for n in numbers],
            "metadatas": [metadata(n) for n in numbers],
        }

    def metadata(n: int) -> dict[str, Any]:
        return {"n": n, "half": n / 2, "text": f"{MARKER}-{n}", "odd": bool(n % 2), "tags": ["a", f"t{n % 3}"]}

    flushed = admin.create_collection(f"flushed-{MARKER}", configuration={"hnsw": {"sync_threshold": 90}})
    cosine = admin.create_collection("cosine", configuration={"hnsw": {"space": "cosine", "sync_threshold": 50}})
    queued = admin.create_collection("queued")
    here = admin.create_collection(TWICE, configuration={"hnsw": {"sync_threshold": 20}})
    there = other.create_collection(TWICE, configuration={"hnsw": {"sync_threshold": 20}})
    for first in range(0, 560, 40):  # 540 of them reach the index files, 20 stay in the queue
        flushed.add(**rows("f", range(first, first + 40), 24))
    cosine.add(**rows("c", range(170), 16))
    queued.add(**rows("q", range(40), 32))
    queued.add(ids=["bare", "empty"], embeddings=vectors(2, 32), documents=[None, ""])  # type: ignore[list-item]
    here.add(**rows("h", range(30), 8))
    there.add(**rows("t", range(25), 8))
    shutil.copytree(live, folder / "g0")
    flushed.update(ids=[f"f{n}" for n in (3, 77, 401)], embeddings=vectors(3, 24))
    flushed.delete(ids=["f5", "f6"])
    queued.upsert(**rows("q", range(35, 50), 32))
    shutil.copytree(live, folder / "g1")
    cosine.upsert(**rows("c", range(150, 240), 16))
    there.delete(ids=["t1"])
    admin.create_collection("late").add(**rows("l", range(12), 4))
    shutil.copytree(live, folder / "g2")


def read(directory: Path) -> dict[str, dict[str, Record]]:
    import chromadb
    from chromadb.errors import NotFoundError

    found: dict[str, dict[str, Record]] = {}
    admin = chromadb.AdminClient(chromadb.Settings(is_persistent=True, persist_directory=str(directory)))
    for database in ("default_database", "other"):
        try:
            admin.get_database(database)
        except NotFoundError:
            continue
        client = chromadb.PersistentClient(str(directory), database=database)
        for listed in client.list_collections():
            collection = client.get_collection(listed.name, embedding_function=None)
            found[f"{database}/{listed.name}"] = dict(records(collection))
    return found


def records(collection: Any) -> Iterator[tuple[str, Record]]:
    got = collection.get(include=["embeddings", "documents", "metadatas"])
    assert len(got["ids"]) == collection.count()
    columns = (got[k] for k in ("ids", "embeddings", "documents", "metadatas"))
    for identity, vector, document, data in zip(*columns, strict=True):
        yield identity, (np.asarray(vector, "<f4").tobytes(), document, dict(data or {}))
    if got["ids"]:
        answer = collection.query(query_embeddings=[got["embeddings"][0]], n_results=1)
        assert len(answer["ids"][0]) == 1, "a query finds nothing"


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        answers: dict[str, object] = {}
        for name in sys.argv[3:]:
            try:
                answers[name] = read(Path(name))
            except Exception as error:  # whatever Chroma raises is the answer, and the test that reads it fails on it
                answers[name] = f"{type(error).__name__}: {error}"
        Path(sys.argv[2]).write_bytes(pickle.dumps(answers))
