"""Lose the disk again and again under writers: what was acknowledged comes out of the bucket.

    python tests/stress/lost_disks.py [--rounds 300] [--durability sync] [--writers 4] [--seed 0]

Each round starts ``chromakeep run`` on an empty disk, compares every record with what was acknowledged, lets several
writers loose (collections made, dropped, renamed and made again under the same names, in tenants and databases of their
own; adds, upserts, updates and deletes), kills the run, its server or both at a random moment, and deletes the data
directory and all beside it. ``sync``: nothing that was acknowledged may be missing. ``async``: each writer's records
are those of some moment not more than a second before the kill.
"""

from __future__ import annotations

import argparse
import copy
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from chroma.test_tail import Model, World  # noqa: E402
from chromakeep.chroma.client import ChromaClient, Ref  # noqa: E402
from chromakeep.errors import ServerAnswered, ServerFailed  # noqa: E402
from chromakeep.operations.beside import Beside, Process  # noqa: E402
from run.running import eventually, process, ready, signal_to  # noqa: E402

WINDOW = 1.0  # seconds before the kill that async may lose


class Answering:
    """Answers everything: for what a request would have done."""

    def request(self, method: str, path: str, body: object = None, **_: object) -> Any:
        return {"id": "unknown"}


class Lasting(World):
    """A world in a database of its own, which outlives its server."""

    def __init__(self, number: int, seed: int) -> None:
        self.chance = random.Random(seed * 1000 + number)
        self.tenant = "default_tenant" if number % 2 else f"tenant-{number}"
        self.database = f"database-{number}"
        self.model: Model = {}
        self.refs: dict[str, Ref] = {}
        self.past: deque[tuple[float, Model]] = deque(maxlen=4000)  # by when it was acknowledged
        self.maybe: Model | None = None  # where the last request was not answered
        self.writes = 0

    def _create(self) -> None:
        name = self.chance.choice(["one", "two", "three"])
        if name in self.refs:
            return
        body = {"name": name, "configuration": {"hnsw": {"sync_threshold": self.chance.choice([4, 15, 1000])}}}
        made = self.client.request("POST", f"/tenants/{self.tenant}/databases/{self.database}/collections", body)
        self.refs[name] = Ref(made["id"], name, self.tenant, self.database)
        self.model[name] = {}

    def begin(self, port: int) -> None:
        """On a new server, with what it has."""
        self.client = ChromaClient("127.0.0.1", port, timeout=60)
        base = f"/tenants/{self.tenant}/databases"
        try:
            self.client.request("GET", f"{base}/{self.database}")
        except ServerAnswered:
            with suppress(ServerAnswered):  # it may be there without its database
                self.client.request("POST", "/tenants", {"name": self.tenant})
            self.client.request("POST", base, {"name": self.database})
        found = self.client.request("GET", f"{base}/{self.database}/collections")
        self.refs = {c["name"]: Ref(c["id"], c["name"], self.tenant, self.database) for c in found}
        have: Model = {}
        for name, ref in self.refs.items():
            body = {"include": ["embeddings", "documents", "metadatas"]}
            got = self.client.request("POST", f"{ref.path}/get", body)
            rows = zip(got["ids"], got["embeddings"], got["documents"], got["metadatas"], strict=True)
            have[name] = {i: (float(v[0]), d, m) for i, v, d, m in rows}
        self._compare(have)
        self.model, self.maybe = have, None
        self.past.clear()
        self.past.append((time.monotonic(), copy.deepcopy(have)))

    def _compare(self, have: Model) -> None:
        allowed = [self.model] if self.maybe is None else [self.model, self.maybe]
        if self.since is not None:
            times = [t for t, _ in self.past]
            allowed += [m for n, (_, m) in enumerate(self.past) if n + 1 == len(times) or times[n + 1] >= self.since]
        if have not in allowed:
            raise SystemExit(f"{self.database}: {_difference(have, self.model)}")

    since: float | None = None  # what was acknowledged from then on may be missing

    def live(self, over: threading.Event) -> None:
        """Write until the server is gone."""
        while not over.is_set():
            before = copy.deepcopy(self.model), dict(self.refs), self.chance.getstate()
            try:
                self.step()
            except ServerFailed:
                ghost = copy.copy(self)
                ghost.chance = random.Random()
                ghost.chance.setstate(before[2])
                ghost.model, ghost.refs = copy.deepcopy(before[0]), dict(before[1])
                ghost.client = Answering()  # type: ignore[assignment]
                ghost.step()
                self.model, self.refs, self.maybe = before[0], before[1], ghost.model
                return
            self.writes += 1
            self.past.append((time.monotonic(), copy.deepcopy(self.model)))


def _difference(have: Model, want: Model) -> str:
    if have.keys() != want.keys():
        return f"collections {sorted(have)} are there, {sorted(want)} were acknowledged"
    for name, records in want.items():
        for i in sorted(records.keys() | have[name].keys()):
            if records.get(i) != have[name].get(i):
                return f"{name}/{i}: {have[name].get(i)} is there, {records.get(i)} was acknowledged"
    return "nothing"


def lose(place: Path, rounds: int, durability: str, writers: int, seed: int) -> None:
    """All rounds on one repository."""
    data, repository = place / "data", place / "repository"
    repository.mkdir()
    worlds = [Lasting(number, seed) for number in range(writers)]
    chance, done = random.Random(seed), Counter[str]()
    started = time.monotonic()
    for number in range(rounds + 1):
        with process(data, repository, every=chance.choice([1, 5, 60]), durability=durability) as (run, port, log):
            eventually(partial(ready, run, port, log), "the server", 120)
            for world in worlds:
                world.begin(port)
            if number == rounds:
                break
            over = threading.Event()
            threads = [threading.Thread(target=world.live, args=(over,)) for world in worlds]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.1, 4))
            how = chance.choice(["run", "server", "both"])
            server = Beside(data)._read().server
            at = time.monotonic()
            if how != "run" and server:
                signal_to(server.pid)
            if how == "server":
                time.sleep(chance.uniform(0, 1))
            if durability == "async":
                for world in worlds:
                    world.since = min(at, time.monotonic()) - WINDOW
            run.kill()
            run.wait()
            for thread in threads:
                thread.join()
            if server:
                eventually(partial(gone, server), "the server's end")
            done[how] += 1
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(place / ".data.chromakeep", ignore_errors=True)
        if number % 20 == 19:
            print(f"{number + 1} rounds, {sum(w.writes for w in worlds)} writes", flush=True)
    writes, seconds = sum(w.writes for w in worlds), time.monotonic() - started
    said = f"{rounds} disks lost, {writes} writes acknowledged ({durability}), none missing"
    print(f"{said}: {dict(done)}, {seconds:.0f} s")


def gone(server: Process) -> bool:
    """Whether a process has ended."""
    return not server.alive()


def main() -> int:
    """Exit status 0 if nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--durability", choices=("sync", "async"), default="sync")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="chromakeep-lost-"))
    print(f"working in {place}; it stays there if something is missing", flush=True)
    lose(place, options.rounds, options.durability, options.writers, options.seed)
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
