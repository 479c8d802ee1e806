"""The audit log's file: records are appended to the chain; a full file is set aside, a torn line is closed."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from chromakeep.errors import RefusedToServe, UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.audit_chain import LONGEST, NOTHING, Link, Wrong, forge, read, torn
from chromakeep.operations.place import sync

_END = 16 * LONGEST  # bytes at a file's end in which its last record is looked for


class AuditFile:
    """One writer. A full file becomes ``PATH.<number of its first record>``; nothing is ever removed."""

    def __init__(self, path: Path, largest: int, observer: Observer = ignore) -> None:
        self.path, self._largest, self._observer = path, largest, observer
        self.instance, self.number, self.hash = "", 0, NOTHING
        self._descriptor, self._size, self._first = -1, 0, 0
        self._told = False  # that it cannot be set aside
        self._moved = False  # it was, and there is no next one yet

    def open(self, fields: Mapping[str, object]) -> None:
        """Go on where the last writer stopped, with a record of this beginning. Raises ``UsageError``,
        ``RefusedToServe`` when another process writes there."""
        try:
            self._open()
            self._resume()
            self.append([{"event": "opened", **fields}])
        except OSError as error:
            hint = "the audit log must be a file that can be written"
            raise UsageError(f"{self.path}: {error.strerror or error}", hint=hint) from None

    def close(self) -> None:
        """Let another process have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def append(self, records: Sequence[Mapping[str, object]]) -> None:
        """All of them or none; on the disk after ``sync``. Raises ``OSError``, and ``RefusedToServe`` when another
        process took the place of a file that was full."""
        if self._size > self._largest:
            self._rotate()
        lines, number, before = [], self.number, self.hash
        for fields in records:
            number += 1
            line, before = forge(number, self.instance, before, {"time": now(), **fields})
            lines.append(line)
        data = b"".join(lines)
        self._write(data)
        self._first = self._first or self.number + 1
        self.number, self.hash = number, before
        self._size += len(data)

    def sync(self) -> None:
        """Everything is on the disk. Raises ``OSError``."""
        os.fsync(self._descriptor)

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            with suppress(OSError):  # no half a line stays of a write that failed
                os.ftruncate(self._descriptor, self._size)
            raise

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        made = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(made, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(made)
            raise RefusedToServe(
                f"{self.path}: another process writes this audit log", hint="give each instance a file of its own"
            ) from None
        self.close()
        self._descriptor, self._size = made, os.fstat(made).st_size

    def _resume(self) -> None:
        """Find the last record, and close what a crash has left behind it."""
        last, rest = _last(self.path)
        if last is None and not self._size:
            for older in reversed(files(self.path)):
                if older != self.path:
                    last, rest = _last(older)[0], b""
                    break
        if last is None and self._size:
            aside = self.path.with_name(f"{self.path.name}.damaged-{now().replace(':', '')}")
            self.path.rename(aside)
            self._observer(Noted(f"{self.path} ends in nothing that is a record: kept as {aside.name}", "warning"))
            self._open()
        self.instance = last.instance if last else secrets.token_hex(8)
        self.number, self.hash = (last.number, last.hash) if last else (0, NOTHING)
        self._first = _number_of_first(self.path) if self._size else 0
        if not rest:
            return
        piece, ended = rest.removesuffix(b"\n"), rest.endswith(b"\n")
        with suppress(Wrong):
            link = read(piece)
            if not ended and (link.number, link.previous) == (self.number + 1, self.hash):
                self._write(b"\n")  # only that was missing
                self._size, self.number, self.hash = self._size + 1, link.number, link.hash
                return
        self._observer(Noted(f"{self.path}: {len(rest)} bytes at the end are no record; the log goes on", "warning"))
        if not ended:
            self._write(b"\n")
            self._size += 1
        self.append([torn(piece)])

    def _rotate(self) -> None:
        if not (self._moved or self._set_aside()):
            return
        self._moved = True
        self._open()
        self._moved, self._first = False, 0
        if self._size:  # another process was quicker, and has gone
            self._resume()
        sync(self.path.parent)

    def _set_aside(self) -> bool:
        aside = self.path.with_name(f"{self.path.name}.{self._first:010d}")
        if aside.exists():  # somebody put it there: nothing is ever written over
            return False
        self.sync()
        try:
            self.path.rename(aside)
        except OSError as error:  # as in a directory that is not ours: the records matter, not how large the file is
            if not self._told:
                self._told = True
                self._observer(Noted(f"{self.path} cannot be set aside and grows on: {error.strerror}", "warning"))
            return False
        return True


def now() -> str:
    """RFC 3339, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def files(path: Path) -> list[Path]:
    """The files of a log, oldest first; the one that is written comes last."""
    rotated = [p for p in path.parent.glob(f"{path.name}.*") if _suffix(p).isdigit() and len(_suffix(p)) == 10]
    return [*sorted(rotated), *([path] if path.exists() else [])]


def raw_lines(path: Path, start: int = 0) -> Iterator[bytes]:
    """The lines of a file from a byte on, with their newlines; of one that is too long only a piece too long to be
    believed."""
    with path.open("rb") as file:
        file.seek(start)
        while line := file.readline(LONGEST + 2):
            if not line.endswith(b"\n") and len(line) > LONGEST:
                while (more := file.readline(LONGEST)) and not more.endswith(b"\n"):
                    pass
                line += b"\n"
            yield line


def _suffix(path: Path) -> str:
    return path.name.rpartition(".")[2]


def _last(path: Path) -> tuple[Link | None, bytes]:
    """The last record of a file, and the bytes behind it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END))
        pieces = re.findall(rb"[^\n]*\n|[^\n]+\Z", file.read(_END))
    rest = b""
    for piece in reversed(pieces):
        if piece.endswith(b"\n"):
            with suppress(Wrong):
                return read(piece[:-1]), rest
        rest = piece + rest
    return None, rest


def _number_of_first(path: Path) -> int:
    for line in raw_lines(path):
        with suppress(Wrong):
            return read(line.removesuffix(b"\n")).number
    return 0
