"""A whole directory into a running chromakeep over loopback, end to end, against the figure of 10 s.

    python bench/send.py [--runs 5] [--work DIR] [--json FILE]

The receiver serves another directory from a repository of its own, as it would: its backup before and after are in the
time, which is that of the whole command ``chromakeep send``.
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
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # before what is imported here starts a process

from bench import Row, report
from boot import BIN, forget
from directories import pair

from chromakeep.chroma.ports import free_port

BAR = 10.0  # seconds; users report 30 minutes by API and 2 minutes by tar chunks that they split by hand
SECRET = {"CHROMAKEEP_RECEIVE_TOKEN": "bench-0123456789abcdef"}


@contextmanager
def receiver(data: Path, repository: Path) -> Iterator[str]:
    """A run that serves ``data`` and receives; its address."""
    port = free_port()
    command = [BIN / "chromakeep", "run", "--data", data, "--repository", repository, "--port", str(port)]
    environ = {**os.environ, **SECRET, "RUST_LOG": "warn"}
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(2)  # it has taken its first snapshot by then
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def keep(*arguments: object) -> tuple[float, dict[str, object]]:
    """One command: its seconds as a process, and what it answers."""
    command = [str(BIN / "chromakeep"), *map(str, arguments), "--json"]
    started = time.monotonic()
    done = subprocess.run(command, env={**os.environ, **SECRET}, stdout=subprocess.PIPE, check=True)
    return time.monotonic() - started, json.loads(done.stdout)


def sends(name: str, work: Path, runs: int) -> tuple[dict[str, list[float]], list[Row]]:
    """One directory to a receiver that serves the other one, and back by ``--rollback``."""
    which = pair(name, work)
    data, repository = work / "received", work / "received-keep"
    found: dict[str, list[float]] = {
        "send": [],
        "down": [],
        "rollback": [],
        "rollback down": [],
        "push": [],
        "pull": [],
    }
    forget(data)
    for old in [repository, *work.glob("received.old-*")]:
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(which.changed, data)
    keep("init", repository)
    with receiver(data, repository) as url:
        for run in range(runs + 1):  # the first one warms caches
            seconds, answer = keep("send", which.base, url)
            back, again = keep("send", "--rollback", url)
            assert answer["chunks_sent"] == answer["chunks"]
            if run:
                found["send"].append(seconds)
                found["down"].append(float(str(answer["down_seconds"])))
                found["rollback"].append(back)
                found["rollback down"].append(float(str(again["down_seconds"])))
            print(
                f"  {name} run {run}: {seconds:.2f} s, down {answer['down_seconds']} s, back {back:.2f} s", flush=True
            )
            for old in work.glob("received.old-*"):
                shutil.rmtree(old)
    for _ in range(runs):
        shutil.rmtree(repository)
        shutil.rmtree(work / "pulled", ignore_errors=True)
        keep("init", repository)
        found["push"].append(keep("push", which.base, repository)[0])
        found["pull"].append(keep("pull", repository, work / "pulled")[0])
    moved = [push + pull for push, pull in zip(found["push"], found["pull"], strict=True)]
    rows = [
        row(f"{name}: send, end to end", found["send"], BAR),
        row(f"{name}: send, the receiver without a server", found["down"], None),
        row(f"{name}: send --rollback, end to end", found["rollback"], None),
        row(f"{name}: send --rollback, the receiver without a server", found["rollback down"], None),
        row(f"{name}: push and pull, by a repository on this disk", moved, BAR),
    ]  # fmt: skip
    return found, rows


def row(what: str, seconds: list[float], bar: float | None) -> Row:
    """A line without a peer: the median against a figure of its own."""
    value = statistics.median(seconds)
    limit = "report" if bar is None else f"<= {bar:g} s"
    return Row(what, f"{value:.2f} s", "", None, limit, bar is None or value <= bar)


def main() -> int:
    """Run it; 1 if the bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directories", default="sample")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chromakeep-bench")
    parser.add_argument("--json", type=Path, default=Path("send.json"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    raw, rows = {}, []
    for name in args.directories.split(","):
        raw[name], more = sends(name, args.work, args.runs)
        rows += more
    return report(rows, dict(raw), args.json)


if __name__ == "__main__":
    sys.exit(main())
