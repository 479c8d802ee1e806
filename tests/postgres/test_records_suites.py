"""PostgreSQL passes the shipped SourceSuite and SinkSuite; each test has a database of its own in it."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from chromakeep.postgres.pool import Pool
from chromakeep.postgres.sink import PostgresSink
from chromakeep.postgres.source import PostgresSource
from chromakeep.records import Definition
from chromakeep.testing.records_suite import Contents, SinkSuite, SourceSuite, put

TENANT = "suite"


class Shown(PostgresSource):
    """Without what is kept of replaced collections."""

    def definitions(self) -> list[Definition]:
        return [each for each in super().definitions() if ".old-" not in each.name]


class InPostgres:
    """To be inherited before the suite."""

    url: str
    databases = False
    carried = ("dimension", "metadata", "configuration")
    many = 600

    @pytest.fixture(autouse=True)
    def at(self, database_url: str, tmp_path: Path) -> None:
        self.url, self.database = database_url, hashlib.blake2b(str(tmp_path).encode(), digest_size=8).hexdigest()

    def place(self, definition: Definition) -> tuple[str, str, str]:
        return TENANT, self.database, definition.name

    def make_sink(self, tmp_path: Path) -> PostgresSink:
        return PostgresSink(Pool(self.url, 2), TENANT, self.database)

    def killed(self, sink: PostgresSink) -> None:
        sink._stack.close()  # the connection that says that its run is under way

    def read_back(self, tmp_path: Path) -> PostgresSource:
        return Shown(self.connect, TENANT, self.database)

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url)


class TestPostgresSink(InPostgres, SinkSuite):
    """All of it, in one step."""


class TestPostgresSource(InPostgres, SourceSuite):
    """With its exact state."""

    def fill(self, tmp_path: Path, contents: Contents) -> None:
        with closing(self.make_sink(tmp_path)) as sink:
            for definition, records in contents:
                intake = sink.collection(definition)
                if records is not None:
                    put(intake, records)
                intake.finish()
            sink.publish()

    def make_source(self, tmp_path: Path) -> PostgresSource:
        return self.read_back(tmp_path)

    def change(self, tmp_path: Path) -> None:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(
                "SELECT relation FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database"
                " WHERE d.name = %s",
                (self.database,),
            ).fetchone()
            assert row
            connection.execute(f"UPDATE chromakeep.{row[0]} SET document = 'other' WHERE seq % 2 = 0".encode())
