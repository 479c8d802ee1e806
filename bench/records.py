"""``make bench-records``: moving records, each figure a ratio against the peer run beside it, in alternating runs.

    python bench/records.py [--runs 3] [--only export,server,directory,verify] [--directories sample,large]

The peers are what a user would write with chromadb: a loop that pages ``collection.get`` into JSON, and loops of
``collection.add``, the fastest of several batch sizes and numbers of threads. They run in processes of their own, as we
do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # before what is imported here starts a process

from bench import Row, report
from directories import pair
from tools import measure, peak_memory

from chromakeep.chroma.ports import free_port

KEEP = [sys.executable, "-m", "chromakeep"]

_PAGING = """
import json, sys, chromadb
source, target, page = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = chromadb.PersistentClient(source)
with open(target, "w") as out:
    for c in client.list_collections():
        for at in range(0, c.count(), page):
            some = c.get(limit=page, offset=at, include=["embeddings", "documents", "metadatas"])
            for i, id_ in enumerate(some["ids"]):
                out.write(json.dumps({"id": id_, "embedding": some["embeddings"][i].tolist(),
                    "document": some["documents"][i], "metadata": some["metadatas"][i]}) + "\\n")
"""
_ADDING = """
import json, sys, chromadb, pyarrow.parquet as pq
from concurrent.futures import ThreadPoolExecutor
folder, target, size, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if target.startswith("http"):
    client = chromadb.HttpClient(host="127.0.0.1", port=int(target.rpartition(":")[2]))
else:
    client = chromadb.PersistentClient(target)
import glob
for file in sorted(glob.glob(folder + "/*/*.parquet")):
    reader = pq.ParquetFile(file)
    name = file.split("/")[-2].partition("~")[0]
    c = client.get_or_create_collection(name, embedding_function=None)
    def add(b):
        v = b.column("embedding").values.to_numpy(zero_copy_only=False).reshape(len(b), -1)
        c.add(ids=b.column("id").to_pylist(), embeddings=v, documents=b.column("document").to_pylist(),
              metadatas=[json.loads(m) if m else None for m in b.column("metadata").to_pylist()])
    batches = reader.iter_batches(size, columns=["id", "embedding", "document", "metadata"])
    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(add, batches):
            pass
"""


def ratio(what: str, mine: list[float], theirs: list[float], bar: float | None, *, faster: bool) -> Row:
    """``faster``: how many times as fast we are has to be at least ``bar``; else our share of their time at most."""
    a, b = statistics.median(mine), statistics.median(theirs)
    value = b / a if faster else a / b
    met = bar is None or (value >= bar if faster else value <= bar)
    limit = "report" if bar is None else f"{'>=' if faster else '<='} {bar}"
    return Row(what, f"{a:.2f} s", f"{b:.2f} s", round(value, 3), limit, met)


def exports(name: str, source: Path, work: Path, runs: int) -> Iterator[Row]:
    """A directory to Parquet, against paging it into JSON."""
    ours, theirs = [], []
    out, paged = work / f"{name}.parquet", work / f"{name}.json"
    command = [*KEEP, "export", source, f"{out}/"]
    for _ in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        ours.append(measure(command).wall)
        live = work / "paged"  # chromadb writes into what it reads
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(source, live)
        theirs.append(min(measure([sys.executable, "-c", _PAGING, live, paged, page]).wall for page in ("1000",)))
        print(f"  export {name}: {ours[-1]:.2f} {theirs[-1]:.2f}", flush=True)
    yield ratio(f"{name}: export to Parquet, against paging into JSON", ours, theirs, 20, faster=True)
    shutil.rmtree(out, ignore_errors=True)
    peak = peak_memory(command)
    yield Row(f"{name}: peak memory of an export", f"{peak:.0f} MB", "", None, "<= 300 MB", peak <= 300)
    paged.unlink()


@contextmanager
def server(at: Path) -> Iterator[str]:
    """A plain ``chroma run`` on a fresh directory."""
    shutil.rmtree(at, ignore_errors=True)
    port = free_port()
    chroma = Path(sys.executable).with_name("chroma")
    process = subprocess.Popen(
        [chroma, "run", "--path", at, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        import urllib.request

        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/heartbeat", timeout=1)
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def into_servers(name: str, files: Path, work: Path, runs: int) -> Iterator[Row]:
    """Parquet into a server, against the fastest loop of ``collection.add``."""
    ways = [("1000", "1"), ("5000", "1"), ("1000", "4"), ("5000", "2")]
    ours: list[float] = []
    loops: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        with server(work / "served") as url:
            ours.append(measure([*KEEP, "copy", f"{files}/", url]).wall)
        for way in ways:
            with server(work / "served") as url:
                loops[way].append(measure([sys.executable, "-c", _ADDING, files, url, *way]).wall)
        print(f"  server {name}: {ours[-1]:.2f} {[round(times[-1], 2) for times in loops.values()]}", flush=True)
    best = min(ways, key=lambda way: statistics.median(loops[way]))
    label = f"{name}: copy into a server, against add by {best[0]} in {best[1]} threads"
    yield ratio(label, ours, loops[best], 0.95, faster=True)


def into_directories(name: str, files: Path, work: Path, runs: int) -> Iterator[Row]:
    """Parquet into a fresh directory, against the same loop on ``PersistentClient``; and verifying it."""
    ways = [("1000", "1"), ("5000", "1")]
    ours: list[float] = []
    checks: list[float] = []
    loops: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    target = work / "built"
    for _ in range(runs):
        shutil.rmtree(target, ignore_errors=True)
        ours.append(measure([*KEEP, "copy", f"{files}/", target]).wall)
        checks.append(measure([*KEEP, "check", f"{files}/", target]).wall)
        for way in ways:
            shutil.rmtree(work / "looped", ignore_errors=True)
            loops[way].append(measure([sys.executable, "-c", _ADDING, files, work / "looped", *way]).wall)
        print(f"  directory {name}: {ours[-1]:.2f} {checks[-1]:.2f} {[t[-1] for t in loops.values()]}", flush=True)
    best = min(ways, key=lambda way: statistics.median(loops[way]))
    yield ratio(f"{name}: building a directory, against add by {best[0]}", ours, loops[best], 1.0, faster=True)
    yield ratio(f"{name}: verifying it, against copying it", checks, ours, 0.2, faster=False)


def main() -> int:
    """Run what was asked for; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="export,server,directory")
    parser.add_argument("--directories", default="sample,large")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chromakeep-bench")
    parser.add_argument("--json", type=Path, default=Path("records.json"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in args.directories.split(","):
        source = pair(name, args.work).base
        files = args.work / f"{name}-files.parquet"
        if not files.exists():
            measure([*KEEP, "export", source, f"{files}/"])
        if "export" in args.only:
            rows += exports(name, source, args.work, args.runs)
        if "server" in args.only:
            rows += into_servers(name, files, args.work, args.runs if name == "sample" else 1)
        if "directory" in args.only:
            rows += into_directories(name, files, args.work, args.runs if name == "sample" else 1)
    return report(rows, {}, args.json)


if __name__ == "__main__":
    raise SystemExit(main())
