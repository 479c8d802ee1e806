"""``make bench``: every figure a ratio against the peer run beside it, on the same directory, in alternating runs.

    python bench/bench.py [--runs 5] [--only backup,boot,pause] [--work DIR] [--json FILE]

Prints a table and writes JSON. Needs restic and tar; the boot out of a bucket starts moto (``tools/servers.sh``). As an
installed package has its bytecode, what runs here has it too: ``PYTHONDONTWRITEBYTECODE`` is not passed on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # before what is imported here starts a process

import boot
from directories import ROOT, Pair, pair
from tools import Chromakeep, Cost, Restic, Tool, size, tar


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians of the runs, their ratio, the bar it has to reach."""

    what: str
    ours: str
    peer: str
    ratio: float | None
    bar: str
    met: bool


Runs = dict[str, dict[str, list[float]]]  # tool -> figure -> one value a run


def backups(which: Pair, work: Path, runs: int) -> tuple[Runs, float]:
    """First and second backup and restore by each tool in turn, and the size of the tar."""
    found: Runs = defaultdict(lambda: defaultdict(list))
    live, archive, out = work / "live", work / "live.tgz", work / "restored"
    tar(which.base, archive)
    tools: list[Callable[[], Tool]] = [
        lambda: Chromakeep(work / "repository-ours"),
        lambda: Restic(work / "repository-restic"),
        lambda: Chromakeep(work / "repository-encrypted", encrypted=True),
    ]
    for run in range(runs + 1):  # the first one warms caches; its time is not counted, its memory is
        for make in tools:
            tool = make()
            tool.memory = None if run else found[tool.name]["memory"]
            tool.init()
            empty = size(tool.repository)
            _copy(which.base, live)
            first = tool.backup(live)
            stored = size(tool.repository)
            _copy(which.changed, live)
            second = tool.backup(live)
            new = size(tool.repository) - stored
            shutil.rmtree(out, ignore_errors=True)
            back = tool.restore(out)
            if run:
                for name, cost in (("first", first), ("second", second), ("restore", back)):
                    _add(found[tool.name], name, cost)
                found[tool.name]["stored"].append(stored - empty)
                found[tool.name]["new"].append(new)
            print(
                f"  {which.name} run {run}: {tool.name}: {first.wall:.2f} {second.wall:.2f} {back.wall:.2f}", flush=True
            )
            shutil.rmtree(tool.repository)
    return found, float(archive.stat().st_size)


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    os.sync()  # whoever runs first must not pay for writing this back


def _add(found: dict[str, list[float]], name: str, cost: Cost) -> None:
    found[name].append(cost.wall)
    found[f"{name} cpu"].append(cost.cpu)


def backup_rows(name: str, found: Runs, archive: float) -> Iterator[Row]:
    """The table's lines on one directory."""
    for ours in ("chromakeep", "chromakeep, encrypted"):
        mine, restic = found[ours], found["restic"]
        label = f"{name}{' (encrypted)' if 'encrypted' in ours else ''}"
        yield _ratio(f"{label}: first backup", mine["first"], restic["first"], "s", 1.0)
        yield _ratio(f"{label}: repository", mine["stored"], restic["stored"], "MB", 1.0)
        yield _ratio(f"{label}: second backup, new bytes", mine["new"], restic["new"], "MB", 0.1)
        yield _ratio(f"{label}: second backup", mine["second"], restic["second"], "s", 0.4)
        yield _ratio(f"{label}: restore", mine["restore"], restic["restore"], "s", 0.7)
        yield _ratio(f"{label}: repository against tar czf", mine["stored"], [archive], "MB", 0.9)
        peak, theirs = max(mine["memory"]), max(restic["memory"])
        yield Row(f"{label}: peak memory", f"{peak:.0f} MB", f"{theirs:.0f} MB", None, "<= 300 MB", peak <= 300)


def _ratio(what: str, mine: list[float], theirs: list[float], unit: str, bar: float) -> Row:
    a, b = statistics.median(mine), statistics.median(theirs)
    scale, digits = (1e6, 2) if unit == "MB" else (1.0, 2)
    ratio = a / b
    return Row(
        what,
        f"{a / scale:.{digits}f} {unit}",
        f"{b / scale:.{digits}f} {unit}",
        round(ratio, 3),
        f"<= {bar}",
        ratio <= bar,
    )


