"""An engine in place of Chroma: the same requests and calls to it and to a stock server, every answer compared.

What differs and is meant to is known to ``documented``. Engines are the model in memory and PostgreSQL.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import chromadb
import numpy as np
import pytest
from hypothesis import given

from chromakeep.chroma.server import ChromaServer
from chromakeep.server import Door
from chromakeep.server.api import answer
from server import test_differential_http as http
from server.documented import HTTP, close, suits
from server.made_up import OPENED, SEQUENCES, several
from server.test_differential import numbers, opened
from server.twins import Call, Sender

C, D = http.C, http.D


@pytest.fixture(scope="module")
def ports(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Of a stock server, and of a door with the engine behind it."""
    with ChromaServer(tmp_path_factory.mktemp("stock") / "data", env=dict(os.environ)) as stock:
        door = Door("127.0.0.1", 0, ("", 0), answering=partial(answer, engine))
        door.start()
        yield stock.options.port, door.port
        door.stop(0)


@pytest.fixture(scope="module")
def senders(ports: tuple[int, int]) -> Iterator[tuple[Sender, Sender]]:
    yield from http.senders.__wrapped__(ports)  # type: ignore[attr-defined]


def alike(senders: tuple[Sender, Sender], *request: Any) -> Any:
    """The stock server's answer, which ours is like."""
    stock, ours = (sender.ask(*request) for sender in senders)
    assert ours == stock or any(rule(request, stock, ours) for rule in HTTP), (
        f"{request!r:.500}: {stock!r:.1000} of the stock server, {ours!r:.1000} of the engine"
    )
    return stock


