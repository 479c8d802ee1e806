"""A run of chromakeep in this process or in one of its own, and a writer that knows what was acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.ports import free_port
from chromakeep.chroma.reader import read_collection
from chromakeep.errors import ChromakeepError, ServerAnswered, ServerFailed
from chromakeep.events import Event, Noted
from chromakeep.operations.beside import Beside
from chromakeep.operations.healthcheck import healthcheck
from chromakeep.operations.run import run
from chromakeep.operations.run_settings import RunResult, RunSettings
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore

DATABASE = "/tenants/default_tenant/databases/default_database"
SRC = Path(__file__).parents[2] / "src"
ENV = dict(os.environ)
PATIENCE = 120.0
GRACE = 100.0  # seconds that an end may take where that is not what is tested: a machine may have much else to do


def eventually(true: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.02)


def create(client: ChromaClient, name: str, **hnsw: object) -> Ref:
    """A collection."""
    body = {"name": name, "get_or_create": True, "configuration": {"hnsw": hnsw}}
    return Ref(client.request("POST", f"{DATABASE}/collections", body)["id"], name)


def add(client: ChromaClient, ref: Ref, start: int, count: int, dimension: int = 4) -> None:
    """Records ``i<n>`` whose vector is made of n."""
    numbers = range(start, start + count)
    body = {
        "ids": [f"i{n}" for n in numbers],
        "embeddings": [[n, *[1] * (dimension - 1)] for n in numbers],
        "documents": [f"text of {n}" for n in numbers],
        "metadatas": [{"n": n} for n in numbers],
    }
    client.request("POST", f"{ref.path}/add", body)


def held(directory: Path, ref: Ref) -> dict[str, float]:
    """First component of every record's vector, read from the files."""
    found: dict[str, float] = {}
    for portion in read_collection(directory, ref.id):
        found |= {i: float(v[0]) for i, v in zip(portion.ids, portion.vectors, strict=True)}
    return found


def answers(client: ChromaClient) -> bool:
    """Whether a server is there."""
    try:
        client.heartbeat(timeout=1)
    except ServerFailed:
        return False
    return True


