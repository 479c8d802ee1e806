"""The engine on PostgreSQL beside stock ``chroma run``: the same vectors, the same client, in turns.

    python bench/postgres.py [--records 100000] [--seconds 5] [--only query,filtered|instances] [--json FILE]
        [--vectors FILE.npy]

Both servers run on this machine at the same time; each measurement goes to one of them while the other is idle, and
they change places every round. The client is raw HTTP/1.1 over kept connections with bodies encoded beforehand, so that
what is measured is the servers. Without --vectors they are 200 clusters of 384 dimensions. Recall is of the ten nearest
by exact distances. A ratio is ours by stock's: of times less than 1 is better, of throughputs more.

``--only instances`` has no stock server: it is two instances on one PostgreSQL beside one of them, 16 at once.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import boot
import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray

from chromakeep.chroma.ports import free_port
from chromakeep.postgres.embedded import Embedded
from chromakeep.postgres.segments import LOOSE

ROOT = "/api/v2/tenants/default_tenant/databases/default_database/collections"
K, ROUNDS = 10, 3
RANDOM = np.random.default_rng(11)
SELECTIVITIES = {"10 %": ("tenth", 10), "1 %": ("hundredth", 100), "0.1 %": ("thousandth", 1000)}


class Line(msgspec.Struct):
    """One figure of both; ``sides`` are what they are called where they are not these."""

    what: str
    stock: float
    ours: float
    unit: str
    note: str = ""
    sides: tuple[str, str] = ("stock", "ours")

    @property
    def ratio(self) -> float:
        return self.ours / self.stock if self.stock else float("nan")

    def show(self) -> Line:
        first, second = self.sides
        print(
            f"{self.what:44} {first} {self.stock:10.2f}  {second} {self.ours:10.2f} {self.unit:6}"
            f" ratio {self.ratio:6.2f}  {self.note}",
            flush=True,
        )
        return self


class Client:
    """Kept connections to one server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes = b"") -> Any:
        """One answer, decoded."""
        return msgspec.json.decode(asyncio.run(self._one(self._encoded(method, path, body))))

    def times(
        self, path: str, bodies: Sequence[bytes], seconds: float, at_once: int = 1
    ) -> tuple[list[float], float, dict[int, bytes]]:
        """Milliseconds of each POST for so many seconds, requests a second, and the last answer to each body."""
        encoded = [self._encoded("POST", path, body) for body in bodies]
        return asyncio.run(self._load(encoded, seconds, at_once))

    @staticmethod
    def _encoded(method: str, path: str, body: bytes) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def _one(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)
        try:
            return await _exchange(reader, writer, request)
        finally:
            writer.close()

    async def _load(
        self, requests: list[bytes], seconds: float, at_once: int
    ) -> tuple[list[float], float, dict[int, bytes]]:
        spent: list[float] = []
        answers: dict[int, bytes] = {}
        numbers = iter(range(1 << 60))
        begun = time.perf_counter()

        async def worker() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)
            while time.perf_counter() - begun < seconds:
                number = next(numbers) % len(requests)
                sent = time.perf_counter()
                answers[number] = await _exchange(reader, writer, requests[number])
                spent.append((time.perf_counter() - sent) * 1000)
            writer.close()

        await asyncio.gather(*(worker() for _ in range(at_once)))
        return spent, len(spent) / (time.perf_counter() - begun), answers


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    body = await reader.readexactly(length)
    if not 200 <= int(head[9:12]) < 300:
        raise SystemExit(f"{request[:120]!r}: {head[:40]!r} {body[:400]!r}")
    return body


@contextmanager
def server(command: Sequence[str | Path], port: int, log: Path) -> Iterator[Client]:
    """A server as a process of its own, until the end."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(part) for part in command], env={**os.environ, "RUST_LOG": "error"}, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                Client(port).ask("GET", "/api/v2/heartbeat")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[0]} does not serve; see {log}") from None
                time.sleep(0.05)
        yield Client(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def vectors(records: int, dimension: int, seed: int) -> NDArray[np.float32]:
    """Of 200 clusters."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(200, dimension))
    found: NDArray[np.float32] = (
        centres[random.integers(0, 200, records)] + 0.6 * random.normal(size=(records, dimension))
    ).astype(np.float32)
    return found


def batch(found: NDArray[np.float32], start: int, stop: int) -> bytes:
    """The body of an add."""
    numbers = range(start, stop)
    return msgspec.json.encode(
        {
            "ids": [f"r{n}" for n in numbers],
            "embeddings": [base64.b64encode(found[n].tobytes()).decode() for n in numbers],
            "documents": [f"passage {n} of a text that goes on for about sixty letters, q{n % 97}z" for n in numbers],
            "metadatas": [
                {"i": n, "f": n / 7, **{key: f"v{hash_of(n, part)}" for key, part in SELECTIVITIES.values()}}
                for n in numbers
            ],
        }
    )


