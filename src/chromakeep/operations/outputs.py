"""Outputs: where lines of a log go: a file that is rotated, or a standard stream."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar, Protocol

from chromakeep.errors import UsageError

STDOUT = "-"
_BEGUN = re.compile(rb'\{"time":"([0-9T:.-]{23})Z"', re.ASCII)


def utc(at: float) -> str:
    """RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Output(Protocol):
    """Takes whole lines."""

    def open(self) -> None:
        """Begin. Raises ``UsageError`` if nothing can be written there."""

    def write(self, lines: bytes) -> None:
        """All of them, each with its newline. Raises ``OSError``."""


class Stream:
    """Standard output (1) or error (2), which several logs may share: none writes into another one's line."""

    _locks: ClassVar[dict[int, threading.Lock]] = {1: threading.Lock(), 2: threading.Lock()}

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._lock = descriptor, self._locks[descriptor]

    def open(self) -> None:
        """It is."""

    def write(self, lines: bytes) -> None:
        """Waits for a reader that does not keep up. Raises ``OSError``."""
        with self._lock:
            _all(self._descriptor, lines)


class Rotated:
    """A file that becomes ``PATH.1`` when it is full or old, what was that ``PATH.2``, and so on up to ``keep``.

    ``size`` in bytes, ``age`` in seconds. Another program may move it away: a new one is begun then. A path that is no
    file (a pipe, say) is never rotated.
    """

    def __init__(self, path: Path, size: int, age: float, keep: int, clock: Callable[[], float] = time.time) -> None:
        self._path, self._most, self._age, self._keep, self._clock = path, size, age, keep, clock
        self._descriptor = -1
        self._size, self._begun, self._plain = 0, 0.0, True

    def open(self) -> None:
        """Begin, or go on with what is there. Raises ``UsageError``."""
        try:
            self._open()
        except OSError as error:
            raise UsageError(
                f"{self._path}: {error.strerror or error}", hint="a log must be a file that can be written"
            ) from None

    def write(self, lines: bytes) -> None:
        """Whole lines, all or none. Raises ``OSError``."""
        if self._plain and self._due(len(lines)):
            self._rotate()
        elif self._descriptor < 0 or (self._plain and self._moved()):
            self._open()
        try:
            _all(self._descriptor, lines)
        except OSError:
            if self._plain:
                with suppress(OSError):  # the disk may be full: no half a line stays
                    os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(lines)

    def _open(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        found = os.fstat(self._descriptor)
        self._plain, self._size = stat.S_ISREG(found.st_mode), found.st_size
        self._begun = self._first() if self._plain and self._size else self._clock()

    def _first(self) -> float:
        """When the file's first line was written."""
        with suppress(OSError, ValueError), self._path.open("rb") as file:
            if found := _BEGUN.match(file.read(64)):
                return datetime.fromisoformat(found[1].decode() + "+00:00").timestamp()
        return self._clock()

    def _due(self, more: int) -> bool:
        return bool(self._size) and (self._size + more > self._most or self._clock() - self._begun > self._age)

    def _moved(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return True

    def _rotate(self) -> None:
        with suppress(OSError):  # in a directory that is not ours the file grows on: no line is lost for that
            if self._keep:
                for number in range(self._keep - 1, 0, -1):
                    with suppress(FileNotFoundError):
                        self._numbered(number).replace(self._numbered(number + 1))
                with suppress(FileNotFoundError):
                    self._path.replace(self._numbered(1))
            else:
                self._path.unlink(missing_ok=True)
        self._size = 0  # else, were there no new one now, the next attempt would move the old ones on again
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
