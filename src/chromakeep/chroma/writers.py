"""Which other processes have a data directory open for writing.

Two writers on one directory destroy it, and Chroma has no guard of its own (both indexes diverge in memory, then
overwrite each other's files). SQLite's locks cannot tell: they are held for the time of a transaction only. What
tells is the list of open files, which Linux shows of every process we may look at; a process of another container or
user stays unseen, which is why a running chromakeep also holds a lock of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

_NAMES = frozenset({"chroma.sqlite3", "header.bin", "data_level0.bin", "length.bin", "link_lists.bin"})


class Writer(msgspec.Struct, frozen=True):
    """A process with a file of the directory open for writing."""

    pid: int
    command: str


def writers(directory: Path) -> list[Writer]:
    """Processes other than this one; empty where ``/proc`` is not to be had."""
    ours: set[tuple[int, int]] = set()
    for place in (directory, *(p for p in _entries(directory) if p.is_dir())):
        for name in _NAMES:
            try:
                status = (place / name).stat()
            except OSError:
                continue
            ours.add((status.st_dev, status.st_ino))
    if not ours:
        return []
    found = []
    for process in _entries(Path("/proc")):
        if process.name.isdigit() and int(process.name) != os.getpid() and _writes(process, ours):
            try:
                command = (process / "cmdline").read_bytes()[:4096].replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                command = ""
            found.append(Writer(int(process.name), " ".join(command.split())[:120]))
    return found


def _entries(place: Path) -> list[Path]:
    try:
        return list(place.iterdir())
    except OSError:
        return []


def _writes(process: Path, files: set[tuple[int, int]]) -> bool:
    for descriptor in _entries(process / "fd"):
        try:
            # The name first: a stat of somebody's file on a dead network mount would hang.
            if descriptor.readlink().name not in _NAMES:
                continue
            status = descriptor.stat()
            if (status.st_dev, status.st_ino) not in files:
                continue
            info = (process / "fdinfo" / descriptor.name).read_text()
        except OSError:
            continue
        flags = next((line.split()[1] for line in info.splitlines() if line.startswith("flags:")), "0")
        if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
            return True
    return False


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the pid, the name of one process. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
