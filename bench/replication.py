"""The figures of replication, against plain ``chroma run`` beside it: lag, throughput, CPU, recovery.

    python bench/replication.py [--runs 5] [--seconds 15] [--only lag,throughput,cpu,recovery] [--work DIR]

The bucket is moto behind a proxy that notes when each put was answered, and delays it where a latency is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import boot
import writers
from bench import Row, report
from directories import ROOT, gigabyte, pair

from chromakeep.chroma.ports import free_port

sys.path.insert(0, str(ROOT / "tests"))
from chromakeep.errors import RepositoryNotFound
from chromakeep.repository import Repository
from chromakeep.repository.log import Log, name_of
from chromakeep.store.open import open_store
from servers.fault_proxy import Fault, FaultProxy
from servers.s3 import S3Server, start_moto

DIMENSION = 384
ENV = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Bucket:
    """moto behind a proxy."""

    def __init__(self, work: Path) -> None:
        self._moto = start_moto(work)
        self.proxy = FaultProxy(self._moto.endpoint)
        self._through = S3Server(self.proxy.endpoint, self._moto.options, [])
        self._number = 0

    def address(self) -> str:
        """A new, empty prefix, reached through the proxy."""
        self._number += 1
        return self._through.address("bench", f"keep{self._number}")

    def log(self, address: str) -> Log:
        """Its log."""
        return Log(Repository.open(open_store(address, options=self._moto.options)))

    def stop(self) -> None:
        """End both."""
        self.proxy.stop()
        self._moto.stop()


@contextmanager
def serving(data: Path, *arguments: str) -> Iterator[tuple[int, int]]:
    """``chromakeep run`` with these arguments, or plain ``chroma run`` without any: port and process id."""
    port = free_port()
    if arguments:
        command = [boot.BIN / "chromakeep", "run", "--data", data, "--port", str(port), *arguments]
    else:
        command = [boot.BIN / "chroma", "run", "--path", data, "--port", str(port)]
    log = (data.parent / "server.log").open("ab")
    process = subprocess.Popen(
        [str(c) for c in command], env={**os.environ, **ENV, "RUST_LOG": "error"}, stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                writers.ask(port, "GET", "/readyz" if arguments else "/api/v2/heartbeat")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[0]} does not serve; see {data.parent / 'server.log'}") from None
                time.sleep(0.02)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fresh(work: Path) -> Path:
    """An empty place for a data directory."""
    boot.forget(work / "data")
    return work / "data"


def settled(bucket: Bucket, address: str) -> None:
    """Wait until the log has begun."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(RepositoryNotFound):
            if bucket.log(address).epochs():
                return
        time.sleep(0.1)
    raise SystemExit("the log does not begin")


def lag(bucket: Bucket, work: Path, seconds: float) -> tuple[list[float], Row]:
    """From the answer to a write until the put of its segment was answered, at 100 writes a second."""
    address, data = bucket.address(), fresh(work)
    with serving(data, "--repository", address) as (port, _):
        into = writers.collection(port, "written")
        settled(bucket, address)
        bucket.proxy.answered.clear()
        written = writers.write(port, into, clients=16, seconds=seconds, dimension=DIMENSION, rate=100)
        time.sleep(2)
        puts = {path.split("?")[0]: when for when, path in list(bucket.proxy.answered) if path.startswith("PUT ")}
    lags = []
    log = bucket.log(address)
    prefix = address.removeprefix("s3:/").split("?")[0]
    for epoch in log.epochs():
        for number, segment in log.segments(epoch):
            when = puts.get(f"PUT {prefix}/{name_of(epoch, number)}")
            for row in (r for c in segment.changes for r in c.rows):
                answered = written.answered.get(row.id.decode())
                if when is not None and answered is not None:
                    lags.append(max(0.0, when - answered))
    if len(lags) < len(written.answered) * 0.99:
        raise SystemExit(f"only {len(lags)} of {len(written.answered)} writes were found in the log's puts")
    cuts = statistics.quantiles(lags, n=100)
    text = f"p50 {cuts[49] * 1000:.0f}, p99 {cuts[98] * 1000:.0f}, max {max(lags) * 1000:.0f} ms"
    what = f"lag at {written.rate:.0f} writes/s, {DIMENSION} dimensions, async"
    return lags, Row(what, text, "", None, "p99 <= 1000 ms", cuts[98] <= 1.0)


