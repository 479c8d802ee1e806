"""The access log: a line of JSON for each request, written by a thread. No token, no query string, no body."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from chromakeep.errors import UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.scribe import Scribe
from chromakeep.server.guard import Account

STDOUT = "-"
_LONGEST = 2048  # characters of a path that are written
_TRACE = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)
_BEGUN = re.compile(rb'\{"time":"([0-9T:.-]{23})Z"', re.ASCII)
Told = tuple[float, Account, float]  # when it ended (seconds since 1970), what it was, how long it took


class AccessLog:
    """A ledger. Drops lines that the thread cannot write, rather than let a request wait."""

    def __init__(self, output: Rotated | Stdout, observer: Observer = ignore) -> None:
        self._output, self._observer, self._failed = output, observer, False
        self._lost = 0  # lines that could not be written
        self._scribe: Scribe[Told] = Scribe("access log", self._write)

    def start(self) -> None:
        """Begin. Raises ``UsageError`` if nothing can be written there."""
        self._output.open()
        self._scribe.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Write what is left, as far as that is possible in this time."""
        self._scribe.stop(timeout)

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._scribe.dropped + self._lost

    def begun(self, account: Account) -> None:
        """Nothing is told of it yet."""

    def ended(self, account: Account, now: float) -> None:
        """Have it written."""
        self._scribe.put((time.time(), account, now - account.begun))

    def _write(self, batch: list[Told]) -> None:
        if not batch:
            return
        try:
            self._output.write(b"".join([line_of(*each) for each in batch]))
            self._failed = False
        except OSError as error:
            self._lost += len(batch)
            if not self._failed:
                self._failed = True
                why = error.strerror or str(error)
                self._observer(Noted(f"the access log cannot be written: {why}; its lines are dropped", "warning"))


def line_of(at: float, account: Account, seconds: float) -> bytes:
    """A request as one line of ASCII JSON that ends in a newline and has no other control character."""
    fields = {
        "time": utc(at),
        "method": account.method,
        "route": account.route,
        "path": account.target.partition("?")[0][:_LONGEST],
        "status": account.status,
        "seconds": round(seconds, 6),
        "received": account.received,
        "sent": account.sent,
        "key": account.key,
        "tenant": account.tenant,
        "database": account.database,
        "collection": account.collection,
        "peer": account.peer,
        "trace": trace_of(account.trace),
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def utc(at: float) -> str:
    """RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def trace_of(field: bytes) -> str:
    """The id of the trace in a ``traceparent``; "" where it is none."""
    found = _TRACE.fullmatch(field)
    return found[1].decode() if found else ""


class Stdout:
    """The process's standard output. A reader that does not keep up costs lines, not time."""

    def open(self) -> None:
        """It is."""

    def write(self, lines: bytes) -> None:
        """All of them. Raises ``OSError``."""
        _all(1, lines)


class Rotated:
    """A file that becomes ``PATH.1`` when it is full or old, what was that ``PATH.2``, and so on up to ``keep``.

    Another program may move it away: a new one is begun then. A path that is no file (a pipe, say) is never rotated.
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
                f"{self._path}: {error.strerror or error}", hint="the access log must be a file that can be written"
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
        if self._keep:
            for number in range(self._keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    self._numbered(number).replace(self._numbered(number + 1))
            with suppress(FileNotFoundError):
                self._path.replace(self._numbered(1))
        else:
            self._path.unlink(missing_ok=True)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
