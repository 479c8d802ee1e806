"""Premises: what must hold before a capture may begin, and what the machine says when it does not."""

from __future__ import annotations

import errno
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chromakeep.chroma.signature import DATABASE, SEGMENT_FILES, UUID, unreadable
from chromakeep.errors import DiskFull, NotAChromaDirectory, SourceBroken, SourceError, UsageError

COMPANIONS = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a database
PART = ".part"  # what a capture keeps beside its copy while it works


def check_paths(source: Path, into: Path) -> None:
    """Raise for paths that cannot be meant: before anything is created."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(source)):
        raise UsageError(
            f"{source}: a capture reads a local directory, not a URL",
            hint="name the directory that Chroma writes to (its --path)",
        )
    try:
        if not source.exists():
            raise NotAChromaDirectory(f"{source}: no such directory")
        if not source.is_dir():
            raise NotAChromaDirectory(f"{source}: not a directory", hint=f"name the directory that holds {DATABASE}")
        if not (source / DATABASE).exists():
            raise NotAChromaDirectory(
                f"{source}: there is no {DATABASE}",
                hint="an empty backup protects nothing: check the path Chroma writes to",
            )
    except PermissionError as error:
        raise unreadable(source, error) from error
    inner, outer = source.resolve(), into.resolve()
    if (
        inner == outer
        or outer in inner.parents
        or (inner in outer.parents and _chromas(outer.relative_to(inner).parts[0]))
    ):
        raise UsageError(
            f"{into}: the copy would lie in its source's own files, or around them", hint="choose a directory beside it"
        )
    if into.exists() and not into.is_dir():
        raise UsageError(f"{into}: not a directory")
    if into.is_dir():
        foreign = sorted(e.name for e in into.iterdir() if not _chromas(e.name))
        if foreign:
            raise UsageError(
                f"{into}: holds {foreign[0]!r}, which is no part of a capture", hint="choose an empty directory"
            )


@contextmanager
def translated(into: Path) -> Iterator[None]:
    """What the operating system or SQLite says of the copy, as one line of ours."""
    full = DiskFull(f"{into}: no space left for the copy", hint="free some space or choose another place")
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full from error
        raise unreadable(error.filename or into, error) from error
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise full from error
        if "malformed" in str(error):
            raise SourceBroken(f"the database is damaged: {error}", hint="restore the newest snapshot") from error
        raise SourceError(f"{into}: {error}") from error


def allocated(folder: Path) -> int:
    """Bytes that files of a data directory take on disk, holes not counted."""
    total = 0
    for path in (
        folder / DATABASE,
        *(f / n for f in folder.iterdir() if UUID.fullmatch(f.name) for n in SEGMENT_FILES),
    ):
        try:
            found = path.stat()
        except OSError:
            continue
        total += min(found.st_size, found.st_blocks * 512)
    return total


def check_room(into: Path, total: int) -> None:
    """Fail now rather than half-way: an earlier capture's blocks are written over, not beside."""
    room = shutil.disk_usage(into).free + allocated(into)
    if total > room:
        raise DiskFull(
            f"{into}: the copy needs {total:,} bytes, and there is room for {room:,}",
            hint="free some space or choose another place for the copy",
        )


def _chromas(name: str) -> bool:
    """Whether a capture, or Chroma, makes an entry of that name."""
    return bool(UUID.fullmatch(name)) or name in {DATABASE + end for end in ("", PART, *COMPANIONS)}
