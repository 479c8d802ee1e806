"""An instance and its server lose each other at a bad moment, or the one found then lacks the last commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest

from chromakeep.engine import DATABASE, TENANT, CollectionWanted, Refused, Target, Wanted, Written
from chromakeep.postgres import catalog
from chromakeep.postgres.engine import PostgresEngine


@pytest.fixture
def engine(database_url: str) -> Iterator[PostgresEngine]:
    made = PostgresEngine(database_url, 2, allow_reset=True)
    made.reset()
    yield made
    made.close()


def fail_over(url: str, engine: PostgresEngine, target: Target) -> None:
    """To a standby that has the collection, and not its first records: all connections end, and others are made."""
    held = engine._known[target][1]
    with psycopg.connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.execute(f"DELETE FROM {held.table}".encode())
        connection.execute("DELETE FROM chromakeep.keys")
        connection.execute("UPDATE chromakeep.collections SET dimension = NULL")


def test_the_first_records_are_of_a_dimension_also_after_a_failover(
    engine: PostgresEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chromakeep.postgres.engine.FRESH", 3600.0)  # it all happens within a moment
    target = Target(TENANT, DATABASE, engine.create_collection(TENANT, DATABASE, CollectionWanted("x")).id)
    engine.add(target, Written(["a"], np.ones((1, 2), np.float32), metadatas=[{"k": 1}]))
    engine.count(target)
    fail_over(database_url, engine, target)
    engine.add(target, Written(["b"], np.ones((1, 2), np.float32), metadatas=[{"k": 1}]))
    shown = engine.collection_by_id(target)
    assert shown.dimension == 2 and shown.schema and "k" in shown.schema["keys"]
    assert engine.query(target, np.ones((1, 2), np.float32), 5, None, None, Wanted())[0].ids == ["b"]
    with pytest.raises(Refused) as caught:
        engine.add(target, Written(["c"], np.ones((1, 3), np.float32)))
    assert caught.value.status == 400


@pytest.mark.parametrize("act", [lambda e: e.drop_database(TENANT, DATABASE), PostgresEngine.reset])
def test_what_is_gone_from_the_catalog_is_told_to_be_gone(
    engine: PostgresEngine, database_url: str, monkeypatch: pytest.MonkeyPatch, act: Callable[[PostgresEngine], None]
) -> None:
    """Though the server goes away before the tables have gone after it: 503 would say that nothing was done. The next
    instance takes them away."""

    def lost(*arguments: object) -> None:
        raise Refused(503, "PostgreSQL cannot be reached")

    engine.create_collection(TENANT, DATABASE, CollectionWanted("x"))
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "drop_tables", lost)
        act(engine)
    assert engine.count_collections(TENANT, DATABASE) == 0
    assert len(engine.pool.run(catalog.orphans, write=False)) == 1
    PostgresEngine(database_url, 1).close()
    assert engine.pool.run(catalog.orphans, write=False) == []
