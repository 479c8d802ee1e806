"""One Parquet file with one collection as a sink."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa

from chromakeep.errors import UsageError
from chromakeep.events import Observer, ignore
from chromakeep.exchange.file_sink import FileIntake, FileSink
from chromakeep.exchange.parquet import ParquetFileSource
from chromakeep.exchange.part import PartWriter, Point
from chromakeep.records import Definition, Mark, Source


class ParquetFileSink(FileSink):
    """A Parquet file. ``compact``: smaller, and written more slowly (see ``PartWriter``)."""

    several = False

    def __init__(self, path: Path, *, resume: bool = True, compact: bool = False, observer: Observer = ignore) -> None:
        super().__init__(path, resume=resume, observer=observer)
        self._compact = compact

    def read(self, path: Path) -> Source:
        return ParquetFileSource(path)

    def begin(self, path: Path, definition: Definition, mark: Mark) -> ParquetIntake:
        return ParquetIntake(path, definition, mark, compact=self._compact)


class ParquetIntake(FileIntake):
    """A mark ends a row group, and says how far the file and its journal are durable."""

    def __init__(self, path: Path, definition: Definition, mark: Mark, *, compact: bool) -> None:
        super().__init__(path, definition)
        try:
            start = msgspec.convert(mark, Point) if mark is not None else None
        except msgspec.ValidationError:
            raise UsageError("this mark is none of a Parquet file", hint="begin anew, without it") from None
        self._writer = PartWriter(path, definition, compact=compact, start=start)
        self._recent.remember(self._writer.recent)

    def put(self, batch: pa.RecordBatch) -> None:
        self._writer.add(batch)

    def mark(self) -> Mark:
        return msgspec.to_builtins(self._writer.mark())

    def end(self) -> None:
        self._writer.finish()

    def abandon(self) -> None:
        self._writer.abandon()