def hash_of(number: int, part: int) -> int:
    """Which of so many parts a record is in: without any order."""
    return (number * 2654435761 % (1 << 32)) // 7919 % part


def created(client: Client, name: str) -> str:
    return str(client.ask("POST", ROOT, msgspec.json.encode({"name": name}))["id"])


class Bench:
    """Both servers with the same collection."""

    def __init__(self, stock: Client, ours: Client, data: NDArray[np.float32], seconds: float, url: str) -> None:
        self.url = url
        self.both = {"stock": stock, "ours": ours}
        self.data, self.seconds = data, seconds
        self.ids: dict[str, str] = {}
        self.lines: list[Line] = []

    def line(self, *figures: Any) -> None:
        self.lines.append(Line(*figures).show())

    def add(self, dimension: int, records: int) -> None:
        """Batches of 1,000, one client, both in turns."""
        data = vectors(records, dimension, 3)
        paths = {name: f"{ROOT}/{created(c, f'add-{dimension}')}/add" for name, c in self.both.items()}
        spent = dict.fromkeys(self.both, 0.0)
        for start in range(0, records, 1000):
            body = batch(data, start, min(start + 1000, records))
            for name, client in self.both.items():
                begun = time.perf_counter()
                client.ask("POST", paths[name], body)
                spent[name] += time.perf_counter() - begun
        self.line(f"add, 1,000 x {dimension}", records / spent["stock"], records / spent["ours"], "rec/s")

    def load(self) -> None:
        """The collection that the others ask; ours with all the indexes that upkeep makes."""
        spent = dict.fromkeys(self.both, 0.0)
        for name, client in self.both.items():
            self.ids[name] = created(client, "asked")
        for start in range(0, len(self.data), 1000):
            body = batch(self.data, start, min(start + 1000, len(self.data)))
            for name, client in self.both.items():
                begun = time.perf_counter()
                client.ask("POST", f"{ROOT}/{self.ids[name]}/add", body)
                spent[name] += time.perf_counter() - begun
        self.line("load", len(self.data) / spent["stock"], len(self.data) / spent["ours"], "rec/s")
        begun = time.perf_counter()
        body = {"query_embeddings": self.data[:1].tolist(), "n_results": 1, "where": {"i": {"$gt": 5}}}
        self.both["ours"].ask("POST", f"{ROOT}/{self.ids['ours']}/query", msgspec.json.encode(body))
        while True:
            status = self.both["ours"].ask("GET", f"{ROOT}/{self.ids['ours']}/indexing_status")
            if status["op_indexing_progress"] == 1.0:
                break
            time.sleep(1)
        print(f"{'indexes stand after':44} {time.perf_counter() - begun:.1f} s", flush=True)
        while not self.rested():  # one index of all, which upkeep makes when nobody has written for a while
            time.sleep(1)
        print(f"{'one index of all stands after':44} {time.perf_counter() - begun:.1f} s", flush=True)

    def rested(self) -> bool:
        """Whether the collection that is asked has one segment, and next to nothing behind it."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT c.relation, s.high FROM chromakeep.segments s JOIN chromakeep.collections c"
                " ON c.id = s.collection WHERE c.id = %s",
                (self.ids["ours"],),
            ).fetchall()
            if len(found) != 1:
                return False
            sql = f'SELECT count(*) FROM chromakeep."{found[0][0]}" WHERE place > %s'
            row = connection.execute(sql.encode(), (found[0][1],)).fetchone()
            return row is not None and row[0] < LOOSE

    def asked(self, what: str, path: str, bodies: list[bytes], at_once: int = 1) -> dict[str, dict[int, bytes]]:
        """p50, or the throughput of several at once: the median of the rounds, in turns."""
        figures: dict[str, list[float]] = {name: [] for name in self.both}
        answers: dict[str, dict[int, bytes]] = {name: {} for name in self.both}
        for number in range(ROUNDS + 1):
            for name in ("stock", "ours") if number % 2 else ("ours", "stock"):
                place = f"{ROOT}/{self.ids[name]}/{path}"
                seconds = self.seconds if number else 1.0  # the first round warms up
                spent, rate, got = self.both[name].times(place, bodies, seconds, at_once)
                answers[name] |= got
                if number:
                    figures[name].append(rate if at_once == 16 else statistics.median(spent))
        stock, ours = (statistics.median(figures[name]) for name in ("stock", "ours"))
        self.line(what, stock, ours, "req/s" if at_once == 16 else "ms")
        return answers

    def recall(self, answers: dict[int, bytes], near: NDArray[np.int64]) -> float:
        found = 0
        for number, answer in answers.items():
            ids = {int(name[1:]) for name in json.loads(answer)["ids"][0]}
            found += len(ids & set(near[number].tolist()))
        return found / max(1, len(answers) * K)

    def query(
        self, where: tuple[str, int] | None = None, name: str = "query", at_once: Sequence[int] = (1, 16)
    ) -> None:
        questions = self.data[RANDOM.integers(0, len(self.data), 200)]
        questions = questions + 0.1 * RANDOM.normal(size=questions.shape).astype(np.float32)
        distances = (self.data**2).sum(axis=1)[None] - 2 * questions @ self.data.T
        asked: dict[str, Any] = {"n_results": K}
        if where is not None:
            key, part = where
            out = np.array([hash_of(n, part) != 3 for n in range(len(self.data))])
            distances[:, out] = np.inf
            asked["where"] = {key: "v3"}
        near = np.argpartition(distances, K, axis=1)[:, :K]
        bodies = [msgspec.json.encode({**asked, "query_embeddings": [one.tolist()]}) for one in questions]
        for several in at_once:
            answers = self.asked(f"{name}, {several} at once", "query", bodies, several)
            if several == 1:
                recalls = [self.recall(answers[side], near) for side in ("stock", "ours")]
                self.line(f"{name}, recall", *recalls, "")

    def filtered(self) -> None:
        for name, where in SELECTIVITIES.items():
            self.query(where, f"query, {name}", (1, 8))

    def get(self) -> None:
        ids = [
            msgspec.json.encode({"ids": [f"r{n}" for n in RANDOM.integers(0, len(self.data), 100)]}) for _ in range(50)
        ]
        self.asked("get, 100 ids", "get", ids)
        by_key = [msgspec.json.encode({"where": {"hundredth": f"v{n}"}, "limit": 10}) for n in range(100)]
        self.asked("get, filter, limit 10", "get", by_key)
        text = [msgspec.json.encode({"where_document": {"$contains": f"q{n}z"}, "limit": 10}) for n in range(97)]
        self.asked("get, $contains, limit 10", "get", text)

    def copy(self, records: int, work: Path, engine: str) -> None:
        """``chromakeep copy`` of one file to both."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data, file = vectors(records, 768, 4), work / "copied.parquet"
        columns = {
            "id": pa.array([f"r{n}" for n in range(records)]),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(data.ravel()), 768),
            "document": pa.array([f"passage {n} of a text" for n in range(records)]),
        }
        pq.write_table(pa.table(columns), file, row_group_size=5000)
        spent = {}
        for name, target in (("stock", f"http://127.0.0.1:{self.both['stock'].port}"), ("ours", engine)):
            begun = time.perf_counter()
            command = [boot.BIN / "chromakeep", "copy", file, target, "--work", work / name]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            spent[name] = time.perf_counter() - begun
        self.line(f"copy, {records} x 768", records / spent["stock"], records / spent["ours"], "rec/s")


