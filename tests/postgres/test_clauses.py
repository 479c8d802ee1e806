"""Filters as SQL: against a model in Python, with and without indexes, and that the indexes are used."""

from __future__ import annotations

import json as stdlib_json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chromakeep.conditions import Where
from chromakeep.engine import Refused
from chromakeep.filters import Among, Compare, Every, Filter, Holds, Matches, Named, Some, read_where
from chromakeep.postgres import clauses
from chromakeep.postgres.held import Held
from chromakeep.postgres.pool import Pool
from postgres.tables import Records

KEYS = ["a", "b", "k'; DROP TABLE x; --", "%s", "\0", "é"]
SCALARS: list[Any] = [
    0, 1, 2, -1, 1.0, 1.5, 0.0, 2**53 + 1, 2.0**53, 2**63 - 1, -(2**63), 1e300, 5e-324, 0.1, True, False,
    "", "1", "true", "null", "a", "A", "a\0b", "'; --", "%", "\\", "é", "\U0010fffe", "[1]",
]  # fmt: skip
scalars = st.sampled_from(SCALARS)
texts, whole, floats, flags = (
    st.sampled_from([one for one in SCALARS if type(one) is kind]) for kind in (str, int, float, bool)
)
lists = st.one_of(*(st.lists(kind, min_size=1, max_size=3) for kind in (texts, whole, floats, flags)))
metadatas = st.none() | st.dictionaries(st.sampled_from(KEYS), scalars | lists, max_size=4)
numbers = whole | floats
conditions = st.one_of(
    st.builds(lambda k, o, v: {k: {o: v}}, st.sampled_from(KEYS), st.sampled_from(["$eq", "$ne"]), scalars),
    st.builds(
        lambda k, o, v: {k: {o: v}}, st.sampled_from(KEYS), st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), numbers
    ),
    st.builds(
        lambda k, o, v, n: {k: {o: v * n}},
        st.sampled_from(KEYS),
        st.sampled_from(["$in", "$nin"]),
        lists,
        st.sampled_from([1, 40]),
    ),
    st.builds(
        lambda k, o, v: {k: {o: v}}, st.sampled_from(KEYS), st.sampled_from(["$contains", "$not_contains"]), scalars
    ),
)
filters = st.recursive(
    conditions,
    lambda inner: st.builds(lambda o, parts: {o: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=3)),
    max_leaves=6,
)
WITHOUT_SCANS = "SET LOCAL enable_seqscan = off"


@pytest.fixture(scope="module", params=["plain", "indexed"])
def records(pool: Pool, request: pytest.FixtureRequest) -> Iterator[Records]:
    made = Records(pool, f"clauses-{request.param}")
    if request.param == "indexed":
        made.make_indexes(*KEYS)
    yield made


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_metadatas=st.lists(metadatas, min_size=1, max_size=8), wheres=st.lists(filters, min_size=1, max_size=6))
@example(given_metadatas=[{"a": 2**53 + 1}, {"a": 2.0**53}, {"a": 2**53}], wheres=[{"a": {"$gt": 2.0**53}}])
@example(given_metadatas=[{"a": [1]}, {"a": [1.0]}, {"a": 1}, {"a": "1"}], wheres=[{"a": {"$contains": 1.0}}])
def test_metadata_as_in_python(
    records: Records, given_metadatas: list[dict[str, Any] | None], wheres: list[dict[str, Any]]
) -> None:
    """Every filter finds what the model finds, whether by reading all or by an index."""
    ids = [f"id{i}" for i in range(len(given_metadatas))]
    records.delete(None, Every(()))
    records.add(ids, metadatas=given_metadatas)
    held = records.held
    for where in wheres:
        model = Where(stdlib_json.dumps(where))
        expected = [one for one, metadata in zip(ids, given_metadatas, strict=True) if model.matches(metadata)]
        assert found(records, held, read_where(where), "SELECT 1") == expected
        assert found(records, held, read_where(where), WITHOUT_SCANS) == expected


def found(records: Records, held: Held, where: Filter, setting: str) -> list[str]:
    condition, values = clauses.clause(where, held, trgm=records.trgm)
    query = f"SELECT r.id FROM {held.table} r WHERE {condition} ORDER BY r.seq".encode()

    def ask(connection: Any) -> list[str]:
        connection.execute(setting)
        return [row[0] for row in connection.execute(query, values).fetchall()]

    return records.pool.run(ask, write=True)  # in a transaction, for the setting


