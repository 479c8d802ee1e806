"""Collections with vectors in them, for the tests of what finds these."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chromakeep.engine import CollectionWanted, Rows, Target, Vectors, Wanted, Written
from chromakeep.filters import Filter, read_where
from chromakeep.postgres import catalog, nearest, upkeep, writing
from chromakeep.postgres.engine import kinds
from chromakeep.postgres.held import Held
from chromakeep.postgres.pool import Connection, Pool

_numbers = itertools.count(1)
DISTANCES = Wanted(distances=True)


class Grown:
    """A collection of its own."""

    def __init__(self, pool: Pool, space: str = "l2", storage: str = "vector", **hnsw: Any) -> None:
        wanted = CollectionWanted(f"grown-{next(_numbers)}", configuration={"hnsw": {"space": space, **hnsw}})
        shown = pool.run(
            lambda c: catalog.create_collection(c, "default_tenant", "default_database", wanted, storage), write=True
        )
        self.pool, self.target = pool, Target("default_tenant", "default_database", shown.id)

    @property
    def held(self) -> Held:
        return self.pool.run(lambda c: catalog.held(c, self.target), write=False)

    def add(
        self, vectors: NDArray[Any], start: int = 0, metadatas: Sequence[Mapping[str, Any] | None] | None = None
    ) -> None:
        """Under the ids r<start>, r<start + 1>, ..."""
        ids = [f"r{number}" for number in range(start, start + len(vectors))]
        records = Written(ids, vectors.astype(np.float32), metadatas=None if metadatas is None else list(metadatas))

        def add(connection: Connection) -> None:
            held = catalog.held(connection, self.target)
            writing.add(connection, held, records)
            catalog.seen(connection, held, kinds(records.metadatas))

        self.pool.run(add, write=True)

    def update(self, ids: list[str], vectors: NDArray[Any]) -> None:
        records = Written(ids, vectors.astype(np.float32))
        self.pool.run(lambda c: writing.update(c, catalog.held(c, self.target), records), write=True)

    def delete(self, ids: list[str]) -> None:
        self.pool.run(lambda c: writing.delete(c, catalog.held(c, self.target), ids, None, None), write=True)

    def query(
        self,
        vectors: NDArray[Any],
        n_results: int,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        wanted: Wanted = DISTANCES,
    ) -> list[Rows]:
        clause: Filter | None = None if where is None else read_where(where)
        asked: Vectors = vectors.astype(np.float32)
        return self.pool.run(
            lambda c: nearest.query(c, catalog.held(c, self.target), asked, n_results, ids, clause, wanted), write=False
        )

    def settle(self, **how: Any) -> None:
        upkeep.settle(self.pool, self.held, **how)


def exact(vectors: NDArray[Any], query: NDArray[Any], space: str) -> NDArray[np.float64]:
    """Distances of all, as Chroma defines them."""
    all_of_them, one = vectors.astype(np.float64), query.astype(np.float64)
    if space == "l2":
        return np.asarray(((all_of_them - one) ** 2).sum(axis=1))
    product = all_of_them @ one
    if space == "ip":
        return np.asarray(1 - product)
    lengths = np.linalg.norm(all_of_them, axis=1) * np.linalg.norm(one)
    return np.asarray(1 - np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0))
