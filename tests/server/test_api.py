"""Chroma's API over an engine: what needs no stock server beside it to be judged."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from chromadb.execution.expression import K, Knn, Search

from chromakeep.engine import Engine, Indexed, Refused, Target
from chromakeep.server import Door
from chromakeep.server.api import LARGEST, answer
from chromakeep.server.api.configuration import is_cmek
from chromakeep.server.api.names import fault_of_name
from chromakeep.server.api.records import added, fault_of_base64, updated
from server.memory_engine import MemoryEngine

D = "/api/v2/tenants/default_tenant/databases/default_database"
NONE = f"{D}/collections/00000000-0000-0000-0000-000000000000"


def made(engine: Engine, **more: Any) -> str:
    """The path of a new collection."""
    page = answer(
        engine, "POST", f"{D}/collections", json.dumps({"name": "raw", "get_or_create": True} | more).encode()
    )
    assert page.status == 200, page.body
    return f"{D}/collections/{json.loads(page.body)['id']}"


def ask(engine: Engine, method: str, target: str, body: object = None) -> tuple[int, Any]:
    page = answer(engine, method, target, b"" if body is None else json.dumps(body).encode())
    return page.status, json.loads(page.body) if page.body else None


def test_a_failing_engine_is_told_of_and_nothing_is_raised() -> None:
    class Failing(MemoryEngine):
        def count(self, target: Target) -> int:
            raise RuntimeError("the password is ...")

        def indexing_status(self, target: Target) -> Indexed:
            raise Refused(503, "no connection is free", retry_after=1.0)

        def ready(self) -> bool:
            return False

    page = answer(Failing(), "GET", f"{NONE}/count", b"")
    assert page.status == 500 and b"password" not in page.body
    page = answer(Failing(), "GET", f"{NONE}/indexing_status", b"")
    assert (page.status, page.retry_after, json.loads(page.body)["error"]) == (503, 1.0, "ChromaError")
    assert ask(Failing(), "GET", "/api/v2/healthcheck")[0] == 503


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"where":' + b'{"$and":[' * 50_000,
        b'{"where":' + b'{"$and":[' * 100 + b"1" + b"]}" * 100 + b"}",
        b'{"ids":["' + b"x" * 1_000_000 + b'",1]}',
        b"\xff" * 100_000,
        b'{"where_document":{"$and":' + b"[" * 5000 + b"]" * 5000 + b"}}",
        b'{"limit":1' + b"0" * 100_000 + b"}",
    ],
)
def test_hostile_bodies_are_refused(body: bytes) -> None:
    engine = MemoryEngine()
    path = made(engine)
    for call in ("get", "query", "delete", "add", "search"):
        assert answer(engine, "POST", f"{path}/{call}", body).status in (400, 422)
    assert answer(engine, "POST", f"{D}/collections", body).status in (400, 422)


def test_names_of_a_customers_key_are_those_that_an_expression_says() -> None:
    said = re.compile(r"projects/.+/locations/.+/keyRings/.+/cryptoKeys/.+")
    pieces = ("projects/", "/locations/", "/keyRings/", "/cryptoKeys/", "/", "a", "\n", "a/locations/b")
    chance = random.Random(1)

    def some(most: int) -> str:
        return "".join(chance.choices(pieces, k=chance.randrange(most)))

    names = [some(12) for _ in range(10_000)]
    names += [f"projects/{some(3)}/locations/{some(3)}/keyRings/a/cryptoKeys/{some(3)}" for _ in range(10_000)]
    assert [is_cmek(name) for name in names] == [bool(said.fullmatch(name)) for name in names]
    assert {is_cmek(name) for name in names} == {True, False}


def test_the_name_of_a_customers_key_is_read_in_one_pass() -> None:
    """An expression would be at it for years, and no other thread would run."""
    name = "projects/a" + "/locations/x" * 100_000 + "/keyRings/x" * 100_000
    schema = {"defaults": {}, "keys": {}, "cmek": {"gcp": name}}
    status, answered = ask(MemoryEngine(), "POST", f"{D}/collections", {"name": "abc", "schema": schema})
    assert status == 400 and "CMEK does not match expected pattern" in answered["message"]


@pytest.mark.parametrize("padding", ["", "x" * 70_000])  # what is larger is not read again to say where
@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("add", '"ids":["a"],"embeddings":[[1]],"documents":["ids"],"ids":["b"]'),
        ("upsert", '"ids":["a"],"embeddings":[[1]],"embeddings" : [[2]]'),
        ("update", '"metadatas":[{"ids":1}],"ids":["a"],"metadatas":null'),
        ("get", '"where":{"k":1},"where":{"k":2}'),
        ("query", '"query_embeddings":[[1]],"n_results":1,"n_results":2'),
        ("delete", '"ids":["a"],"ids":["b"]'),
        ("fork", '"new_name":"one","new_name":"two"'),
    ],
)
def test_a_member_that_stands_there_twice_is_refused(call: str, body: str, padding: str) -> None:
    """Stock knows no member that counts more than the other: which of two lists of ids would be deleted?"""
    engine = MemoryEngine()
    path = made(engine)
    page = answer(engine, "POST", f"{path}/{call}", f'{{"unknown":"{padding}",{body}}}'.encode())
    assert page.status == 422 and b"duplicate field `" in page.body


def test_a_number_that_is_ignored_may_be_of_any_length() -> None:
    long = "1" * 5000
    engine = MemoryEngine()
    path = made(engine)
    assert answer(engine, "POST", f"{path}/get", f'{{"limit":1,"unknown":{{"limit":{long}}}}}'.encode()).status == 200
    assert answer(engine, "POST", f"{D}/collections", f'{{"name":"long","unknown":{long}}}'.encode()).status == 200
    twice = f'{{"name":"twice","unknown":{long},"name":"twice"}}'.encode()
    assert answer(engine, "POST", f"{D}/collections", twice).status == 422


@pytest.mark.parametrize("padding", ["", "x" * 70_000])
@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("%s", "k"),
        ("[1,%s]", "k[1]"),
        ("[0.5,%s]", "k[1]"),
        ('{"#type":"sparse_vector","indices":[0],"values":[%s]}', "k.values[0]"),
    ],
)
@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_that_no_float_holds_is_no_json(value: str, place: str, sign: str, padding: str) -> None:
    """As Chroma's parser has it, and before what is wrong with an embedding; one of fewer digits is a float."""
    engine = MemoryEngine()
    path = made(engine)
    rest = f'"unknown":"{padding}","ids":["a"],"embeddings":["AACAfw=="]'
    for call in ("add", "upsert", "update"):
        body = f'{{"metadatas":[{{"k":{value % (sign + "9" * 310)}}}],{rest}}}'.encode()
        page = answer(engine, "POST", f"{path}/{call}", body)
        said = json.loads(page.body)["message"]
        assert page.status == 400 and f"{'' if padding else f'metadatas[0].{place}: '}number out of range" in said
    body = f'{{"ids":["a"],"embeddings":[[1]],"metadatas":[{{"k":{value % (sign + "9" * 308)}}}]}}'.encode()
    assert answer(engine, "POST", f"{path}/add", body).status == 201


