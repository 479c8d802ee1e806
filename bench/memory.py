"""Peak memory by the number of records: directories of any size, made without Chroma, backed up twice and restored.

    python bench/memory.py [--records 100000,1000000] [--dimension 8] [--work DIR] [--open]

chromadb makes a collection of a hundred records; its files are then written anew with as many as are wanted, in the
same formats. Full-text search holds the hundred only, and links lead to neighbours in number, not in space: neither
matters to what is measured. ``--open`` lets chromadb open the result and look for a record.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tools import Chromakeep, size

PORTION = 50_000
SEED = 100  # records that chromadb writes itself
HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
LINKS = 16

_SEED = """
import sys, chromadb, numpy as np
target, count, dimension = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
collection = chromadb.PersistentClient(target).create_collection(
    "many", embedding_function=None, configuration={"hnsw": {"sync_threshold": count, "batch_size": count}})
collection.add(
    ids=[f"doc-{i:09d}" for i in range(count)], documents=["a document"] * count, metadatas=[{"i": 1}] * count,
    embeddings=np.random.default_rng(0).standard_normal((count, dimension)).astype(np.float32))
"""
_LOOK = """
import sys, chromadb
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("many", embedding_function=None)
[id_] = collection.get(limit=1, offset=collection.count() - 1)["ids"]
got = collection.get(ids=[id_], include=["embeddings", "documents"])
print("chromadb:", collection.count(), "records; the last,", got["documents"][0], "is found as",
      collection.query(query_embeddings=got["embeddings"], n_results=3, include=[])["ids"][0])
"""


def make(target: Path, count: int, dimension: int) -> None:
    """A data directory of one collection with ``count`` records, at least as many as chromadb seeds it with."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([sys.executable, "-c", _SEED, str(target), str(SEED), str(dimension)], check=True)
    [segment] = [path.parent for path in target.glob("*/header.bin")]
    _database(target / "chroma.sqlite3", count)
    rng = np.random.default_rng(count)
    _index(segment, count, dimension, rng)
    _pickle(segment / "index_metadata.pickle", count, rng)


