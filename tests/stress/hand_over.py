"""Instances come and go under writers that never rest: what was acknowledged is served by whoever writes now.

    python tests/stress/hand_over.py [--rounds 60] [--durability sync] [--writers 4] [--seed 0]

The bucket is an S3 server behind a proxy. Each round begins with one instance that writes; a second one, on a disk of
its own (empty, or what an earlier instance left on it), is started beside it, and then one of these happens:

    deploy      the first gets SIGTERM
    crash       the first, its server or both get SIGKILL (sync only)
    two         a third is started too, and then the first is killed (sync) or told to stop
    frozen      the first is stopped by SIGSTOP past its lease, and continued when another writes (sync only)
    nap         the same, but shorter than its lease
    no bucket   the bucket cannot be reached for a while, with --long once for a minute

Writers use whichever instance takes their writes, and ask again until they are answered. After each round the one that
writes is asked for everything: each record that was acknowledged is there once, as it was last written, no deleted one
is, and nothing else. At last all of it is restored from the bucket. The clocks of the instances differ by up to five
minutes (``skew.c``, where there is a C compiler).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from chromakeep.chroma.client import ChromaClient, Ref  # noqa: E402
from chromakeep.chroma.ports import free_port  # noqa: E402
from chromakeep.chroma.reader import read_collection  # noqa: E402
from chromakeep.errors import ServerAnswered, ServerFailed  # noqa: E402
from chromakeep.operations.restore import restore  # noqa: E402
from chromakeep.operations.tenure import LAPSE  # noqa: E402
from chromakeep.repository import Repository  # noqa: E402
from chromakeep.store.open import open_store  # noqa: E402
from run.running import DATABASE, SRC, create, eventually, kill  # noqa: E402
from servers.fault_proxy import Fault, FaultProxy  # noqa: E402
from servers.s3 import S3Server, start_moto  # noqa: E402

KINDS = {"async": ["deploy", "two", "nap", "no bucket"]}
KINDS["sync"] = [*KINDS["async"], "crash", "frozen"]
FENCED = 20  # exit status of an instance that lost its lease
GROWTH = 64 << 20  # bytes of memory that an instance may grow by while it has no bucket


@dataclass
class Instance:
    """One ``chromakeep run``."""

    process: subprocess.Popen[bytes]
    port: int
    data: Path
    log: Path
    skew: int

    def page(self, path: str) -> tuple[int, Any]:
        """A page of its door; status 0 where there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    @property
    def writes(self) -> bool:
        """Whether it takes writes."""
        return self.page("/readyz")[0] == 200

    @property
    def role(self) -> str:
        """What it says of itself; empty if it says nothing."""
        return str((self.page("/_keep/status")[1] or {}).get("role", ""))

    @property
    def memory(self) -> int:
        """Resident bytes of the process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Scene:
    """The bucket, the disks and the instances."""

    place: Path
    durability: str
    chance: random.Random
    moto: S3Server
    proxy: FaultProxy
    address: str
    skew: Path | None  # what shifts a process's clock
    instances: list[Instance] = field(default_factory=list)
    number: int = 0

    def start(self) -> Instance:
        """One more, on a new disk or on one that nobody uses now."""
        used = {one.data for one in self.instances}
        left = [p for p in self.place.glob("disk*/data") if p not in used]
        if left and self.chance.random() < 0.5:
            data = self.chance.choice(left)
        else:
            self.number += 1
            data = self.place / f"disk{self.number}" / "data"
            data.parent.mkdir()
        port, skew = free_port(), self.chance.choice([0, 0, 300, -300, 60, -60])
        command = [
            sys.executable, "-m", "chromakeep", "run", "--data", str(data), "--repository", self.address,
            "--every", f"{self.chance.choice([2, 10, 60])}s", "--durability", self.durability, "--hold-writes", "1s",
            "--", "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(SRC), "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        if self.skew:
            env |= {"LD_PRELOAD": str(self.skew), "SKEW": str(skew)}
        log = data.parent / "run.log"
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        one = Instance(process, port, data, log, skew)
        self.instances.append(one)
        return one

    def gone(self, one: Instance, *allowed: int) -> None:
        """It ended, by itself or not; with one of these exit statuses."""
        status = one.process.wait(60)
        assert not allowed or status in allowed, f"exit status {status}: {one.log}"
        self.instances.remove(one)

    def writer(self, patience: float = 60) -> Instance:
        """The one that takes writes; there is never more than one."""
        deadline = time.monotonic() + patience
        while True:
            found = [one for one in self.instances if one.writes]
            assert len(found) < 2, f"two take writes: {[str(one.log) for one in found]}"
            if found:
                return found[0]
            assert time.monotonic() < deadline, f"nobody takes writes: {[str(one.log) for one in self.instances]}"
            time.sleep(0.05)

    def repository(self) -> Repository:
        """Opened past the proxy."""
        return Repository.open(open_store(self.moto.address("bench", "keep"), options=self.moto.options))


class Writer(threading.Thread):
    """Adds, updates and deletes records of its own, one request at a time, each until it is answered."""

    def __init__(self, scene: Scene, number: int) -> None:
        super().__init__(daemon=True)
        self.scene, self.mark, self.chance = scene, number, random.Random(number)
        self.model: dict[str, float] = {}
        self.over = threading.Event()
        self.ref: Ref | None = None
        self.writes = self.asked_again = self.number = 0

    def run(self) -> None:
        while not self.over.is_set():
            self.number += 1
            kind = self.chance.choice(["add", "add", "upsert", "delete"])
            known = sorted(self.model)
            if kind == "delete" and known:
                ids, value = self.chance.sample(known, min(len(known), 2)), None
            elif kind == "upsert" and known:
                ids, value = self.chance.sample(known, min(len(known), 3)), float(self.number)
            else:
                ids, value = [f"w{self.mark}-{self.number}"], float(self.number)
            self._until_answered("delete" if value is None else "upsert", ids, value)
            for i in ids:
                if value is None:
                    del self.model[i]
                else:
                    self.model[i] = value
            self.writes += 1

    def _until_answered(self, kind: str, ids: list[str], value: float | None) -> None:
        body: dict[str, Any] = {"ids": ids}
        if value is not None:
            body |= {"embeddings": [[value, 1, self.mark] for _ in ids], "documents": [f"{value}" for _ in ids]}
        while True:
            for one in list(self.scene.instances):
                client = ChromaClient("127.0.0.1", one.port, timeout=8)
                try:
                    if self.ref is None:
                        self.ref = create(client, f"books{self.mark % 2}", sync_threshold=20)
                    client.request("POST", f"{self.ref.path}/{kind}", body)
                except ServerAnswered as error:
                    assert error.status in (503, 502, 404, 500), error  # 404: of a database that is not yet restored
                except ServerFailed:
                    pass
                else:
                    return
                self.asked_again += 1
            time.sleep(0.02)


def compare(writers: list[Writer], found: dict[str, float], where: str) -> None:
    """Each record that was acknowledged, once, as it was last written; nothing else."""
    want = {i: v for w in writers for i, v in w.model.items()}
    if found != want:
        missing, more = sorted(want.keys() - found.keys())[:5], sorted(found.keys() - want.keys())[:5]
        other = [(i, want[i], found[i]) for i in want.keys() & found.keys() if want[i] != found[i]][:5]
        raise SystemExit(f"{where}: missing {missing}, not deleted {more}, other values {other}")


def served(one: Instance) -> dict[str, float]:
    """Every record that an instance answers with; each once, and counted so."""
    client, found = ChromaClient("127.0.0.1", one.port, timeout=60), dict[str, float]()
    for row in client.request("GET", f"{DATABASE}/collections"):
        path = f"{DATABASE}/collections/{row['id']}"
        got = client.request("POST", f"{path}/get", {"include": ["embeddings"]})
        assert len(got["ids"]) == len(set(got["ids"])) == client.request("GET", f"{path}/count"), "a record twice"
        found |= {i: float(v[0]) for i, v in zip(got["ids"], got["embeddings"], strict=True)}
    return found


def paused(writers: list[Writer]) -> None:
    """Let each finish what it asks for."""
    for writer in writers:
        writer.over.set()
    for writer in writers:
        writer.join(90)
        assert not writer.is_alive(), "a write was never answered"


def resumed(writers: list[Writer]) -> list[Writer]:
    """The same writers, again."""
    found = []
    for old in writers:
        new = Writer(old.scene, old.mark)
        new.model, new.number, new.ref, new.chance = old.model, old.number, old.ref, old.chance
        new.writes, new.asked_again = old.writes, old.asked_again
        new.start()
        found.append(new)
    return found


def happen(scene: Scene, what: str, seconds: float) -> None:
    """One round's event."""
    first, chance = scene.writer(), scene.chance
    if what in ("no bucket", "nap"):
        if what == "nap":
            os.kill(first.process.pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.1, LAPSE / 2))
            os.kill(first.process.pid, signal.SIGCONT)
        else:
            before = first.memory
            scene.proxy.otherwise = Fault(unasked=True)
            time.sleep(seconds)
            grown = first.memory - before
            scene.proxy.otherwise = Fault()
            assert grown < GROWTH, f"grew by {grown >> 20} MB in {seconds:.0f} s without a bucket"
        scene.writer()
        return
    second = scene.start()
    if chance.random() < 0.8:
        eventually(lambda: second.page("/readyz/reads")[0] == 200, f"a standby: {second.log}")
    if what == "two":
        scene.start()
        time.sleep(chance.uniform(0, 3))
    if what == "frozen":
        os.kill(first.process.pid, signal.SIGSTOP)
        scene.instances.remove(first)
        scene.writer()
        time.sleep(chance.uniform(0, 2))
        scene.instances.append(first)  # clients ask it again
        os.kill(first.process.pid, signal.SIGCONT)
        scene.gone(first, FENCED)
    elif what == "crash" or (what == "two" and scene.durability == "sync"):
        kill(first.process, first.data, chance.choice(["run", "server", "both"]))
        scene.gone(first)
    else:
        first.process.send_signal(signal.SIGTERM)
        scene.gone(first, 0)
    scene.writer()


