"""Which files are exchange files, and how to open one as a source or a sink."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from chromakeep.addresses import parse
from chromakeep.errors import UsageError
from chromakeep.events import Observer, ignore
from chromakeep.records import Sink

if TYPE_CHECKING:
    from chromakeep.records import Source

STREAM = "-"
SUFFIXES = (".parquet", ".parquet/", ".jsonl", ".jsonl.zst")


class ExchangeSink(Sink, Protocol):
    """A sink of which can be read what is finished, before it is published."""

    def reader(self) -> Source:
        """What is finished, as a source."""


def is_exchange(path: str) -> bool:
    """Whether an address names an exchange file, by how it ends; ``-`` is one too."""
    try:
        return path == STREAM or (path.lower().endswith(SUFFIXES) and not parse(path).is_url)
    except UsageError:
        return False


def source_of(path: str, *, stream: IO[bytes] | None = None, observer: Observer = ignore) -> Source:
    """The file, directory or stream as a source; nothing is read yet. ``-`` is ``stream``, or else standard input."""
    if not _is_parquet(path):
        from chromakeep.exchange.jsonl import JsonlSource, JsonlStream

        return JsonlStream(stream or sys.stdin.buffer) if path == STREAM else JsonlSource(_local(path))
    from chromakeep.exchange.archive import ParquetArchiveSource
    from chromakeep.exchange.parquet import ParquetFileSource

    place = _local(path)
    return ParquetArchiveSource(place) if _is_archive(path) else ParquetFileSource(place, observer)


def saved(stream: IO[bytes], path: Path) -> str:
    """What comes from a stream, in a file that can be read as often as need be; its address. Raises ``DiskFull``."""
    from chromakeep.exchange.files import writing

    with writing(path), path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return str(path)


def sink_of(
    path: str,
    *,
    stream: IO[bytes] | None = None,
    resume: bool = True,
    vectors: str = "base64",
    compact: bool = False,
    observer: Observer = ignore,
) -> ExchangeSink:
    """The file, directory or stream as a sink; nothing is written yet. ``-`` is ``stream``, or else standard output.

    ``resume``: what a killed process has finished is published with the rest; False: its work is removed when the first
    collection begins. ``vectors`` (of JSONL): base64 or decimal. ``compact`` (of Parquet): smaller files, which are
    written more slowly.
    """
    if not _is_parquet(path):
        from chromakeep.exchange.jsonl_sink import JsonlSink, JsonlStreamSink

        if path == STREAM:
            return JsonlStreamSink(stream or sys.stdout.buffer, vectors=vectors)
        return JsonlSink(_local(path), resume=resume, vectors=vectors, observer=observer)
    from chromakeep.exchange.archive_sink import ParquetArchiveSink
    from chromakeep.exchange.parquet_sink import ParquetFileSink

    place = _local(path)
    if _is_archive(path):
        return ParquetArchiveSink(place, resume=resume, compact=compact, observer=observer)
    return ParquetFileSink(place, resume=resume, compact=compact, observer=observer)


def _local(path: str) -> Path:
    if not is_exchange(path):
        raise UsageError(
            f"{path} is no exchange file", hint="name one that ends with .parquet, .parquet/, .jsonl or .jsonl.zst"
        )
    return Path(parse(path).place)


def _is_parquet(path: str) -> bool:
    return path.lower().rstrip("/").endswith(".parquet")


def _is_archive(path: str) -> bool:
    return path.endswith("/") or os.path.isdir(parse(path).place)  # noqa: PTH112 - of a name too long it is False
