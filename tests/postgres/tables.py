"""A collection's records, each operation in a transaction of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from chromakeep.engine import CollectionWanted, Rows, Target, Wanted, Written
from chromakeep.filters import Filter
from chromakeep.postgres import catalog, clauses, packing, reading, writing
from chromakeep.postgres.held import Held
from chromakeep.postgres.pool import Pool

T = TypeVar("T")
ALL = Wanted(documents=True, metadatas=True, embeddings=True, uris=True)


class Records:
    """Of a new collection."""

    def __init__(self, pool: Pool, name: str, *, storage: str = "vector") -> None:
        self.pool = pool
        wanted = CollectionWanted(name)
        shown = self.do(catalog.create_collection, "default_tenant", "default_database", wanted, storage)
        self.target = Target(shown.tenant, shown.database, shown.id)

    def do(self, function: Callable[..., T], *arguments: Any) -> T:
        return self.pool.run(lambda connection: function(connection, *arguments), write=True)

    @property
    def held(self) -> Held:
        return self.do(catalog.held, self.target)

    def add(self, ids: Sequence[str], vectors: Any = None, **members: Any) -> None:
        self.do(writing.add, self.held, written(ids, vectors, **members))

    def upsert(self, ids: Sequence[str], vectors: Any = None, **members: Any) -> None:
        self.do(writing.upsert, self.held, written(ids, vectors, **members))

    def update(self, ids: Sequence[str], **members: Any) -> None:
        self.do(writing.update, self.held, Written(list(ids), **members))

    def delete(self, ids: Sequence[str] | None = None, where: Filter | None = None, limit: int | None = None) -> int:
        return self.do(writing.delete, self.held, ids, where, limit)

    def count(self) -> int:
        return self.do(reading.count, self.held)

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Filter | None = None,
        limit: int | None = None,
        offset: int = 0,
        wanted: Wanted = ALL,
    ) -> Rows:
        return self.do(reading.get, self.held, ids, where, limit, offset, wanted)

    def ids(self, where: Filter | None = None, limit: int | None = None, offset: int = 0) -> list[str]:
        return self.get(None, where, limit, offset, Wanted()).ids

    def shown(self, record_id: str) -> tuple[str | None, str | None, dict[str, Any] | None, list[float]]:
        """Document, URI, metadata and vector of one record."""
        found = self.get([record_id])
        assert found.documents and found.uris and found.metadatas and found.embeddings is not None
        metadata = found.metadatas[0]
        return found.documents[0], found.uris[0], json(metadata), found.embeddings[0].tolist()

    def places(self) -> dict[str, tuple[int, int]]:
        """(seq, place) by id."""
        table = self.held.table
        return self.pool.run(
            lambda c: {row[0]: row[1:] for row in c.execute(f"SELECT id, seq, place FROM {table}").fetchall()},
            write=False,
        )

    @property
    def trgm(self) -> bool:
        """Whether documents are found by pg_trgm here."""
        return self.do(packing.server).trgm

    def make_indexes(self, *keys: str) -> None:
        trgm = self.trgm
        with self.pool.autocommit() as connection:
            for statement in clauses.index_statements(self.held, keys, trgm):
                connection.execute(statement.encode())
            connection.execute(f"ANALYZE {self.held.table}".encode())

    def plan(self, where: Filter, *, settings: str = "") -> str:
        """How PostgreSQL would find those that satisfy it."""
        condition, values = clauses.clause(where, self.held, trgm=self.trgm)
        query = f"EXPLAIN SELECT r.id FROM {self.held.table} r WHERE {condition}".encode()

        def explain(connection: Any) -> str:
            connection.execute(settings or "SELECT 1")
            return "\n".join(row[0] for row in connection.execute(query, values).fetchall())

        return self.pool.run(explain, write=False)


def written(ids: Sequence[str], vectors: Any = None, **members: Any) -> Written:
    """Vectors of two dimensions where none are given."""
    if vectors is None:
        vectors = [[i, 1] for i in range(len(ids))]
    return Written(list(ids), np.array(vectors, np.float32), **members)


def json(metadata: bytes | None) -> Any:
    return None if metadata is None else msgspec.json.decode(metadata)
