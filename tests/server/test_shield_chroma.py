"""Requests that ruin a stock Chroma: one of its own for each, and one behind a shielded door that outlives them all."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import chromadb.errors
import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.server import Door
from chromakeep.server.guard import Account
from chromakeep.server.unlocked import Unlocked

D = "/api/v2/tenants/default_tenant/databases/default_database/collections"
GONE = 0  # in the place of a status: no answer
Answer = tuple[int, Any]
Send = Callable[..., Answer]


def sender(port: int) -> Send:
    """Requests of their own connection each; the status and what the answer's JSON says."""

    def send(method: str, path: str, body: object = None, *, chunked: bool = False, **fields: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        parts = [data[n : n + 11] for n in range(0, len(data), 11)] if chunked and data else data
        headers = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in fields.items()}}
        try:
            connection.request(method, path, parts, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            said = answer.read()
            return answer.status, json.loads(said) if said else None
        except (ConnectionError, http.client.HTTPException):
            return GONE, None
        finally:
            connection.close()

    return send


def made(send: Send, name: str, records: int = 2) -> str:
    """The path of a new collection with some records."""
    status, collection = send("POST", D, {"name": name})
    assert status == 200, collection
    path = f"{D}/{collection['id']}"
    ids = [f"i{n}" for n in range(records)]
    if records:
        body = {"ids": ids, "embeddings": [[1.0, n] for n in range(records)], "metadatas": [{"k": 1}] * records}
        assert send("POST", f"{path}/add", body)[0] == 201
    return path


def works(send: Send, path: str) -> bool:
    """Whether a collection takes records and gives them."""
    body = {"ids": ["control"], "embeddings": [[0.5, 0.5]]}
    if send("POST", f"{path}/upsert", body)[0] != 200:
        return False
    status, found = send("POST", f"{path}/query", {"query_embeddings": [[0.5, 0.5]], "n_results": 1})
    return status == 200 and found["ids"] == [["control"]]


def record(metadata: object) -> dict[str, Any]:
    return {"ids": ["a"], "embeddings": [[1.0, 2.0]], "metadatas": [metadata]}


SOME = {"ids": [f"s{n}" for n in range(50)], "embeddings": [[1.0, float(n)] for n in range(50)]}
WIDE = {"$or": [{"k": n} for n in range(20_000)]}
SLOT = json.dumps(record({"chroma:document": 5})).encode()
M0 = {"max_neighbors": 0}

Attack = Callable[[Send], tuple[str, list[Answer]]]


def attack(operation: str, body: object, **how: Any) -> Attack:
    """A request to a collection, and the collection."""

    def go(send: Send) -> tuple[str, list[Answer]]:
        path = made(send, "victim")
        return path, [send("POST", f"{path}/{operation}", body, **how)]

    return go


def without_neighbours(creation: dict[str, Any] | list[Any]) -> Attack:
    """A collection that is created, if it is, and its first records."""

    def go(send: Send) -> tuple[str, list[Answer]]:
        answer = send("POST", D, creation)
        first = ("POST", f"{D}/{answer[1].get('id')}/upsert", SOME)
        return "", [answer] if answer[0] != 200 else [answer, send(*first)]

    return go


def neighbours_taken(send: Send) -> tuple[str, list[Answer]]:
    path = made(send, "victim", records=0)
    answer = send("PUT", path, {"new_configuration": {"hnsw": M0}})
    return "", [answer] if answer[0] != 200 else [answer, send("POST", f"{path}/upsert", SOME)]


ALL, ONE = "everything", "the collection"
# name: what it does, what it ruins, the status it is refused with
ATTACKS: dict[str, tuple[Attack, str, int]] = {
    "number for a document": (attack("upsert", SLOT), ALL, 422),
    "number, in chunks": (attack("add", SLOT, chunked=True), ALL, 422),
    "null, updated": (attack("update", {"ids": ["i1"], "metadatas": [{"chroma:document": None}]}), ALL, 422),
    "escaped key": (attack("upsert", SLOT.replace(b"chroma", rb"\u0063hrom\u0061")), ALL, 422),
    "said to be gzip": (attack("upsert", SLOT, content_encoding="gzip"), ALL, 422),
    "said to be UTF-16": (attack("upsert", SLOT, content_type="application/json; charset=utf-16"), ALL, 422),
    "fields by position": (attack("upsert", [["a"], [[1.0, 2.0]], None, None, [{"chroma:document": 5}]]), ALL, 422),
    "6000 values": (attack("upsert", record({f"k{n}": n for n in range(6000)})), ONE, 422),
    "array of 6000": (attack("upsert", record({"k": list(range(6000))})), ONE, 422),
    "wide filter, get": (attack("get", {"where": WIDE}), ALL, 400),
    "wide filter, delete": (attack("delete", {"where": WIDE}), ALL, 400),
    "no neighbours": (without_neighbours({"name": "abc", "configuration": {"hnsw": M0}}), ALL, 422),
    "no neighbours, legacy": (without_neighbours({"name": "abc", "metadata": {"hnsw:M": 0}}), ALL, 422),
    "no neighbours, by position": (without_neighbours({"name": "abc", "configuration": [M0, None, None]}), ALL, 422),
    "no neighbours, changed": (neighbours_taken, ALL, 422),
}

# Requests to which stock gives no answer, and the status they are refused with.
DROPPED: list[tuple[str, str, object, int]] = [
    ("POST", D, {"name": "abc", "metadata": {"k": [1]}}, 422),
    ("POST", D, {"name": "abc", "metadata": {"k": []}}, 422),
    ("POST", D, {"name": "abc", "metadata": {"k": {"#type": "sparse_vector", "indices": [1], "values": [1.0]}}}, 422),
    ("POST", D, ["abc", None, None, {"k": ["x"]}, False], 422),
    ("POST", D, b'{"name":"abc","m\\u0065tadata":{"k":1,"k":[1]}}', 422),
    ("PUT", "control", {"new_metadata": {"k": [1.5]}}, 422),
    ("PUT", "control", [None, {"k": [True]}, None], 422),
    ("GET", "/api/v2/collections/default_tenant:default_database:control", None, 501),
    ("GET", "/api/v2/collections/a%3Ab%3Ac?x=y", None, 501),
    ("HEAD", "/api/v2/collections/a:b:c", None, 501),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("shielded") / "data", env=dict(os.environ)) as server:
        yield server


@pytest.fixture
def door(server: ChromaServer) -> Iterator[Door]:
    door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), guard=Unlocked())
    door.start()
    yield door
    door.stop(5)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_stock_server_is_ruined(name: str, tmp_path: Path) -> None:
    """Without the shield. When this fails Chroma has learned to bear it, and the shield may forget it."""
    go, ruins, _ = ATTACKS[name]
    with ChromaServer(tmp_path / "data", env=dict(os.environ)) as server:
        send = sender(server.options.port)
        control = made(send, "control")
        assert works(send, control)
        victim, _ = go(send)
        if ruins == ALL:
            assert not works(send, control)
        else:
            assert works(send, control)
            assert not works(send, victim)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_shielded_server_lives(name: str, door: Door, server: ChromaServer) -> None:
    """And answers on, the victim too; the attacker is told why, in Chroma's form."""
    go, _, refused = ATTACKS[name]
    send = sender(door.port)
    control = made(send, "control")
    victim, answers = go(send)
    assert [status for status, _ in answers] == [refused]
    assert set(answers[0][1]) == {"error", "message"}
    assert works(send, control)
    assert not victim or works(send, victim)
    assert not server.panicked.is_set()
    for made_here in ("control", "victim"):
        send("DELETE", f"{D}/{made_here}")