def boots(which: Pair, dimension: int, work: Path, runs: int) -> tuple[dict[str, list[float]], list[Row]]:
    """Boot with data present, of a directory never seen before, and out of a repository on a local S3 server."""
    found: dict[str, list[float]] = defaultdict(list)
    data, keep, unseen = work / "data", work / "keep", work / "unseen"
    boot.forget(data)
    shutil.copytree(which.base, data)
    keep_tool = Chromakeep(keep)
    keep_tool.init()
    boot.kept(data, str(keep), dimension)  # the first one checks everything and takes the first snapshot
    for _ in range(runs):
        found["plain"].append(boot.plain(data, dimension))
        boot.kept(data, str(keep), dimension)  # plain chroma wrote to it: it is checked again, and stopped cleanly
        found["kept"].append(boot.kept(data, str(keep), dimension))
        boot.forget(unseen)
        shutil.copytree(which.base, unseen)
        found["unseen"].append(boot.kept(unseen, str(keep), dimension))
    rows = [
        _ratio(f"{which.name}: boot with data present", found["kept"], found["plain"], "s", 1.3),
        _report(f"{which.name}: boot of a directory never seen (all checks)", found["unseen"], found["plain"]),
    ]
    with _bucket(work) as (address, env):
        tool = Chromakeep(Path(address))
        tool.env = dict(env)
        tool.run("init", address)
        tool.run("backup", which.base, address)
        for _ in range(runs):
            boot.forget(work / "lost")
            found["bucket"].append(boot.kept(work / "lost", address, dimension, env))
        boot.forget(work / "lost")
    if which.name == "sample":
        value = statistics.median(found["bucket"])
        rows.append(Row("sample: boot out of a bucket", f"{value:.2f} s", "", None, "<= 5 s", value <= 5))
    return found, rows


def _report(what: str, mine: list[float], theirs: list[float]) -> Row:
    a, b = statistics.median(mine), statistics.median(theirs)
    return Row(what, f"{a:.2f} s", f"{b:.2f} s", round(a / b, 3), "report", True)


@contextmanager
def _bucket(work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.s3 import start_moto

    server = start_moto(work)
    try:
        env = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        yield server.address("bench", "keep"), env
    finally:
        server.stop()


def pauses(which: Pair, work: Path, captures: int, bar: int) -> tuple[object, list[Row]]:
    """How long writers are held, with a writer at work: ``tests/stress/pause.py`` on a copy."""
    script = ROOT / "tests" / "stress" / "pause.py"
    command = [sys.executable, script, which.base, "--captures", str(captures), "--into", work]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    held = found["hold_ms"]
    text = f"p50 {held['p50']:.0f}, p99 {held['p99']:.0f}, max {held['max']:.0f} ms"
    what = f"{which.name}: writers held in {captures} captures ({found['method']})"
    return found, [Row(what, text, "", None, f"p99 <= {bar} ms", held["p99"] <= bar)]


def main() -> int:
    """Run what was asked for; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--captures", type=int, default=100)
    parser.add_argument("--only", default="backup,boot,pause")
    parser.add_argument("--directories", default="sample,large")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chromakeep-bench")
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    raw: dict[str, object] = {}
    bars = {"sample": (384, 50), "large": (768, 200)}
    for name in args.directories.split(","):
        which = pair(name, args.work)
        dimension, held = bars[name]
        if "backup" in args.only:
            found, archive = backups(which, args.work, args.runs)
            raw[f"{name} backups"], raw[f"{name} tar"] = found, archive
            rows += backup_rows(name, found, archive)
        if "boot" in args.only:
            raw[f"{name} boots"], more = boots(which, dimension, args.work, args.runs)
            rows += more
        if "pause" in args.only:
            raw[f"{name} pauses"], more = pauses(which, args.work, args.captures, held)
            rows += more
    return report(rows, raw, args.json)


def report(rows: list[Row], raw: dict[str, object], into: Path) -> int:
    """Print the table and write the single runs; 1 if a bar was missed."""
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}"
    print(f"\n{datetime.now(timezone.utc):%Y-%m-%d}, {machine}, python {platform.python_version()}\n")
    print("| what | chromakeep | peer | ratio | bar | |\n|---|---|---|---|---|---|")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        print(f"| {row.what} | {row.ours} | {row.peer} | {ratio} | {row.bar} | {'met' if row.met else '**missed**'} |")
    into.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in rows], "raw": raw}, indent=1))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