ALPHABET = "ab%_\\\0é😀\n'"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    documents=st.lists(st.none() | st.text(ALPHABET, max_size=12), min_size=1, max_size=8),
    patterns=st.lists(st.text(ALPHABET, max_size=5), min_size=1, max_size=6),
)
def test_documents_as_in_python(records: Records, documents: list[str | None], patterns: list[str]) -> None:
    ids = [f"id{i}" for i in range(len(documents))]
    records.delete(None, Every(()))
    records.add(ids, documents=documents)
    held = records.held
    for pattern in patterns:
        having = [one for one, text in zip(ids, documents, strict=True) if text is not None and pattern in text]
        for setting in ("SELECT 1", WITHOUT_SCANS):
            assert found(records, held, Matches("$contains", pattern), setting) == having
            lacking = [one for one in ids if one not in having]
            assert found(records, held, Matches("$not_contains", pattern), setting) == lacking


def test_ids_and_combinations(records: Records) -> None:
    records.delete(None, Every(()))
    records.add(["a", "b", "c'; --"], metadatas=[{"k": 1}, {"k": 2}, None])
    assert records.ids(Named(("c'; --", "a", "none"))) == ["a", "c'; --"]
    assert records.ids(Named(("a",), negated=True)) == ["b", "c'; --"]
    assert records.ids(Some(())) == []
    assert records.ids(Every((Some((Compare("k", "$eq", 1), Compare("k", "$eq", 2))), Named(("b",))))) == ["b"]
    deep: Filter = Compare("k", "$eq", 1)
    for _ in range(250):
        deep = Every((Some((deep, deep)),)) if _ < 8 else Every((deep,))
    assert records.ids(deep) == ["a"]


@pytest.fixture(scope="module")
def many(pool: Pool) -> Records:
    """Ten thousand records with all indexes."""
    records, n = Records(pool, "many"), 10_000
    records.add(
        [f"id{i}" for i in range(n)],
        documents=[f"the text of number {i} says {'needle' if i % 1000 == 7 else 'nothing'}" for i in range(n)],
        metadatas=[{"i": i, "tag": f"t{i % 500}", "list": [i % 400, i], "f": i / 2} for i in range(n)],
    )
    records.make_indexes("i", "it's")
    return records


@pytest.mark.parametrize(
    ("where", "index", "n"),
    [
        (Compare("tag", "$eq", "t7"), "_metadata", 20),
        (Among("tag", ("t7", "t8")), "_metadata", 40),
        (Holds("list", 7), "_metadata", 25),
        (Compare("i", "$lt", 50), "_n_", 50),
        (Every((Compare("i", "$gte", 10.5), Compare("i", "$lt", 12.5))), "_n_", 2),
        (Matches("$contains", "needle"), "_document", 10),
        (Matches("$regex", r"says\s+needl+e$"), "_document", 10),
        (Named(("id5", "id6")), "_pkey", 2),
    ],
)
def test_an_index_answers(many: Records, where: Filter, index: str, n: int) -> None:
    assert index in many.plan(where)
    assert len(many.ids(where)) == n


def test_the_schema_closes_keys(pool: Pool) -> None:
    held = Records(pool, "closed").held
    closed = msgspec.structs.replace(
        held,
        unindexed=frozenset({("k", "string"), ("", "int"), ("#document", "fts")}),
        indexed=frozenset({("i", "int")}),
    )
    said = "Cannot filter using metadata key '{}' with type '{}' because indexing is disabled"
    for where, message in [
        (Compare("k", "$eq", "x"), said.format("k", "Str")),
        (Among("k", ("x",), negated=True), said.format("k", "Str")),
        (Holds("k", "x"), said.format("k", "Str")),
        (Compare("other", "$gt", 1), said.format("other", "Int")),
        (Every((Some((Compare("k", "$eq", "x"),)),)), said.format("k", "Str")),
        (Compare("#document", "$eq", "x"), said.format("#document", "Str")),
        (Matches("$contains", "x"), "Cannot filter using full-text search because FTS indexing is disabled"),
    ]:
        with pytest.raises(Refused) as caught:
            clauses.clause(where, closed, trgm=False)
        assert (caught.value.status, caught.value.message) == (400, message)
    for fine in (
        *(Compare("k", "$eq", 1.5), Compare("i", "$gt", 1), Compare("k", "$eq", True)),
        Compare("#document", "$ne", 1.5),  # that no document is, as stock knows
    ):
        assert clauses.clause(fine, closed, trgm=False)


def test_values_are_parameters(pool: Pool) -> None:
    """Nothing that a caller says is in the SQL."""
    held = Records(pool, "parameters").held
    evil = "evil'; --"
    every: Mapping[str, Any] = {
        "$or": [
            {evil: evil},
            {evil: {"$in": [evil, "x"]}},
            {evil: {"$contains": evil}},
            {evil: {"$gt": 1}},
            {"#document": {"$contains": evil}},
            {"#document": {"$regex": evil}},
        ]
    }
    assert "evil" not in clauses.clause(read_where(every), held, trgm=False)[0]
    assert "evil" not in clauses.clause(Named((evil,)), held, trgm=True)[0]
