"""Output: what a command answers, as text for a person or as one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import TextIO

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """A command's answer. ``data`` (a dataclass or mapping) becomes the JSON object, ``text`` is for people."""

    data: object
    text: str
    exit_status: int = 0

    def json(self, command: str) -> str:
        import msgspec

        fields: dict[str, object] = msgspec.to_builtins(self.data)
        return msgspec.json.encode({"command": command, "ok": self.exit_status == 0, **fields}).decode()


def write(text: str, stream: TextIO | None = None) -> None:
    """Print and flush; when the reader of a pipe has gone, end quietly as SIGPIPE would."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the flush at exit would fail again
        raise SystemExit(141) from None


def tell(line: str) -> None:
    """Say on stderr what goes on. What cannot be written is dropped: events are told from all threads, and neither the
    one that reads keys nor the one that ships the log may end because nobody takes a line."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def size(count: int | float) -> str:
    """Bytes in decimal units, three digits: ``79 MB``, ``1.2 MB``."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 999.5 or unit == "PB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """A span as people say it: ``4 ms``, ``0.6 s``, ``12 s``, ``5 m``, ``3 h``, ``2 d``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def when(time: str, now: datetime | None = None) -> str:
    """An RFC 3339 time in the local zone with its age: ``2026-11-21 03:45:00 (5 m ago)``; as it is if unreadable."""
    try:
        moment = datetime.fromisoformat(time.replace("Z", "+00:00"))
    except ValueError:
        return time
    age = max(((now or datetime.now(timezone.utc)) - moment).total_seconds(), 0)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({f'{age:.0f} s' if age < 10 else duration(age)} ago)"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Aligned columns; heads whose name is in ``right`` (space-separated) are flushed right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(heads), *cells]) for i in range(len(heads))]
    flush = [head in right.split() for head in heads]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, flush, strict=True)).rstrip()
        for row in [list(heads), *cells]
    ]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Names come from other people's data: control characters must not drive the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