class Instances:
    """Two instances on one PostgreSQL, with one collection. What one or both do is measured in turns."""

    AT_ONCE = 16

    def __init__(self, both: Sequence[Client], data: NDArray[np.float32], seconds: float) -> None:
        self.both, self.data, self.seconds = both, data, seconds
        self.path = f"{ROOT}/{created(both[0], 'shared')}"
        self.upserted: dict[int, int] = {}  # number of a record -> the port that has acknowledged it

    def run(self) -> list[Line]:
        """The collection is loaded, and all of it indexed, before."""
        for start in range(0, len(self.data), 1000):
            body = batch(self.data, start, min(start + 1000, len(self.data)))
            self.both[0].ask("POST", f"{self.path}/add", body)
        while self.both[0].ask("GET", f"{self.path}/indexing_status")["op_indexing_progress"] < 1.0:
            time.sleep(1)
        questions = self.data[RANDOM.integers(0, len(self.data), 200)]
        asked = [msgspec.json.encode({"query_embeddings": [one.tolist()], "n_results": K}) for one in questions]
        encoded = [Client._encoded("POST", f"{self.path}/query", body) for body in asked]
        lines = [
            self.compared("query", lambda number: encoded[number % len(encoded)]),
            self.compared("upsert of one record", self.upsert, self.acknowledged),
        ]
        wrong = self.wrong()
        print(f"{len(self.upserted)} upserts, read back through the other instance: {wrong} wrong", flush=True)
        return lines

    def compared(
        self, what: str, request: Callable[[int], bytes], done: Callable[[int, int], None] = lambda number, port: None
    ) -> Line:
        """Requests a second, the median of the rounds of each."""
        rates: dict[int, list[float]] = {1: [], 2: []}
        numbers = iter(range(1 << 60))
        for turn in range(ROUNDS + 1):
            for count in (1, 2) if turn % 2 else (2, 1):
                seconds = self.seconds if turn else 1.0  # the first round warms up
                rate = asyncio.run(self.load(count, seconds, request, numbers, done))
                if turn:
                    rates[count].append(rate)
        one, two = (statistics.median(rates[count]) for count in (1, 2))
        return Line(f"{what}, {self.AT_ONCE} at once", one, two, "req/s", sides=("one", "two")).show()

    async def load(
        self,
        count: int,
        seconds: float,
        request: Callable[[int], bytes],
        numbers: Iterator[int],
        done: Callable[[int, int], None],
    ) -> float:
        made, begun = 0, time.perf_counter()

        async def worker(port: int) -> None:
            nonlocal made
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
            while time.perf_counter() - begun < seconds:
                number = next(numbers)
                await _exchange(reader, writer, request(number))
                done(number, port)
                made += 1
            writer.close()

        await asyncio.gather(*(worker(self.both[n % count].port) for n in range(self.AT_ONCE)))
        return made / (time.perf_counter() - begun)

    def upsert(self, number: int) -> bytes:
        """Of a record of its own."""
        vector = self.data[number % len(self.data)].tolist()
        body = {"ids": [f"u{number}"], "embeddings": [vector], "documents": [f"of {number}"]}
        return Client._encoded("POST", f"{self.path}/upsert", msgspec.json.encode(body))

    def acknowledged(self, number: int, port: int) -> None:
        self.upserted[number] = port

    def wrong(self) -> int:
        """Records that the instance that did not write them has not, or not as they were written."""
        found = 0
        for reader in self.both:
            numbers = [number for number, port in self.upserted.items() if port != reader.port]
            for start in range(0, len(numbers), 1000):
                some = numbers[start : start + 1000]
                body = {"ids": [f"u{number}" for number in some], "include": ["documents"]}
                said = reader.ask("POST", f"{self.path}/get", msgspec.json.encode(body))
                documents = dict(zip(said["ids"], said["documents"], strict=True))
                found += sum(documents.get(f"u{number}") != f"of {number}" for number in some)
        return found


