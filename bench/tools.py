"""chromakeep and its peers as whole processes: init, backup, restore, and what each costs."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one finished process: wall and CPU seconds, and peak resident memory of its largest process in MB."""

    wall: float
    cpu: float
    rss: float


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
    return Cost(wall, usage.ru_utime + usage.ru_stime, _megabytes(usage))


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 1000


def size(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


class Tool:
    """A backup program with a repository in a local folder."""

    name = ""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.env: dict[str, str] = {}

    def run(self, *args: str | Path) -> Cost:
        """One command of the tool."""
        raise NotImplementedError

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
        self.env = {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(repository), "RESTIC_CACHE_DIR": str(cache)}

    def run(self, *args: str | Path) -> Cost:
        return measure(["restic", "--quiet", *args], self.env)

    def backup(self, directory: Path) -> Cost:
        return self.run("backup", directory)

    def restore(self, target: Path) -> Cost:
        return self.run("restore", "latest", "--target", target)


class Chromakeep(Tool):
    """chromakeep, without a password (its default) or with one (as restic always is)."""

    name = "chromakeep"

    def __init__(self, repository: Path, *, encrypted: bool = False) -> None:
        super().__init__(repository)
        if encrypted:
            self.name = "chromakeep, encrypted"
            self.env = {"CHROMAKEEP_PASSWORD": "bench"}

    def run(self, *args: str | Path) -> Cost:
        return measure([Path(sys.executable).with_name("chromakeep"), *args], self.env)

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
