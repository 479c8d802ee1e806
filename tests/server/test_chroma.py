"""chromadb's own clients through the door to a real server, and the routes as they call them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import chromadb.errors
import numpy as np
import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.command import ServerOptions
from chromakeep.chroma.ports import free_port
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ServerAnswered
from chromakeep.server import Door, Refusal, Request
from server.wires import Scripted, Wire


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("door") / "data", env=dict(os.environ)) as server:
        yield server


@pytest.fixture
def gate() -> Scripted:
    return Scripted()


@pytest.fixture
def door(server: ChromaServer, gate: Scripted) -> Iterator[Door]:
    door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), gate=gate)
    door.start()
    yield door
    door.stop(5)


def writes(gate: Scripted) -> list[str]:
    """Method and last part of the path of every admitted write."""
    assert [r.path for r in gate.admitted] == [r.path for r in gate.acknowledged]
    return [f"{r.method} {r.path.rpartition('/')[2]}" for r in gate.admitted]


def test_the_client_works_and_only_writes_ask_the_gate(door: Door, gate: Scripted, server: ChromaServer) -> None:
    """Everything an application does; what it gets is what it put."""
    client = chromadb.HttpClient("127.0.0.1", door.port)
    assert client.heartbeat() > 0
    client.get_version()
    assert gate.admitted == []
    collection = client.create_collection("everything", metadata={"a": 1}, embedding_function=None)
    vectors = np.random.default_rng(1).random((3000, 128), dtype=np.float32)
    ids = [f"i{n}" for n in range(3000)]
    collection.add(ids=ids, embeddings=vectors, documents=[f"text {i}" * 20 for i in ids])
    collection.upsert(ids=["i1", "new"], embeddings=vectors[:2], metadatas=[{"k": 1}, {"k": 2}])
    collection.update(ids=["i2"], embeddings=vectors[:1], documents=["changed"])
    collection.delete(ids=["i3"])
    assert writes(gate) == ["POST collections", "POST add", "POST upsert", "POST update", "POST delete"]
    del gate.admitted[:], gate.acknowledged[:]
    assert collection.count() == 3000
    assert collection.get(ids=["i2"])["documents"] == ["changed"]
    assert collection.get(where={"k": 2})["ids"] == ["new"]
    found: Any = collection.get(include=["embeddings"])
    assert np.array_equal(np.asarray(found["embeddings"][10], np.float32), vectors[11])
    nearest: Any = collection.query(query_embeddings=[vectors[7]], n_results=1)
    # Nearly always i7: but an index that updates have changed may have lost the way to a record, so Chroma is asked.
    behind = chromadb.HttpClient("127.0.0.1", server.options.port).get_collection("everything", embedding_function=None)
    assert nearest == behind.query(query_embeddings=[vectors[7]], n_results=1)
    assert len(nearest["ids"][0]) == 1
    assert len(collection.peek()["ids"]) == 10
    assert client.list_collections()[0].name == "everything"
    with pytest.raises(chromadb.errors.NotFoundError):
        client.get_collection("nothing")
    assert writes(gate) == []
    collection.modify(name="renamed")
    client.delete_collection("renamed")
    assert [w.split()[0] for w in writes(gate)] == ["PUT", "DELETE"]


def test_the_async_client_works(door: Door) -> None:
    """Many requests at once."""

    async def go() -> None:
        client = await chromadb.AsyncHttpClient("127.0.0.1", door.port)
        collection = await client.create_collection("async", embedding_function=None)
        await collection.add(ids=[str(n) for n in range(500)], embeddings=[[n, 1.0] for n in range(500)])
        counts = await asyncio.gather(*(collection.count() for _ in range(50)))
        assert counts == [500] * 50
        found = await asyncio.gather(
            *(collection.query(query_embeddings=[[float(n), 1.0]], n_results=1) for n in range(50))
        )
        assert [f["ids"] for f in found] == [[[str(n)]] for n in range(50)]

    asyncio.run(go())


def test_a_refusal_is_the_error_it_names(door: Door, gate: Scripted) -> None:
    client = chromadb.HttpClient("127.0.0.1", door.port)
    gate.on_admit = lambda: Refusal(503, "QuotaError", "a standby takes no writes", retry_after=1)
    with pytest.raises(chromadb.errors.QuotaError, match="a standby takes no writes"):
        client.create_collection("refused", embedding_function=None)
    assert client.heartbeat() > 0


def test_a_body_over_chromas_limit(door: Door, server: ChromaServer) -> None:
    """Its 413, sent before the body has ended, reaches a client that still sends."""
    ref = ChromaClient("127.0.0.1", server.options.port)
    made = ref.request("POST", "/tenants/default_tenant/databases/default_database/collections", {"name": "large"})
    path = f"/tenants/default_tenant/databases/default_database/collections/{made['id']}/add"
    through = ChromaClient("127.0.0.1", door.port)
    for _ in range(3):
        with pytest.raises(ServerAnswered) as answered:
            through.request("POST", path, {"ids": ["x"], "embeddings": [[1, 2]], "documents": ["x" * (45 << 20)]})
        assert answered.value.status == 413


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, knock: Callable[[Door], Wire]) -> None:
    """503 in between, then as before: connections that were kept do not outlive it."""
    options = ServerOptions(host="127.0.0.1", port=free_port())
    with ChromaServer(tmp_path / "data", env=dict(os.environ), options=options) as first:
        door = Door("127.0.0.1", 0, ("127.0.0.1", options.port))
        door.start()
        client = ChromaClient("127.0.0.1", door.port)
        client.heartbeat()
        first.kill()
        first.exited.wait(20)
        with pytest.raises(ServerAnswered) as answered:
            client.heartbeat()
        assert answered.value.status == 503
    with ChromaServer(tmp_path / "data", env=dict(os.environ), options=options):
        client.heartbeat()
        door.stop(5)


def test_a_write_is_done_but_not_answered_while_the_gate_thinks(door: Door, gate: Scripted) -> None:
    """As for synchronous durability: others see it, its writer hears of it when it is safe."""
    gate.holds = "acknowledge"
    client = ChromaClient("127.0.0.1", door.port)
    path = "/tenants/default_tenant/databases/default_database/collections"
    over: list[object] = []
    writing = threading.Thread(target=lambda: over.append(client.request("POST", path, {"name": "slow"})))
    writing.start()
    assert gate.asked.wait(20)
    assert any(r.name == "slow" for r in client.list_collections())
    assert not over
    gate.go.set()
    writing.join(20)
    assert len(over) == 1
    request: Request = gate.acknowledged[0]
    assert request.target == f"/api/v2{path}"
