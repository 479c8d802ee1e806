"""Calls and bodies that hypothesis makes up for the twins: most of them well-formed, the others wrong in every way.

``DIFFERENTIAL_EXAMPLES`` (10) is how many sequences of calls it tries, and a tenth of how many bodies.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from server.twins import Call

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "10"))
several = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # What a server answers depends on what it was asked before: a failure is shown as it came, not made smaller.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

TEXTS = st.one_of(
    st.sampled_from(["", "apple pie", "Äpfel\x00 und\nBirnen", "100% _sure_", "𝔘nicode \u202e"]), st.text()
)
NAMES = st.sampled_from(["one", "two", "three"])
HOSTILE = st.sampled_from([
    "a/b", "../one", "a", "", "one two", "one%2ftwo", "one?x=1", "one#two", "ünïcödé", "a..b", "127.0.0.1", "a" * 513,
    "one\x00", "one\r\nx: y", "by-id", "%00", "+", "one;two", "topo+one", "a" * 3000,
])  # fmt: skip
IDS = st.lists(st.one_of(st.sampled_from([f"i{n}" for n in range(8)]), TEXTS), min_size=1, max_size=5)
NO_IDS = st.lists(st.sampled_from([f"i{n}" for n in range(8)]), max_size=4)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    TEXTS,
    st.sampled_from([0, 1, 1.0, 1.5]),
)
VALUES = st.one_of(
    SCALARS,
    st.none(),
    st.lists(st.integers(-3, 3), max_size=3),
    st.lists(st.sampled_from(["a", "b", ""]), max_size=3),
    st.lists(st.sampled_from([1, 1.5, True, "a", None]), max_size=3),
)
KEYS = st.one_of(st.sampled_from(["k", "n", "ü", "#x", "$y", "chroma:z"]), st.text(max_size=5))
METADATA = st.one_of(st.none(), st.dictionaries(KEYS, VALUES, max_size=4))
# Of a collection: no arrays, over which a handler of Chroma panics (see below).
OF_COLLECTION = st.one_of(st.none(), st.dictionaries(KEYS, st.one_of(SCALARS, st.none()), max_size=3))
# Powers of two: no two distances between different vectors are equal, and all are exact.
VECTORS = st.integers(0, 10).map(lambda n: [2.0**n, 1.0, -1.0])
ANY_VECTORS = st.one_of(VECTORS, VECTORS, VECTORS, st.sampled_from([[1.0], [], [0.0] * 4, [float("nan"), 1, 1], ["x"]]))
OPERATORS = st.sampled_from(
    [
        "$eq",
        "$ne",
        "$gt",
        "$gte",
        "$lt",
        "$lte",
        "$in",
        "$nin",
        "$contains",
        "$not_contains",
        "$regex",
        "$like",
        "$not",
        "eq",
    ]
)
GOOD_WHERE = st.one_of(
    st.builds(
        lambda k, o, v: {k: {o: v}},
        st.sampled_from(["k", "n"]),
        st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$contains", "$not_contains"]),
        st.sampled_from([0, 1, 1.5, "a", "b\x00", True]),
    ),
    st.builds(lambda o, v: {"k": {o: v}}, st.sampled_from(["$in", "$nin"]), st.sampled_from([[1, 2], ["a"], [1.5, 1]])),
    st.builds(lambda o, v: {o: [{"k": 1}, {"n": v}]}, st.sampled_from(["$and", "$or"]), st.sampled_from([1, "a", 1.5])),
)
WHERE = st.recursive(
    st.one_of(
        st.dictionaries(KEYS, SCALARS, max_size=2),
        st.builds(lambda k, o, v: {k: {o: v}}, KEYS, OPERATORS, VALUES),
        st.sampled_from([{}, {"#document": {"$contains": "apple"}}, {"#id": "i1"}]),
    ),
    lambda inner: st.builds(lambda o, v: {o: v}, st.sampled_from(["$and", "$or", "$not"]), st.lists(inner, max_size=3)),
    max_leaves=4,
)
PATTERNS = st.one_of(st.sampled_from(["", "apple", "(?i)APPLE", "a.*e", "(?=x)", "[", "%", "_", "\x00"]), TEXTS)
DOCUMENT = st.recursive(
    st.builds(
        lambda o, v: {o: v},
        st.sampled_from(["$contains", "$not_contains", "$regex", "$not_regex", "$eq", "$matches"]),
        st.one_of(PATTERNS, PATTERNS, PATTERNS, st.just(3)),
    ),
    lambda inner: st.builds(lambda o, v: {o: v}, st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=3)),
    max_leaves=3,
)
INCLUDE = st.lists(
    st.sampled_from(["documents", "metadatas", "embeddings", "uris", "distances", "data", "else"]), max_size=4
)
LIMITS = st.sampled_from([None, 0, 1, 3, 100, -1, 2**31, 2**32 - 1, 2**32, 2**64])
CONFIGURATION = st.sampled_from([
    None, {"hnsw": {"space": "cosine"}}, {"hnsw": {"space": "ip", "ef_search": 10}}, {"hnsw": {"space": "odd"}},
    {"hnsw": {"unknown": 1}}, {"spann": {"space": "l2"}}, {"hnsw": {"sync_threshold": 3, "batch_size": 2}},
    {"hnsw": {"sync_threshold": 2, "batch_size": 3}}, {"hnsw": {"max_neighbors": -1}},
])  # fmt: skip


def some(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these arguments, or not."""
    return st.fixed_dictionaries({}, optional=fields)


