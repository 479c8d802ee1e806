"""What a collection in PostgreSQL costs as it grows: the base of docs/scale.md.

    python bench/scale.py [--sizes 25000,50000,100000,200000] [--dimension 384] [--storage vector] [--json FILE]

Each size is loaded by COPY into a private PostgreSQL, indexed by one HNSW graph, and asked 300 queries one after the
other by the engine itself, without HTTP. Vectors are 200 clusters; bytes are PostgreSQL's own count. Recall is of the
ten nearest by exact distances. ``--balance`` simulates instead how evenly collections fill the nodes of a cluster.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.engine import CollectionWanted, Target, Wanted, Written
from chromakeep.postgres import catalog
from chromakeep.postgres.embedded import Embedded
from chromakeep.postgres.engine import PostgresEngine
from chromakeep.postgres.upkeep import settle

PLACE = ("default_tenant", "default_database")
QUERIES, K, BATCH = 300, 10, 5000


class Measured(msgspec.Struct):
    """One size: seconds, bytes, milliseconds."""

    records: int
    dimension: int
    load: float
    build: float
    table: int
    vectors: int  # of their index
    others: int  # of all other indexes
    query: float  # median
    query_p99: float
    recall: float


def vectors(random: np.random.Generator, centres: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Some of the clusters."""
    noise = 0.6 * random.normal(size=(n, centres.shape[1]))
    return (centres[random.integers(0, len(centres), n)] + noise).astype(np.float32)


def measured(engine: PostgresEngine, records: int, dimension: int) -> Measured:
    """Load, index, ask, weigh, drop."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(200, dimension)).astype(np.float32)
    target = Target(*PLACE, engine.create_collection(*PLACE, CollectionWanted(f"n{records}")).id)
    queries, best = vectors(random, centres, QUERIES), [np.zeros((0, 2)) for _ in range(QUERIES)]
    begun, busy = time.perf_counter(), 0.0
    for start in range(0, records, BATCH):
        some = vectors(random, centres, min(BATCH, records - start))
        numbers = range(start, start + len(some))
        written = Written(
            [f"r{n}" for n in numbers],
            some,
            None,
            [f"passage {n} of a text that goes on for about sixty letters, q{n % 97}z" for n in numbers],
            None,
            [{"i": n, "f": n / 7, "part": f"v{n % 10}"} for n in numbers],
        )
        begun = time.perf_counter()
        engine.add(target, written)
        busy += time.perf_counter() - begun
        distances = (some**2).sum(1)[None] - 2 * queries @ some.T
        for i, row in enumerate(distances):
            near = np.argpartition(row, K)[:K]
            best[i] = np.concatenate([best[i], np.stack([row[near], near + start], 1)])
    begun = time.perf_counter()
    held = engine.pool.run(lambda connection: catalog.held(connection, target), write=False)
    (segment,) = settle(engine.pool, held, alone=True)
    build = time.perf_counter() - begun
    sizes = engine.pool.run(
        lambda connection: connection.execute(
            "SELECT pg_table_size(%s), pg_relation_size(%s), pg_indexes_size(%s)",
            (held.table, f'chromakeep."{segment.index}"', held.table),
        ).fetchone(),
        write=False,
    )
    assert sizes
    time.sleep(1.5)  # the engine looks the segments up again
    spent, found = [], 0
    for number, vector in enumerate(queries):
        begun = time.perf_counter()
        (rows,) = engine.query(target, vector[None], K, None, None, Wanted(documents=True, distances=True))
        spent.append((time.perf_counter() - begun) * 1000)
        nearest = best[number][np.argsort(best[number][:, 0])[:K], 1].astype(int)
        found += len({f"r{n}" for n in nearest} & set(rows.ids))
    engine.drop_collection(*PLACE, f"n{records}")
    spent.sort()
    p99, recall = spent[int(0.99 * len(spent))], found / (K * QUERIES)
    others = sizes[2] - sizes[1]
    return Measured(records, dimension, busy, build, sizes[0], sizes[1], others, statistics.median(spent), p99, recall)


def balance() -> None:
    """The fullest of n nodes against the mean, if each collection is on one node: 1,000 collections whose sizes fall as
    1 / rank, placed by chance (as by a hash), or each, the largest first, on the node that is emptiest."""
    random = np.random.default_rng(1)
    sizes = 1 / np.arange(1, 1001)
    for nodes in (2, 4, 8, 16):
        chance = [
            np.bincount(random.integers(0, nodes, len(sizes)), sizes, nodes).max() * nodes / sizes.sum()
            for _ in range(2000)
        ]
        filled = np.zeros(nodes)
        for size in sizes:
            filled[filled.argmin()] += size
        best = filled.max() * nodes / sizes.sum()
        print(
            f"{nodes:>3} nodes: fullest / mean by chance, median {np.median(chance):.2f},"
            f" 95 % {np.quantile(chance, 0.95):.2f}; largest first {best:.2f}"
        )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="25000,50000,100000,200000")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--storage", choices=("vector", "halfvec"), default="vector")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--balance", action="store_true")
    arguments = parser.parse_args()
    if arguments.balance:
        balance()
        return
    work = Path(tempfile.mkdtemp(prefix="scale-"))
    postgres = Embedded(work)
    postgres.start()
    found = []
    try:
        engine = PostgresEngine(postgres.url, 4, storage=arguments.storage)
        for size in arguments.sizes.split(","):
            one = measured(engine, int(size), arguments.dimension)
            found.append(one)
            per = [round(part / one.records) for part in (one.table, one.vectors, one.others)]
            print(
                f"{one.records:>9,} x {one.dimension}  load {one.load:6.1f} s  build {one.build:7.1f} s"
                f"  bytes a record: table {per[0]}, vectors {per[1]}, others {per[2]}"
                f"  query p50 {one.query:.2f} p99 {one.query_p99:.2f} ms  recall {one.recall:.4f}",
                flush=True,
            )
        engine.close()
    finally:
        postgres.stop()
        shutil.rmtree(work, ignore_errors=True)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


if __name__ == "__main__":
    main()
