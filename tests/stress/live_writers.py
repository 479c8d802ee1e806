"""Snapshots of a directory under live writers, each opened by Chroma and compared exactly with what was acknowledged.

    python tests/stress/live_writers.py --snapshots 500 --seed 1
    python tests/stress/live_writers.py --snapshots 100 --through backup

Prints a table and exits 1 if any snapshot was not exact; the evidence (snapshot and logs) is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from oplog import Replay
from verifying import compare, in_fresh_process

from chromakeep.chroma.server import ChromaServer

HERE = Path(__file__).parent
Take = Callable[[Path, Path], "Taken"]  # source, target


@dataclass
class Taken:
    """A snapshot: seconds the lock was held, and attempts."""

    pause: float
    attempts: int


@dataclass(frozen=True)
class Mode:
    """How the directory is written to. ``share`` of all snapshots."""

    name: str
    share: float
    threads: int = 1
    server: bool = False
    large: bool = False
    wal: bool = False
    prefill: int = 0
    batch: int = 6
    between: float = 0.1  # seconds at most between snapshots


MODES = (
    Mode("embedded, thresholds 3/25/120", 0.32),
    Mode("server, 4 threads, thresholds 3/25/120", 0.32, threads=4, server=True),
    Mode("embedded, threshold 1000, bulk", 0.14, large=True, prefill=4000, batch=400),
    Mode("server, 4 threads, threshold 1000, bulk", 0.12, threads=4, server=True, large=True, prefill=1000, batch=200),
    Mode("embedded, WAL", 0.10, wal=True),
)


@dataclass
class Run:
    """What came of one mode."""

    mode: Mode
    good: int = 0
    bad: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)  # latencies of operations without snapshots
    during: list[float] = field(default_factory=list)
    records: int = 0

    def row(self) -> str:
        def ms(values: list[float], *ranks: float) -> str:
            return "/".join(f"{1e3 * np.quantile(values, r):.1f}" for r in ranks) if values else "-"

        return (
            f"| {self.mode.name} | {self.good + len(self.bad)} | {self.good} | {ms(self.pauses, 0.5, 0.99, 1)} "
            f"| {np.mean(self.attempts or [0]):.1f}/{max(self.attempts, default=0)} | {ms(self.seconds, 0.5, 0.99, 1)} "
            f"| {ms(self.before, 0.5, 0.99)} -> {ms(self.during, 0.5, 0.99)} | {self.records} |"
        )


HEAD = (
    "| mode | snapshots | good | lock hold ms p50/p99/max | tries mean/max | snapshot ms p50/p99/max "
    "| writer ms p50/p99 before -> during | records at the end |\n|---|---|---|---|---|---|---|---|"
)


def through_capture(work: Path) -> Take:
    """``capture`` itself: by turns into a fresh directory, and into one that holds the one before."""
    from chromakeep.chroma.capture import capture

    turn = iter(range(10**9))

    def take(source: Path, target: Path) -> Taken:
        shadow = next(turn) % 2 == 1
        done = capture(source, work / "shadow" if shadow else target, timeout=60)
        if shadow:
            shutil.copytree(done.path, target)
        return Taken(done.pause, done.attempts)

    return take


def through_held(work: Path) -> Take:
    """``capture`` without any patience: it holds the writers each time, as it else does after seconds of no luck."""
    from chromakeep.chroma import capture as module

    module.PATIENCE = -1.0
    module._Capturing._desperate = lambda self: True  # type: ignore[method-assign]
    return through_capture(work)


def through_backup(work: Path) -> Take:
    """A backup into a repository in a folder, and a restore out of it."""
    from chromakeep.operations.backup import backup
    from chromakeep.operations.restore import restore
    from chromakeep.repository.repository import Repository
    from chromakeep.store.open import open_store

    repository = Repository.create(open_store(str(work / "repository"), create=True))

    def take(source: Path, target: Path) -> Taken:
        done = backup(source, repository, stage=work / "stage")
        restore(repository, done.snapshot, target)
        return Taken(done.pause_seconds, 1)

    return take


def through_cp(work: Path) -> Take:
    """What people do: copy the files. The control: it must fail, or this proves nothing."""

    def take(source: Path, target: Path) -> Taken:
        with contextlib.suppress(shutil.Error):  # a journal that vanished, which cp would only mention
            shutil.copytree(source, target)
        return Taken(0.0, 1)

    return take


THROUGH = {"capture": through_capture, "held": through_held, "backup": through_backup, "cp": through_cp}


class Writers:
    """The processes that write: a client with Chroma in it, or a server and threads at it."""

    def __init__(self, mode: Mode, work: Path, seed: int) -> None:
        self.path, self.logs = work / "live", work / "logs"
        self.logs.mkdir()
        if mode.wal:
            self._create_in_wal_mode()
        self.server = ChromaServer(self.path, env=os.environ) if mode.server else None
        command = [sys.executable, str(HERE / "writer.py"), "--path", str(self.path), "--logs", str(self.logs)]
        command += ["--seed", str(seed), "--threads", str(mode.threads), "--prefill", str(mode.prefill)]
        command += ["--batch", str(mode.batch), *(["--large"] if mode.large else [])]
        if self.server:
            self.server.start()
            command += ["--port", str(self.server.options.port)]
        self.replays = [Replay(self.logs / f"writer-{n}.log") for n in range(mode.threads)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        if self.process.stdout.readline() != "writing\n":
            raise RuntimeError("the writer did not start")

    def _create_in_wal_mode(self) -> None:
        make = (
            "import chromadb, sqlite3, sys; chromadb.PersistentClient(sys.argv[1]).heartbeat();"
            "sqlite3.connect(sys.argv[1] + '/chroma.sqlite3').execute('PRAGMA journal_mode = WAL')"
        )
        subprocess.run([sys.executable, "-c", make, str(self.path)], check=True)

    def follow(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError("the writer died")
        for replay in self.replays:
            replay.follow()

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if self.server:
            self.server.stop()


def run(mode: Mode, snapshots: int, seed: int, work: Path, take: Take, *, baseline: float, evidence: Path) -> Run:
    """One mode from an empty directory: write for ``baseline`` seconds undisturbed, then take and compare snapshots."""
    result, chance = Run(mode), random.Random(seed)
    target = work / "snapshot"
    writers = Writers(mode, work, seed)
    try:
        while not all(r.path.exists() for r in writers.replays):
            time.sleep(0.05)
        while min(len(r.acks) for r in writers.replays) < 5:  # prefilled
            writers.follow()
            time.sleep(0.05)
        first = time.monotonic()
        time.sleep(baseline)
        undisturbed, taking = time.monotonic(), []
        for number in range(snapshots):
            time.sleep(chance.random() * mode.between)
            t0 = time.monotonic()
            taken = take(writers.path, target)
            t1 = time.monotonic()
            writers.follow()
            answer = in_fresh_process(lambda: compare(target, writers.replays, t0, t1))  # noqa: B023
            taking.append((t0, t1))
            result.seconds.append(t1 - t0)
            result.pauses.append(taken.pause)
            result.attempts.append(taken.attempts)
            if answer:
                result.bad.append(f"{mode.name}, snapshot {number}: {answer}")
                print("BAD", result.bad[-1], flush=True)
                kept = evidence / f"{mode.name.replace(', ', '-').replace('/', '_').replace(' ', '-')}-{number}"
                shutil.copytree(target, kept / "snapshot", dirs_exist_ok=True)
                shutil.copytree(writers.logs, kept / "logs", dirs_exist_ok=True)
                (kept / "why").write_text(f"{answer}\ntaken between {t0} and {t1}\n")
            else:
                result.good += 1
            for replay in writers.replays:
                replay.advance(replay.allowed(t0, t1).start)
            shutil.rmtree(target)
        # Windows catch long operations more often than short ones: compare with windows of the same lengths.
        quiet, at = [], first
        for t0, t1 in taking:
            if at + (t1 - t0) < undisturbed:
                quiet.append((at, at + (t1 - t0)))
                at += t1 - t0 + mode.between / 2
        result.before = [x for r in writers.replays for x in r.latencies(quiet)]
        result.during = [x for r in writers.replays for x in r.latencies(taking)]
        result.records = sum(len(r.state) for r in writers.replays)
    finally:
        writers.close()
    return result


def prove(
    snapshots: int,
    seed: int,
    *,
    through: str = "capture",
    modes: tuple[Mode, ...] = MODES,
    baseline: float = 5.0,
    folder: Path | None = None,
) -> list[Run]:
    """All modes; prints a row for each as it ends. Evidence of bad snapshots stays in ``folder``."""
    import chromadb.api.rust  # noqa: F401 - the forks need not import it again

    folder = folder or Path(tempfile.mkdtemp(prefix="chromakeep-stress-"))
    total = sum(m.share for m in modes)
    results = []
    print(HEAD, flush=True)
    for number, mode in enumerate(modes):
        work = folder / f"mode-{number}"
        work.mkdir()
        count = max(1, round(snapshots * mode.share / total))
        results.append(
            run(mode, count, seed + number, work, THROUGH[through](work), baseline=baseline, evidence=folder / "bad")
        )
        print(results[-1].row(), flush=True)
        shutil.rmtree(work)
    if any(r.bad for r in results):
        print(f"evidence: {folder / 'bad'}")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--snapshots", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--through", choices=sorted(THROUGH), default="capture")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the modes to run, from 0")
    parser.add_argument("--baseline", type=float, default=5.0, help="seconds of writing before the first snapshot")
    options = parser.parse_args()
    modes = MODES if options.only is None else tuple(MODES[n] for n in options.only)
    results = prove(options.snapshots, options.seed, through=options.through, modes=modes, baseline=options.baseline)
    good, bad = sum(r.good for r in results), sum(len(r.bad) for r in results)
    print(f"\n{good + bad} snapshots, {good} exact, {bad} not")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
