"""One PostgreSQL for the session, and a database of its own, with the tables made, for each module.

``TEST_POSTGRES=postgresql://postgres:PASSWORD@HOST:PORT/postgres pytest tests/postgres`` asks one that runs already, as
its superuser and over TCP: of another version, or with pg_trgm. What is made there is dropped at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from chromakeep.postgres.embedded import Embedded
from chromakeep.postgres.migrating import migrate
from chromakeep.postgres.pool import Pool

_numbers = itertools.count(1)
_PREFIX = f"chromakeep_test_{secrets.token_hex(4)}_"


def database_of(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def fresh(url: str, template: str = "template1", how: str = "") -> str:
    """The URL of a new database of this server. ``how``: more for its CREATE DATABASE."""
    name = f"{_PREFIX}{next(_numbers)}"
    with psycopg.connect(url, autocommit=True) as connection:
        deadline = time.monotonic() + 120
        while True:
            try:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {how}".encode())
                return database_of(url, name)
            except psycopg.errors.ObjectInUse:  # for 5 s: a session of the template that was closed has not ended yet
                assert time.monotonic() < deadline


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server, as its superuser."""
    if given := os.environ.get("TEST_POSTGRES"):
        yield given
        _drop_all(given)
        return
    server = Embedded(tmp_path_factory.mktemp("postgresql"), memory=1 << 30)
    server.start()
    yield server.url
    server.stop()


def _drop_all(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        made = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (_PREFIX,))
        for (name,) in made.fetchall():
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextlib.contextmanager
def role(url: str, name: str, what: str) -> Iterator[None]:
    """A user of the server."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}' {what}".encode())
        try:
            yield
        finally:
            owner.execute(f"DROP ROLE {name}".encode())


@pytest.fixture(scope="session")
def migrated(postgres_url: str) -> str:
    """The name of a database with the tables of the catalog, of which others are copies."""
    url = fresh(postgres_url)
    migrate(url)
    return urlsplit(url).path[1:]


@pytest.fixture(scope="module")
def database_url(postgres_url: str, migrated: str) -> str:
    """A fresh database with the tables of the catalog."""
    return fresh(postgres_url, migrated)


@pytest.fixture(scope="module")
def pool(database_url: str) -> Iterator[Pool]:
    """On that database. Who waits for a connection waits: for how long is a matter of the machine."""
    opened = Pool(database_url, patience=120)
    yield opened
    opened.close()
