"""Soak the door: everything at once for as long as one likes, and then count.

    python tests/stress/soak_door.py [--minutes 10] [--seed 0]

One ``chromakeep run`` with TLS, keys, metrics, access and audit log, and twenty clients of their own connections: eight
write (each to its own collection), eight read, four send what no client of Chroma sends. Meanwhile the key and the
certificate are rotated every few seconds, metrics are read, and Chroma is killed four times.

Fails if an acknowledged write is missing, or one that was answered with 503 is there; if a request failed that was not
under way while Chroma was gone, or any connection broke; if an odd request was answered as it should not be; if the
logs do not have every write; if the audit log does not verify; if the memory of the door grew by more than ``ROOM``
after the first third.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from chromakeep.operations.audit_verify import verify  # noqa: E402
from chromakeep.operations.beside import Beside  # noqa: E402
from chromakeep.operations.key_places import RepositoryKeys  # noqa: E402
from chromakeep.operations.keyring import create, rotate  # noqa: E402
from chromakeep.repository import Repository  # noqa: E402
from chromakeep.store.local import LocalStore  # noqa: E402
from run.running import eventually, process, signal_to  # noqa: E402
from server.certificates import Authority  # noqa: E402

WRITERS, READERS, ODD = 8, 8, 4
KILLS = 4  # more than five within ten minutes would end the run
ROOM = 32  # MB that the door may grow by between a third of the time and the end
TURN = 10.0  # seconds between two rotations
RING = 500  # ids of a writer
COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
DIMENSION = 8
# A stock server answers so, now and then, to a query of a collection that was made a moment ago, while others write.
CHROMAS_OWN = b"Error creating hnsw segment reader: Nothing found on disk"


class World:
    """What all clients share, and what they found wrong."""

    def __init__(self, port: int, authority: Authority) -> None:
        self.port, self.token = port, ""
        self.context = ssl.create_default_context(cafile=str(authority.file))
        self.over = threading.Event()
        self.gone: list[list[float]] = []  # from when to when Chroma was not there
        self.wrong: list[str] = []
        self.failed: list[tuple[float, float, str]] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def outcome(self, begun: float, what: str, status: int, said: bytes = b"") -> None:
        """Of a request. What was answered with 5xx may have been so only while Chroma was gone."""
        self.count(f"{what} {status}")
        if CHROMAS_OWN in said:
            self.count("query of Chroma's that finds no index yet")
        elif status >= 500 and status != 505:  # which is the right answer to a version that nobody speaks
            self.failed.append((begun, time.monotonic(), f"{what}: {status} {said[:500]!r}"))

    def unexcused(self) -> list[str]:
        """Requests that failed though Chroma was there all the time."""
        return [
            f"{said} after {end - begun:.2f} s"
            for begun, end, said in self.failed
            if not any(begun <= until and end >= since for since, until in self.gone)
        ]


class Client(threading.Thread):
    """One connection, which now and then is a new one. What it does is ``turn``, until the end."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(daemon=True)
        self.world, self.number, self.random = world, number, random.Random(number)
        self._connection: http.client.HTTPSConnection | None = None

    def run(self) -> None:
        while not self.world.over.is_set():
            try:
                self.turn()
            except Exception as error:  # a thread cannot fail a soak: the world does
                self.world.wrong.append(f"{type(self).__name__} {self.number}: {type(error).__name__}: {error}")
                self._connection = None

    def turn(self) -> None:
        raise NotImplementedError

    def ask(self, what: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON."""
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                "localhost", self.world.port, context=self.world.context, timeout=120
            )
        begun = time.monotonic()
        fields = {"authorization": f"Bearer {self.world.token}", "content-type": "application/json"}
        self._connection.request(method, path, None if body is None else json.dumps(body), fields)
        answer = self._connection.getresponse()
        said = answer.read()
        self.world.outcome(begun, what, answer.status, said)
        if answer.status in (502, 503, 504):
            self.world.over.wait(0.1)
        if self.random.random() < 0.02:
            self._connection.close()
            self._connection = None
        return answer.status, json.loads(said) if said else None


class Writer(Client):
    """Upserts, updates and deletes a ring of ids; what was acknowledged is in ``held``, what may be in ``open``."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.path, self.writes, self._step = "", 0, 0
        self.held: dict[str, float | None] = {}
        self.open: dict[str, set[float | None]] = {}

    def turn(self) -> None:
        if not self.path:
            status, made = self.ask(
                "create", "POST", COLLECTIONS, {"name": f"soak-{self.number}", "get_or_create": True}
            )
            self.path = f"{COLLECTIONS}/{made['id']}" if status == 200 else ""
            self.writes += status == 200
            return
        self._step += 1
        kind = self.random.choice(["upsert", "upsert", "upsert", "delete"])
        ids = [f"i{n % RING}" for n in range(self._step * 7, self._step * 7 + self.random.choice([1, 5, 50]))]
        changes = {i: None if kind == "delete" else float(self._step) for i in ids}
        body: dict[str, object] = {"ids": ids}
        if kind != "delete":
            body["embeddings"] = [[self._step] + [self.random.random() for _ in range(DIMENSION - 1)] for _ in ids]
            body["documents"] = ["text " * 20 for _ in ids]
        status, said = self.ask(kind, "POST", f"{self.path}/{kind}", body)
        if status in (200, 201):
            self.writes += 1
            for i, value in changes.items():
                self.held[i] = value
                self.open.pop(i, None)
        elif status in (502, 504):
            for i, value in changes.items():
                self.open.setdefault(i, {self.held.get(i)}).add(value)
        elif status != 503:
            self.world.wrong.append(f"{kind}: {status} {said}")

    def check(self) -> int:
        """Compare with what the door shows; how many records there are."""
        found: dict[str, float] = {}
        while True:
            asked = {"include": ["embeddings"], "limit": 300, "offset": len(found)}
            status, page = self.ask("check", "POST", f"{self.path}/get", asked)
            assert status == 200, page
            if not page["ids"]:
                break
            found |= {i: float(v[0]) for i, v in zip(page["ids"], page["embeddings"], strict=True)}
        for i in {f"i{n}" for n in range(RING)}:
            may = self.open.get(i, {self.held.get(i)})
            if found.get(i) not in may:
                self.world.wrong.append(f"writer {self.number}: {i} is {found.get(i)}, may be {may}")
        return len(found)


class Reader(Client):
    """Queries, gets and counts in collections of the writers."""

    def turn(self) -> None:
        status, listed = self.ask("list", "GET", COLLECTIONS)
        if status != 200 or not listed:
            return
        for _ in range(20):
            path = f"{COLLECTIONS}/{self.random.choice(listed)['id']}"
            kind = self.random.choice(["query", "get", "count"])
            vector = [self.random.random() for _ in range(DIMENSION)]
            body = {"query": {"query_embeddings": [vector], "n_results": 5}, "get": {"limit": 20}, "count": None}[kind]
            status, said = self.ask(kind, "GET" if kind == "count" else "POST", f"{path}/{kind}", body)
            # A collection of which no vector was written yet has no dimension to query by; nor an index to do it with.
            if status >= 400 and status < 500:
                self.world.wrong.append(f"{kind}: {status} {said}")


class Odd(Client):
    """What no client of Chroma sends: each has answers that are right; a connection may be closed after one."""

    def turn(self) -> None:
        name, what = self.random.choice(ODDITIES)
        begun = time.monotonic()
        plain = socket.create_connection(("localhost", self.world.port), 120)
        with suppress(ssl.SSLEOFError, ConnectionError, BrokenPipeError):  # of what is cut before it was all sent
            wire = plain if name == "plain" else self.world.context.wrap_socket(plain, server_hostname="localhost")
            with wire:
                expected = what(wire, self.world.token)
                if expected:
                    status = _status(wire)
                    self.world.outcome(begun, f"odd {name}", status)
                    if status not in expected and status not in (502, 503):
                        self.world.wrong.append(f"odd {name}: {status}, not {expected}")
                else:
                    self.world.count(f"odd {name}")
        plain.close()
        self.world.over.wait(0.02)


def _status(wire: socket.socket) -> int:
    data = b""
    while b"\r\n" not in data:
        more = wire.recv(1 << 16)
        if not more:
            return 0
        data += more
    return int(data.split(b" ")[1])


def _sends(template: bytes, *expected: int) -> Callable[[socket.socket, str], tuple[int, ...]]:
    def what(wire: socket.socket, token: str) -> tuple[int, ...]:
        wire.sendall(template.replace(b"TOKEN", f"x-chroma-token: {token}\r\n".encode()))
        return expected

    return what


def _slowly(wire: socket.socket, token: str) -> tuple[int, ...]:
    for piece in (f"GET {COLLECTIONS}_count HT", "TP/1.1\r\nhost: h\r\nx-chroma", f"-token: {token}\r\n", "\r\n"):
        wire.sendall(piece.encode())
        time.sleep(0.5)
    return (200,)


def _leaves(wire: socket.socket, token: str) -> tuple[int, ...]:
    head = f"POST {COLLECTIONS} HTTP/1.1\r\nhost: h\r\nx-chroma-token: {token}\r\ncontent-length: 1000\r\n\r\n"
    wire.sendall(head.encode() + b'{"name": "never')
    return ()


_POST = f"POST {COLLECTIONS} HTTP/1.1\r\nhost: h\r\n".encode()
_GET = f"GET {COLLECTIONS}_count HTTP/1.1\r\nhost: h\r\n".encode()
_ARRAY = b'{"name": "odd-array", "metadata": {"a": [1, 2]}}'
ODDITIES: list[tuple[str, Callable[[socket.socket, str], tuple[int, ...]]]] = [
    ("wrong key", _sends(_GET + b"x-chroma-token: ck_0123456789abcdef_wrong\r\n\r\n", 401, 429)),
    ("no key", _sends(_GET + b"\r\n", 401)),
    ("large head", _sends(_GET + b"x: " + b"y" * 40_000 + b"\r\n\r\n", 431)),
    ("version", _sends(b"GET / HTTP/9.9\r\nhost: h\r\n\r\n", 505)),
    ("smuggled", _sends(_POST + b"TOKENcontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400)),
    ("bare line feed", _sends(b"GET / HTTP/1.1\nhost: h\n\n", 400)),
    ("array", _sends(_POST + b"TOKENcontent-length: %d\r\n\r\n" % len(_ARRAY) + _ARRAY, 400, 422)),
    ("no route", _sends(b"POST /api/v3/nothing HTTP/1.1\r\nhost: h\r\nTOKENcontent-length: 2\r\n\r\n{}", 403)),
    ("pipelined", _sends((_GET + b"TOKEN\r\n") * 10, 200)),
    ("plain", _sends(_GET + b"TOKEN\r\n", 400)),
    ("slow", _slowly),
    ("leaves", _leaves),
]


@contextmanager
def load(world: World) -> Iterator[list[Client]]:
    """All clients, from now until the end of it."""
    clients: list[Client] = [Writer(world, n) for n in range(WRITERS)]
    clients += [Reader(world, 100 + n) for n in range(READERS)]
    clients += [Odd(world, 200 + n) for n in range(ODD)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        world.over.set()
        for client in clients:
            client.join(150)


def page(world: World, path: str, token: str = "") -> tuple[int, bytes]:
    """A page of the door; status 0 while nobody answers."""
    connection = http.client.HTTPSConnection("localhost", world.port, context=world.context, timeout=30)
    try:
        connection.request("GET", path, headers={"x-chroma-token": token} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def rotate_all(world: World, keys: RepositoryKeys, authority: Authority) -> None:
    """A new key, which the clients take when the door knows it, and a new certificate."""
    _, token, _ = rotate(keys, "app", overlap=60.0)
    eventually(lambda: page(world, "/_keep/status", token)[0] == 200, "the new key")
    world.token = token
    fresh = authority.tls("fresh")
    served = authority.file.parent / "served.pem"
    assert fresh.key
    both = served.with_suffix(".new")
    both.write_bytes(fresh.certificate.read_bytes() + fresh.key.read_bytes())
    both.replace(served)
    world.count("rotations")


def kill_chroma(world: World, data: Path) -> None:
    """And wait until it serves again."""
    server = Beside(data)._read().server
    assert server
    since = time.monotonic()
    window = [since, since + 3600.0]
    world.gone.append(window)
    signal_to(server.pid)
    eventually(lambda: not server.alive(), "its end")
    eventually(lambda: page(world, "/readyz")[0] == 200 and Beside(data)._read().server != server, "another one", 120)
    window[1] = time.monotonic() + 1.0


def resident(pid: int) -> float:
    """MB of a process in RAM, without what is of files."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024


def around(seen: list[tuple[float, float]], moment: float) -> float:
    """The median of the five looks nearest to a moment."""
    return statistics.median(mb for _, mb in sorted(seen, key=lambda look: abs(look[0] - moment))[:5])


def logged(folder: Path) -> tuple[int, int]:
    """Writes of the clients that were done, by the access log and by the audit log."""
    found = []
    for pattern in ("access.log*", "audit.log*"):
        done = 0
        for path in folder.glob(pattern):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                told = record.get("record", record)
                done += bool(
                    told.get("key") == "app"
                    and told.get("method") == "POST"
                    and told.get("status") in (200, 201)
                    and told.get("route", "").rpartition(".")[2] in ("upsert", "delete", "create")
                )
        found.append(done)
    return found[0], found[1]


def soak(place: Path, minutes: float, seed: int) -> list[str]:
    """What was wrong."""
    keep, data, logs = place / "repository", place / "data", place / "logs"
    for each in (keep, logs):
        each.mkdir()
    repository = Repository.create(LocalStore(keep))
    keys, authority, choice = RepositoryKeys(repository), Authority(place), random.Random(seed)
    _, token = create(keys, "app", "writer", database="default_database")
    _, scraper = create(keys, "scraper", "reader")
    first = authority.tls("fresh")
    assert first.key
    (place / "served.pem").write_bytes(first.certificate.read_bytes() + first.key.read_bytes())
    more = (
        "--tls-certificate", str(place / "served.pem"),
        "--access-log", str(logs / "access.log"), "--access-log-size", "20", "--access-log-keep", "1000",
        "--audit-log", str(logs / "audit.log"), "--audit-size", "5",
    )  # fmt: skip
    with process(data, keep, every=15, grace=60.0, durability="async", more=more) as (run, port, log):
        world = World(port, authority)
        world.token = token
        eventually(lambda: page(world, "/readyz")[0] == 200, "the server", 120)
        begun = time.monotonic()
        length = minutes * 60
        kills = sorted(choice.uniform(0.1, 0.9) * length for _ in range(KILLS))
        seen: list[tuple[float, float]] = []  # seconds, MB of the door
        with load(world) as clients:
            turn = begun + TURN
            while (now := time.monotonic() - begun) < length:
                assert run.poll() is None, log.read_text()[-5000:]
                if kills and now > kills[0]:
                    kills.pop(0)
                    kill_chroma(world, data)
                seen.append((now, resident(run.pid)))
                if begun + now > turn:
                    turn = begun + now + TURN
                    rotate_all(world, keys, authority)
                status, metrics = page(world, "/metrics", scraper)
                if status != 200 or b"chromakeep_http_requests_total" not in metrics:
                    world.wrong.append(f"metrics: {status}")
                time.sleep(1.0)
        alive = [client for client in clients if client.is_alive()]
        writers = [client for client in clients if isinstance(client, Writer)]
        records = sum(writer.check() for writer in writers)
        for dropped in ("access_log_dropped_lines", "audit_dropped_records"):
            if f"chromakeep_{dropped}_total 0.0" not in page(world, "/metrics", scraper)[1].decode():
                world.wrong.append(f"{dropped}: some")
        run.terminate()
        assert run.wait(90) == 0, log.read_text()[-5000:]
    third, end = around(seen, length / 3), around(seen, length)
    print("MB of the door:", *(f"{mb:.0f}" for _, mb in seen[:: max(1, len(seen) // 40)]))
    writes = sum(writer.writes for writer in writers)
    said = verify([logs / "audit.log"], {str(keep): repository})
    in_access, in_audit = logged(logs)
    wrong = [*world.wrong, *world.unexcused(), *(f"audit: {problem}" for problem in said.problems)]
    if alive:
        wrong.append(f"{len(alive)} clients did not end")
    if not in_access == in_audit == writes:
        wrong.append(
            f"{writes} writes were acknowledged, {in_access} are in the access log, {in_audit} in the audit log"
        )
    if end > third + ROOM:
        wrong.append(f"the door grew from {third:.0f} to {end:.0f} MB")
    for what, count in sorted(world.counts.items()):
        print(f"{count:8} {what}")
    gone = sum(until - since for since, until in world.gone)
    print(
        f"{minutes:g} minutes, {sum(world.counts.values())} requests, {writes} acknowledged writes, {records} records; "
        f"{len(world.gone)} kills ({gone:.0f} s without Chroma), {len(world.failed)} requests failed meanwhile; "
        f"{world.counts['rotations']} rotations; door {third:.0f} MB at a third, {end:.0f} MB at the end"
    )
    return wrong


def main() -> int:
    """Exit status 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="chromakeep-soak-"))
    print(f"working in {place}; it stays there if something is wrong", flush=True)
    wrong = soak(place, options.minutes, options.seed)
    for line in wrong[:50]:
        print(f"wrong: {line}")
    if wrong:
        print(f"{len(wrong)} things were wrong")
        return 1
    print("nothing was wrong")
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
