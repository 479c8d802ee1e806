"""A real PgBouncer between: where it keeps sessions all goes on as without it, else the start is refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psycopg
import pytest

from chromakeep.engine import DATABASE, TENANT, CollectionWanted, Target, Wanted, Written
from chromakeep.errors import RefusedToServe
from chromakeep.postgres.conninfo import connection_parameters
from chromakeep.postgres.engine import PostgresEngine
from chromakeep.postgres.migrating import migrate
from chromakeep.postgres.pool import Connection
from chromakeep.postgres.pooling import need_sessions
from chromakeep.postgres.upkeep import Upkeep
from postgres.conftest import fresh
from postgres.instances import eventually
from servers.pgbouncer import pgbouncer


def advisory(url: str) -> int:
    """Advisory locks that somebody holds."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    return int(found[0]) if found else 0


def test_sessions_that_are_kept(tmp_path: Path, postgres_url: str) -> None:
    """Tables are made, many threads write and read with prepared statements, an index is built; no lock is left."""
    direct = fresh(postgres_url)
    with pgbouncer(tmp_path, direct, "session") as url:
        engine = PostgresEngine(url, 6)
        shown = engine.create_collection(TENANT, DATABASE, CollectionWanted("docs"))
        target, random = Target(TENANT, DATABASE, shown.id), np.random.default_rng(7)
        vectors = random.random((12, 500, 8), np.float32)

        def work(number: int) -> bool:
            ids = [f"{number}.{n}" for n in range(500)]
            engine.add(target, Written(ids, vectors[number]))
            found = [engine.query(target, vectors[number, n : n + 1], 1, None, None, Wanted())[0].ids for n in range(9)]
            return found == [[one] for one in ids[:9]]

        def settings(connection: Connection) -> object:
            return connection.execute("SELECT current_setting('statement_timeout'), pg_sleep(0.01)").fetchone()

        with ThreadPoolExecutor(6) as threads:
            assert all(threads.map(work, range(12)))
            told = threads.map(lambda _: engine.pool.run(settings, write=False), range(24))
            assert {str(one) for one in told} == {"('5min', '')"}
        with psycopg.connect(direct, autocommit=True) as connection:
            connection.execute("ANALYZE")
        assert Upkeep(engine.pool).look()
        assert engine.indexing_status(target).indexed == 6_000
        assert engine.query(target, vectors[3, 5:6], 1, None, None, Wanted())[0].ids == ["3.5"]
        engine.close()
        eventually(lambda: advisory(url) == 0, "the session that was given back has let go of its locks")


@pytest.mark.parametrize(
    ("mode", "settings"),
    [("transaction", {}), ("transaction", {"default_pool_size": 1}), ("transaction", {"server_round_robin": 1}),
     ("statement", {})],
)  # fmt: skip
def test_sessions_that_are_shared(tmp_path: Path, postgres_url: str, mode: str, settings: dict[str, int]) -> None:
    """One line of what to do, and nothing was made."""
    direct = fresh(postgres_url)
    with pgbouncer(tmp_path, direct, mode, **settings) as url:
        with pytest.raises(RefusedToServe, match="shares sessions") as caught:
            migrate(url)
        assert "pool_mode = session" in (caught.value.hint or "")
        password = connection_parameters(url)["password"]
        assert password not in caught.value.message
        with psycopg.connect(direct) as connection:
            assert connection.execute("SELECT to_regnamespace('chromakeep')").fetchone() == (None,)
        assert advisory(direct) == 0


def test_sessions_that_are_shared_with_others_who_are_busy(tmp_path: Path, database_url: str) -> None:
    """They take the sessions that are free, so that one connection may meet the same one for a while."""
    with ExitStack() as stack:
        url = stack.enter_context(pgbouncer(tmp_path, database_url, "transaction", default_pool_size=8))
        over = threading.Event()

        def ask() -> None:
            with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
                while not over.is_set():
                    connection.execute("SELECT pg_sleep(0.0005)")

        others = [threading.Thread(target=ask) for _ in range(6)]
        for one in others:
            one.start()
        stack.callback(lambda: [one.join() for one in others])
        stack.callback(over.set)
        for _ in range(10):
            with pytest.raises(RefusedToServe, match="shares sessions"):
                migrate(url)


def test_without_a_pooler_it_costs_one_statement(database_url: str) -> None:
    parameters = connection_parameters(database_url)
    with psycopg.connect(**parameters, autocommit=True) as connection:
        need_sessions(connection, database_url, {"host": "/nowhere"})
        assert connection.execute("SELECT current_setting('chromakeep.session', true)").fetchone() == (None,)