@pytest.fixture(autouse=True)
def documented_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite of the door, with what is documented let through."""
    monkeypatch.setattr(http, "alike", alike)


@pytest.mark.parametrize("target", http.READS)
def test_reading_routes(senders: tuple[Sender, Sender], target: str) -> None:
    http.test_every_reading_route_answers_the_same(senders, target)


@pytest.mark.parametrize("target", [target for target in http.GOOD_BODIES if "/fork" not in target])
def test_writing_routes(senders: tuple[Sender, Sender], target: str) -> None:
    http.test_every_writing_route_answers_the_same(senders, target)


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "application/json;",
            "application/json ; x",
            "application/json;;",
            "application/json; a",
            "APPLICATION/json; a=",
        ),
        *(
            'application/json; a="b";c=d',
            'application/json; a="b',
            'application/json; a=""',
            "application/json;a=b ;c=d",
        ),
        *("application/a+b+json", "application/+json", "application/x+json+y", "image/x+json", "application/json/x"),
    ],
)
def test_content_types(senders: tuple[Sender, Sender], kind: str) -> None:
    alike(senders, "POST", f"{C}/get", b"{}", kind)


@pytest.mark.parametrize("call", ["add", "upsert", "update"])
@pytest.mark.parametrize("digits", [20, 308, 309, 310, 5000])
def test_integers_of_any_length(senders: tuple[Sender, Sender], call: str, digits: int) -> None:
    for value in ("%s", "-%s", "[1,%s]"):
        metadatas = f'[{{"long":{value % ("9" * digits)}}}]'
        alike(senders, "POST", f"{C}/{call}", f'{{"ids":["i"],"embeddings":[[1,2]],"metadatas":{metadatas}}}'.encode())


_PLACE = "projects/{}/locations/b/keyRings/c/cryptoKeys/d"
CMEK = [None, {}, [], 1, "gcp", "aws", {"aws": "a"}, {"gcp": 1}, {"gcp": "a"}, {"gcp": "a", "b": 1}]
CMEK += [{"gcp": _PLACE.format(name)} for name in ("a", "", "a/b", "a b\n", "é")]
VECTORS = {"#embedding": {"float_list": {"vector_index": {"enabled": True, "config": {"space": "ip"}}}}}
CREATED: list[dict[str, Any]] = [
    *({"schema": {"keys": keys, "defaults": {}, "cmek": cmek}} for cmek in CMEK for keys in ({}, {"#x": {}})),
    {"schema": {"keys": {}, "defaults": {}, "cmek": CMEK[-1]}, "configuration": {"hnsw": {"space": "cosine"}}},
    {"schema": {"keys": VECTORS, "defaults": {}}, "configuration": {"hnsw": {"space": "cosine"}}},
    {"configuration": {"hnsw": {"space": "l2"}, "spann": {"space": "l2"}}},
    {"configuration": {"spann": {"space": "cosine", "search_nprobe": 3}}, "metadata": {"hnsw:space": "ip"}},
    {"metadata": {"hnsw:M": "x"}},
]


@pytest.mark.parametrize("wanted", CREATED)
def test_what_a_collection_is_created_with(senders: tuple[Sender, Sender], wanted: dict[str, Any]) -> None:
    """What is wrong is told before what is there, or is not: also of one that is only got."""
    for database in (D, D.replace("default_database", "nowhere")):
        for name, there in (("there", True), (f"new-{CREATED.index(wanted)}", False), ("there", False)):
            body = json.dumps({"name": name, "get_or_create": there, **wanted}).encode()
            alike(senders, "POST", f"{database}/collections", body)


def test_changing_and_deleting(senders: tuple[Sender, Sender]) -> None:
    http.test_changing_and_deleting_answer_the_same(senders)


def test_bodies_that_nobody_thought_of(senders: tuple[Sender, Sender]) -> None:
    http.test_bodies_that_nobody_thought_of_answer_the_same(senders)


async def same(ports: tuple[int, int], calls: list[Call]) -> list[object]:
    """Make the calls to both, in a database of their own; what came of them on both."""
    database = f"e{next(numbers)}-{os.getpid()}"
    stock, ours = [await opened(port, database) for port in ports]
    outcomes = []
    for one in [*OPENED, *filter(suits, calls)]:
        if one.method == "update" and strays(ours.opened.get(one.on), one.arguments["ids"]):
            continue
        expected, found = await stock.outcome(one), await ours.outcome(one)
        assert found == expected or close(one, expected, found), (
            f"{one!r:.500}: {expected!r:.1000} of the stock server, {found!r:.1000} of the engine"
        )
        outcomes.append(expected)
    return outcomes


def strays(collection: Any, ids: list[str]) -> bool:
    """Whether an update names what is not there: of a stock server vectors are another record's from then on."""
    try:
        return collection is not None and set(collection.get(ids=sorted(set(ids)), include=[])["ids"]) != set(ids)
    except Exception:  # ids that are none: both refuse the update
        return False


def test_an_update_of_what_is_not_there_changes_nothing(ports: tuple[int, int]) -> None:
    """When this fails Chroma has mended it, and the calls above may have such updates again."""
    vectors = {}
    for port, whose in zip(ports, ("stock", "ours"), strict=True):
        one = chromadb.HttpClient("127.0.0.1", port).create_collection("strays", embedding_function=None)
        one.update(ids=["a", "b", "c", "d"], embeddings=[[float(n)] for n in range(4)])
        one.add(ids=["a"], embeddings=[[10.0]])
        assert one.get(include=["embeddings"])["embeddings"].tolist() == [[10.0]]
        one.add(ids=["b", "c", "d"], embeddings=[[11.0], [12.0], [13.0]])
        found = one.get(include=["embeddings"])
        vectors[whose] = dict(zip(found["ids"], found["embeddings"].tolist(), strict=True))
    assert vectors["ours"] == {"a": [10.0], "b": [11.0], "c": [12.0], "d": [13.0]}
    assert vectors["stock"] != vectors["ours"]


