"""chromakeep and its peers as whole processes: init, backup, restore, and what each costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one finished process and its children: wall and CPU seconds."""

    wall: float
    cpu: float


def measure(command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Cost:
    """Run a command to its end; it must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(c) for c in command], env={**os.environ, **(env or {})}, cwd=cwd, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def peak_memory(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> float:
    """Run a command, looking every 5 ms at the memory of it and all its children; the largest sum in MB.

    Proportional set size: a page that two processes share counts once. For a run that is not timed.
    """
    process = subprocess.Popen([str(c) for c in command], env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, sum(_proportional(pid) for pid in _family(process.pid)))
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {process.returncode}")
    return most * 1024 / 1e6


def _family(pid: int) -> list[int]:
    try:
        children = [c for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except OSError:  # it has ended
        children = []
    return [pid, *(p for child in children for p in _family(int(child)))]


def _proportional(pid: int) -> int:
    """KiB; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def size(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


class Tool:
    """A backup program with a repository in a local folder."""

    name = ""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.env: dict[str, str] = {}
        self.program: tuple[str | Path, ...] = ()
        self.memory: list[float] | None = None  # peaks in MB, where a run is not timed but looked at

    def run(self, *args: str | Path) -> Cost:
        """One command of the tool."""
        command = [*self.program, *args]
        if self.memory is None:
            return measure(command, self.env)
        self.memory.append(peak_memory(command, self.env))
        return Cost(0, 0)

    def init(self) -> None:
        """Make the repository."""
        shutil.rmtree(self.repository, ignore_errors=True)
        self.run("init")

    def backup(self, directory: Path) -> Cost:
        """One snapshot of a directory."""
        raise NotImplementedError

    def restore(self, target: Path) -> Cost:
        """The latest snapshot to a new directory."""
        raise NotImplementedError


class Restic(Tool):
    """restic: always encrypted; its cache is kept, as by default."""

    name = "restic"

    def __init__(self, repository: Path) -> None:
        super().__init__(repository)
        cache = repository.with_name("restic-cache")
        self.program = ("restic", "--quiet")
        self.env = {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(repository), "RESTIC_CACHE_DIR": str(cache)}

    def backup(self, directory: Path) -> Cost:
        return self.run("backup", directory)

    def restore(self, target: Path) -> Cost:
        return self.run("restore", "latest", "--target", target)


class Chromakeep(Tool):
    """chromakeep, without a password (its default) or with one (as restic always is)."""

    name = "chromakeep"

    def __init__(self, repository: Path, *, encrypted: bool = False) -> None:
        super().__init__(repository)
        self.program = (Path(sys.executable).with_name("chromakeep"),)
        if encrypted:
            self.name = "chromakeep, encrypted"
            self.env = {"CHROMAKEEP_PASSWORD": "bench"}

    def init(self) -> None:
        shutil.rmtree(self.repository, ignore_errors=True)
        self.run("init", self.repository)

    def backup(self, directory: Path) -> Cost:
        return self.run("backup", directory, self.repository)

    def restore(self, target: Path) -> Cost:
        return self.run("restore", self.repository, target)


def tar(directory: Path, archive: Path) -> Cost:
    """What users do today."""
    return measure(["tar", "czf", archive, "-C", directory.parent, directory.name])
