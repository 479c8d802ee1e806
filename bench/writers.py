"""Clients that write single records to a server, each on a connection of its own, and when each was answered."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass, field

BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"


@dataclass
class Written:
    """Ids and the moments (monotonic, seconds) at which their answers came."""

    answered: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Acknowledged writes a second."""
        return len(self.answered) / self.seconds


def ask(port: int, method: str, path: str, body: object = None) -> object:
    """One request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        if answer.status >= 300:
            raise OSError(f"{answer.status}: {found}")
        return found
    finally:
        connection.close()


def collection(port: int, name: str) -> str:
    """The id of a collection, made if it is not there."""
    found = ask(port, "POST", BASE, {"name": name, "get_or_create": True})
    assert isinstance(found, dict)
    return str(found["id"])


def write(
    port: int, collection: str, *, clients: int, seconds: float, dimension: int, rate: float | None = None
) -> Written:
    """Add records one at a time for so many seconds, as fast as answers come or at ``rate`` a second together."""
    chance = random.Random(5)
    vectors = [json.dumps([chance.random() for _ in range(dimension)]) for _ in range(64)]
    path, written, lock = f"{BASE}/{collection}/add", Written(), threading.Lock()
    started = time.monotonic()
    mark = f"{time.time():.3f}"

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        n, due = 0, started + number / (rate or 1) if rate else started
        while time.monotonic() - started < seconds:
            if rate:
                due += clients / rate
                time.sleep(max(0.0, due - time.monotonic()))
            id_ = f"{mark}-{number}-{n}"
            body = f'{{"ids":["{id_}"],"embeddings":[{vectors[n % 64]}],"documents":["text {n} of {number}"]}}'
            connection.request("POST", path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 300:
                raise OSError(f"{answer.status}")
            n += 1
            with lock:
                written.answered[id_] = time.monotonic()
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written.seconds = time.monotonic() - started
    return written