def collections(ports: tuple[int, int], **wanted: Any) -> tuple[Any, Any]:
    """One of the same name on both: of the stock server and of the engine."""
    name = f"pair-{next(numbers)}-{os.getpid()}"
    clients = [chromadb.HttpClient("127.0.0.1", port) for port in ports]
    stock, ours = (client.create_collection(name, embedding_function=None, **wanted) for client in clients)
    return stock, ours


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
def test_distances_of_ordinary_vectors(ports: tuple[int, int], space: str) -> None:
    """All of them, the nearest first; and the vectors as they were sent: of cosine stock has directions and lengths."""
    chance = np.random.default_rng(7)
    vectors, queries = (chance.normal(size=(n, 16)).astype(np.float32) for n in (48, 6))
    queries[0], queries[1] = vectors[3], -2 * vectors[5]
    ids = [f"v{n}" for n in range(len(vectors))]
    # of a graph that is a neighbourhood of all stock finds all
    pair = collections(ports, configuration={"hnsw": {"space": space, "max_neighbors": 100}})
    for one in pair:
        one.add(ids=ids, embeddings=vectors)
    stock, ours = (one.query(query_embeddings=queries, n_results=48, include=["distances"]) for one in pair)
    assert ours["ids"] == stock["ids"]
    np.testing.assert_allclose(ours["distances"], stock["distances"], rtol=1e-5, atol=1e-5)
    shown, exact = (one.get(include=["embeddings"])["embeddings"] for one in pair)
    assert np.array_equal(exact.astype(np.float32), vectors)
    np.testing.assert_allclose(shown, vectors, rtol=1e-5)


FLOATS = [-1e300, -2.5, -1.5, -0.5, 0.0, 5e-324, 0.5, 1.0, 1.4999999999999998, 1.5, 1.5000000000000002, 2.0, 1e300]


def test_where_of_floats(ports: tuple[int, int]) -> None:
    """Where all values are floats stock compares them as such: every operator with each of them, and between them."""
    pair = collections(ports)
    for one in pair:
        ids = [f"f{number}" for number in range(len(FLOATS) + 1)]
        metadatas = [*({"f": value} for value in FLOATS), {"g": 1.5}]
        one.add(ids=ids, embeddings=[[1.0, 2.0]] * len(ids), metadatas=metadatas)
    wheres: list[Any] = [
        {"f": {operator: value}}
        for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
        for value in (*FLOATS, -1.75, 1.25, 1e-10)
    ]
    wheres += [{"f": {operator: values}} for operator in ("$in", "$nin") for values in ([1.5, 0.0, 7.5], [0.25])]
    wheres += [{"f": 1.5}, {"$and": [{"f": {"$gt": -1.5}}, {"f": {"$lte": 1.5}}]}]
    for where in wheres:
        stock, ours = (one.get(where=where, include=[])["ids"] for one in pair)
        assert ours == stock, where


def test_numbers_that_no_float_tells_apart(ports: tuple[int, int]) -> None:
    """When this fails Chroma compares an integer with a float as numbers, and the row in the documentation may go."""
    pair = collections(ports)
    for one in pair:
        one.add(ids=["i", "f"], embeddings=[[1.0], [2.0]], metadatas=[{"k": 2**63 - 1}, {"k": 2.0**53}])
    for value, there in ((1e300, ["i"]), (2**53 + 1, ["f"])):
        stock, ours = (one.get(where={"k": {"$eq": value}}, include=[])["ids"] for one in pair)
        assert (stock, ours) == (there, []), value


def test_chromadbs_client(ports: tuple[int, int]) -> None:
    """Results and errors, types and texts; and the calls were such that both came about in numbers."""
    failed, total = 0, 0

    @several
    @given(calls=SEQUENCES)
    def go(calls: list[Call]) -> None:
        nonlocal failed, total
        outcomes = asyncio.run(same(ports, calls))
        failed += sum(isinstance(one, tuple) for one in outcomes)
        total += len(outcomes)

    go()
    assert total / 10 < failed < total * 9 / 10
