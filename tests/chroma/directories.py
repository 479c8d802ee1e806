"""Directories that Chroma itself writes, for tests that read them. Run as a script in a process of its own.

chromadb keeps one client per path and process, and never lets go of its files: hence the processes.
"""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

VERSIONS = ("0.4.24", "0.5.23", "0.6.3", "1.0.0")  # whose directories are in tests/data


def run(verb: str, *arguments: object) -> None:
    """Run one of the functions below in a fresh process."""
    subprocess.run([sys.executable, __file__, verb, *map(str, arguments)], check=True, timeout=240)


def read_all(out: str, *directories: str) -> None:
    """What ``collection.get`` returns of every collection of these directories (opening is a write: give copies)."""
    import chromadb

    found: dict[str, dict[str, Any]] = {}
    for directory in directories:
        found[directory] = {}
        for collection in chromadb.PersistentClient(directory).list_collections():
            got = collection.get(include=["embeddings", "documents", "metadatas", "uris"])
            vectors = np.array(got["embeddings"], np.float32)
            found[directory][str(collection.id)] = {**got, "embeddings": vectors, "name": collection.name}
    Path(out).write_bytes(pickle.dumps(found))


def make_random(*directories: str) -> None:
    """Several collections each, of random operations; the directory's name is the seed."""
    import chromadb

    for directory in directories:
        chance = random.Random(Path(directory).name)
        client = chromadb.PersistentClient(directory)
        for number in range(chance.randint(1, 4)):
            _random_collection(client, f"collection-{number}", chance)


def _random_collection(client: Any, name: str, chance: random.Random) -> None:
    floats = np.random.default_rng(chance.randrange(1 << 30))
    dimension, space = chance.choice([3, 7, 8, 64, 384, 768]), chance.choice(["l2", "cosine", "ip"])
    threshold = chance.choice([3, 10, 57, 100, 1000])
    if chance.random() < 0.3:
        settings: dict[str, Any] = {"metadata": {"hnsw:space": space, "hnsw:sync_threshold": threshold, "note": "x"}}
    else:
        settings = {"configuration": {"hnsw": {"space": space, "sync_threshold": threshold}}}
    collection = client.create_collection(name, **settings)
    names = [f"id{i}" for i in range(chance.choice([5, 40, 300]))] + ["ü", "日本", "a\0b"]
    for _ in range(chance.randint(1, 25)):
        ids = chance.sample(names, chance.randint(1, min(60, len(names))))
        vectors = (floats.standard_normal((len(ids), dimension)) * chance.choice([1, 1e-3, 50])).astype(np.float32)
        fields = {
            "documents": [_document(chance) for _ in ids],
            "metadatas": [_metadata(chance) for _ in ids],
            "uris": [chance.choice([None, f"file:///{i}"]) for i in range(len(ids))],
        }
        fields = {key: values for key, values in fields.items() if any(value is not None for value in values)}
        operation = chance.choice(["add", "add", "upsert", "update", "metadata", "delete"])
        if operation == "delete":
            collection.delete(ids=ids)
        elif operation == "metadata":
            if "metadatas" in fields:
                changes = [{**(m or {}), "i": None} if chance.random() < 0.3 else m for m in fields["metadatas"]]
                collection.update(ids=ids, metadatas=changes)
        else:
            getattr(collection, operation)(ids=ids, embeddings=vectors, **fields)


def _document(chance: random.Random) -> str | None:
    return chance.choice([None, "", f"document {chance.randint(0, 99)}", "日本\0語", "x" * chance.randint(0, 9000)])


def _metadata(chance: random.Random) -> dict[str, Any] | None:
    values: dict[str, Any] = {
        "i": chance.randint(-(2**62), 2**62),
        "f": chance.choice([0.0, 1.0, -0.0, 1e300, 0.1, chance.random()]),
        "s": chance.choice(["", "1", "a\0b", "日本"]),
        "b": chance.random() < 0.5,
        "é": "é",
        "ints": [chance.randint(0, 9) for _ in range(chance.randint(1, 4))],
        "floats": [1.0, 2.5],
        "bools": [True, False],
        "strings": ["a", "b", "a"],
        "any": chance.choice([1, 1.0, True, "1", [1], [1.0]]),
    }
    return None if chance.random() < 0.15 else {key: values[key] for key in chance.sample(sorted(values), 3)}


