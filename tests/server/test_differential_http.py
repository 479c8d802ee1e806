"""The door by plain HTTP beside a stock server: every route, right and wrong bodies; all of the answers compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.made_up import DOCUMENT, EXAMPLES, JSON, WHERE, several
from server.twins import DROPPED, Sender

LIMIT = 40 << 20  # bytes of a body, Chroma's own
D = "/api/v2/tenants/default_tenant/databases/default_database"
C = f"{D}/collections/{{c}}"
NONE = "00000000-0000-0000-0000-000000000000"  # the id of no collection
GOOD_BODIES: dict[str, Any] = {
    f"{C}/add": {
        "ids": ["r1", "r2"],
        "embeddings": [[1, 2], [3, 4]],
        "documents": ["a", None],
        "metadatas": [{"k": 1}, None],
    },
    f"{C}/upsert": {"ids": ["r2"], "embeddings": [[5, 6]], "uris": ["u"]},
    f"{C}/update": {"ids": ["r1"], "metadatas": [{"k": None, "a": ["x", "y"]}]},
    f"{C}/get": {"ids": ["r1"], "include": ["documents", "metadatas", "embeddings", "uris"], "limit": 3, "offset": 0},
    f"{C}/query": {"query_embeddings": [[1, 2]], "n_results": 2, "where": {"k": {"$gte": 0}}, "include": ["distances"]},
    f"{C}/search": {"searches": [{"rank": {"$knn": {"query": [1, 2]}}, "select": {"keys": ["#score"]}}]},
    f"{C}/delete": {"ids": ["r2"], "where": {"k": 1}, "where_document": {"$contains": "a"}},
    f"{C}/fork": {"new_name": "forked"},
    f"{C}/functions/attach": {"name": "f", "function_id": "g", "output_collection": "o", "params": {}},
    f"{C}/attached_functions/f/detach": {"delete_output": False},
    f"{D}/collections": {"name": "raw", "get_or_create": True, "metadata": {"a": 1}, "configuration": {"hnsw": {}}},
    "/api/v2/tenants": {"name": "plain-tenant"},
    "/api/v2/tenants/plain-tenant/databases": {"name": "plain-database"},
    "/api/v2/reset": None,
}
BODIES: list[bytes | None] = [
    None,
    b"",
    b"\xff\xfe",
    b"[" * 200,
    *rb"""{}
