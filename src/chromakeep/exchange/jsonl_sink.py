"""JSONL as a sink: a file, plain or zstd, or a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import zstandard

from chromakeep.errors import UsageError
from chromakeep.events import Observer, ignore
from chromakeep.exchange.file_sink import FileIntake, FileSink
from chromakeep.exchange.files import Output, writing
from chromakeep.exchange.jsonl import JsonlSource
from chromakeep.exchange.jsonl_records import head_line, id_of, record_lines
from chromakeep.exchange.lines import is_packed, lines
from chromakeep.exchange.position import numbers
from chromakeep.exchange.recent import MOST
from chromakeep.exchange.workplace import SPEED
from chromakeep.records import Definition, Limits, Mark, Source, check_conflict

VECTORS = ("base64", "decimal")
_LEVEL = 3
_TAIL = 64 << 20


class JsonlSink(FileSink):
    """A JSONL file of any number of collections; zstd if its name ends with ``.zst``.

    ``vectors``: base64, or decimal, which is twice as long and to be read by people.
    """

    def __init__(
        self, path: Path, *, resume: bool = True, vectors: str = "base64", observer: Observer = ignore
    ) -> None:
        super().__init__(path, resume=resume, observer=observer)
        self._decimal = _is_decimal(vectors)

    def read(self, path: Path) -> Source:
        return JsonlSource(path)

    def begin(self, path: Path, definition: Definition, mark: Mark) -> JsonlIntake:
        packed = self.path.name.lower().endswith(".zst")
        return JsonlIntake(path, definition, mark, packed=packed, decimal=self._decimal)


class JsonlIntake(FileIntake):
    """A mark is the offset behind the last record; of zstd a frame ends there."""

    def __init__(self, path: Path, definition: Definition, mark: Mark, *, packed: bool, decimal: bool) -> None:
        super().__init__(path, definition)
        self._decimal = decimal
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True) if packed else None
        self._frame: zstandard.ZstdCompressionObj | None = None
        (start,) = numbers([mark], 1) if mark is not None else (0,)
        if start and (not path.is_file() or path.stat().st_size < start):
            raise UsageError(
                f"{path} is not as the last copy left it, so it cannot be gone on with",
                hint="begin anew, without what was noted of that copy",
            )
        self._output = Output(path, start=start)
        if start:
            self._recent.remember(_last_ids(path))
        else:
            self._append(head_line(definition))

    def put(self, batch: pa.RecordBatch) -> None:
        self._append(record_lines(batch, decimal=self._decimal))

    def mark(self) -> Mark:
        if not self._output.closed:
            with writing(self.path):
                if self._frame is not None:
                    end, self._frame = self._frame.flush(), None
                    self._output.write(end)
                self._output.sync()
        return self._output.size

    def end(self) -> None:
        self.mark()
        self._output.close()

    def abandon(self) -> None:
        self._output.abandon()

    def _append(self, data: bytes) -> None:
        if self._compressor is not None:
            self._frame = self._frame or self._compressor.compressobj()
            data = self._frame.compress(data)
        with writing(self.path):
            self._output.write(data)


class JsonlStreamSink:
    """A stream such as standard output: one whole collection after the other, nothing can be taken back or gone on
    with."""

    several = True
    speed = SPEED

    def __init__(self, stream: IO[bytes], *, vectors: str = "base64") -> None:
        """The stream is the caller's, and stays open."""
        self._stream = stream
        self._decimal = _is_decimal(vectors)
        self._intake: _StreamIntake | None = None

    def definitions(self) -> Sequence[Definition]:
        """None: it is only written."""
        return []

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """As of ``Sink``."""
        check_conflict(conflict)

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> _StreamIntake:
        """As of ``Sink``, when the one before is finished. Raises ``UsageError`` for a mark."""
        if mark is not None or (self._intake is not None and not self._intake.finished):
            raise UsageError("a stream takes one whole collection after the other", hint="write to a file")
        self._intake = _StreamIntake(self._stream, self._decimal)
        self._intake.send(head_line(definition))
        return self._intake

    def reader(self) -> Source:
        """Raises ``UsageError``: what was written is gone."""
        raise UsageError("what was written to a stream cannot be read back", hint="write to a file to have it verified")

    def publish(self) -> None:
        """Let all of it out."""
        if self._intake is not None:
            self._intake.send(b"")

    def close(self) -> None:
        """Nothing is held."""


class _StreamIntake:
    """One collection on a stream; ``mark`` is None, and a copy that was killed is begun anew."""

    limits = Limits(writers=1)

    def __init__(self, stream: IO[bytes], decimal: bool) -> None:
        self.finished = False
        self._stream = stream
        self._decimal = decimal

    def write(self, batch: pa.RecordBatch) -> None:
        self.send(record_lines(batch, decimal=self._decimal))

    def mark(self) -> Mark:
        return None

    def finish(self) -> None:
        self.finished = True
        self.send(b"")

    def send(self, data: bytes) -> None:
        with writing(Path("the stream")):
            self._stream.write(data)
            self._stream.flush()


def _last_ids(path: Path) -> deque[str]:
    """The ids of the last records of a file, in its last 64 MiB; of zstd, which is unpacked from its beginning, the
    last 65,536."""
    with path.open("rb") as file:
        packed = is_packed(file.read(4))
        file.seek(0 if packed else max(0, path.stat().st_size - _TAIL))
        found = (line for line, _ in lines(file, str(path)))
        if file.tell():
            next(found, None)  # the rest of one
        return deque((id for line in found if (id := id_of(line)) is not None), MOST)


def _is_decimal(vectors: str) -> bool:
    if vectors not in VECTORS:
        raise UsageError(f"vectors cannot be written as {vectors!r}", hint=f"write them as {' or '.join(VECTORS)}")
    return vectors == "decimal"