OPERATIONS = ("adds", "updates", "mixed", "add-and-delete")


def make_torn_scene(scene: str, space: str, operations: str) -> None:
    """Directories ``before`` the last writes, ``queued`` and ``after``: in ``queued`` SQLite is ahead of the index.

    What a kill inside the persist leaves is ``queued`` with the first of its index files taken from ``after``.
    """
    import chromadb

    path, floats = Path(scene), np.random.default_rng(5)
    client = chromadb.PersistentClient(str(path / "work"))
    # the threshold is raised after the first persist, so that the writes below stay in the queue
    hnsw = {"space": space, "sync_threshold": 100}
    collection = client.create_collection("torn", configuration={"hnsw": hnsw})
    client.create_collection("sound").add(ids=["a"], embeddings=[[1.0, 2.0]])
    ids = [f"r{i}" for i in range(1200)]
    collection.add(ids=ids, embeddings=floats.standard_normal((1200, 32)).astype(np.float32), documents=ids)
    collection.delete(ids=ids[:60])
    collection.update(ids=ids[60:120], embeddings=floats.standard_normal((60, 32)).astype(np.float32))
    collection.modify(configuration={"hnsw": {"sync_threshold": 100_000}})
    shutil.copytree(path / "work", path / "before")
    run("apply", path / "work", operations)
    shutil.copytree(path / "work", path / "queued")
    run("persist", path / "work")
    (path / "work").rename(path / "after")


def apply(directory: str, operations: str) -> None:
    """The writes of a torn scene, none of which is persisted."""
    import chromadb

    floats = np.random.default_rng(6)
    collection = chromadb.PersistentClient(directory).get_collection("torn")

    def vectors(count: int) -> Any:
        return floats.standard_normal((count, 32)).astype(np.float32)

    if operations == "adds":
        collection.add(ids=[f"n{i}" for i in range(150)], embeddings=vectors(150), documents=["x"] * 150)
    elif operations == "updates":
        collection.update(ids=[f"r{i}" for i in range(150, 400)], embeddings=vectors(250))
    elif operations == "mixed":
        collection.delete(ids=[f"r{i}" for i in range(160, 200)])
        collection.update(ids=[f"r{i}" for i in range(200, 210)], embeddings=vectors(10))
        lists: list[Any] = [[1.0, 2.5], [1, 2], [True], ["a", "b"], 2**62, 0.5, False, "text", ""]
        values = [{"any": lists[i % 9], "n": i} for i in range(120)]
        collection.upsert(ids=[f"r{i}" for i in range(190, 310)], embeddings=vectors(120), metadatas=values)
        collection.update(
            ids=[f"r{i}" for i in range(190, 310)], metadatas=[{"any": [*lists, None][i % 10]} for i in range(120)]
        )
        changes = {"documents": ["new", "new"], "uris": ["file:///a", "file:///b"]}
        collection.update(ids=["r210", "absent"], embeddings=vectors(2), **changes)
        collection.delete(ids=["r220"])
        collection.add(ids=["r220", "r221"], embeddings=vectors(2), documents=["again", "ignored"])
    else:
        collection.add(ids=[f"n{i}" for i in range(20)], embeddings=vectors(20))
        collection.delete(ids=[f"n{i}" for i in range(5)])
        collection.add(ids=[f"n{i}" for i in range(20, 140)], embeddings=vectors(120))
        collection.update(ids=["n30", "n31"], metadatas=[{"later": 1}, {"later": 2}])
        collection.add(ids=["r500", "r501"], embeddings=vectors(2), documents=["ignored", "ignored"])


def persist(directory: str) -> None:
    """Let Chroma persist what is queued."""
    import chromadb

    client = chromadb.PersistentClient(directory)
    client.get_collection("torn").modify(configuration={"hnsw": {"sync_threshold": 100}})
    client.get_collection("torn").count()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
