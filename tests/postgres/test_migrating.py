"""The tables are made once by whoever comes first, and what cannot be used is said in one line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from chromakeep.errors import RefusedToServe, ServerFailed, UnsupportedFormat
from chromakeep.postgres.migrating import migrate
from chromakeep.postgres.migrations import MIGRATIONS
from postgres.conftest import fresh, role


@pytest.fixture
def empty_url(postgres_url: str) -> str:
    return fresh(postgres_url)


def test_eight_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = [future.result(60) for future in [threads.submit(migrate, empty_url) for _ in range(8)]]
    assert len(set(found)) == 1
    assert found[0].pgvector >= (0, 8, 4)
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("SELECT number FROM chromakeep.version").fetchall() == [(len(MIGRATIONS),)]
        assert connection.execute("SELECT name FROM chromakeep.tenants").fetchall() == [("default_tenant",)]


def test_one_that_failed_has_left_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*MIGRATIONS, "CREATE TABLE chromakeep.half (n integer); SELECT 1 / 0")
    monkeypatch.setattr("chromakeep.postgres.migrating.MIGRATIONS", broken)
    with pytest.raises(ServerFailed, match="division by zero"):
        migrate(empty_url)
    monkeypatch.undo()
    migrate(empty_url)
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("SELECT to_regclass('chromakeep.half')").fetchone() == (None,)


def test_tables_of_a_newer_program(empty_url: str) -> None:
    migrate(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("UPDATE chromakeep.version SET number = 1000")
    with pytest.raises(UnsupportedFormat, match="newer chromakeep"):
        migrate(empty_url)


def test_a_user_who_may_not(empty_url: str, postgres_url: str) -> None:
    password = psycopg.conninfo.conninfo_to_dict(empty_url)["password"]
    with role(postgres_url, "poor", ""):
        with pytest.raises(ServerFailed, match="permission denied") as caught:
            migrate(empty_url.replace(f"postgres:{password}", "poor:poor"))
        assert "CREATE EXTENSION vector" in str(caught.value.hint)
        with pytest.raises(ServerFailed, match="user and password") as caught:
            migrate(empty_url.replace(f"postgres:{password}", "poor:rich"))
        assert "rich" not in caught.value.message


def test_a_pgvector_that_is_not_found(empty_url: str) -> None:
    """In a schema of its own, as providers have it, that is not searched for this user."""
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "of extensions"')
        connection.execute('CREATE EXTENSION vector SCHEMA "of extensions"')
        with pytest.raises(RefusedToServe, match="search_path") as caught:
            migrate(empty_url)
        assert '"of extensions"' in str(caught.value.hint)
        assert connection.execute("SELECT to_regclass('chromakeep.version')").fetchone() == (None,)
        where = connection.info.dbname
        connection.execute(f"""ALTER DATABASE {where} SET search_path = "$user", public, "of extensions\"""".encode())
    migrate(empty_url)


def test_a_database_that_cannot_hold_all_texts(postgres_url: str) -> None:
    with pytest.raises(RefusedToServe, match="LATIN1") as caught:
        migrate(fresh(postgres_url, "template0", "ENCODING 'LATIN1' LOCALE 'C'"))
    assert "UTF8" in str(caught.value.hint)


def test_a_server_that_takes_no_writes(empty_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(empty_url)["dbname"]
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    with pytest.raises(ServerFailed, match="takes no writes"):
        migrate(empty_url)


def test_nobody_there() -> None:
    with pytest.raises(ServerFailed) as caught:
        migrate("postgresql://u:geheim@127.0.0.1:1/d")
    assert "geheim" not in caught.value.message
    assert "\n" not in caught.value.message
