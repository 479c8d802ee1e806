"""How long a capture holds the lock on a given directory under a live writer.

    python tests/stress/pause.py DIRECTORY [--captures 60] [--into PLACE]

The directory is copied first (beside ``--into``, or to a temporary place) and an embedded client writes to that copy:
upserts of up to 100 random records without a pause, so that every capture finds commits to catch up with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from chromakeep.chroma.capture import capture

WRITER = """
import random, sys, time, chromadb, numpy as np
client, chance = chromadb.PersistentClient(sys.argv[1]), np.random.default_rng(1)
collections = [client.get_collection(c.name, embedding_function=None) for c in client.list_collections()]
ids = [c.get(limit=20000, include=[])["ids"] for c in collections]
print("writing", flush=True)
while True:
    n = int(chance.integers(len(collections)))
    size = int(chance.integers(1, 101))
    old = random.sample(ids[n], min(size, len(ids[n])))
    new = chance.standard_normal((len(old), collections[n].get(limit=1, include=["embeddings"])["embeddings"].shape[1]))
    start = time.monotonic()
    collections[n].upsert(ids=old, embeddings=new.astype("f4"), documents=["x" * 800] * len(old))
    print(start, time.monotonic(), flush=True)
"""


def measure(directory: Path, captures: int, place: Path) -> dict[str, object]:
    """Seconds of every lock hold, and of the writer's operations before and while captures are taken."""
    live, into = place / "live", place / "copy"
    shutil.copytree(directory, live)
    log = (place / "latencies").open("w+")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(live)], stdout=log)
    try:
        while "writing" not in (place / "latencies").read_text():
            time.sleep(0.1)
            assert writer.poll() is None, "the writer died"
        began = time.monotonic()
        time.sleep(10)
        start, holds, seconds, tries, method = time.monotonic(), [], [], [], ""
        for _ in range(captures):
            at = time.perf_counter()
            done = capture(live, into, timeout=120)
            seconds.append(time.perf_counter() - at)
            holds.append(done.pause)
            tries.append(done.attempts)
            method = done.method
            time.sleep(0.25)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    operations = [tuple(map(float, line.split())) for line in (place / "latencies").read_text().splitlines()[1:-1]]
    size = sum(f.stat().st_size for f in into.rglob("*") if f.is_file())
    return {
        "megabytes": round(size / 1e6),
        "method": method,
        "captures": captures,
        "hold_ms": quantiles(holds),
        "capture_ms": quantiles(seconds),
        "attempts_mean": round(float(np.mean(tries)), 2),
        "writer_ms_before": quantiles([b - a for a, b in operations if began <= a < start]),
        "writer_ms_during": quantiles([b - a for a, b in operations if a >= start]),
        "load": os.getloadavg()[0],
    }


def quantiles(values: list[float]) -> dict[str, float]:
    ranks = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(1e3 * float(np.quantile(values, r)), 2) for name, r in ranks.items()} if values else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--captures", type=int, default=60)
    parser.add_argument("--into", type=Path, help="where to make the copies; on the file system to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.into, prefix="pause-") as place:
        print(json.dumps(measure(options.directory, options.captures, Path(place)), indent=2))


if __name__ == "__main__":
    main()
