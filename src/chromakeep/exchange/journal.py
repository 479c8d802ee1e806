"""The journal beside a Parquet file that is being written: its row groups, which only the footer will tell of."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from chromakeep.errors import UsageError
from chromakeep.exchange.files import Output

ENDING = ".groups"
_LENGTH = struct.Struct("<Q")


class Segment(msgspec.Struct):
    """Row groups that were written in one go, each as it will be in the footer; where in the file they end, the number
    of their records, and which columns they have."""

    groups: list[bytes]
    end: int
    records: int
    kinds: dict[str, str]
    unlisted: list[str]


class Journal:
    """Appended to at every mark, and read only by a writer that goes on; removed when the file gets its name."""

    def __init__(self, path: Path, start: int = 0) -> None:
        """Of the file ``path``. ``start``: go on behind that many bytes. Raises ``UsageError`` if they are not
        there. Nothing is written before ``open``."""
        self._path, self._start = path, start
        self._output: Output | None = None
        self.segments: list[Segment] = []
        place = journal_of(path)
        if start:
            data = place.read_bytes()[:start] if place.is_file() else b""
            at = 0
            while at < len(data):
                (size,) = _LENGTH.unpack_from(data.ljust(at + _LENGTH.size), at)
                at += _LENGTH.size
                try:
                    self.segments.append(msgspec.msgpack.decode(data[at : at + size], type=Segment))
                except msgspec.MsgspecError:
                    raise self.cannot_go_on() from None
                at += size
            if at != start:
                raise self.cannot_go_on()

    def open(self) -> None:
        """Remove what is behind ``start``, and be ready for more."""
        self._output = Output(journal_of(self._path), start=self._start)

    @property
    def records(self) -> int:
        return sum(segment.records for segment in self.segments)

    @property
    def groups(self) -> list[bytes]:
        return [group for segment in self.segments for group in segment.groups]

    def add(self, segment: Segment) -> None:
        """Append."""
        self.segments.append(segment)
        data = msgspec.msgpack.encode(segment)
        self._opened.write(_LENGTH.pack(len(data)) + data)

    def sync(self) -> int:
        """Make it durable; its length."""
        self._opened.sync()
        return self._opened.size

    def close(self) -> None:
        self._opened.close()

    def abandon(self) -> None:
        """Close whatever the disk says about it."""
        self._opened.abandon()

    @property
    def _opened(self) -> Output:
        assert self._output is not None
        return self._output

    def cannot_go_on(self) -> UsageError:
        """The file or this journal is not what a mark says."""
        return UsageError(
            f"{self._path} is not as the last copy left it, so it cannot be gone on with",
            hint="begin anew, without what was noted of that copy",
        )


def journal_of(path: Path) -> Path:
    """Where the journal of a file is."""
    return path.with_name(path.name + ENDING)
