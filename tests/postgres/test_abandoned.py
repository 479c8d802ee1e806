"""A client that goes away: what was read for it ends, what was written for it is finished."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from functools import partial

import numpy as np
import psycopg
import pytest

from chromakeep.engine import DATABASE, TENANT, CollectionWanted, Target, Wanted, Written
from chromakeep.events import Event
from chromakeep.postgres.engine import PostgresEngine
from chromakeep.server import Door
from chromakeep.server.api import answer
from chromakeep.server.limits import Limits
from chromakeep.waiting import Waiting
from postgres.instances import ask, eventually

_PATH = f"/api/v2/tenants/{TENANT}/databases/{DATABASE}/collections"


class World:
    """A door before an engine with one connection, and a collection with a record whose table may be locked."""

    def __init__(self, url: str) -> None:
        self.said: list[Event] = []
        self.engine = PostgresEngine(url, 1, allow_reset=True, observer=self.said.append)
        self.engine.pool._patience = 60  # a slow machine takes its time to notice who has gone
        self.engine.reset()
        made = self.engine.create_collection(TENANT, DATABASE, CollectionWanted("x"))
        self.target = Target(TENANT, DATABASE, made.id)
        self.engine.add(self.target, Written(["a"], np.ones((1, 2), np.float32)))
        limits = Limits(half_closed=0.1)
        self.door = Door("127.0.0.1", 0, ("", 0), answering=partial(answer, self.engine), threads=4, limits=limits)
        self.door.start()
        self.other = psycopg.connect(url)
        self.watch = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        self.other.close()
        self.watch.close()
        self.door.stop(0)
        self.engine.close()

    def lock(self) -> None:
        """Nobody else may so much as read the table."""
        self.engine.count(self.target)
        relation = self.engine._known[self.target][1].table
        self.other.execute(f"LOCK TABLE {relation} IN ACCESS EXCLUSIVE MODE".encode())

    def begin(self, method: str, route: str, body: object = None) -> socket.socket:
        """A request that is under way at PostgreSQL, and waits there."""
        client = socket.create_connection(("127.0.0.1", self.door.port))
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {_PATH}/{self.target.id}/{route} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n"
        client.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + payload)
        eventually(lambda: self.waiting() == 1, "it waits")
        return client

    def waiting(self) -> int:
        """How many statements wait at PostgreSQL."""
        row = self.watch.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    made.close()


@pytest.mark.parametrize(
    "route, body", [("count", None), ("get", {}), ("query", {"query_embeddings": [[1.0, 2.0]], "n_results": 3})]
)
def test_a_read_ends_when_its_client_is_gone(world: World, route: str, body: object) -> None:
    """At PostgreSQL too; its connection is there for others, and no trouble is told of."""
    world.lock()
    world.begin("GET" if body is None else "POST", route, body).close()
    assert ask(world.door.port, "GET", f"{_PATH}/x")[0] == 200  # by the only connection that there may be
    eventually(lambda: world.waiting() == 0, "PostgreSQL has given it up")
    world.other.rollback()
    assert ask(world.door.port, "GET", f"{_PATH}/{world.target.id}/count") == (200, 1)
    assert world.said == []


def test_a_write_is_finished_though_its_client_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    left, leave = threading.Event(), Waiting.leave
    monkeypatch.setattr(Waiting, "leave", lambda self: (leave(self), left.set()))
    world.lock()
    body = {"ids": ["b"], "embeddings": [[1.0, 2.0]], "metadatas": [{"k": 1}]}
    world.begin("POST", "add", body).close()
    assert left.wait(60), "the door has not noticed"
    assert world.waiting() == 1
    world.other.rollback()
    eventually(lambda: world.engine.count(world.target) == 2, "it is written")
    assert world.engine.get(world.target, ["b"], None, None, 0, Wanted()).ids == ["b"]


def test_who_is_answered_is_not_taken_for_gone(world: World) -> None:
    """A connection that was asked by somebody who left afterwards goes on."""

    def session() -> int:
        return world.engine.pool.run(lambda connection: connection.info.backend_pid, write=False)

    before = session()
    for _ in range(3):
        assert ask(world.door.port, "GET", f"{_PATH}/{world.target.id}/count") == (200, 1)
    assert session() == before
