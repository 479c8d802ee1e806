"""Conditions: they choose what Chroma itself chooses, but for the differences that ``conditions`` tells of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.batches import batch, encode
from chromakeep.conditions import Where
from chromakeep.errors import UsageError
from chromakeep.filters import DEPTH

often = settings(deadline=None, max_examples=200)

KEYS = st.sampled_from(["a", "b", "ä.b", "-1"])
SCALAR = st.sampled_from(["", "x", "X", "1", 0, 1, 2, -1, (1 << 53) + 1, 0.0, 1.0, 1.5, float(1 << 53), True, False])
LISTS = st.sampled_from([[1, 2], [1], [1.0, 2.0], ["x", "1"], ["x"], [""], [True], [True, False], [0.0]])
METADATA = st.none() | st.dictionaries(KEYS, SCALAR | LISTS, max_size=4)
NUMBER = SCALAR.filter(lambda value: type(value) in (int, float))
OF_ONE_KIND = st.lists(SCALAR, min_size=1, max_size=4).filter(lambda items: len({type(item) for item in items}) == 1)

PLAIN = st.one_of(
    st.builds(lambda key, value: {key: value}, KEYS, SCALAR),
    st.builds(
        lambda key, operator, value: {key: {operator: value}},
        KEYS,
        st.sampled_from(["$eq", "$ne", "$contains", "$not_contains"]),
        SCALAR,
    ),
    st.builds(
        lambda key, operator, value: {key: {operator: value}},
        KEYS,
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        NUMBER,
    ),
    st.builds(
        lambda key, operator, value: {key: {operator: value}}, KEYS, st.sampled_from(["$in", "$nin"]), OF_ONE_KIND
    ),
)
CLAUSE = st.recursive(
    PLAIN,
    lambda inner: st.builds(
        lambda key, parts: {key: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=3)
    ),
    max_leaves=6,
)


def naive(clause: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """What a clause means, as Chroma's documentation has it."""
    ((key, value),) = clause.items()
    if key == "$and":
        return False not in [naive(part, metadata) for part in value]
    if key == "$or":
        return True in [naive(part, metadata) for part in value]
    ((operator, operand),) = value.items() if isinstance(value, dict) else [("$eq", value)]
    for positive, negative in (("$eq", "$ne"), ("$in", "$nin"), ("$contains", "$not_contains")):
        if operator == negative:
            return not naive({key: {positive: operand}}, metadata)
    there = metadata.get(key)
    if there is None:
        return False
    if operator == "$contains":
        return isinstance(there, list) and repr(operand) in [repr(item) for item in there]
    if isinstance(there, list):
        return False
    wanted = operand if operator == "$in" else [operand]
    pairs = [(there, one) for one in wanted if kind(one) == kind(there)]
    return any(
        {
            "$eq": one == other,
            "$in": one == other,
            "$gt": kind(one) == "number" and one > other,
            "$gte": kind(one) == "number" and one >= other,
            "$lt": kind(one) == "number" and one < other,
            "$lte": kind(one) == "number" and one <= other,
        }[operator]
        for one, other in pairs
    )


def kind(value: Any) -> str:
    """Integers and floats are of one kind, true and false of another."""
    return "number" if type(value) in (int, float) else type(value).__name__


@often
@given(CLAUSE, st.lists(METADATA, max_size=8))
def test_a_condition_chooses_what_it_says(clause: dict[str, Any], metadatas: list[dict[str, Any] | None]) -> None:
    """Of records with text, numbers, true, false, lists and no such key; in order, from a batch or one by one."""
    where = Where(json.dumps(clause))
    wanted = [n for n, metadata in enumerate(metadatas) if naive(clause, metadata or {})]
    assert [n for n, metadata in enumerate(metadatas) if where.matches(metadata)] == wanted
    ids = [str(n) for n in range(len(metadatas))]
    nothing = [None] * len(ids)
    records = batch(ids, [[1.0]] * len(ids), nothing, nothing, [encode(metadata) for metadata in metadatas], 1)
    chosen = where.select(records)
    assert chosen.schema.equals(records.schema)
    assert chosen.column("id").to_pylist() == [str(n) for n in wanted]