def _database(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -200000"):
            connection.execute(f"PRAGMA {pragma}")
        [segment] = connection.execute("SELECT id FROM segments WHERE scope = 'METADATA'").fetchone()
        connection.execute("BEGIN")
        for rows in _portions(SEED + 1, count + 1):
            connection.executemany(
                "INSERT INTO embeddings (id, segment_id, embedding_id, seq_id) VALUES (?, ?, ?, ?)",
                ((i, segment, f"doc-{i - 1:09d}", i) for i in rows),
            )
            connection.executemany(
                "INSERT INTO embedding_metadata (id, key, string_value) VALUES (?, 'chroma:document', ?)",
                ((i, f"document number {i}") for i in rows),
            )
            connection.executemany(
                "INSERT INTO embedding_metadata (id, key, int_value) VALUES (?, 'i', ?)", ((i, i) for i in rows)
            )
        connection.execute("UPDATE max_seq_id SET seq_id = ?", (count,))
        connection.execute("DELETE FROM embeddings_queue WHERE seq_id < ?", (SEED,))
        connection.execute("UPDATE embeddings_queue SET seq_id = ?", (count,))
        connection.execute("COMMIT")


def _index(segment: Path, count: int, dimension: int, rng: np.random.Generator) -> None:
    """Elements in the order of their labels, the upper levels as thin as hnswlib makes them."""
    fields = list(HEADER.unpack((segment / "header.bin").read_bytes()))
    levels = np.minimum(-np.log(1 - rng.random(count)) * fields[12], 8).astype(np.int64)
    highest = int(levels.max())
    fields[2], fields[3], fields[7], fields[8] = count, count, highest, int(np.argmax(levels))
    (segment / "header.bin").write_bytes(HEADER.pack(*fields))
    (segment / "length.bin").write_bytes(bytes(4 * count))
    near = np.concatenate([np.arange(1, LINKS + 1), -np.arange(1, LINKS + 1)])
    element = np.dtype([("head", "<u4"), ("links", "<u4", 2 * LINKS), ("vector", "<f4", dimension), ("label", "<u8")])
    with (segment / "data_level0.bin").open("wb") as file:
        for rows in _portions(0, count):
            numbers = np.arange(rows.start, rows.stop)
            out = np.zeros(len(rows), element)
            out["head"], out["label"] = 2 * LINKS, numbers + 1
            out["links"] = (numbers[:, None] + near) % count
            out["vector"] = rng.standard_normal((len(rows), dimension), np.float32)
            file.write(out.tobytes())
    floors = [np.flatnonzero(levels >= level) for level in range(1, highest + 1)]
    with (segment / "link_lists.bin").open("wb") as file:
        for rows in _portions(0, count):
            lists = []
            for number in rows:
                lists.append(struct.pack("<I", int(levels[number]) * 4 * (1 + LINKS)))
                for floor in floors[: int(levels[number])]:
                    at = int(np.searchsorted(floor, number))
                    links = floor[np.arange(at + 1, at + 1 + min(LINKS, len(floor) - 1)) % len(floor)]
                    block = np.zeros(1 + LINKS, "<u4")
                    block[0], block[1 : 1 + len(links)] = len(links), links
                    lists.append(block.tobytes())
            file.write(b"".join(lists))


def _pickle(path: Path, count: int, rng: np.random.Generator) -> None:
    """serde_pickle's form, its two maps in the random orders of two hash tables."""
    head = b"\x80\x03}(X\x0e\0\0\0dimensionalityNX\x14\0\0\0total_elements_addedJ" + struct.pack("<i", count)
    with path.open("wb") as file:
        file.write(head + b"X\x0a\0\0\0max_seq_idNX\x0b\0\0\0id_to_label")
        _map(file, rng.permutation(count).astype(np.int32), b"X\x0d\0\0\0doc-%09dJ", label_first=False)
        file.write(b"X\x0b\0\0\0label_to_id")
        _map(file, rng.permutation(count).astype(np.int32), b"X\x0d\0\0\0doc-%09d", label_first=True)
        file.write(b"X\x0c\0\0\0id_to_seq_id}u.")


def _map(file: object, order: NDArray[np.int32], form: bytes, *, label_first: bool) -> None:
    file.write(b"}")  # type: ignore[attr-defined]
    for at in range(0, len(order), 1000):
        numbers = order[at : at + 1000].tolist()
        if label_first:
            entries = [b"J" + struct.pack("<i", n + 1) + form % n for n in numbers]
        else:
            entries = [form % n + struct.pack("<i", n + 1) for n in numbers]
        file.write(b"(" + b"".join(entries) + b"u")  # type: ignore[attr-defined]
    if len(order) % 1000 == 0:
        file.write(b"(u")  # type: ignore[attr-defined]


def change(target: Path, count: int) -> None:
    """Another vector and document for each hundredth record, as an upsert leaves them."""
    [level0] = target.glob("*/data_level0.bin")
    elements = np.memmap(level0, np.uint8, "r+").reshape(count, -1)
    elements[::100, -12:-8] ^= 1  # a bit in each byte of the vector's last number
    elements.flush()
    with closing(sqlite3.connect(target / "chroma.sqlite3")) as connection, connection:
        connection.execute(
            "UPDATE embedding_metadata SET string_value = 'changed ' || id "
            "WHERE key = 'chroma:document' AND id % 100 = 1"
        )


def _portions(start: int, stop: int) -> Iterator[range]:
    for at in range(start, stop, PORTION):
        yield range(at, min(stop, at + PORTION))


def measured(work: Path, count: int, dimension: int) -> str:
    """One line of Markdown: peaks of first backup, second backup and restore in MB."""
    data, out = work / "data", work / "restored"
    tool = Chromakeep(work / "repository")
    tool.init()
    tool.memory = []
    times = []
    total = size(data)
    for step in ("first", "second", "restore"):
        if step == "second":
            change(data, count)
        began = time.monotonic()
        if step == "restore":
            tool.restore(out)
        else:
            tool.backup(data)
        times.append(time.monotonic() - began)
    shutil.rmtree(out)
    shutil.rmtree(tool.repository)
    peaks = " | ".join(f"{peak:.0f} MB" for peak in tool.memory)
    seconds = ", ".join(f"{t:.0f}" for t in times)
    return f"| {count:,} x {dimension}, {total / 1e9:.1f} GB | {peaks} | {seconds} s |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--records", default="100000,1000000")
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chromakeep-memory")
    parser.add_argument("--open", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print("| records | first backup | second backup | restore | while watched |\n|---|---|---|---|---|", flush=True)
    for count in map(int, args.records.split(",")):
        make(args.work / "data", count, args.dimension)
        if args.open:
            subprocess.run([sys.executable, "-c", _LOOK, str(args.work / "data")], check=True)
            make(args.work / "data", count, args.dimension)
        print(measured(args.work, count, args.dimension), flush=True)
        shutil.rmtree(args.work / "data")


if __name__ == "__main__":
    main()