def hand_over(scene: Scene, rounds: int, count: int, kinds: list[str], *, long: bool) -> None:
    """All rounds."""
    done, started = Counter[str](), time.monotonic()
    scene.start()
    scene.writer()
    writers = resumed([Writer(scene, number) for number in range(count)])
    for number in range(rounds):
        what = scene.chance.choice(kinds)
        seconds = 60.0 if long and number == 0 else scene.chance.uniform(0.5, 14)
        if long and number == 0:
            what = "no bucket"
        time.sleep(scene.chance.uniform(0.2, 2))
        try:
            happen(scene, what, seconds)
            time.sleep(scene.chance.uniform(0, 1))
            paused(writers)
            compare(writers, served(scene.writer()), f"round {number}, {what}")
        except BaseException:
            print(f"round {number}: {what}; {[(str(i.log), i.skew, i.role) for i in scene.instances]}", flush=True)
            raise
        done[what] += 1
        for one in [i for i in scene.instances if not i.writes][1:]:  # at most one stands by in the next round
            one.process.send_signal(signal.SIGTERM)
            scene.gone(one, 0)
        writers = resumed(writers)
        if number % 10 == 9:
            print(f"{number + 1} rounds, {sum(w.writes for w in writers)} writes, {dict(done)}", flush=True)
    paused(writers)
    for one in sorted(scene.instances, key=lambda i: i.writes):  # those that stand by first
        one.process.send_signal(signal.SIGTERM)
        scene.gone(one, 0)
    restore(scene.repository(), None, scene.place / "restored")
    found: dict[str, float] = {}
    for ref in {w.ref.id for w in writers if w.ref}:
        for portion in read_collection(scene.place / "restored", ref):
            found |= {i: float(v[0]) for i, v in zip(portion.ids, portion.vectors, strict=True)}
    compare(writers, found, "restored")
    writes, again = sum(w.writes for w in writers), sum(w.asked_again for w in writers)
    print(
        f"{rounds} hand-overs ({scene.durability}), {writes} writes acknowledged ({again} refused or unanswered and "
        f"asked again), none missing, none twice: {dict(done)}, {time.monotonic() - started:.0f} s"
    )