RECORDS: list[dict[str, Any] | None] = [
    None,
    *[{"a": value} for value in (1, 1.0, True, "1", 2, 2.5, "x", False, 0, 0.0, -3, "", "X", "%", "x y", "1.0")],
    *[{"a": value} for value in (1 << 62, float(1 << 62), (1 << 53) + 1, float(1 << 53), (1 << 63) - 1, -(1 << 63))],
    *[{"a": value} for value in ([1, 2], [1.0, 2.0], ["1", "x"], [True], [False, True], [""], ["x y"], [1 << 62])],
    {"b": 1},
    {"a": 1, "b": "x"},
    {"a": "x", "b": 2.5, "c": True},
    {"ä\"'": "ö", "a.b": 1, "a b": 2},
]

CLAUSES: list[dict[str, Any]] = [
    *[{"a": value} for value in (1, 1.0, True, False, "1", "x", "", 2.5 - 0.5, -3, 1 << 62, float(1 << 62), 1 << 53)],
    *[{"a": {"$eq": value}} for value in (0, 2, "X", "%", "1.0", (1 << 63) - 1, -(1 << 63))],
    *[{"a": {"$ne": value}} for value in (1, 1.0, "x", True, "", 7)],
    *[{"a": {operator: value}} for operator in ("$gt", "$gte", "$lt", "$lte") for value in (1, 1.0, 0, -3, 1 << 62)],
    *[{"a": {operator: value}} for operator in ("$gt", "$lte") for value in (2.5, 1e300)],
    *[{"a": {"$in": value}} for value in ([1, 2], ["1", "x"], [True], [True, False], [1.0, 2.0], [""], [7])],
    *[{"a": {"$nin": value}} for value in ([1, 2], ["1", "x"], [False], [2.0], [7])],
    *[{"a": {"$contains": value}} for value in (1, 1.0, "x", "1", "", True, 1 << 62, 7, "y")],
    *[{"a": {"$not_contains": value}} for value in (1, 1.0, "x", "1", True, 7)],
    *[{key: value} for key, value in (("ä\"'", "ö"), ("a.b", 1), ("a b", 2), ("absent", 1), ("", 1), ("#id", "0"))],
    {"absent": {"$ne": 1}},
    {"$and": [{"a": 1}, {"b": "x"}]},
    {"$or": [{"a": 1}, {"b": 1}, {"c": True}]},
    {"$and": [{"$or": [{"a": 1}, {"a": "x"}]}, {"b": {"$ne": "x"}}]},
    {"$or": [{"$and": [{"a": {"$gte": 1}}, {"a": {"$lt": 2}}]}, {"a": {"$nin": [1, 2]}}]},
]

# Chroma compares an integer with the whole part of a float, cut to 64 bits: what it finds beside, and what it misses
ROUNDED: list[tuple[dict[str, Any], list[int], list[int]]] = [
    ({"a": {"$eq": 1.5}}, [1], []),
    ({"a": {"$in": [2.5]}}, [2], []),
    ({"a": {"$gte": 2.5}}, [2], []),
    ({"a": {"$lt": 2.5}}, [], [2]),
    ({"a": {"$gt": -3.5}}, [], [-3]),
    ({"a": {"$ne": 1.5}}, [], [1]),
    ({"a": {"$gt": -1e300}}, [], [-(1 << 63)]),
]