def throughput(bucket: Bucket, work: Path, runs: int, seconds: float) -> tuple[dict[str, list[float]], list[Row]]:
    """Acknowledged writes a second of 16 writers, and of one."""
    found: dict[str, list[float]] = {}
    puts = []
    for run in range(runs + 1):
        for name, clients in (("plain", 16), ("async", 16), ("sync", 16), ("plain 1", 1), ("async 1", 1)):
            kind, data = name.split()[0], fresh(work)
            address = bucket.address()
            arguments = () if kind == "plain" else ("--repository", address, "--durability", kind)
            with serving(data, *arguments) as (port, _):
                into = writers.collection(port, "written")
                if arguments:
                    settled(bucket, address)
                bucket.proxy.otherwise = Fault(delay=DELAY if kind == "sync" else 0.0)
                bucket.proxy.took.clear()
                written = writers.write(port, into, clients=clients, seconds=seconds, dimension=DIMENSION)
                if kind == "sync":
                    puts += list(bucket.proxy.took)
                bucket.proxy.otherwise = Fault()
            print(f"  run {run}: {name}: {written.rate:.1f}/s", flush=True)
            if run:
                found.setdefault(name, []).append(written.rate)
    latency = statistics.median(puts) * 1000
    rows = [
        _rate("writes/s of 16 writers, async", found["async"], found["plain"], 0.9),
        _rate("writes/s of one writer, async", found["async 1"], found["plain 1"], 0.9),
        _rate(f"writes/s of 16 writers, sync (a put takes {latency:.0f} ms)", found["sync"], found["plain"], 0.5),
    ]
    return found, rows


DELAY = 0.012  # seconds added to each request to the bucket, with which a put takes 20 ms or a little more


def _rate(what: str, mine: list[float], theirs: list[float], bar: float) -> Row:
    a, b = statistics.median(mine), statistics.median(theirs)
    return Row(what, f"{a:.0f}", f"{b:.0f} (`chroma run`)", round(a / b, 3), f">= {bar}", a / b >= bar)


def cpu(bucket: Bucket, work: Path, source: Path) -> tuple[float, Row]:
    """CPU of chromakeep itself (not of the server) at 10 writes a second on a large store, from just after one snapshot
    until just after the next: a whole period, with what a snapshot costs."""
    data, address = fresh(work), bucket.address()
    shutil.copytree(source, data)
    size = sum(p.stat().st_size for p in data.rglob("*") if p.is_file())
    over = threading.Event()
    with serving(data, "--repository", address) as (port, pid):
        into = writers.collection(port, "large")
        settled(bucket, address)  # the first snapshot is there
        writing = threading.Thread(target=_write_on, args=(port, into, over))
        writing.start()
        time.sleep(3)
        last, began, before = _snapshot(port), time.monotonic(), _cpu(pid)
        while _snapshot(port) == last:
            time.sleep(0.2)
        time.sleep(3)  # merging
        period, used = time.monotonic() - began, _cpu(pid) - before
        over.set()
        writing.join()
    what = f"CPU at 10 writes/s on {size / 1e6:,.0f} MB, of {period:.0f} s with a snapshot"
    return used / period, Row(what, f"{used / period * 100:.1f} % of a core", "", None, "<= 5 %", used / period <= 0.05)


def _write_on(port: int, into: str, over: threading.Event) -> None:
    while not over.is_set():
        writers.write(port, into, clients=1, seconds=2, dimension=768, rate=10)


