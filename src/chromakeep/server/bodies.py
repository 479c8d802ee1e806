"""Where a body ends: counted, or in chunks. Bytes go in as they come, payload comes out, nothing is kept of it."""

from __future__ import annotations

import re
from typing import Protocol

from chromakeep.server.fields import FIELD, Malformed

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}\r\n")
_LONGEST_SIZE = 17
_TRAILERS = 8 << 10  # bytes of them all, which are read and dropped
LAST_CHUNK = b"0\r\n\r\n"


class Body(Protocol):
    """The rest of one body."""

    done: bool  # it has ended

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Payload in ``data``, and what comes after the body. Raises ``Malformed``; then it must not be fed again."""


def body_of(length: int | None) -> Body:
    """A body of so many bytes, or chunked for None."""
    return Chunked() if length is None else Counted(length)


def chunk(payload: bytes) -> bytes:
    """A payload, not empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class Counted:
    """A body of known length."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See ``Body``. The common case copies nothing."""
        if len(data) <= self._left:
            self._left -= len(data)
            self.done = not self._left
            return data, b""
        payload, rest = data[: self._left], data[self._left :]
        self._left, self.done = 0, True
        return payload, rest


class Chunked:
    """A chunked body. Extensions are refused: nobody sends them, and readers have disagreed about where they end."""

    __slots__ = ("_after", "_left", "_line", "_trailers", "_trailing", "done")

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # bytes of the running chunk
        self._after = False  # a chunk's data has ended, its CRLF has not come
        self._trailing = False  # the last chunk has come
        self._trailers = 0
        self._line = b""  # the beginning of a line

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See ``Body``."""
        payload: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                part = data[at : at + self._left]
                payload.append(part)
                at += len(part)
                self._left -= len(part)
                self._after = not self._left
                continue
            end = data.find(b"\n", at) + 1
            line = self._line + data[at : end or len(data)]
            at = end or len(data)
            self._line = b"" if end else line
            self._check(line)
            if end:
                self._take(line)
        return b"".join(payload), data[at:]

    def _check(self, line: bytes) -> None:
        """Refuse a line as soon as it cannot become one: nothing long is gathered."""
        if self._after:
            good = b"\r\n".startswith(line)
        elif self._trailing:
            good = self._trailers + len(line) <= _TRAILERS
        else:
            good = len(line) <= _LONGEST_SIZE and b";" not in line
        if not good:
            raise Malformed("a chunk that does not end where it says, or has no plain size")

    def _take(self, line: bytes) -> None:
        if self._after:
            self._after = False
        elif self._trailing:
            self._trailers += len(line)
            self.done = line == b"\r\n"
            if not (self.done or (line.endswith(b"\r\n") and FIELD.fullmatch(line, 0, len(line) - 2))):
                raise Malformed("a trailer that is no field")
        else:
            if not _SIZE.fullmatch(line):
                raise Malformed("a chunk without a size")
            self._left = int(line, 16)
            self._trailing = not self._left