def test_members_are_told_from_keys_of_metadata_and_texts() -> None:
    metadata = b'{"ids":1,"documents":"\\"ids\\":"}'
    body = b'{"ids":["a"],"documents":["\\"ids\\":"],"metadatas":[%b],"unknown":[{"ids":2}]}' % metadata
    assert updated(body).metadatas == [{"ids": 1, "documents": '"ids":'}]


def test_a_rank_as_deep_as_can_be_is_read_or_refused() -> None:
    for depth in (50, 120, 2000):
        rank = '{"$abs":' * depth + '{"$val":1}' + "}" * depth
        body = f'{{"searches":[{{"rank":{rank}}}]}}'.encode()
        assert answer(MemoryEngine(), "POST", f"{NONE}/search", body).status in (400, 404)


@pytest.mark.parametrize("operator", ["$and", "$or"])
def test_a_filter_of_too_many_conditions_is_refused(operator: str) -> None:
    """Some hundreds more end a stock server."""
    engine = MemoryEngine()
    path = made(engine)
    for conditions, status in ((4095, 200), (4096, 400), (40_000, 400)):
        assert ask(engine, "POST", f"{path}/get", {"where": {operator: [{"k": 1}] * conditions}})[0] == status


def test_a_body_over_the_limit() -> None:
    engine = MemoryEngine()
    path = made(engine)
    large = b" " * (LARGEST + 1)
    assert answer(engine, "POST", f"{path}/add", large).body == b"Payload too large"
    assert answer(engine, "POST", f"{path}/get", large).status == 413


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("AACAPw==", None),
        ("?", "Invalid symbol 63, offset 0."),
        ("AAAA?AA=", "Invalid symbol 63, offset 4."),
        ("x", "Invalid input length: 1"),
        ("AAAAAA=", "Invalid padding"),
        ("AAAAAA", "Invalid padding"),
    ],
)
def test_base64(text: str, fault: str | None) -> None:
    assert fault_of_base64(text) == fault
    body = json.dumps({"ids": ["a"], "embeddings": [text]}).encode()
    if fault is None:
        assert added(body).embeddings is not None
        return
    with pytest.raises(Refused, match="Invalid base64 string"):
        added(body)


