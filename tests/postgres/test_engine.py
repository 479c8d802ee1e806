"""PostgresEngine: its parts together, and two of them on one database."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from chromakeep.engine import DATABASE, TENANT, CollectionShown, CollectionWanted, Refused, Target, Wanted, Written
from chromakeep.filters import Compare
from chromakeep.postgres.engine import PostgresEngine, kinds

ALL = Wanted(True, True, True, True, True)


@pytest.fixture(scope="module")
def one(database_url: str) -> Iterator[PostgresEngine]:
    made = PostgresEngine(database_url, 4, allow_reset=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def other(database_url: str) -> Iterator[PostgresEngine]:
    made = PostgresEngine(database_url, 4)
    yield made
    made.close()


@pytest.fixture
def docs(one: PostgresEngine) -> CollectionShown:
    one.reset()
    return one.create_collection(TENANT, DATABASE, CollectionWanted("docs"))


def of(shown: CollectionShown) -> Target:
    return Target(shown.tenant, shown.database, shown.id)


def records(*ids: str, dimension: int = 3) -> Written:
    vectors = np.arange(len(ids) * dimension, dtype=np.float32).reshape(len(ids), dimension)
    return Written(list(ids), vectors, documents=[f"text of {one}" for one in ids], metadatas=[{"k": 1}] * len(ids))


def test_what_one_instance_writes_the_other_reads_at_once(
    one: PostgresEngine, other: PostgresEngine, docs: CollectionShown
) -> None:
    target = of(docs)
    assert (other.count(target), other.get(target, None, None, None, 0, ALL).ids) == (0, [])
    one.add(target, records("a", "b"))
    assert other.count(target) == 2
    assert other.get(target, None, Compare("k", "$eq", 1), None, 0, ALL).documents == ["text of a", "text of b"]
    found = other.query(target, np.zeros((1, 3), np.float32), 1, None, None, ALL)[0]
    assert found.ids == ["a"]
    assert other.collection_by_id(target).dimension == 3
    assert other.delete(target, ["a", "none"], None, None) == 1
    assert one.get(target, None, None, None, 0, ALL).ids == ["b"]
    with pytest.raises(Refused, match="expecting embedding with dimension of 3, got 2"):
        other.upsert(target, records("c", dimension=2))


def test_what_one_instance_drops_is_gone_for_the_other(
    one: PostgresEngine, other: PostgresEngine, docs: CollectionShown
) -> None:
    target = of(docs)
    one.add(target, records("a"))
    assert other.count(target) == 1  # it knows the table now
    one.drop_collection(TENANT, DATABASE, "docs")
    for ask in (
        lambda: other.count(target),
        lambda: other.add(target, records("b")),
        lambda: other.query(target, np.zeros((1, 3), np.float32), 1, None, None, ALL),
        lambda: other.delete(target, ["a"], None, None),
        lambda: other.fork(target, "forked"),
    ):
        with pytest.raises(Refused) as caught:
            ask()
        assert (caught.value.status, caught.value.message) == (404, f"Collection [{docs.id}] does not exist.")


def test_a_collection_of_another_tenant_is_not_there(one: PostgresEngine, docs: CollectionShown) -> None:
    one.create_tenant("acme")
    one.create_database("acme", "mine")
    one.add(of(docs), records("a"))
    for tenant, database in (("acme", "mine"), ("acme", DATABASE), (TENANT, "mine"), ("none", "none")):
        with pytest.raises(Refused) as caught:
            one.get(Target(tenant, database, docs.id), None, None, None, 0, ALL)
        assert caught.value.status == 404


def test_a_database_that_is_dropped_takes_its_records_along(one: PostgresEngine, other: PostgresEngine) -> None:
    one.create_database(TENANT, "gone")
    target = of(one.create_collection(TENANT, "gone", CollectionWanted("docs")))
    other.add(target, records("a"))
    one.drop_database(TENANT, "gone")
    with pytest.raises(Refused) as caught:
        other.upsert(target, records("a"))
    assert caught.value.status == 404


def test_keys_of_records_are_in_the_schema_that_is_shown(
    one: PostgresEngine, other: PostgresEngine, docs: CollectionShown
) -> None:
    for engine, key in ((one, "first"), (other, "second"), (one, "third")):
        engine.upsert(of(docs), Written(["a"], np.zeros((1, 3), np.float32), metadatas=[{key: [1.5]}]))
    schema = other.collection_by_id(of(docs)).schema
    assert schema is not None
    assert set(schema["keys"]) == {"#document", "#embedding", "first", "second", "third"}
    assert schema["keys"]["third"] == {"float": {"float_inverted_index": {"enabled": True, "config": {}}}}


def test_kinds_of_values() -> None:
    given = [{"a": 1, "b": True, "c": None, "d": []}, None, {"a": "x", "b": [1.0], "e": 2.0}]
    assert kinds(given) == {("a", "int"), ("b", "bool"), ("a", "string"), ("b", "float"), ("e", "float")}


def test_reset_only_where_it_is_allowed(one: PostgresEngine, other: PostgresEngine, docs: CollectionShown) -> None:
    with pytest.raises(Refused) as caught:
        other.reset()
    assert (caught.value.status, caught.value.error) == (403, "ChromaError")
    one.add(of(docs), records("a"))
    one.reset()
    assert one.count_collections(TENANT, DATABASE) == 0
    with pytest.raises(Refused):
        other.count(of(docs))


def test_a_closed_engine_says_so(database_url: str) -> None:
    engine = PostgresEngine(database_url, 1)
    assert engine.ready()
    engine.close()
    engine.close()
    assert not engine.ready()