def ready(run: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    """Whether a run's door takes writes; it must not have ended. Its reads may be answered a moment before that."""
    assert run.poll() is None, log.read_text()[-3000:]
    return healthcheck(f"http://127.0.0.1:{port}").healthy


def signal_to(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill(run: subprocess.Popen[bytes], data: Path, how: str = "run") -> None:
    """SIGKILL to the ``run``, its ``server`` or ``both``, and to the run at last; returns when both are gone."""
    server = Beside(data)._read().server
    if how != "run" and server:
        signal_to(server.pid)
    run.kill()
    run.wait()
    if server:
        eventually(lambda: not server.alive(), "the server's end")


class Writer(threading.Thread):
    """Adds, updates and deletes through one server until told to stop, and remembers what was acknowledged.

    ``acked`` maps an id to the first component of its vector, None when deleted; an id whose last request was not
    answered is in ``open`` and may be either way.
    """

    def __init__(self, port: int, seed: int = 0, *, dimension: int = 4, ballast: int = 0, **hnsw: object) -> None:
        super().__init__(daemon=True)
        self.client = ChromaClient("127.0.0.1", port, timeout=20)
        self.acked: dict[str, float | None] = {}
        self.open: dict[str, set[float | None]] = {}
        self.ref: Ref | None = None
        self.over = threading.Event()
        self.writes = self.number = 0
        self._dimension, self._ballast = dimension, ballast
        self._random, self._hnsw = random.Random(seed), {"sync_threshold": 50, **hnsw}

    def run(self) -> None:
        while not self.over.is_set():
            try:
                if self.ref is None:
                    self.ref = create(self.client, "written", **self._hnsw)
                self.number += 1
                self._write(self.number)
                self.writes += 1
            except ServerAnswered:
                continue
            except ServerFailed:
                time.sleep(0.02)

    def _write(self, number: int) -> None:
        assert self.ref
        kind = self._random.choice(["add", "upsert", "update", "delete"])
        batch = min(self._ballast, 1000) or 10
        self._ballast -= batch if self._ballast else 0
        known = [i for i, v in self.acked.items() if v is not None and i not in self.open]
        if kind == "add" or not known or batch > 10:
            changes: dict[str, float | None] = {f"i{number}-{n}": number + n / 100 for n in range(batch)}
            kind = "add"
        else:
            ids = self._random.sample(known, min(len(known), 5))
            changes = {i: None if kind == "delete" else float(number) for i in ids}
        for i, value in changes.items():
            self.open.setdefault(i, {self.acked.get(i)}).add(value)
        body: dict[str, object] = {"ids": list(changes)}
        if kind != "delete":
            body["embeddings"] = [
                [v, *self._random.choices((1, 2, 3), k=self._dimension - 1)] for v in changes.values()
            ]
            body["documents"] = [f"text {v}" for v in changes.values()]
        self.client.request("POST", f"{self.ref.path}/{kind}", body)
        for i, value in changes.items():
            self.acked[i] = value
            del self.open[i]

    def check(self, found: dict[str, float], *, rounding: float = 0.0) -> None:
        """Everything acknowledged is there, and nothing that was not at least asked for."""
        for i, value in self.acked.items():
            if i not in self.open:
                expected = None if value is None else float(np.float32(value))
                have = found.get(i)
                same = have == expected or (have and expected and abs(have - expected) <= rounding * expected)
                assert same, f"{i}: {have} is there, {expected} was acknowledged"
        for i in found.keys() - self.acked.keys():
            assert i in self.open, f"{i} was never written"


@dataclass
class Running:
    """A run in a thread of this process."""

    settings: RunSettings
    port: int
    stop: threading.Event
    hurry: threading.Event = field(default_factory=threading.Event)
    events: list[Event] = field(default_factory=list)
    result: RunResult | None = None
    error: ChromakeepError | None = None

    def __post_init__(self) -> None:
        self.client = ChromaClient("127.0.0.1", self.port, timeout=PATIENCE)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = run(self.settings, observer=self.events.append, stop=self.stop, hurry=self.hurry, env=ENV)
        except ChromakeepError as error:
            self.error = error

    def said(self, text: str) -> list[str]:
        """Lines of the log with this text."""
        return [e.message for e in list(self.events) if isinstance(e, Noted) and text in e.message]

    def until(self, text: str, count: int = 1) -> None:
        """Wait for a line of the log."""
        eventually(lambda: len(self.said(text)) >= count or not self.thread.is_alive(), f"{text!r} was not said")
        assert len(self.said(text)) >= count, f"ended without {text!r}: {self.error or self.result}; {self.events}"

    def end(self) -> RunResult:
        """Stop it as a signal would."""
        self.stop.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error
        assert self.result
        return self.result


@contextmanager
def running(
    data: Path,
    repository: Path | None = None,
    *,
    port: int | None = None,
    options: tuple[str, ...] = (),
    stopped: bool = False,
    **settings: object,
) -> Iterator[Running]:
    """A run on ``data`` with a repository in a folder, both made where they are missing; ``options`` go to Chroma.
    ``stopped``: it is told to stop before it begins."""
    port = port or free_port()
    settings.setdefault("grace", GRACE)
    if repository is not None:
        settings.setdefault("open_repository", lambda: Repository.open(LocalStore(repository)))
        settings.setdefault("create_repository", lambda: Repository.create(LocalStore(repository)))
    made = RunSettings(
        data,
        arguments=("--host", "127.0.0.1", "--port", str(port), *options),
        **settings,  # type: ignore[arg-type]
    )
    stop = threading.Event()
    if stopped:
        stop.set()
    one = Running(made, port, stop)
    try:
        yield one
    finally:
        one.stop.set()
        one.hurry.set()
        one.thread.join(PATIENCE)


@contextmanager
def process(
    data: Path,
    repository: Path,
    *,
    every: float = 1.0,
    grace: float = GRACE,
    durability: str = "async",
    port: int | None = None,
    more: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """``chromakeep run`` as a process of its own, its port, and the file its output goes to."""
    port = port or free_port()
    log = data.with_name("run.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "chromakeep", "run", "--data", str(data), "--repository", str(repository),
        "--every", f"{every}s", "--grace", f"{grace}s", "--durability", durability, *more,
        "--", "--host", "127.0.0.1", "--port", str(port), *options,
    ]  # fmt: skip
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**ENV, "PYTHONPATH": str(SRC)})
    try:
        yield child, port, log
    finally:
        child.kill()
        child.wait()
