"""Rolls: the ids of one collection as they were at one moment, in a file that is read from any position on.

A roll is written backwards, the last page of ids first (see ``listing``), and read from its end. It lies in a file
without a name, or at a path: then it is there for other processes, whole or not at all.

The file is a line that says what it is, a line with a random word, and pages of ids in order, each in MessagePack,
followed by its length in bytes and its number of ids (two little-endian 32-bit numbers).
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from chromakeep.errors import ChromakeepError, DiskFull, SourceError

_MAGIC = b"chromakeep roll 1\n"
_WORD = 32
_HEAD = len(_MAGIC) + _WORD + 1
_TAIL = struct.Struct("<II")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[str])


class Roll:
    """``word``: another one for each roll ever written; ``count``: how many ids there are."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Of a file that is whole. Raises ``SourceError`` for one that is not."""
        self._file, self._name = file, name
        file.seek(0)
        head = file.read(_HEAD)
        if len(head) != _HEAD or not head.startswith(_MAGIC):
            raise self._damaged()
        self.word = head[len(_MAGIC) :].strip().decode("ascii", "replace")
        self.count = sum(count for count, _, _ in self._pages())

    @classmethod
    def write(cls, pages: Iterable[list[str]], path: Path | None = None) -> Roll:
        """Of the pages that ``listing.backwards`` gives. Raises ``DiskFull``, and what ``pages`` raises."""
        part = path.with_name(f"{path.name}.part") if path else None
        try:
            file: BinaryIO = part.open("wb+") if part else tempfile.TemporaryFile()  # noqa: SIM115 - a Roll keeps it
            try:
                file.write(b"%b%b\n" % (_MAGIC, secrets.token_hex(_WORD // 2).encode()))
                for ids in pages:
                    data = _ENCODER.encode(ids)
                    file.write(data + _TAIL.pack(len(data), len(ids)))
                file.flush()
                if part and path:
                    os.fsync(file.fileno())
                    part.replace(path)
                    sync(path.parent)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise explained(error, path) from None
        return cls(file, str(path or "a temporary file"))

    @classmethod
    def open(cls, path: Path) -> Roll | None:
        """The roll at this path, if there is one."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explained(error, path) from None
        try:
            return cls(file, str(path))
        except BaseException:
            file.close()
            raise

    def read(self, after: int = 0) -> Iterator[list[str]]:
        """The ids in order, without the first ``after``, in portions."""
        for count, at, length in self._pages():
            if after >= count:
                after -= count
                continue
            self._file.seek(at)
            try:
                ids = _DECODER.decode(self._file.read(length))
            except msgspec.MsgspecError:
                raise self._damaged() from None
            yield ids[after:]
            after = 0

    def close(self) -> None:
        """Let the file go; twice is once."""
        self._file.close()

    def _pages(self) -> Iterator[tuple[int, int, int]]:
        """Number of ids, place and length of each page, in the order of the ids."""
        at = self._file.seek(0, os.SEEK_END)
        while at > _HEAD:
            self._file.seek(max(0, at - _TAIL.size))
            tail = self._file.read(_TAIL.size)
            length, count = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (at, 0)
            at -= _TAIL.size + length
            if at < _HEAD:
                raise self._damaged()
            yield count, at, length

    def _damaged(self) -> SourceError:
        return SourceError(f"{self._name} is no list of ids", hint="remove it, and the copy begins anew")


def sync(folder: Path) -> None:
    """Make what was renamed in a directory durable, where directories can be opened."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def explained(error: OSError, path: Path | None) -> ChromakeepError:
    """A failure to write or read a list of ids, as one line."""
    where = path or tempfile.gettempdir()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(
            f"{where}: no space left for the list of ids", hint="it takes about as many bytes as the ids have"
        )
    return ChromakeepError(f"{where}: {error.strerror or error} (the list of ids of a copy)")
