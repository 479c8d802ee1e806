"""A signature: whether anything in a data directory was written between two looks, told from ``stat`` alone."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chromakeep.errors import NotAChromaDirectory, SourceBroken, SourceError

DATABASE = "chroma.sqlite3"
PICKLE = "index_metadata.pickle"
BINARIES = ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin")  # the order a persist writes them in
SEGMENT_FILES = (*BINARIES, PICKLE)
SETTLED = 0.021  # seconds; the kernel stamps files with a clock that ticks every 1 to 10 ms
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # the name of a segment's folder
COARSE = 2.1  # seconds; the same for file systems that keep whole seconds (FAT: two of them)


def _tick() -> float:
    """Seconds after which a local file system gives another time: two ticks of Linux' CLOCK_REALTIME_COARSE (5)."""
    try:
        return 2 * time.clock_getres(5) + 0.001 if sys.platform.startswith("linux") else SETTLED
    except OSError:
        return SETTLED


TICK = _tick()


class Stamp(NamedTuple):
    """What the file system says of one file; times in nanoseconds. Every write changes ``mtime`` and ``ctime``."""

    inode: int
    size: int
    mtime: int
    ctime: int

    @property
    def touched(self) -> int:
        """When it was last written or renamed; ``ctime`` counts too, for nobody can set it back."""
        return max(self.mtime, self.ctime)


def stamp(file: Path | int, *, follow: bool = True) -> Stamp | None:
    """The stamp of a file (or open descriptor), None if there is none. Anything but a regular file is refused."""
    try:
        found = os.stat(file, follow_symlinks=follow or isinstance(file, int))  # noqa: PTH116 - a descriptor has no Path
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise unreadable(file, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise SourceBroken(f"{file}: not a regular file")
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def unreadable(file: object, error: OSError) -> SourceError:
    """The one line for what the operating system does not let us do with a file."""
    hint = "run chromakeep as the user Chroma runs as" if isinstance(error, PermissionError) else None
    return SourceError(f"{file}: {(error.strerror or str(error)).lower()}", hint=hint)


def settled(stamps: Iterable[Stamp], seconds: float = SETTLED) -> bool:
    """Whether every stamp is so old that a write from now on must change it."""
    now = time.time_ns()
    return all(
        now - s.touched > 1e9 * (max(seconds, COARSE) if s.ctime % 1_000_000_000 == 0 else seconds) for s in stamps
    )


class Signature(msgspec.Struct, frozen=True):
    """Equal signatures of one directory: nothing was committed to SQLite and no index persisted in between.

    The reverse does not hold: a signature taken within a clock tick of a write equals no other one, itself re-read
    from JSON excepted, because a second write in that tick would not show.
    """

    files: tuple[tuple[str, Stamp], ...]
    fresh: str = ""

    def to_json(self) -> str:
        return json.dumps({"files": [[name, *s] for name, s in self.files], "fresh": self.fresh})

    @staticmethod
    def from_json(text: str) -> Signature:
        """Raises ``ValueError`` for anything that ``to_json`` did not write."""
        try:
            value: Any = json.loads(text)
            files = tuple((str(name), Stamp(*map(int, numbers))) for name, *numbers in value["files"])
            return Signature(files, str(value["fresh"]))
        except (KeyError, TypeError) as error:
            raise ValueError("not a signature") from error


def signature(source: Path) -> Signature:
    """Look at ``source``; may wait 21 ms, so that a commit just made does not make the signature worthless.

    Opens nothing: SQLite's POSIX locks vanish when *any* descriptor of the database is closed in the process that
    holds them (fcntl(2)), so reading the change counter would unlock a Chroma embedded in this process mid-commit.
    Chroma fsyncs each commit and each commit moves ``mtime``; the counter would tell nothing more.
    """
    for _ in range(3):
        files = tuple(_files(source))
        if settled(s for _, s in files):
            return Signature(files)
        time.sleep(SETTLED)
    return Signature(files, secrets.token_hex(8))


def _files(source: Path) -> Iterable[tuple[str, Stamp]]:
    database = (source / DATABASE).resolve()
    for end in ("", "-wal"):  # in WAL mode commits touch only the log
        if found := stamp(database.with_name(database.name + end)):
            yield DATABASE + end, found
        elif not end:
            raise NotAChromaDirectory(f"{source}: there is no {DATABASE}")
    try:
        folders = sorted(e.name for e in source.iterdir() if UUID.fullmatch(e.name))
    except PermissionError as error:
        raise unreadable(source, error) from error
    for folder in folders:
        for name in SEGMENT_FILES:
            if found := stamp(source / folder / name, follow=False):
                yield f"{folder}/{name}", found
