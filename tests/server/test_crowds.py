"""Many hostile or many ordinary clients at a time, before a real server: the others are served all the while."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.command import ServerOptions
from chromakeep.chroma.ports import free_port
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ServerAnswered, ServerSilent
from chromakeep.server import Door, Limits
from server.test_strictness import CHUNKS, SMUGGLED, H
from server.wires import Wire

DATABASE = "/tenants/default_tenant/databases/default_database"
COLLECTIONS = f"/api/v2{DATABASE}/collections"
HEARTBEAT = b"GET /api/v2/heartbeat HTTP/1.1\r\nhost: h\r\n\r\n"
MANY = 200
Knock = Callable[[Door], Wire]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("crowds") / "data", env=dict(os.environ)) as server:
        yield server


@pytest.fixture(autouse=True)
def files() -> Iterator[None]:
    """As many open files as the system grants: both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def door_with(server: ChromaServer) -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def make(**options: object) -> Door:
        made.append(Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), **options))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    for door in made:
        door.stop(0)


def create(name: str) -> bytes:
    """A request that leaves a trace."""
    body = json.dumps({"name": name, "get_or_create": True}).encode()
    return f"POST {COLLECTIONS} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def works(door: Door, knock: Knock) -> bool:
    """Whether a client that has just come is served, reading and writing."""
    client = knock(door)
    for request in (HEARTBEAT, create("good")):
        client.send(request)
        if client.answer().status != 200:
            return False
    return True


def names(server: ChromaServer) -> set[str]:
    return {ref.name for ref in server.client.list_collections()}


POST = f"POST {COLLECTIONS} HTTP/1.1\r\nhost: h\r\n".encode()
SLOW = {
    "nothing": b"",
    "half a head": HEARTBEAT[:30],
    "a head without an end": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50,
    "half a body": POST + b'content-length: 30000\r\n\r\n{"name":"slow","x":"',
    "half a chunked body": POST + b'transfer-encoding: chunked\r\n\r\nffff\r\n{"name":"slow","x":"',
}


@pytest.mark.parametrize("owed", SLOW)
def test_slow_clients_keep_nobody_waiting(
    server: ChromaServer, door_with: Callable[..., Door], knock: Knock, owed: str
) -> None:
    """Others are served while they are there. A byte now and then buys no time: each gets 408, and nothing is done."""
    door = door_with(limits=Limits(head=3.0, body=3.0))  # which is also what a good client has for its head
    crowd = [knock(door) for _ in range(MANY)]
    for wire in crowd:
        wire.send(SLOW[owed])
    waiting = crowd
    while waiting and owed != "nothing":
        assert works(door, knock)
        waiting = [wire for wire in waiting if wire.silent()]
        for wire in waiting:
            wire.send(b"x")
    assert works(door, knock)
    for wire in crowd:
        if owed != "nothing":
            assert wire.answer().status == 408
        assert wire.rest() == b""
    assert "slow" not in names(server)


def test_malformed_requests_by_the_hundred(server: ChromaServer, door_with: Callable[..., Door], knock: Knock) -> None:
    """All kinds at a time, each with another request hidden behind it: none is done, and a good client is served."""
    door = door_with()
    chunked = b"POST " + COLLECTIONS.encode() + b" HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\n\r\n"
    sent = [one for _, one in SMUGGLED.values()] + [chunked + one for one in CHUNKS.values()]
    crowd = []
    for number, one in enumerate(sent * 3):
        wire = knock(door)
        wire.send(one + (create(f"smuggled-{number}") if b"\r\n\r\n" in one else b""))
        crowd.append(wire)
        if number % 50 == 0:
            assert works(door, knock)
    for wire in crowd:
        assert wire.answer().status in (400, 413, 417, 431, 501, 505)
        assert wire.gone()
    assert works(door, knock)
    assert not {name for name in names(server) if name.startswith("smuggled")}


def test_half_closed_clients_are_all_answered(door_with: Callable[..., Door], knock: Knock) -> None:
    door = door_with()
    crowd = [knock(door) for _ in range(MANY)]
    for wire in crowd:
        wire.send(create("good") + HEARTBEAT)
        wire.half_close()
    for wire in crowd:
        assert [wire.answer().status, wire.answer().status] == [200, 200]
        assert wire.rest() == b""


def test_a_thousand_connections(door_with: Callable[..., Door], knock: Knock) -> None:
    """Idle, then all asking at a time, then idle again: each is answered. One more takes the place of an old one."""
    door = door_with()
    crowd = [knock(door) for _ in range(1000)]
    for _ in range(2):
        for wire in crowd:
            wire.send(HEARTBEAT)
        for wire in crowd:
            assert wire.answer().status == 200
    assert works(door, knock)
    crowd[-1].send(create("good"))
    assert crowd[-1].answer().status == 200


def test_a_server_killed_under_load(tmp_path: Path) -> None:
    """Clients hear 502 or 503 in Chroma's words, then are served as before. 201: it is there; 503: it is not."""
    env = dict(os.environ)
    options = ServerOptions(host="127.0.0.1", port=free_port())
    with ChromaServer(tmp_path / "data", env=env, options=options) as first:
        door = Door("127.0.0.1", 0, ("127.0.0.1", options.port))
        door.start()
        made = ChromaClient("127.0.0.1", door.port).request("POST", f"{DATABASE}/collections", {"name": "load"})
        ref = Ref(made["id"], "load")
        outcomes: dict[str, int] = {}
        over = threading.Event()

        def load(writer: int) -> None:
            client = ChromaClient("127.0.0.1", door.port)
            number = 0
            while not over.is_set():
                number += 1
                name = f"{writer}-{number}"
                try:
                    client.request("POST", f"{ref.path}/add", {"ids": [name], "embeddings": [[1, number]]})
                    outcomes[name] = 201
                except ServerAnswered as answer:
                    outcomes[name] = answer.status
                    over.wait(0.01)
                except ServerSilent as silent:  # a broken connection: never
                    outcomes[name] = 0
                    raise AssertionError(silent) from silent

        threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in range(16)]
        for thread in threads:
            thread.start()

        def seen(status: int, count: int) -> None:
            done = threading.Event()
            while list(outcomes.values()).count(status) < count:
                assert all(thread.is_alive() for thread in threads)
                done.wait(0.01)

        seen(201, 100)
        first.kill()
        first.exited.wait(20)
        seen(503, 100)
    with ChromaServer(tmp_path / "data", env=env, options=options) as second:
        before = list(outcomes.values()).count(201)
        seen(201, before + 100)
        over.set()
        for thread in threads:
            thread.join(20)
        found = {name for page in second.client.ids(ref) for name in page}
    door.stop(5)
    assert set(outcomes.values()) <= {201, 502, 503}
    by = {status: {name for name, got in outcomes.items() if got == status} for status in (201, 503)}
    assert by[201] <= found
    assert not by[503] & found
