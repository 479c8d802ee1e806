"""Instances of ``chromakeep serve --engine`` as processes of their own, and clients that know what was acknowledged."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chromakeep.chroma.ports import free_port
from servers.process import Process

SRC = Path(__file__).parents[2] / "src"
COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
DIMENSION = 4
LOST = 0  # status of a request whose connection broke
AGAIN = (LOST, 502, 503, 504)
PAUSE = 0.3  # seconds before a request is sent again where no Retry-After says how long


class Instance:
    """One ``chromakeep serve`` before the database at ``url``, which begins at once; ``ready`` waits for it."""

    def __init__(self, directory: Path, url: str, *more: str) -> None:
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self._log, self._env = directory / "log", {"CHROMAKEEP_ENGINE": url, "PYTHONPATH": str(SRC)}
        self._command = [sys.executable, "-m", "chromakeep", "serve", "--open", "--data", str(directory),
                         "--host", "127.0.0.1", "--port", str(self.port), *more]  # fmt: skip
        self.start()

    def start(self) -> None:
        self._process = Process(self._command, self._log, self._env)

    def ready(self) -> Instance:
        self._process.wait_until(self.is_ready)
        return self

    def is_ready(self) -> bool:
        return ask(self.port, "GET", "/readyz")[0] == 200

    def kill(self) -> None:
        """SIGKILL."""
        self._process.stop()

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")


def ask(port: int, method: str, path: str, body: object = None, timeout: float = 60) -> tuple[int, Any]:
    """Status and JSON of one request on a connection of its own."""
    return Client(port, timeout).ask(method, path, body)


class Client:
    """One connection that is kept while it lasts."""

    def __init__(self, port: int, timeout: float = 60) -> None:
        self.port, self.timeout = port, timeout
        self.fields: dict[str, str] = {}
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON; ``LOST`` where there was no answer."""
        kept = self._connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        self._connection = None
        payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            kept.request(method, path, payload, {"content-type": "application/json"} if payload is not None else {})
            answer = kept.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            kept.close()
            return LOST, f"{type(error).__name__}: {error}"
        self.fields = {name.lower(): value for name, value in answer.getheaders()}
        self._connection = kept
        try:
            return answer.status, json.loads(said) if said else None
        except ValueError:
            return answer.status, said.decode("utf-8", "replace")