def call(on: Any, method: str, **needed: Any) -> st.SearchStrategy[Call]:
    more = needed.pop("more", st.just({}))
    on = st.just(on) if isinstance(on, str) else on
    return st.builds(lambda o, a, b: Call(o, method, {**a, **b}), on, st.fixed_dictionaries(needed), more)


GOOD = st.dictionaries(
    st.sampled_from(["k", "n", "ü"]),
    st.one_of(
        st.integers(-3, 3), st.sampled_from([1.5, "a", "b\x00", True, 2.0, ["a", "b"], [1, 2], [1.5], [True], 10**18])
    ),
    min_size=1,
)
COLUMNS = {
    True: {"embeddings": VECTORS, "documents": TEXTS, "metadatas": GOOD, "uris": st.sampled_from(["u", "ü"])},
    False: {"embeddings": ANY_VECTORS, "documents": TEXTS, "metadatas": METADATA, "uris": st.sampled_from(["u", ""])},
}
# No documents without vectors: the client would fetch a model to make them.
PRESENT = st.sampled_from(
    [["embeddings"], ["embeddings", "documents", "metadatas"], [*COLUMNS[True]], ["metadatas"], []]
)


@st.composite
def writes(draw: st.DrawFn) -> Call:
    """Three of four are well-formed."""
    well = draw(st.integers(0, 3)) < 3
    ids = draw(st.lists(st.sampled_from([f"i{n}" for n in range(9)] + ["Ä\x00", "x" * 3000]), min_size=1, unique=True))
    ids = ids if well else draw(IDS)
    count = len(ids) + (0 if well else draw(st.integers(0, 1)))
    method = draw(st.sampled_from(["add", "upsert", "update"]))
    present = (
        draw(PRESENT) if method == "update" or not well else draw(st.sampled_from([["embeddings"], [*COLUMNS[True]]]))
    )
    columns = {name: draw(st.lists(COLUMNS[well][name], min_size=count, max_size=count)) for name in present}
    return Call(draw(NAMES), method, {"ids": ids, **columns})


FINDING = {"where": WHERE, "where_document": DOCUMENT, "include": INCLUDE}
RECORDS = st.one_of(
    writes(),
    writes(),
    writes(),
    call(NAMES, "get", more=some(ids=NO_IDS, limit=LIMITS, offset=LIMITS, **FINDING)),
    call(NAMES, "get", more=some(where=GOOD_WHERE)),
    call(NAMES, "get", include=st.just(["embeddings", "documents", "metadatas", "uris"])),
    call(NAMES, "get", more=some(where_document=DOCUMENT)),
    call(
        NAMES,
        "query",
        query_embeddings=st.lists(VECTORS, min_size=1, max_size=2),
        more=some(n_results=LIMITS, **FINDING),
    ),
    call(NAMES, "query", query_embeddings=st.lists(ANY_VECTORS, max_size=2), more=some(ids=NO_IDS)),
    call(NAMES, "delete", more=some(ids=NO_IDS, where=WHERE, where_document=DOCUMENT)),
    call(NAMES, "peek", more=some(limit=LIMITS)),
    call(NAMES, "count"),
)
ANY_NAME = st.one_of(NAMES, NAMES, NAMES, HOSTILE)
NO_FUNCTION = st.none()
COLLECTIONS = st.one_of(
    call(
        "client",
        "create_collection",
        name=ANY_NAME,
        embedding_function=NO_FUNCTION,
        more=some(metadata=OF_COLLECTION, configuration=CONFIGURATION, get_or_create=st.booleans()),
    ),
    call("client", "get_or_create_collection", name=NAMES, embedding_function=NO_FUNCTION),
    call("client", "get_collection", name=ANY_NAME, embedding_function=NO_FUNCTION),
    call("client", "delete_collection", name=ANY_NAME),
    call("client", "list_collections"),
    call("client", "count_collections"),
    call(NAMES, "modify", more=some(name=ANY_NAME, metadata=OF_COLLECTION, configuration=CONFIGURATION)),
    call(NAMES, "fork", new_name=NAMES),
    call("client", "get_version"),
    call("client", "get_max_batch_size"),
    call("client", "reset"),
)
WHERES = st.sampled_from(["default_tenant", "other", "nowhere", "x", "ünï/c", "..", "a" * 3000])
ADMIN = st.one_of(
    call("admin", "create_tenant", name=WHERES),
    call("admin", "get_tenant", name=WHERES),
    call("admin", "create_database", name=WHERES, tenant=WHERES),
    call("admin", "get_database", name=WHERES, tenant=WHERES),
    call("admin", "delete_database", name=st.sampled_from(["other", "nowhere", "x", ".."]), tenant=WHERES),
    call("admin", "list_databases", more=some(limit=LIMITS, offset=LIMITS, tenant=WHERES)),
    call("client", "set_tenant", tenant=WHERES, database=WHERES),
)
SEQUENCES = st.lists(st.one_of(RECORDS, RECORDS, RECORDS, COLLECTIONS, ADMIN), min_size=15, max_size=30)
OPENED = [Call("client", "get_or_create_collection", {"name": n, "embedding_function": None}) for n in ("one", "two")]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
