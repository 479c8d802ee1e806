"""The SQL in docs/postgres.md does what it says, on the sample's records."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest

from chromakeep.engine import CollectionWanted, Target, Wanted, Written
from chromakeep.postgres.engine import PostgresEngine

ROOT = Path(__file__).parent.parent.parent
SQL = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "postgres.md").read_text(), re.DOTALL)
PLACE = ("default_tenant", "default_database")


@pytest.fixture(scope="module")
def books(database_url: str) -> tuple[PostgresEngine, Target]:
    engine = PostgresEngine(database_url, 3)
    rows = pq.read_table(ROOT / "sample" / "books.parquet").slice(0, 300).to_pydict()
    target = Target(*PLACE, engine.create_collection(*PLACE, CollectionWanted("books")).id)
    metadatas = [{"source": s, "part": p} for s, p in zip(rows["source"], rows["part"], strict=True)]
    vectors = np.array(rows["embedding"], np.float32)
    engine.add(target, Written(rows["id"], vectors, None, rows["document"], None, metadatas))
    return engine, target


@pytest.fixture
def ask(database_url: str, books: object) -> Callable[[int], list[tuple[object, ...]]]:
    def asked(number: int) -> list[tuple[object, ...]]:
        with psycopg.connect(database_url) as connection:
            ((table,),) = connection.execute(SQL[0].encode()).fetchall()
            return connection.execute(SQL[number].replace(":table", table).encode()).fetchall()

    return asked


def test_documents_by_a_value_in_their_metadata(
    ask: Callable[[int], list[tuple[object, ...]]], books: tuple[PostgresEngine, Target]
) -> None:
    engine, target = books
    wanted = [(row[0], row[1]) for row in ask(1)]
    found = engine.get(target, None, None, None, 0, Wanted(documents=True, metadatas=True))
    assert found.metadatas and found.documents
    threes = [i for i, text in enumerate(found.metadatas) if text and b'"part": 3,' in text.replace(b"}", b",")]
    assert wanted and wanted == [(found.ids[i], found.documents[i]) for i in reversed(threes)][:10]


def test_neighbours_of_a_record(
    ask: Callable[[int], list[tuple[object, ...]]], books: tuple[PostgresEngine, Target]
) -> None:
    engine, target = books
    one = engine.get(target, ["books-00006"], None, None, 0, Wanted(embeddings=True)).embeddings
    assert one is not None
    (rows,) = engine.query(target, one, 6, None, None, Wanted(distances=True))
    assert rows.scores is not None and rows.ids[0] == "books-00006"
    assert [row[0] for row in ask(2)] == rows.ids[1:]
    np.testing.assert_allclose([float(str(row[1])) for row in ask(2)], rows.scores[1:], rtol=1e-5)