class Tally:
    """What became of all requests of several clients."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked = self.again = 0
        self.first: Counter[str] = Counter()  # of first tries that were made again: kind and status
        self.failed: list[str] = []  # requests that failed twice
        self.wrong: list[str] = []  # answers that no order of the writes explains
        self.bare = 0  # 503 without Retry-After
        self.approximate = False  # whether collections are so large that indexes answer queries
        self.missed = 0  # queries that did not find the nearest then
        self.slowest = 0.0
        self._lock = threading.Lock()

    def tell(self, what: str, statuses: Sequence[int], said: object, bare: int, seconds: float) -> None:
        with self._lock:
            self.asked += 1
            self.bare += bare
            self.slowest = max(self.slowest, seconds)
            self.again += len(statuses) > 1
            for status in statuses[:-1]:
                self.first[f"{what} {status}"] += 1
            if statuses[-1] in AGAIN:
                self.failed.append(f"{what} {statuses}: {said}")

    @property
    def succeeded(self) -> float:
        """The part that was answered at the first or second try."""
        return 1 - len(self.failed) / max(self.asked, 1)

    def __str__(self) -> str:
        return (
            f"{self.asked} requests, {self.again} asked again {dict(self.first.most_common(12))}, {len(self.failed)}"
            f" failed twice, {self.succeeded:.4%} succeeded, {self.bare} of 503 without Retry-After, slowest"
            f" {self.slowest:.1f} s, {self.missed} nearest missed, {len(self.wrong)} wrong"
        )


State = tuple[int, int, int] | None
"""Of a record: by which writes its vector, its document and its metadata are; None: it is not there."""


class Writer(threading.Thread):
    """Adds, upserts, updates, deletes and reads the records ``w<number>-<n>``, which nobody else writes, in collections
    that others use, too; makes and drops collections of its own. Each request is sent at most ``tries`` times; all
    may be, for each is the same when it was done already.

    ``states`` are what each id may be: one state, or more where nobody knows whether a write was done.
    """

    def __init__(self, tally: Tally, port: int, number: int, paths: Sequence[str], *, ring: int = 60, tries: int = 2):
        super().__init__(daemon=True)
        self.tally, self.number, self.paths, self.ring, self.tries = tally, number, paths, ring, tries
        self.client, self.random = Client(port), random.Random(number)
        self.states: dict[tuple[str, str], set[State]] = {}
        self.acknowledged = self._write = 0

    def run(self) -> None:
        while not self.tally.over.is_set():
            try:
                self.turn()
            except Exception as error:  # a thread cannot fail a test: the tally does
                self.tally.wrong.append(f"writer {self.number}: {type(error).__name__}: {error}")

    def turn(self) -> None:
        kind = self.random.choices(
            ["add", "upsert", "update", "document", "delete", "where", "get", "query", "count", "collection"],
            [3, 4, 2, 2, 2, 1, 3, 3, 1, 1],
        )[0]
        path = self.random.choice(self.paths)
        if kind == "collection":
            self.collection()
        elif kind == "get":
            self.check_some(path)
        elif kind == "query":
            self.query(path)
        elif kind == "count":
            self.expect(kind, "GET", f"{path}/count", None, 200)
        else:
            self.write(kind, path)

    def write(self, kind: str, path: str) -> None:
        """One batch of ids, and what it makes of their states."""
        self._write += 1
        n = self._write
        start = self.random.randrange(self.ring)
        ids = [f"w{self.number}-{(start + i * 7) % self.ring}" for i in range(self.random.choice([1, 3, 20]))]
        ids = list(dict.fromkeys(ids))
        body: dict[str, Any] = {"ids": ids}
        if kind in ("add", "upsert", "update"):
            body |= {"embeddings": [self.vector(i, n) for i in ids], "metadatas": [self.metadata(n) for _ in ids]}
        if kind in ("add", "upsert", "update", "document"):
            body["documents"] = [f"text {n}" for _ in ids]
        if kind == "where":
            body["where"] = {"writer": self.number}
        route = {"document": "update", "where": "delete"}.get(kind, kind)
        statuses = self.send(kind, "POST", f"{path}/{route}", body)
        if statuses[-1] not in (200, 201, *AGAIN):
            self.tally.wrong.append(f"{kind}: {statuses} {self.said}")
        done = statuses[-1] in (200, 201)
        self.acknowledged += done
        for i in ids:
            before = self.states.get((path, i), {None})
            after = {_after(kind, state, n) for state in before}
            if done:
                self.states[path, i] = after
            elif set(statuses) != {503}:  # of which nothing is done
                self.states[path, i] = before | after

    def check_some(self, path: str) -> None:
        """What this writer knows of some ids must be so, whichever instance answers."""
        ids = [f"w{self.number}-{self.random.randrange(self.ring)}" for _ in range(10)]
        self.check(path, list(dict.fromkeys(ids)), self.client)

    def check(self, path: str, ids: list[str], client: Client) -> None:
        body = {"ids": ids, "include": ["embeddings", "documents", "metadatas"]}
        said = self.expect("get", "POST", f"{path}/get", body, 200, client)
        if said is None:
            return
        members = zip(said["embeddings"], said["documents"], said["metadatas"], strict=True)
        found = dict(zip(said["ids"], members, strict=True))
        for i in ids:
            possible = self.states.get((path, i), {None})
            state = self.read(i, *found[i]) if i in found else None
            if state not in possible:
                self.tally.wrong.append(f"{i} is {state}, may be {possible} {found.get(i)}")

    def check_all(self, port: int) -> None:
        """At the end, at one instance: every id that was ever written."""
        client = Client(port)
        for path in self.paths:
            ids = [i for p, i in self.states if p == path]
            if ids:
                self.check(path, ids, client)

    def query(self, path: str) -> None:
        """The vector of a record that is surely there finds it at distance 0."""
        known = [(i, *s) for (p, i), s in self.states.items() if p == path and len(s) == 1 and None not in s]
        i, state = self.random.choice(known) if known else ("", None)
        vector = self.vector(i, state[0]) if state else [0.5] * DIMENSION
        body = {"query_embeddings": [vector], "n_results": 3, "include": ["distances"]}
        said = self.expect("query", "POST", f"{path}/query", body, 200)
        if said and state and (said["ids"][0][:1] != [i] or said["distances"][0][0] > 1e-6):
            if self.tally.approximate:
                self.tally.missed += 1
            else:
                self.tally.wrong.append(f"the vector of {i} finds {said['ids'][0]} at {said['distances'][0]}")

    def collection(self) -> None:
        """One of its own: made, filled, read, dropped, gone."""
        self._write += 1
        name = f"of-{self.number}-{self._write}"
        statuses = self.send("create", "POST", COLLECTIONS, {"name": name})
        if statuses[-1] == 409 and len(statuses) > 1:  # by the first try
            statuses = self.send("find", "GET", f"{COLLECTIONS}/{name}")
        if statuses[-1] in AGAIN:
            return
        if statuses[-1] != 200:
            self.tally.wrong.append(f"create: {statuses} {self.said}")
            return
        path = f"{COLLECTIONS}/{self.said['id']}"
        ids = [str(n) for n in range(5)]
        body = {"ids": ids, "embeddings": [[n, 1.0] for n in range(5)]}
        done = self.expect("add", "POST", f"{path}/add", body, 201) is not None
        said = self.expect("get", "POST", f"{path}/get", {"include": []}, 200)
        if done and said and said["ids"] != ids:
            self.tally.wrong.append(f"{name} holds {said['ids']}")
        statuses = self.send("drop", "DELETE", f"{COLLECTIONS}/{name}")
        if statuses[-1] in AGAIN:
            return
        if statuses[-1] != 200 and not (statuses[-1] == 404 and len(statuses) > 1):
            self.tally.wrong.append(f"drop: {statuses} {self.said}")
        statuses = self.send("get dropped", "POST", f"{path}/get", {})
        if statuses[-1] not in (404, *AGAIN):
            self.tally.wrong.append(f"{name} was dropped: {statuses} {self.said}")

    def expect(self, what: str, method: str, path: str, body: object, status: int, client: Client | None = None) -> Any:
        """The JSON of the one right answer ({} for none); None where it failed."""
        statuses = self.send(what, method, path, body, client)
        if statuses[-1] == status:
            return self.said or {}
        if statuses[-1] not in AGAIN:
            self.tally.wrong.append(f"{what}: {statuses} {self.said}")
        return None

    def send(self, what: str, method: str, path: str, body: object = None, client: Client | None = None) -> list[int]:
        """The statuses of all tries; ``said`` is the last one's JSON."""
        client, statuses, bare = client or self.client, [], 0
        slowest = 0.0
        while True:
            begun = time.monotonic()
            status, self.said = client.ask(method, path, body)
            slowest = max(slowest, time.monotonic() - begun)
            statuses.append(status)
            later = client.fields.get("retry-after") if status == 503 else None
            bare += status == 503 and later is None
            if status not in AGAIN or len(statuses) == self.tries:
                self.tally.tell(what, statuses, self.said, bare, slowest)
                return statuses
            time.sleep(float(later or PAUSE))

    def vector(self, i: str, write: int) -> list[float]:
        """Of its own for each write of each id; numbers that float32 holds."""
        return [float(write), float(self.number), float(i.partition("-")[2] or 0), 1.0]

    def metadata(self, write: int) -> dict[str, int]:
        return {"writer": self.number, "write": write}

    def read(self, i: str, vector: list[float], document: str, metadata: dict[str, int]) -> State | str:
        """The state that a record shows."""
        state = (int(vector[0]), int(document.removeprefix("text ")), metadata["write"])
        if vector != self.vector(i, state[0]) or metadata != self.metadata(state[2]):
            return f"{vector} {document} {metadata}"
        return state


def _after(kind: str, state: State, n: int) -> State:
    if kind in ("delete", "where"):
        return None
    if state is None:
        return (n, n, n) if kind in ("add", "upsert") else None
    if kind == "add":
        return state
    return (state[0], n, state[2]) if kind == "document" else (n, n, n)


def create(port: int, name: str, **more: object) -> str:
    """The path of a collection that is there now."""
    status, made = ask(port, "POST", COLLECTIONS, {"name": name, "get_or_create": True, **more})
    assert status == 200, made
    return f"{COLLECTIONS}/{made['id']}"


def eventually(true: Callable[[], object], what: str, patience: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.02)


def stop(tally: Tally, writers: Sequence[Writer]) -> None:
    """Let them end what they are at."""
    tally.over.set()
    for one in writers:
        one.join(180)
        assert not one.is_alive(), f"writer {one.number} hangs"
