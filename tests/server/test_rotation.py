"""Keys that are rotated under load: the door reads them where `keys rotate` writes them, and nobody is turned away."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.server import ChromaServer
from chromakeep.events import ignore
from chromakeep.operations import entrance as entrance_module
from chromakeep.operations.entrance import Entrance
from chromakeep.operations.key_places import DirectoryKeys, KeyPlace, RepositoryKeys
from chromakeep.operations.keyring import create, rotate
from chromakeep.repository import Repository
from chromakeep.server import Door
from chromakeep.server import gatehouse as gatehouse_module
from chromakeep.server.gatehouse import Gatehouse
from chromakeep.store.memory import MemoryStore

COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
OVERLAP = 3600.0  # seconds
PATIENCE = 60.0


class Client(threading.Thread):
    """Writes and reads with its token of the moment; takes the next one when it has a mind to."""

    def __init__(self, number: int, port: int, path: str, token: str) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.path, self.token = number, port, path, token
        self.next, self.over, self.asked = token, threading.Event(), 0
        self.wrong: list[tuple[str, int, bytes]] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        while not self.over.is_set():
            self.asked += 1
            record = {"ids": [f"{self.number}-{self.asked}"], "embeddings": [[self.number, self.asked]]}
            method, path, body = (
                ("POST", f"{self.path}/add", json.dumps(record))
                if self.asked % 2
                else ("GET", f"{self.path}/count", None)
            )
            carried = {"authorization": f"Bearer {self.token}"} if self.number % 2 else {"x-chroma-token": self.token}
            connection.request(method, path, body, {"content-type": "application/json", **carried})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status not in (200, 201):
                self.wrong.append((path, answer.status, said))
            if self.asked % (2 + self.number) == 0:
                self.token = self.next
            if self.number % 3 == 0:
                connection.close()  # the next request connects anew


@pytest.mark.parametrize("where", ["repository", "directory"])
def test_keys_are_rotated_under_load_without_a_failed_request(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times, with the old token valid for an hour more. When the door knows the new one, each client takes it at
    its own time. After the hour the old ones open nothing, and the newest does."""
    monkeypatch.setattr(entrance_module, "EVERY", 0.05)
    ahead = 0.0  # of the time of day, for the door
    monkeypatch.setattr(gatehouse_module, "time", SimpleNamespace(time=lambda: time.time() + ahead))
    place: KeyPlace = (
        RepositoryKeys(Repository.create(MemoryStore())) if where == "repository" else DirectoryKeys(tmp_path)
    )
    _, token = create(place, "app", "writer")
    entrance = Entrance(lambda: place, "127.0.0.1", {}, accepted=False, observer=ignore)
    with ChromaServer(tmp_path / "data", env=dict(os.environ)) as server:
        made = ChromaClient("127.0.0.1", server.options.port).request("POST", COLLECTIONS[7:], {"name": "load"})
        entrance.start()
        guard = Gatehouse(lambda: entrance.ring, closed=False)
        door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), guard=guard)
        door.start()

        def status(token: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=PATIENCE)
            connection.request("GET", f"{COLLECTIONS}_count", headers={"x-chroma-token": token})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer.status

        clients = [Client(n, door.port, f"{COLLECTIONS}/{made['id']}", token) for n in range(6)]
        try:
            for client in clients:
                client.start()
            old: list[str] = []
            for _ in range(5):
                old.append(token)
                _, token, _ = rotate(place, "app", overlap=OVERLAP)
                _until(lambda token=token: known(entrance, token))  # type: ignore[misc]
                for client in clients:
                    client.next = token
                _until(lambda token=token: all(c.token == token for c in clients))  # type: ignore[misc]
            before = [client.asked for client in clients]
            _until(lambda: all(c.asked > n + 5 for c, n in zip(clients, before, strict=True)))
            assert {status(each) for each in (*old, token)} == {200}
            ahead = OVERLAP + 1
            assert {status(each) for each in old} == {401}
            assert status(token) == 200
        finally:
            for client in clients:
                client.over.set()
            for client in clients:
                client.join(PATIENCE)
            door.stop(5)
            entrance.stop()
    assert [client.wrong for client in clients] == [[]] * len(clients)
    assert not any(client.is_alive() for client in clients)


def known(entrance: Entrance, token: str) -> bool:
    """Whether the door has read this key."""
    return bool(entrance.ring and entrance.ring.find(token, time.time()))


def _until(true: object) -> None:
    assert callable(true)
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
