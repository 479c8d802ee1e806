"""The directories the figures are about: the sample (12,423 x 384), 100,000 x 768 and one of 1 GB (160,000 x 768).

Made once by chromadb itself in a folder of the caller's choice; the large ones' vectors and words are seeded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAMPLE = Path(os.environ.get("SAMPLE_DATA", ROOT.parent / "shared" / "data"))

_SAMPLE = """
import sys, chromadb, pyarrow.parquet as pq
folder, target = sys.argv[1:]
client = chromadb.PersistentClient(target)
for name in ("books", "laws"):
    table = pq.read_table(f"{folder}/{name}.parquet")
    collection = client.create_collection(name, embedding_function=None)
    for at in range(0, len(table), 1000):
        b = table.slice(at, 1000).to_pydict()
        metadatas = [{"source": s, "title": t, "part": p} for s, t, p in zip(b["source"], b["title"], b["part"])]
        collection.add(ids=b["id"], documents=b["document"], embeddings=b["embedding"], metadatas=metadatas)
"""
_LARGE = """
import sys, chromadb, numpy as np
target, count, dimension = sys.argv[1], int(sys.argv[2]), 768
rng = np.random.default_rng(1)
words = np.array([f"w{i:04d}" for i in range(5000)])
centres = rng.standard_normal((200, dimension)).astype(np.float32)
collection = chromadb.PersistentClient(target).create_collection("large", embedding_function=None)
for at in range(0, count, 1000):
    v = centres[rng.integers(0, 200, 1000)] + 0.35 * rng.standard_normal((1000, dimension)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    collection.add(
        ids=[f"doc-{at + j:07d}" for j in range(1000)], embeddings=v,
        documents=[" ".join(words[w]) for w in rng.integers(0, 5000, (1000, 80))],
        metadatas=[{"i": at + j, "cat": f"c{j % 10}"} for j in range(1000)])
"""
_UPSERT = """
import sys, chromadb, numpy as np
rng = np.random.default_rng(7)
words = np.array([f"w{i:04d}" for i in range(5000)])
for collection in chromadb.PersistentClient(sys.argv[1]).list_collections():
    ids = collection.get(include=[])["ids"]
    some = sorted(rng.choice(len(ids), len(ids) // 100, replace=False))
    dimension = len(collection.get(ids=[ids[0]], include=["embeddings"])["embeddings"][0])
    collection.upsert(
        ids=[ids[i] for i in some], embeddings=rng.standard_normal((len(some), dimension)).astype(np.float32),
        documents=["changed " + " ".join(words[rng.integers(0, 5000, 80)]) for _ in some])
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """A directory, and the same one after 1 % of its records (random ids) were upserted."""

    name: str
    base: Path
    changed: Path


def _run(program: str, *args: object) -> None:
    subprocess.run([sys.executable, "-c", program, *map(str, args)], check=True)


def pair(name: str, work: Path) -> Pair:
    """``sample`` or ``large``, made below ``work`` if it is not there yet."""
    base, changed = work / f"{name}-base", work / f"{name}-changed"
    done = work / f"{name}.made"
    if not done.exists():
        for old in (base, changed):
            shutil.rmtree(old, ignore_errors=True)
        if name == "sample":
            if not (SAMPLE / "books.parquet").exists():
                raise SystemExit(f"the whole sample is not at {SAMPLE}; set SAMPLE_DATA to its folder")
            _run(_SAMPLE, SAMPLE, base)
        else:
            _run(_LARGE, base, 100_000)
        shutil.copytree(base, changed)
        _run(_UPSERT, changed)
        done.touch()
    return Pair(name, base, changed)


def gigabyte(work: Path) -> Path:
    """160,000 x 768 in one directory, made below ``work`` if it is not there yet."""
    target = work / "gigabyte"
    done = work / "gigabyte.made"
    if not done.exists():
        shutil.rmtree(target, ignore_errors=True)
        _run(_LARGE, target, 160_000)
        done.touch()
    return target