null
[]
{
{"a":1}
{"ids":[],"embeddings":[]}
{"x":-
{"x":[1.
{"x":{"y":1e
{"limit":-
{"include":[{"a":1e+
{"ids":["a"]}
{"ids":"a","embeddings":[[1,2]]}
{"ids":[""],"embeddings":[[1,2]]}
{"ids":["a"],"embeddings":[[1,2,3]]}
{"ids":["a"],"embeddings":["AACAPwAAAEA="]}
{"ids":["a"],"embeddings":["AACAPw=="]}
{"ids":["a"],"embeddings":["?"]}
{"ids":["a"],"embeddings":["?"],"metadatas":""}
{"ids":["a"],"embeddings":[[1,null]]}
{"ids":["a"],"embeddings":[[1e39,0]]}
{"ids":["a"],"embeddings":[[NaN,0]]}
{"ids":["a","b"],"embeddings":[[1,2]]}
{"ids":["a"],"embeddings":[[1,2]],"metadatas":[{"#x":1}]}
{"ids":["a"],"embeddings":[[1,2]],"metadatas":[{"x":{"y":1}}]}
{"ids":["a"],"embeddings":[[1,2]],"documents":["\ud800"]}
{"ids":["\u0000"],"embeddings":[[1,2]],"documents":["\u0000"]}
{"ids":["a"],"embeddings":[[1,2]],"ids":["b"]}
{"name":"x"}
{"name":"a..b"}
{"name":1}
{"new_name":"x"}
{"new_configuration":{"hnsw":{"space":"ip"}}}
{"limit":-1}
{"limit":4294967296}
{"limit":1}
{"where":{}}
{"where":{"$not":1}}
{"where":{"$or":[]}}
{"where":{"#document":1}}
{"where":{"#document":{"$contains":1}}}
{"where_document":{"$regex":"("}}
{"where_document":{"$contains":1}}
{"include":["all"]}
{"query_embeddings":[[1,2,3]]}
{"query_embeddings":[]}
{"query_embeddings":[[1,2]],"n_results":0}
{"query_embeddings":[[1,2]],"n_results":4294967295}
{"query_embeddings":[[1,2]],"ids":["unknown"]}""".splitlines(),
]
READS = [
    *"""/
//api/v2
/api/v1/collections
/api/v1/heartbeat
/api/v2
/api/v2?a=%zz&b
/api/v2/auth/identity
/api/v2/collections/x
/api/v2/healthcheck
/api/v2/heartbeat
/api/v2/nothing
/api/v2/pre-flight-checks
/api/v2/tenants/default_tenant
/api/v2/tenants/default_tenant/databases?limit=1&offset=0
/api/v2/tenants/default_tenant/databases?limit=x
/api/v2/tenants/nobody
/api/v2/tenants/x/databases/y
/api/v2/version
/docs
/docs/
/openapi.json""".splitlines(),
    "/api/v2/heartbeat?" + "x" * 4000,
    D,
    *(f"{D}{rest}" for rest in ("?tenant=x", "/../collections", "/collections_count", "/nothing")),
    *(f"{D}/collections{rest}" for rest in ("?limit=1000", "?limit=-1", "?offset=99", "?limit=1&limit=2")),
    *(
        f"{D}/collections/{name}"
        for name in ("raw", "r%61w", "nothing", "%00", "%ff", "by-id/{c}", f"by-id/{NONE}", "by-id/x")
    ),
    C,
    *(f"{C}/count{rest}" for rest in ("", "?read_level=index_only", "?read_level=x", "/", "?")),
    *(f"{C}/{rest}" for rest in ("indexing_status", "fork_count", "functions/f", "co%75nt", "/count", "../x/count")),
    f"{D}/collections/not-a-uuid/count",
]


@pytest.fixture(scope="module")
def senders(ports: tuple[int, int]) -> Iterator[tuple[Sender, Sender]]:
    """To both servers, each with a collection of two dimensions."""
    made = tuple(Sender(port) for port in ports)
    for sender in made:
        sender.collection = sender.create(f"{D}/collections", {"name": "raw"})
        sender.ask("POST", f"{C}/add", json.dumps(GOOD_BODIES[f"{C}/add"]).encode())
    yield made[0], made[1]
    for sender in made:
        sender.close()


def alike(senders: tuple[Sender, Sender], *request: Any) -> Any:
    """The answer that both gave."""
    stock, ours = (sender.ask(*request) for sender in senders)
    assert ours == stock, f"{request!r:.500}: {stock!r:.1000} of the stock server, {ours!r:.1000} through the door"
    return stock


@pytest.mark.parametrize("target", READS)
def test_every_reading_route_answers_the_same(senders: tuple[Sender, Sender], target: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "PATCH"):
        alike(senders, method, target)


@pytest.mark.parametrize("target", GOOD_BODIES)
def test_every_writing_route_answers_the_same(senders: tuple[Sender, Sender], target: str) -> None:
    """To the right body, to wrong ones, to other methods, types and collections."""
    good = json.dumps(GOOD_BODIES[target]).encode()
    for body in (good, *BODIES):
        alike(senders, "POST", target, body)
    for kind in (None, "text/plain", "application/json; charset=utf-8", "multipart/form-data"):
        alike(senders, "POST", target, good, kind)
    for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        if not (method == "DELETE" and target.endswith("/collections")):
            alike(senders, method, target, good)
    for id in (NONE, "x", "%00", ""):
        alike(senders, "POST", target.replace("{c}", id), good)


def test_changing_and_deleting_answer_the_same(senders: tuple[Sender, Sender]) -> None:
    for body in (b'{"new_name":"renamed"}', b'{"new_metadata":{"b":2.0}}', b'{"new_name":"raw"}', *BODIES):
        alike(senders, "PUT", C, body)
    for name in ("nothing", "%2e%2e", "raw%00", "a" * 600):
        assert alike(senders, "DELETE", f"{D}/collections/{name}")[0] == 404
    alike(senders, "POST", f"{D}/collections", b'{"name":"short-lived"}')
    assert [alike(senders, "DELETE", f"{D}/collections/short-lived")[0] for _ in range(2)] == [200, 404]
    alike(senders, "DELETE", "/api/v2/tenants/plain-tenant/databases/plain-database")
    alike(senders, "DELETE", "/api/v2/tenants/plain-tenant")
    assert alike(senders, "POST", f"{C}/count")[0] == 405


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, LIMIT + 5_000_000])
def test_bodies_about_chromas_limit(senders: tuple[Sender, Sender], size: int) -> None:
    """A stock server may cut the connection of a client that still sends; the door's client always reads 413."""
    start, end = b'{"ids":[],"embeddings":[],"unknown":"', b'"}'
    request = "POST", f"{C}/add", start + b"x" * (size - len(start) - len(end)) + end
    stock, ours = (sender.ask(*request) for sender in senders)
    assert ours[0] == (413 if size > LIMIT else 201)  # type: ignore[index]
    assert stock == ours or (stock == DROPPED and size > LIMIT)


@pytest.mark.parametrize(
    "request_",
    [("GET", "/api/v2/collections/a:b:c"), ("POST", f"{D}/collections", b'{"name":"array","metadata":{"a":[1]}}')],
)
def test_where_stock_ends_the_connection_the_door_says_so(senders: tuple[Sender, Sender], request_: Any) -> None:
    """The one difference: a handler that panics drops its client; the door's gets 502, and may go on."""
    assert alike(senders, *request_) == DROPPED


RECORD_ROUTES = [target for target in GOOD_BODIES if target.startswith(C)]


@st.composite
def near_misses(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good body with some of its fields replaced, dropped, or in two places; cut off now and then."""
    target = draw(st.sampled_from(RECORD_ROUTES))
    body = dict(draw(st.sampled_from([GOOD_BODIES[target], GOOD_BODIES[draw(st.sampled_from(RECORD_ROUTES))]])))
    for field in draw(
        st.lists(st.sampled_from([*body, "ids", "where", "where_document", "limit", "include"]), max_size=2)
    ):
        body[field] = draw(st.one_of(JSON, st.lists(JSON, max_size=2), WHERE, DOCUMENT))
    if draw(st.booleans()):
        body.pop(draw(st.sampled_from(sorted(body))))
    text = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return target, text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) > 8 else text


def test_bodies_that_nobody_thought_of_answer_the_same(senders: tuple[Sender, Sender]) -> None:
    statuses = set()

    @settings(several, max_examples=EXAMPLES * 10)
    @given(made=near_misses())
    @example(made=(f"{C}/get", b'{"limit":'))  # of 100 that are drawn three may be 400, or none
    def go(made: tuple[str, bytes]) -> None:
        statuses.add(alike(senders, "POST", *made)[0])

    go()
    assert {200, 400, 422} <= statuses
