"""Files that become visible whole or not at all: written under a hidden name, made durable, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from blake3 import blake3

from chromakeep.errors import DiskFull, RepositoryBusy, SourceError, StoreError, UsageError
from chromakeep.exchange.swapping import swap

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUFFER = 1 << 20


def partial(final: Path) -> Path:
    """The hidden name beside ``final`` under which it is written."""
    return final.with_name(f".{final.name}.partial")


def old(final: Path) -> Path:
    """The hidden name beside ``final`` of a directory that was replaced, until it is removed."""
    return final.with_name(f".{final.name}.old")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses becomes one line: ``DiskFull``, ``UsageError`` for the path, else ``StoreError``."""
    try:
        yield
    except OSError as error:
        what = f"{path}: {(error.strerror or str(error)).lower()}"
        if error.errno in _FULL:
            raise DiskFull(what, hint="free some room, then run the command again") from None
        if error.errno in (errno.EIO, errno.EPIPE) or error.errno is None:
            raise StoreError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None
        raise UsageError(what, hint=f"check that {path.parent} exists and may be written") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system refuses becomes a ``SourceError`` of one line."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path}: {(error.strerror or str(error)).splitlines()[0].lower()}") from None


class Output:
    """A file written once from front to end: what ``pyarrow`` asks of a file, with a count and, if asked, a hash.

    ``start`` goes on behind that many bytes of a file that is there; what followed them is gone. What could not be
    written or synced once is never tried again: the file may have a gap there, and a second sync would not tell.
    """

    def __init__(self, path: Path, *, start: int = 0, hashed: bool = False) -> None:
        self.path = path
        self.size = start
        self.closed = False
        self._hash = blake3() if hashed else None
        self._aside: bytearray | None = None
        self._failed: OSError | None = None
        self._file: IO[bytes] = path.open("r+b" if start else "wb", buffering=_BUFFER)
        self._file.truncate(start)
        while self._hash is not None and (piece := self._file.read(_BUFFER) if start else b""):
            self._hash.update(piece)
        self._file.seek(start)

    def write(self, data: bytes) -> int:
        """Append; of one that was abandoned nothing is written any more."""
        if self._aside is not None:
            self._aside += data
        elif not self.closed:
            with self._once():
                self._file.write(data)
            self.size += len(data)
            if self._hash is not None:
                self._hash.update(data)
        return len(data)

    @contextmanager
    def aside(self) -> Iterator[bytearray]:
        """What is written meanwhile goes here, and not into the file."""
        self._aside = found = bytearray()
        try:
            yield found
        finally:
            self._aside = None

    def flush(self) -> None:
        """Nothing: ``sync`` is what makes it lasting."""

    def sync(self) -> None:
        """Make all that was written durable."""
        with self._once():
            self._file.flush()
            os.fsync(self._file.fileno())

    @contextmanager
    def _once(self) -> Iterator[None]:
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except OSError as error:
            self._failed = error
            raise

    def hexdigest(self) -> str:
        return self._hash.hexdigest() if self._hash is not None else ""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._file.close()

    def abandon(self) -> None:
        """Close whatever the disk says about it."""
        with suppress(OSError):
            self.close()


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """A small file, durable; it is there with all of ``data`` or as it was before."""
    output = Output(partial(path))
    try:
        output.write(data)
        output.sync()
    finally:
        output.close()
    os.replace(partial(path), path)  # noqa: PTH105 - the name by which tests find it
    sync_folder(path.parent)


def publish_file(new: Path, final: Path) -> None:
    """Give a durable file its name, over one that has it."""
    os.replace(new, final)  # noqa: PTH105
    sync_folder(final.parent)


def publish_folder(new: Path, final: Path) -> None:
    """Give a durable directory its name. What had it is removed: swapped in one step on Linux; elsewhere there are two
    renames, between which the former one is only found as ``.NAME.old``."""
    former = old(final)
    remove(former)
    if not final.exists() or not any(final.iterdir()):
        os.rename(new, final)  # noqa: PTH104
        sync_folder(final.parent)
        return
    if swap(new, final):
        sync_folder(final.parent)
        os.rename(new, former)  # noqa: PTH104 - so that nobody takes it for something to go on with
    else:
        os.rename(final, former)  # noqa: PTH104
        os.rename(new, final)  # noqa: PTH104
        sync_folder(final.parent)
    remove(former)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hold(folder: Path) -> int | None:
    """Make a directory if it is not there, and lock it against other processes; the descriptor to close when done, None
    where there are no locks. Raises ``RepositoryBusy``: two writers of one file would make a third of both."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            import fcntl
        except ImportError:  # pragma: no cover - Windows
            return None
        fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise RepositoryBusy(
                f"{folder}: another process is writing there", hint="wait for it, or write to another name"
            ) from None
        except OSError:  # pragma: no cover - a file system without locks
            os.close(fd)
            return None
        with suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == folder.stat().st_ino:
                return fd
        os.close(fd)  # who held it has published it since
