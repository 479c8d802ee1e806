"""Putting a directory in the place of another in one step, keeping the other, and swapping it back."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chromakeep.errors import SnapshotNotFound
from chromakeep.exchange.keeping import OLD, free_name
from chromakeep.exchange.swapping import swap

DATABASE = "chroma.sqlite3"
KEYS = "chromakeep-keys.json"  # clients' keys, where there is no repository for them: they belong to the place
KEYS_LOCK = ".chromakeep-keys.lock"


def beside(target: Path, purpose: str) -> Path:
    """A new directory for what is to take ``target``'s place: its sibling, or inside it where it is a mount point."""
    return temporary(target if is_fixed(target) else target.absolute().parent, f".{target.name}.{purpose}-")


def temporary(folder: Path, prefix: str) -> Path:
    """A new directory in ``folder``; those that a killed process of this host left under that prefix go first."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{glob.escape(prefix)}*"):
        owner = left.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and int(owner) != os.getpid():
            from chromakeep.repository.sessions import process_exists  # of many modules: only where one was left

            if process_exists(int(owner)):
                continue
            shutil.rmtree(left, ignore_errors=True)
    place = folder / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    place.mkdir()
    return place


def is_empty(target: Path) -> bool:
    """Nothing there, or nothing but what we or the file system put there ourselves."""
    return not target.exists() or not _contents(target)


def install(new: Path, target: Path) -> Path | None:
    """Put ``new`` where ``target`` is; where the old content is kept now, or None if there was none.

    One atomic exchange where the system has it (Linux), else two renames. A mount point cannot be renamed: there the
    contents move, chroma.sqlite3 first out and last in: a directory that has it is always a whole one. Clients' keys
    stay where they are: those of ``target`` are in force, whatever ``new`` holds.
    """
    was_empty = is_empty(target)
    old = kept_as(target)
    fixed = is_fixed(target)
    if fixed:
        (new / KEYS).unlink(missing_ok=True)
        if not was_empty:
            old.mkdir()
            _move_contents(target, old, database_first=True)
        _move_contents(new, target, database_first=False)
        new.rmdir()
    elif target.exists():
        with keys_carried(target, new, old):
            new.rename(old)  # first: who dies right after the exchange leaves the old content under its lasting name
            if not exchange(old, target):
                old.rename(new)
                target.rename(old)
                try:
                    new.rename(target)
                except OSError:
                    old.rename(target)
                    raise
        if was_empty:
            (old / KEYS).unlink(missing_ok=True)
            with suppress(OSError):  # hidden files of somebody's: kept
                old.rmdir()
    else:
        new.rename(target)
    sync(target.parent)
    return None if was_empty else old


@contextmanager
def keys_carried(target: Path, new: Path, kept: Path) -> Iterator[None]:
    """While ``new`` takes the place of the directory ``target``, which is then ``kept``: the keys that clients have now
    stay in force, and none is changed meanwhile: as far as they can be locked, for what has been restored is put in
    place in any case."""
    with keys_locked(target, needed=False):
        if (target / KEYS).exists():
            write_whole(new / KEYS, (target / KEYS).read_bytes())
        else:
            (new / KEYS).unlink(missing_ok=True)
        yield
    (kept / KEYS_LOCK).unlink(missing_ok=True)  # whoever waits for it finds another directory in the place


@contextmanager
def keys_locked(data: Path, *, needed: bool = True) -> Iterator[None]:
    """Held by who changes the keys of a directory, and by who puts another one in its place. Where there are no locks
    the last of two writers wins. ``needed``: raises ``OSError`` where nothing may be written into the directory."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = data / KEYS_LOCK
    while True:
        try:
            lock = path.open("ab")
        except OSError:
            if needed:
                raise
            break
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)  # let go when it is closed
                still = os.path.samestat(os.fstat(lock.fileno()), path.stat())
            except FileNotFoundError:
                still = False
            except OSError:  # a file system without locks
                still = True
            if still:
                yield
                return
        # By now another directory is there, with a lock of its own.
    yield


def kept_as(target: Path) -> Path:
    """A free name for what stands at ``target`` now."""
    return free_name(*((target, "") if is_fixed(target) else (target.parent, target.name)))


def newest_old(target: Path) -> Path:
    """What was last kept of ``target``. Raises ``SnapshotNotFound``."""
    folder, prefix = (target, "") if is_fixed(target) else (target.parent, target.name)
    pattern = re.compile(re.escape(prefix + OLD) + r"(\d{8}T\d{6})(?:\.(\d+))?")  # as free_name makes it
    entries = folder.iterdir() if folder.is_dir() else ()
    found = {(m[1], int(m[2] or 0)): p for p in entries if (m := pattern.fullmatch(p.name)) and p.is_dir()}
    if not found:
        raise SnapshotNotFound(f"{target}: nothing was kept of it", hint="restore a snapshot: chromakeep restore")
    return found[max(found)]


def write_whole(path: Path, data: bytes) -> None:
    """Put a small file there in one step, durably: all of ``data``, or it is as it was. Only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make names in a folder durable."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)


def is_fixed(target: Path) -> bool:
    """Whether the directory itself cannot be renamed: a mount point, or in a folder that we may not write."""
    return target.is_dir() and (target.is_mount() or not os.access(target.absolute().parent, os.W_OK))


def _contents(target: Path) -> list[Path]:
    return [p for p in target.iterdir() if p.name not in ("lost+found", KEYS) and not p.name.startswith(".")]


def _move_contents(source: Path, target: Path, *, database_first: bool) -> None:
    for entry in sorted(_contents(source), key=lambda p: (p.name == DATABASE) != database_first):
        entry.rename(target / entry.name)
    sync(target)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; False where that cannot be done."""
    with suppress(OSError):
        return swap(one, other)
    return False