def test_embeddings_are_the_floats_that_were_sent() -> None:
    """In base64 to the bit; as numbers to the nearest; an update's gaps are told."""
    rows = np.random.default_rng(0).normal(size=(50, 33)).astype(np.float32)
    ids = [str(i) for i in range(50)]
    coded = [base64.b64encode(row.tobytes()).decode() for row in rows]
    for sent in (coded, rows.tolist()):
        found = added(json.dumps({"ids": ids, "embeddings": sent}).encode()).embeddings
        assert found is not None and np.array_equal(found, rows)
    gaps: list[str | None] = [coded[0], None, coded[2]]
    records = updated(json.dumps({"ids": ["a", "b", "c"], "embeddings": gaps}).encode())
    assert records.given is not None and records.embeddings is not None
    assert records.given.tolist() == [True, False, True] and np.array_equal(records.embeddings[2], rows[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_endless_numbers_come_in(value: float) -> None:
    coded = base64.b64encode(np.array([1, value], np.float32).tobytes()).decode()
    with pytest.raises(Refused, match="Non-finite float value at embedding index 1"):
        added(json.dumps({"ids": ["a"], "embeddings": [coded]}).encode())


def test_metadata_keeps_its_types() -> None:
    engine = MemoryEngine()
    path = made(engine)
    metadata = {"i": 1, "f": 1.0, "b": True, "s": "x\x00", "a": [1, 2], "m": [1, 2.5], "big": 2**63, "none": []}
    assert ask(engine, "POST", f"{path}/add", {"ids": ["a"], "embeddings": [[1]], "metadatas": [metadata]})[0] == 201
    found = answer(engine, "POST", f"{path}/get", b"{}").body
    kept = json.loads(found)["metadatas"][0]
    assert repr(kept) == repr({
        "i": 1, "f": 1.0, "b": True, "s": "x\x00", "a": [1, 2], "m": [1.0, 2.5], "big": 9.223372036854775808e18,
    })  # fmt: skip


def test_sparse_vectors_are_records_metadata_and_not_collections() -> None:
    engine = MemoryEngine()
    path = made(engine)
    vector = {"#type": "sparse_vector", "indices": [1, 5], "values": [0.5, 1]}
    write = {"ids": ["a"], "embeddings": [[1]], "metadatas": [{"s": vector}]}
    assert ask(engine, "POST", f"{path}/add", write)[0] == 201
    assert ask(engine, "POST", f"{path}/get")[0] == 400
    assert ask(engine, "POST", f"{path}/get", {})[1]["metadatas"] == [{"s": vector | {"values": [0.5, 1.0]}}]
    write["metadatas"] = [{"s": vector | {"indices": [5, 1]}}]
    assert ask(engine, "POST", f"{path}/add", write) == (
        400, {"error": "InvalidArgumentError", "message": "Validation error: metadatas: Invalid metadata at index 0"},
    )  # fmt: skip
    assert ask(engine, "PUT", path, {"new_metadata": {"s": vector}})[0] == 422


def test_a_crn_finds_its_collection() -> None:
    engine = MemoryEngine()
    made(engine)
    assert ask(engine, "GET", "/api/v2/collections/default_tenant:default_database:raw")[1]["name"] == "raw"
    assert ask(engine, "GET", "/api/v2/collections/default_tenant:default_database:no")[0] == 404


def test_another_tenants_collection_is_not_there() -> None:
    engine = MemoryEngine()
    path = made(engine)
    ask(engine, "POST", "/api/v2/tenants", {"name": "other"})
    for foreign in (path.replace("default_tenant", "other"), path.replace("default_database", "other")):
        for call, body in (("get", {}), ("add", {"ids": ["a"], "embeddings": [[1]]}), ("delete", {"ids": ["a"]})):
            assert ask(engine, "POST", f"{foreign}/{call}", body)[0] == 404
        assert ask(engine, "PUT", foreign, {"new_name": "mine"})[0] == 404


def test_of_a_collection_that_is_not_there_that_is_told_first() -> None:
    """Before what is wrong with a request, but after what is wrong with its JSON."""
    engine = MemoryEngine()
    for method, path, body in (
        ("PUT", NONE, {"new_name": "x"}),
        ("POST", f"{NONE}/add", {"ids": [""], "embeddings": [[1]]}),
        ("POST", f"{NONE}/get", {"where": {}}),
        ("POST", f"{NONE}/query", {"query_embeddings": [[1], [1, 2]]}),
    ):
        assert ask(engine, method, path, body)[0] == 404
    assert answer(engine, "POST", f"{NONE}/get", b"{").status == 400


@pytest.mark.parametrize("name", ["abc", "a" * 512, "topo+name", "a.b", "1.2.3"])
def test_good_names(name: str) -> None:
    assert fault_of_name(name) is None


@pytest.mark.parametrize(
    "name", ["", "ab", "a" * 513, "a..b", "127.0.0.1", "ab\n", "abc\n", "äbc", "_ab", "a+b+c", "abc+", "topo+x"]
)
def test_bad_names(name: str) -> None:
    assert fault_of_name(name)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Any]:
    door = Door("127.0.0.1", 0, ("", 0), answering=partial(answer, engine))
    door.start()
    yield chromadb.HttpClient("127.0.0.1", door.port, settings=Settings(anonymized_telemetry=False))
    door.stop(0)


def test_chromadbs_client_searches_forks_and_asks_how_far_indexes_are(client: Any) -> None:
    """What a stock server of one node has not."""
    one = client.create_collection("searched", embedding_function=None)
    one.add(
        ids=["a", "b", "c"],
        embeddings=[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]],
        documents=["x", "y", "z"],
        metadatas=[{"k": 1}, {"k": 2}, {"k": 1, "s": "t"}],
    )
    found = one.search([
        Search().rank(Knn(query=[0.0, 0.0], limit=3)).where(K("k") == 1).select(K.DOCUMENT, K.SCORE, "k"),
        Search().rank({"$knn": {"query": [4.0, 0.0]}}).limit(1),
        Search().where(K.ID.is_in(["b"])).select(K.EMBEDDING),
    ])  # fmt: skip
    assert found["ids"] == [["a", "c"], ["c"], ["b"]]
    assert found["documents"] == [["x", "z"], None, None] and found["scores"] == [[1.0, 16.0], None, None]
    assert [one["k"] for one in found["metadatas"][0]] == [1, 1]
    assert found["embeddings"] == [None, None, [[2.0, 0.0]]]
    forked = one.fork("forked")
    forked.delete(ids=["a"])
    assert (one.count(), forked.count(), one.fork_count()) == (3, 2, 1)
    status = one.get_indexing_status()
    assert status.total_ops == 3 and 0 <= status.op_indexing_progress <= 1