def main() -> int:
    """Exit status 0 if nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--durability", choices=("sync", "async"), default="sync")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="these events, with commas between them")
    parser.add_argument("--long", action="store_true", help="the first round: a minute without the bucket")
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else KINDS[options.durability]
    place = Path(tempfile.mkdtemp(prefix="chromakeep-hand-over-"))
    print(f"working in {place}; it stays there if something is wrong", flush=True)
    skew: Path | None = place / "skew.so"
    source = Path(__file__).with_name("skew.c")
    if (
        not shutil.which("cc")
        or subprocess.run(["cc", "-shared", "-fPIC", "-o", skew, source, "-ldl"], check=False).returncode
    ):
        print("no C compiler: the clocks of all instances agree", flush=True)
        skew = None
    moto = start_moto(place)
    proxy = FaultProxy(moto.endpoint)
    address = S3Server(proxy.endpoint, moto.options, []).address("bench", "keep")
    scene = Scene(place, options.durability, random.Random(options.seed), moto, proxy, address, skew)
    try:
        hand_over(scene, options.rounds, options.writers, kinds, long=options.long)
    finally:
        for one in scene.instances:
            with suppress(ProcessLookupError):
                os.kill(one.process.pid, signal.SIGCONT)
            kill(one.process, one.data, "both")
        proxy.stop()
        moto.stop()
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
