"""One PostgreSQL for the session, and a database of its own, with the tables made, for each module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from chromakeep.postgres.embedded import Embedded
from chromakeep.postgres.migrating import migrate
from chromakeep.postgres.pool import Pool

_numbers = itertools.count(1)


def database_of(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server, as its superuser."""
    server = Embedded(tmp_path_factory.mktemp("postgresql"), memory=1 << 30)
    server.start()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    migrate(database_of(server.url, "migrated"))
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> str:
    """A fresh database with the tables of the catalog."""
    name = f"d{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
    return database_of(postgres_url, name)


@pytest.fixture(scope="module")
def pool(database_url: str) -> Iterator[Pool]:
    """On that database."""
    opened = Pool(database_url)
    yield opened
    opened.close()