def ours_at(url: str, work: Path, stack: ExitStack) -> Client:
    """Another instance on that PostgreSQL."""
    port = free_port()
    data = work / f"ours-{port}"
    data.mkdir()
    command: list[str | Path] = [boot.BIN / "chromakeep", "serve", "--engine", url, "--data", data, "--open"]
    command += ["--port", str(port), "--engine-connections", "8"]
    return stack.enter_context(server(command, port, work / "ours.log"))


def beside(bench: Bench, chosen: Sequence[str], records: int, work: Path) -> list[Line]:
    """What was chosen, of both servers."""
    if "add" in chosen:
        bench.add(768, max(5000, records // 5))
    if "copy" in chosen:
        bench.copy(records, work, bench.url)
    steps: dict[str, Callable[[], None]] = {"query": bench.query, "filtered": bench.filtered, "get": bench.get}
    if set(chosen) & set(steps):
        bench.load()
    for name, step in steps.items():
        if name in chosen:
            step()
    return bench.lines


def main() -> None:
    """Run what is asked for, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="add,copy,query,filtered,get")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    work = Path(tempfile.mkdtemp(prefix="postgres-"))
    data = np.load(arguments.vectors)[: arguments.records] if arguments.vectors else None
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        postgres = Embedded(work / "postgresql")
        postgres.start()
        stack.callback(postgres.stop)
        parts = urlsplit(postgres.url)
        os.environ["PGPASSWORD"] = parts.password or os.environ.get("PGPASSWORD", "")
        url = urlunsplit(parts._replace(netloc=f"{parts.username}@"))
        data = vectors(arguments.records, 384, 1) if data is None else data
        ours, lines = ours_at(url, work, stack), list[Line]()
        if "instances" in chosen:
            lines += Instances([ours, ours_at(url, work, stack)], data, arguments.seconds).run()
        if chosen != ["instances"]:
            port = free_port()
            command: list[str | Path] = [boot.BIN / "chroma", "run", "--path", work / "stock", "--port", str(port)]
            stock = stack.enter_context(server(command, port, work / "stock.log"))
            lines += beside(Bench(stock, ours, data, arguments.seconds, url), chosen, arguments.records, work)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(lines)))


if __name__ == "__main__":
    main()