@pytest.mark.parametrize(("method", "path", "body", "status"), DROPPED)
def test_what_stock_does_not_answer_is_answered(
    method: str, path: str, body: object, status: int, door: Door, server: ChromaServer
) -> None:
    """One way the connection ends without a word, the other there is an answer, and nothing was made or changed."""
    stock, shielded = sender(server.options.port), sender(door.port)
    control = made(stock, "control")
    try:
        path = control if path == "control" else path
        assert shielded(method, path, body)[0] == status
        assert stock(method, path, body)[0] == GONE
        server.panicked.clear()  # of a handler, not of the thread that writes
        assert works(shielded, control)
    finally:
        stock("DELETE", f"{D}/control")
        stock("DELETE", f"{D}/abc")


def test_ordinary_calls_pass(door: Door) -> None:
    """chromadb's own client, with the words of attacks in ids, documents, metadata and filters."""
    client = chromadb.HttpClient("127.0.0.1", door.port)
    neighbours = 20  # more than there are records: an index with fewer may lose the way to one that an update moved
    collection = client.create_collection(
        "ordinary", metadata={"about": '{"k": [1]}', "hnsw:M": neighbours}, embedding_function=None
    )
    texts = [
        '"chroma:document": 5',
        '\\"chroma:document\\": null',
        '{"chroma:document":5}',
        "\\u0063hroma:document",
        "chroma:document",
    ]
    texts += ["{" * 6000, "," * 9000, '"' * 999, "\\" * 999, "ü\n\t\x00\u2028"]
    metadatas: list[Any] = [{"chroma:uri": t[:50], "values": [1, 2, 3], "text": t} for t in texts]
    vectors = [[float(n), 1.0] for n in range(len(texts))]
    collection.add(ids=texts, embeddings=vectors, documents=texts, metadatas=metadatas)
    found: Any = collection.get(ids=texts)
    assert dict(zip(found["ids"], found["documents"], strict=True)) == dict(zip(texts, texts, strict=True))
    assert {m["text"] for m in found["metadatas"]} == set(texts)
    collection.upsert(ids=texts[:2], embeddings=vectors[:2], documents=texts[2:4], metadatas=metadatas[2:4])
    collection.update(ids=texts[4:5], embeddings=vectors[4:5], documents=["changed"], metadatas=[{"text": None}])
    assert collection.get(ids=texts[:2])["documents"] == texts[2:4]
    assert collection.get(ids=texts[4:5])["documents"] == ["changed"]
    assert collection.get(where={"$or": [{"text": f"{t}"} for t in [*texts, *map(str, range(500))]]})["ids"]
    nearest: Any = collection.query(query_embeddings=[[7.0, 1.0]], n_results=1, where_document={"$contains": '"'})
    assert nearest["ids"] == [[texts[7]]]
    collection.modify(name="renamed", metadata={"about": "more"})
    assert client.get_collection("renamed").metadata == {"about": "more"}
    collection.delete(where={"text": {"$in": texts}})
    assert collection.count() == 1
    client.delete_collection("renamed")
    with pytest.raises(chromadb.errors.InvalidArgumentError):
        client.create_collection("x")  # and errors of Chroma's own arrive


def test_the_count_of_records_of_a_client(server: ChromaServer) -> None:
    """What goes into the books is what the client sent."""
    counted: list[int | None] = []

    class Books:
        def begun(self, account: Account) -> None:
            pass

        def ended(self, account: Account, now: float) -> None:
            if account.watch and account.method == "POST" and account.target.endswith(("add", "update", "upsert")):
                counted.append(account.watch.records)

    door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), guard=Unlocked(), ledger=Books())
    door.start()
    try:
        collection = chromadb.HttpClient("127.0.0.1", door.port).create_collection("books", embedding_function=None)
        collection.add(ids=[f"i{n}" for n in range(3000)], embeddings=[[float(n)] * 64 for n in range(3000)])
        collection.upsert(ids=['"', "]"], embeddings=[[1.0] * 64] * 2, documents=["ids", '"ids":['])
        collection.update(ids=["i1"], metadatas=[{"ids": ["a", "b"]}])
        collection.delete(ids=["i1"])
    finally:
        door.stop(5)
    assert counted == [3000, 2, 1]
