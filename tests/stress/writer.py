"""A process that writes to Chroma at random and logs every operation: an embedded client, or threads at a server.

What it avoids, because Chroma 1.5.9 itself loses or changes data there (no copy of the directory can help):

* an update of a record all of whose neighbours are deleted: acknowledged, never persisted. So each collection
  starts with 60 records that stay, and at most three of ten records are ever deleted;
* an update or delete of an id that is absent, an add of one that is present: logged as no-ops, and applied as more
  than that when a tail of the queue is applied twice;
* floats of 16 and 17 digits in metadata: they come back one unit in the last place off (its queue is JSON, and is
  not parsed exactly).
"""

from __future__ import annotations

import argparse
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
from oplog import OpLog, vector

STAY = 60
# name, space, dimension, sync_threshold
SMALL = (("three", "l2", 16, 3), ("twenty-five", "cosine", 64, 25), ("hundred-twenty", "ip", 256, 120))
LARGE = (("thousand", "cosine", 256, 1000), ("another", "l2", 256, 1000))
Kinds = tuple[tuple[str, str, int, int], ...]


class Writer:
    """One thread's worth of random operations on its own ids in shared collections, and on collections of its own."""

    def __init__(self, client: Any, name: str, log: OpLog, seed: int, kinds: Kinds, batch: int) -> None:
        self.client, self.name, self.log, self.batch = client, name, log, batch
        self.random = random.Random(seed)
        self.dimensions = {name: dimension for name, _, dimension, _ in kinds}
        self.live: dict[str, list[str]] = {name: [] for name in self.dimensions}
        self.handles: dict[str, Any] = {}
        self.deleted = dict.fromkeys(self.dimensions, 0)
        self.next = 0
        self.temporary: list[str] = []

    def run(self, stop: threading.Event, prefill: int) -> None:
        for name, dimension in self.dimensions.items():
            self.log.started({"op": "create", "c": name, "dim": dimension})
            self.log.acknowledged()  # made by main, before the threads started
        for name in self.dimensions:
            for _ in range(0, max(STAY, prefill), 500):
                self.write("add", name, self.new_ids(min(500, max(STAY, prefill))))
        while not stop.is_set():
            self.step()

    def step(self) -> None:
        name = self.random.choice(list(self.dimensions))
        live = self.live[name]
        count = self.random.randint(1, self.batch)
        draw = self.random.random()
        if draw < 0.30:
            self.write("add", name, self.new_ids(count))
        elif draw < 0.50:
            self.write("update", name, self.random.sample(live, min(count, len(live))))
        elif draw < 0.65:
            self.write("update", name, self.random.sample(live, min(count, len(live))), vectors=False)
        elif draw < 0.85:
            known = self.random.sample(live, min(count, len(live)))
            self.write("upsert", name, known + self.new_ids(self.random.randint(0, count)))
        elif draw < 0.95:
            spare = live[STAY:]
            allowed = int(0.3 * (len(live) + self.deleted[name])) - self.deleted[name]
            gone = self.random.sample(spare, max(0, min(count, len(spare), allowed)))
            if gone:
                self.do({"op": "delete", "c": name, "ids": gone}, lambda c: c.delete(ids=gone))
                self.deleted[name] += len(gone)
                self.live[name] = [i for i in live if i not in set(gone)]
        else:
            self.temporary_step()

    def temporary_step(self) -> None:
        if len(self.temporary) > 2 or (self.temporary and self.random.random() < 0.4):
            name = self.temporary.pop(self.random.randrange(len(self.temporary)))
            self.log.started({"op": "drop", "c": name})
            self.client.delete_collection(name)
            self.log.acknowledged()
            return
        self.next += 1
        name = f"tmp-{self.name}-{self.next}"
        self.log.started({"op": "create", "c": name, "dim": 16})
        self.client.create_collection(name, configuration=configuration("l2", self.random.choice([3, 25, 1000])))
        self.log.acknowledged()
        self.temporary.append(name)
        self.live[name] = []
        for _ in range(self.random.randint(1, 3)):
            self.write("add", name, self.new_ids(self.random.randint(1, 30)))

    def new_ids(self, count: int) -> list[str]:
        self.next += count
        return [f"{self.name}-{n}" for n in range(self.next - count, self.next)]

    def write(self, kind: str, collection: str, ids: list[str], *, vectors: bool = True) -> None:
        """Log and do one add, update or upsert; what it writes is drawn here."""
        if not ids:
            return
        dimension = self.dimensions.get(collection, 16)
        fresh = kind == "add" or any(i not in set(self.live[collection]) for i in ids)
        seeds = [self.random.getrandbits(48) for _ in ids] if vectors else None
        documents = [self.words() for _ in ids] if fresh or (vectors and self.random.random() < 0.5) else None
        metadatas = (
            [self.metadata(new=fresh) for _ in ids] if fresh or not vectors or self.random.random() < 0.5 else None
        )
        entry = {"op": kind, "c": collection, "ids": ids, "v": seeds, "d": documents, "m": metadatas}
        given: dict[str, Any] = {"ids": ids, "documents": documents, "metadatas": metadatas}
        if seeds:
            given["embeddings"] = [np.frombuffer(vector(s, dimension), "<f4") for s in seeds]
        self.do(entry, lambda c: getattr(c, kind)(**{k: v for k, v in given.items() if v is not None}))
        present = set(self.live[collection])
        self.live[collection] += [i for i in ids if i not in present]

    def do(self, entry: dict[str, Any], call: Any) -> None:
        name = entry["c"]
        if name not in self.handles:
            self.handles[name] = self.client.get_collection(name, embedding_function=None)
        self.log.started(entry)
        call(self.handles[name])
        self.log.acknowledged()

    def words(self) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.randint(1, 60)))

    def metadata(self, *, new: bool) -> dict[str, Any]:
        drawn: dict[str, Any] = {
            "n": self.random.randrange(10**6),
            "f": self.random.randrange(2**20) / 1024,
            "b": self.random.random() < 0.5,
        }
        if new or self.random.random() < 0.5:
            drawn["s"] = self.words()
        elif self.random.random() < 0.3:
            drawn["s"] = None  # deletes the key
        return drawn


WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "st", "rk", "ß", "漢", "")]


def configuration(space: str, threshold: int) -> dict[str, Any]:
    return {"hnsw": {"space": space, "sync_threshold": threshold, "batch_size": min(threshold, 100)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", required=True)
    parser.add_argument("--logs", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, help="write to the server there instead of embedding Chroma")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--prefill", type=int, default=0)
    parser.add_argument("--batch", type=int, default=6)
    options = parser.parse_args()
    import chromadb

    def client() -> Any:
        if options.port:
            return chromadb.HttpClient(host="127.0.0.1", port=options.port)
        return chromadb.PersistentClient(options.path)

    first, kinds = client(), LARGE if options.large else SMALL
    for name, space, _, threshold in kinds:
        first.get_or_create_collection(name, configuration=configuration(space, threshold), embedding_function=None)
    stop, failed = threading.Event(), []

    def work(n: int) -> None:
        try:
            log = OpLog(options.logs / f"writer-{n}.log")
            writer = Writer(
                client() if options.port else first, f"w{n}", log, options.seed * 1000 + n, kinds, options.batch
            )
            writer.run(stop, options.prefill)
        except BaseException as error:
            failed.append(error)
            stop.set()
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(options.threads)]
    for thread in threads:
        thread.start()
    print("writing", flush=True)
    try:
        while not stop.wait(0.2):
            pass
    except KeyboardInterrupt:
        stop.set()
    for thread in threads:
        thread.join()
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