REFUSED: list[dict[str, Any]] = [
    *[{"a": value} for value in (None, [1], {}, {"$eq": [1]}, {"$eq": None}, {"$eq": 1, "$ne": 2}, {"$not": 1})],
    *[{"a": {"$gt": value}} for value in ("x", True, None, [1])],
    *[{"a": {"$in": value}} for value in ([], 1, [None], [[1]], [1, "x"], [1, True], [True, 1], ["x", 1], [1, 1.5])],
    *[{"a": {"$nin": value}} for value in ([], [1, "x"])],
    *[{"a": {"$contains": value}} for value in ([1], None)],
    *[{"$and": value} for value in ({"a": 1}, [[], []], [{}, {}], [{"a": 1}, {"a": 1, "b": 1}], "a")],
    *[{"$not": {"a": 1}}, {"$x": 1}, {"a": 1, "b": 1}, {"a": {"$regex": "x"}}, {"#document": "x"}],
]


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A collection of the installed Chroma with ``RECORDS``; its ids are their numbers."""
    import chromadb
    from chromadb.config import Settings

    folder: Path = tmp_path_factory.mktemp("conditions")
    client = chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
    collection = client.create_collection("conditions", embedding_function=None)
    metadatas: Any = RECORDS
    collection.add(ids=[str(n) for n in range(len(RECORDS))], embeddings=[[1.0]] * len(RECORDS), metadatas=metadatas)
    assert collection.get(include=["metadatas"])["metadatas"] == RECORDS
    yield collection
    client.close()


@pytest.mark.parametrize("clause", CLAUSES, ids=json.dumps)
def test_chroma_chooses_the_same(chroma: Any, clause: dict[str, Any]) -> None:
    """The installed Chroma, asked with the same condition, gives the same records."""
    where = Where(json.dumps(clause))
    mine = [n for n, metadata in enumerate(RECORDS) if where.matches(metadata)]
    assert mine == sorted(int(id_) for id_ in chroma.get(where=clause, include=[])["ids"])


@pytest.mark.parametrize(("clause", "more", "less"), ROUNDED, ids=str)
def test_chroma_cuts_a_float_to_compare_it_with_an_integer(
    chroma: Any, clause: dict[str, Any], more: list[int], less: list[int]
) -> None:
    """The one difference in what is found: here numbers are compared as numbers."""
    where = Where(json.dumps(clause))
    mine = {n for n, metadata in enumerate(RECORDS) if where.matches(metadata)}
    theirs = {int(id_) for id_ in chroma.get(where=clause, include=[])["ids"]}

    def integers(found: set[int]) -> set[int]:
        return {(RECORDS[n] or {})["a"] for n in found}

    assert (integers(theirs - mine), integers(mine - theirs)) == (set(more), set(less))


@pytest.mark.parametrize("clause", REFUSED, ids=json.dumps)
def test_what_chroma_refuses_is_refused(chroma: Any, clause: dict[str, Any]) -> None:
    """By the client or by the server, and here, before any record is read."""
    with pytest.raises(UsageError):
        Where(json.dumps(clause))
    with pytest.raises(Exception, match=r"(?i)where|operand|operator|metadata key"):
        chroma.get(where=clause)


@pytest.mark.parametrize("key", ["#document", "chroma:document", "chroma:uri"])
def test_only_metadata_can_be_asked_for(key: str) -> None:
    """A condition on what is not in ``metadata`` would be false of every record, so it is refused."""
    with pytest.raises(UsageError, match="no metadata"):
        Where(json.dumps({"$and": [{key: {"$contains": "x"}}]}))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"a"', '{"a":NaN}', '{"a":1}x', "{'a': 1}", "{}", "[" * 99_999]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    """Also JSON of another kind, or nothing at all."""
    with pytest.raises(UsageError):
        Where(text)


def test_nesting_has_an_end() -> None:
    """A condition of ``DEPTH`` levels is one, a deeper one is refused and not run into the interpreter's limit."""

    def nested(levels: int) -> str:
        return '{"$and":[' * levels + '{"a":1}' + "]}" * levels

    assert Where(nested(DEPTH)).matches({"a": 1})
    for levels in (DEPTH + 1, 10_000):
        with pytest.raises(UsageError):
            Where(nested(levels))


def test_an_empty_combination_is_what_logic_says() -> None:
    """All of nothing is true, any of nothing is false."""
    assert Where('{"$and": []}').matches(None)
    assert not Where('{"$or": []}').matches({"a": 1})