def _snapshot(port: int) -> object:
    status = writers.ask(port, "GET", "/_keep/status")
    assert isinstance(status, dict)
    return status["snapshot"]


def _cpu(pid: int) -> float:
    """User and system seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(n) for n in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def recovery(work: Path, source: Path, runs: int) -> tuple[dict[str, list[float]], Row]:
    """From process start to the first query: a snapshot and 10,000 logged records, against the snapshot's restore and
    Chroma's own replay of the same records, measured apart."""
    found: dict[str, list[float]] = {"logged": [], "snapshot": [], "replay": []}
    data, keep = fresh(work), work / "keep"
    shutil.rmtree(keep, ignore_errors=True)
    shutil.copytree(source, data)
    with serving(data, "--repository", str(keep), "--every", "1h") as (port, pid):
        into = writers.collection(port, "large")
        deadline = time.monotonic() + 120
        while not (keep / "log").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        path, rng = f"{writers.BASE}/{into}/add", __import__("random").Random(3)
        for start in range(0, 10_000, 500):
            ids = [f"late-{start + n}" for n in range(500)]
            body = {"ids": ids, "embeddings": [[rng.random() for _ in range(768)] for _ in ids], "documents": ids}
            writers.ask(port, "POST", path, body)
        time.sleep(3)
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["pkill", "-f", str(data)], check=False)
    snapshot = json.loads(
        subprocess.run([boot.BIN / "chromakeep", "snapshots", keep, "--json"], check=True, capture_output=True).stdout
    )["snapshots"][0]["id"]
    for _ in range(runs):
        boot.forget(work / "lost")
        found["logged"].append(boot.kept(work / "lost", f"{keep}", 768))
        for old in (keep / "log", keep / "lease"):  # each boot begins an epoch of its own: only the first is measured
            for folder in sorted(old.iterdir())[1:]:
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        tombstones = sorted((keep / "log").glob("00000001/*"))
        boot.forget(work / "lost")
        started = time.monotonic()
        subprocess.run(
            [boot.BIN / "chromakeep", "restore", f"{keep}@{snapshot}", work / "lost", "--json"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found["snapshot"].append(time.monotonic() - started)
        boot.forget(work / "lost")
        subprocess.run(
            [boot.BIN / "chromakeep", "restore", keep, work / "lost", "--json"], check=True, stdout=subprocess.DEVNULL
        )
        found["replay"].append(boot.plain(work / "lost", 768))
        del tombstones
    mine = statistics.median(found["logged"])
    apart = statistics.median(found["snapshot"]) + statistics.median(found["replay"])
    what = "recovery of 100,000 x 768 and 10,000 logged records, to the first query"
    peer = f"{apart:.1f} s (snapshot restored, then Chroma's replay)"
    return found, Row(what, f"{mine:.1f} s", peer, round(mine / apart, 3), "<= 1.5", mine / apart <= 1.5)


def main() -> int:
    """Run what was asked for; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--only", default="lag,throughput,cpu,recovery")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chromakeep-bench")
    parser.add_argument("--json", type=Path, default=Path("replication.json"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    raw: dict[str, object] = {}
    bucket = Bucket(args.work)
    try:
        if "lag" in args.only:
            raw["lag"], row = lag(bucket, args.work, args.seconds * 2)
            rows.append(row)
        if "throughput" in args.only:
            raw["throughput"], more = throughput(bucket, args.work, args.runs, args.seconds)
            rows += more
        if "cpu" in args.only:
            raw["cpu"], row = cpu(bucket, args.work, gigabyte(args.work))
            rows.append(row)
    finally:
        bucket.stop()
    if "recovery" in args.only:
        raw["recovery"], row = recovery(args.work, pair("large", args.work).base, args.runs)
        rows.append(row)
    return report(rows, raw, args.json)


if __name__ == "__main__":
    raise SystemExit(main())
