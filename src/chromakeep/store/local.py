"""LocalStore: objects as files under one directory, each published by an atomic link or rename."""

# Descriptors and plain strings: a Path per call would cost more than the call.
# ruff: noqa: PTH102, PTH105, PTH108, PTH112, PTH116, PTH118, PTH120

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from chromakeep.errors import DiskFull, ObjectExists, ObjectNotFound, StoreDenied, StoreUnavailable
from chromakeep.store.base import ObjectInfo
from chromakeep.store.names import checked, checked_prefix, is_name

STALE_SECONDS = 3600.0
"""A temporary file not written to for this long belongs to a process that was killed; a listing removes it."""

_TEMPORARY = "~"  # begins the names of temporary files; no object's name holds it
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_MOST = 1 << 30  # Linux moves at most 0x7ffff000 bytes in one call


class LocalStore:
    """A Store in the directory ``root``, which must exist: a disk that is not mounted must not be written beside.

    A ``put`` writes a temporary file in the object's own folder, syncs it, publishes it by ``rename`` (or, with
    ``if_absent``, by ``link``, which fails where the name is taken) and syncs the folder: after a power failure the
    object is there whole, or not at all. A ``delete`` is not synced: one that was just done may be undone by a power
    failure, never reordered before an earlier put. ``if_absent`` needs a file system with hard links, and raises
    StoreDenied where there are none (FAT, some FUSE mounts).

    A name cannot be both an object and the folder of others; that ``put`` raises StoreDenied. A full disk raises
    DiskFull, and what was there stays.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._base = os.fspath(self.root.absolute())

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._path(name)
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, _TEMPORARY + os.urandom(8).hex())
        try:
            fd = self._create(temporary, folder)
            try:
                try:
                    _write(fd, data)
                finally:
                    os.close(fd)
                if if_absent:
                    os.link(temporary, path)
                else:
                    os.replace(temporary, path)
            finally:
                with contextlib.suppress(OSError):  # gone already after a rename
                    os.unlink(temporary)
            _sync(folder)
        except FileExistsError:
            raise ObjectExists(name) from None
        except OSError as error:
            if if_absent and error.errno in _NO_LINKS and error.filename2 is not None:
                raise StoreDenied(
                    f"{self.root}: this file system has no hard links, which an exclusive put needs ({error.strerror})",
                    hint="keep the repository on ext4, xfs, btrfs, zfs, NFS or in a bucket",
                ) from None
            self._fail(name, error)

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        try:
            # Without O_NONBLOCK a named pipe in an object's place would block for ever.
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise ObjectNotFound(name)
                wanted = max(status.st_size - start, 0)
                return _read(fd, start, wanted if length is None else min(length, wanted))
            finally:
                os.close(fd)
        except OSError as error:
            self._fail(name, error, reading=True)

    def head(self, name: str) -> ObjectInfo:
        try:
            status = os.stat(self._path(name))
        except OSError as error:
            self._fail(name, error, reading=True)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFound(name)
        return ObjectInfo(name, status.st_size, status.st_mtime)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As of Store. Reads one folder at a time; files that are no objects are passed over."""
        folder = checked_prefix(prefix).rpartition("/")[0]
        return self._walk(folder + "/" if folder else "", prefix)

    def delete(self, name: str) -> None:
        try:
            os.unlink(self._path(name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._require_root()
        except OSError as error:
            self._fail(name, error)

    def _path(self, name: str) -> str:
        return f"{self._base}/{checked(name)}"

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(f"{self._base}/{folder}") as entries:
                # A folder sorts as its children do, by its name and a slash: "a-b" < "a.b" < "a/b" < "ab".
                found = sorted((folder + e.name + ("/" if e.is_dir() else ""), e) for e in entries)
        except (FileNotFoundError, NotADirectoryError):
            self._require_root()
            return
        except OSError as error:
            self._fail(folder or ".", error)
        for name, entry in found:
            if entry.name.startswith(_TEMPORARY):
                _remove_if_stale(entry)
            elif name.endswith("/"):
                if is_name(name[:-1]) and (name.startswith(prefix) or prefix.startswith(name)):
                    yield from self._walk(name, prefix)
            elif name.startswith(prefix) and is_name(name):
                try:
                    status = entry.stat()
                except FileNotFoundError:  # deleted since, or a dangling link
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(name, status.st_size, status.st_mtime)

    def _create(self, temporary: str, folder: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(temporary, flags, 0o666)
        except FileNotFoundError:  # the first object of its folder
            self._require_root()
            self._make(folder)
            return os.open(temporary, flags, 0o666)

    def _make(self, folder: str) -> None:
        """Create a folder below the root and those above it, and sync the entries that are new, and only those."""
        try:
            os.mkdir(folder)
        except FileNotFoundError:
            self._make(os.path.dirname(folder))
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
        except FileExistsError:  # another thread was first; it may not have synced yet
            if not os.path.isdir(folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
        _sync(os.path.dirname(folder))

    def _require_root(self) -> None:
        if not os.path.isdir(self._base):
            raise StoreUnavailable(f"{self.root}: no such directory", hint="is the disk mounted?")

    def _fail(self, name: str, error: OSError, *, reading: bool = False) -> NoReturn:
        what = f"{self.root}/{name}: {(error.strerror or str(error)).lower()}"
        if error.errno in _FULL:
            raise DiskFull(what, hint="free some room, then run the command again") from error
        if error.errno == errno.ENOENT or (reading and error.errno in (errno.ENOTDIR, errno.EISDIR)):
            self._require_root()
            raise ObjectNotFound(name) from None
        if error.errno in _DENIED:
            raise StoreDenied(what, hint=f"check the owner and the mode of {self.root}") from error
        raise StoreUnavailable(what) from error


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest[:_MOST]) :]
    os.fsync(fd)


def _read(fd: int, start: int, length: int) -> bytes:
    data = os.pread(fd, min(length, _MOST), start)
    if len(data) == length or not data:
        return data
    parts, done = [data], len(data)
    while done < length and (data := os.pread(fd, min(length - done, _MOST), start + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(fd)


def _remove_if_stale(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError):
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS:
            os.unlink(entry.path)
