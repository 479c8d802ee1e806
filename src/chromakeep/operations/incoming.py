"""Incoming: a directory that comes from another machine, chunk by chunk, and survives whatever cuts it off.

A folder of its own holds ``manifest``, ``files/`` in their full sizes from the beginning, and ``journal``: a chunk
counts when it was verified, is durable in its place, and a line of the journal says so.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import zstandard

from chromakeep.errors import DiskFull, NotNow, UsageError, VerificationFailed
from chromakeep.operations.manifest import CHUNK, Manifest, Piece, SentFile, digest, read
from chromakeep.operations.place import sync

HEADROOM = 64 << 20  # bytes of disk, and a tenth of what comes, that are left free
LARGEST = CHUNK + (CHUNK >> 7) + 1024  # bytes of a compressed chunk: zstd makes what it cannot compress a little larger
PARTS = 8  # chunks that may be there in part at a time
_LINE = struct.Struct("<I12s")  # number, and the beginning of its digest


class Incoming:
    """One transfer. Chunks may be put from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, had: set[int]) -> None:
        self.folder, self.files, self.manifest = folder, folder / "files", manifest
        self.had = had  # chunks that count
        self._writing: set[int] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._parts: OrderedDict[int, bytearray] = OrderedDict()

    @staticmethod
    def begin(root: Path, manifest: Manifest, earlier: Incoming | None = None) -> Incoming:
        """Make room for it. Chunks that an ``earlier`` transfer has at the same place are taken from there; it ends.

        Raises ``DiskFull``.
        """
        had: set[int] = set()
        if earlier:
            earlier.close()
            had = _common(earlier, manifest)
            (earlier.folder / "journal").unlink(missing_ok=True)  # should this end half-way, it counts for nothing
        new = root / f"{manifest.id}.new"
        shutil.rmtree(new, ignore_errors=True)
        one = Incoming(new, manifest, had)
        try:
            with _refusing_full_disk(root):
                one.files.mkdir(parents=True)
                for file in manifest.files:
                    _allocate(one.files, file, earlier.files if earlier else None)
                (new / "journal").write_bytes(b"".join(map(one._line, sorted(had))))
                (new / "manifest").write_bytes(manifest.encoded)
                _durable(new)
                one._rename(root / manifest.id)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        finally:
            if earlier:
                shutil.rmtree(earlier.folder, ignore_errors=True)
        return one

    @staticmethod
    def check_room(root: Path, manifest: Manifest, earlier: Incoming | None = None) -> None:
        """Raise ``DiskFull`` for what cannot fit, before anything is changed."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free + (earlier.manifest.total if earlier else 0)
        if free < manifest.total + max(HEADROOM, manifest.total // 10):
            raise DiskFull(
                f"the receiver has room for {free:,} bytes, and {manifest.total:,} are to come, with some to spare",
                hint="free some space there, or give it a larger disk; nothing was changed",
            )

    @staticmethod
    def newest(root: Path, *, age: float) -> Incoming | None:
        """The transfer that an earlier process left here; others go, and one that had nothing for ``age`` seconds."""
        found: Incoming | None = None
        folders = sorted(root.iterdir(), key=_touched, reverse=True) if root.is_dir() else []
        for folder in folders:
            if found is None and time.time() - _touched(folder) < age:
                found = Incoming._left(folder)
            if found is None or found.folder != folder:
                shutil.rmtree(folder, ignore_errors=True)
        return found

    @staticmethod
    def _left(folder: Path) -> Incoming | None:
        try:
            manifest = Manifest.decode((folder / "manifest").read_bytes())
            journal = (folder / "journal").read_bytes()
            sizes = all((folder / "files" / f.path).stat().st_size == f.size for f in manifest.files)
        except (OSError, UsageError):
            return None
        if not sizes or manifest.id != folder.name:
            return None
        one = Incoming(folder, manifest, set())
        whole = len(journal) - len(journal) % _LINE.size
        for number, start in _LINE.iter_unpack(journal[:whole]):
            if number < len(manifest.chunks) and bytes.fromhex(manifest.chunks[number])[:12] == start:
                one.had.add(number)
        if len(journal) != _LINE.size * len(one.had):  # a torn line: what follows it would not be read
            (folder / "journal").write_bytes(b"".join(map(one._line, sorted(one.had))))
        return one

    @property
    def missing(self) -> list[int]:
        """Chunks that do not count yet."""
        return [number for number in range(len(self.manifest.chunks)) if number not in self.had]

    @property
    def quiet(self) -> float:
        """Seconds since the last chunk came."""
        return time.time() - _touched(self.folder)

    # -- chunks ------------------------------------------------------------------------------------------------------

    def put(self, number: int, packed: bytes) -> None:
        """Take a chunk, a frame of zstd. It counts when this returns; twice is once.

        Raises ``VerificationFailed`` when it is not what was offered, ``UsageError`` for a number that was not,
        ``DiskFull``, ``NotNow`` when nothing is taken any more.
        """
        if not 0 <= number < len(self.manifest.chunks):
            raise UsageError(f"there is no chunk {number}")
        if number in self.had:
            return
        chunk = _unpacked(packed, self.manifest.size(number), number)
        if digest(chunk) != self.manifest.chunks[number]:
            raise VerificationFailed(f"chunk {number} is not what was offered: its digest differs")
        with self._changed:
            while number in self._writing:  # a sender that was cut off and tries again
                self._changed.wait()
            if number in self.had:
                return
            if self._closed:
                raise NotNow("this transfer takes no more chunks")
            self._writing.add(number)
        try:
            with _refusing_full_disk(self.folder):
                self._write(self.manifest.pieces[number], chunk)
                with self._changed:
                    self._journal(self._line(number))
                    self.had.add(number)
        finally:
            with self._changed:
                self._writing.discard(number)
                self._changed.notify_all()

    def put_part(self, number: int, at: int, whole: int, part: bytes) -> int:
        """Take bytes from ``at`` of a compressed chunk of ``whole`` bytes; how many of it are here now.

        For a link that breaks before a chunk is through. Parts are kept in memory only, and only of a few chunks; with
        the last one it is ``put``.
        """
        if (
            not 0 <= number < len(self.manifest.chunks)
            or not 0 < whole <= LARGEST
            or not 0 <= at <= whole
            or at + len(part) > whole
        ):
            raise UsageError("no part of a chunk")
        if number in self.had:
            return whole
        with self._changed:
            have = self._parts.setdefault(number, bytearray())
            self._parts.move_to_end(number)
            if at <= len(have) < at + len(part):
                have += part[len(have) - at :]
            if len(self._parts) > PARTS:
                self._parts.popitem(last=False)
            if len(have) < whole:
                return len(have)
            del self._parts[number]
        self.put(number, bytes(have[:whole]))
        return whole

    def _write(self, pieces: Sequence[Piece], chunk: bytes) -> None:
        at = 0
        for piece in pieces:
            fd = os.open(self.files / piece.path, os.O_WRONLY)
            try:
                _pwrite(fd, memoryview(chunk)[at : at + piece.length], piece.offset)
                os.fsync(fd)
            finally:
                os.close(fd)
            at += piece.length

    def _line(self, number: int) -> bytes:
        return _LINE.pack(number, bytes.fromhex(self.manifest.chunks[number])[:12])

    def _journal(self, lines: bytes) -> None:
        with (self.folder / "journal").open("ab", buffering=0) as journal:
            journal.write(lines)
            os.fsync(journal.fileno())

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more chunks; returns when none is being written."""
        with self._changed:
            self._closed = True
            while self._writing:
                self._changed.wait()

    def verify(self) -> None:
        """Read every chunk again. Those that are not what they were count no more: then ``VerificationFailed``."""
        numbers = range(len(self.manifest.chunks))
        with ThreadPoolExecutor(2, "verify") as pool:
            good = list(pool.map(self._is_good, numbers))
        bad = [number for number in numbers if not good[number]]
        if bad:
            with self._changed:
                self.had -= set(bad)
                (self.folder / "journal").unlink()
                self._journal(b"".join(map(self._line, sorted(self.had))))
            raise VerificationFailed(
                f"{len(bad)} of {len(numbers)} chunks have changed on the receiver's disk",
                hint="send again: only these are sent; and look after that disk",
            )

    def _is_good(self, number: int) -> bool:
        try:
            return digest(read(self.files, self.manifest.pieces[number])) == self.manifest.chunks[number]
        except OSError:
            return False

    def complete(self) -> None:
        """Give the files their times, durably."""
        for file in self.manifest.files:
            path = self.files / file.path
            os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
        _durable(self.files)

    def drop(self) -> None:
        """It is in place, or nobody wants it."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _rename(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder.rename(folder)
        sync(folder.parent)
        self.folder, self.files = folder, folder / "files"


def _touched(folder: Path) -> float:
    """When a chunk last came; 0 of what is no transfer."""
    try:
        return (folder / "journal").stat().st_mtime
    except OSError:
        return 0.0


def _common(earlier: Incoming, manifest: Manifest) -> set[int]:
    """The chunks of the manifest that an earlier transfer has, of the same bytes at the same places."""
    have = {(earlier.manifest.pieces[n], earlier.manifest.chunks[n]) for n in earlier.had}
    return {n for n, chunk in enumerate(manifest.chunks) if (manifest.pieces[n], chunk) in have}


def _allocate(files: Path, file: SentFile, earlier: Path | None) -> None:
    """The file in its size, on a disk that has the room for it; with what an earlier one has of it."""
    path = files / file.path
    path.parent.mkdir(exist_ok=True)
    if earlier and (earlier / file.path).is_file():
        (earlier / file.path).rename(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(fd, file.size)
        if file.size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, 0, file.size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
    finally:
        os.close(fd)


@contextmanager
def _refusing_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"the receiver's disk: {error.strerror}", hint="free some space there; what is served is as it was"
            ) from None
        if isinstance(error, FileNotFoundError):
            raise NotNow("this transfer is over") from None
        raise


def _unpacked(packed: bytes, size: int, number: int) -> bytes:
    """The chunk in a frame that says how large it is: nothing larger is ever made of it."""
    try:
        told = zstandard.get_frame_parameters(packed).content_size
        if told != size:
            raise VerificationFailed(f"chunk {number} has {told:,} bytes, and {size:,} were offered")
        chunk = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise VerificationFailed(f"chunk {number} is damaged: {error}") from None
    if len(chunk) != size:
        raise VerificationFailed(f"chunk {number} has {len(chunk):,} bytes, and {size:,} were offered")
    return chunk


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _durable(folder: Path) -> None:
    """A folder and all in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
