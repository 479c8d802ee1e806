"""One Parquet file while it is written; a killed writer's work is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chromakeep.batches import decode, numbers, schema, vector_type
from chromakeep.errors import UsageError
from chromakeep.exchange import footer
from chromakeep.exchange.files import Output, sync_folder, writing
from chromakeep.exchange.journal import Journal, Segment
from chromakeep.exchange.recent import MOST
from chromakeep.exchange.typed import Typed
from chromakeep.records import Definition

FOOTER = b"chromakeep"
VERSION = 1
GROUP_BYTES = 32 << 20
GROUP_RECORDS = 1 << 17
_VECTORS = "embedding.list.element"
_LEVEL = 1
_ENTRIES = msgspec.json.Decoder(list[dict[str, Any]])


class Footer(msgspec.Struct):
    """What the key ``chromakeep`` of a file's key-value metadata holds, as JSON. ``unlisted``: keys of metadata that
    have values in no ``m_`` column."""

    version: int
    definition: Definition
    count: int
    unlisted: list[str] = []


class Written(msgspec.Struct, frozen=True):
    """A finished file: its name, records, bytes, and the BLAKE3 of all bytes, in hex."""

    name: str
    records: int
    bytes: int
    blake3: str


class Point(msgspec.Struct, frozen=True):
    """How far a file is durable: bytes of it, and of the journal beside it, which tells of its row groups."""

    bytes: int
    journal: int


class PartWriter:
    """Writes one file from front to end; it can be read after ``finish``. Holds one row group of about 32 MiB.

    ``compact`` makes files 15 % smaller and takes about a quarter longer. For one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        definition: Definition,
        *,
        typed: Typed | None = None,
        compact: bool = False,
        start: Point | None = None,
    ) -> None:
        """``typed``: of an earlier file whose columns this one is to have. ``start``: go on behind that point; raises
        ``UsageError`` if the file is not as its writer left it."""
        self.path = path
        self.typed = typed
        self._definition = definition
        self._schema = schema(definition.dimension)
        self._compact = compact
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = self._count = 0
        self._writer: Any = None
        self._begin = 0  # of the segment that is being written
        self._point = start
        self.recent: list[str] = []
        """Ids of the last records before ``start``: at least ``recent.MOST``, or all that are in this file."""
        with writing(path):
            self._journal = Journal(path, start.journal if start else 0)
            self.records = self._journal.records
            if start is not None and start != Point(0, 0):
                self._take_over(start)
            self._journal.open()
            self._output = Output(path, start=start.bytes if start else 0, hashed=True)

    @property
    def size(self) -> int:
        """Bytes so far, with those not encoded yet."""
        return self._output.size + self._bytes

    def add(self, batch: pa.RecordBatch) -> None:
        """Take records; whole row groups are written here, in the thread that calls."""
        if not batch.schema.equals(self._schema):
            raise UsageError(f"{self.path}: these records are not of {self._definition.dimension} dimensions")
        each = max(1, len(batch) * GROUP_BYTES // max(1, batch.nbytes))
        for start in range(0, len(batch), each):
            piece = batch.slice(start, each)
            if self._bytes + piece.nbytes > GROUP_BYTES or self._count + len(piece) > GROUP_RECORDS:
                self._write_group()
            self._waiting.append(piece)
            self._bytes += piece.nbytes
            self._count += len(piece)
        self.records += len(batch)

    def mark(self) -> Point:
        """End the row group; how far the file is durable now, which is all that was added."""
        if self._output.closed and self._point is not None:
            return self._point
        self._write_group()
        self._end_segment()
        if self._point is None or self._point.bytes != self._output.size:
            with writing(self.path):
                self._output.sync()
                self._point = Point(self._output.size, self._journal.sync())
                sync_folder(self.path.parent)
        return self._point

    def finish(self) -> Written:
        """Write what waits, and the footer; make it durable. The journal stays, for a mark that was taken before."""
        self._write_group()
        self._end_segment()
        end, size = self._end(), self._output.size
        with writing(self.path):
            self._output.write(end if size else footer.MAGIC + end)
            self._output.sync()
            self._point = Point(size, self._journal.sync())  # of a mark that is asked for after this
            sync_folder(self.path.parent)
            self._output.close()
            self._journal.close()
        return Written(self.path.name, self.records, self._output.size, self._output.hexdigest())

    def abandon(self) -> None:
        """Let go of the file as it is."""
        self._output.abandon()
        self._journal.abandon()
        self._waiting.clear()

    def _take_over(self, start: Point) -> None:
        """Go on with what another process wrote: with its columns, and its last records known."""
        last = self._journal.segments[-1] if self._journal.segments else Segment([], 0, 0, {}, [])
        there = self.path.stat().st_size if self.path.is_file() else 0
        if not 0 < start.bytes == last.end <= there:
            raise self._journal.cannot_go_on()
        self.typed = Typed(last.kinds)
        self.typed.unlisted.update(last.unlisted)
        with self.path.open("r+b") as file:  # an end for as long as it takes to read it
            file.truncate(start.bytes)
            file.seek(start.bytes)
            file.write(self._end())
        self.recent = last_ids(self.path, MOST)

    def _end(self) -> bytes:
        """The footer of the file with all row groups that are in the journal."""
        typed = self.typed or Typed({})
        told = Footer(VERSION, self._definition, self.records, sorted(typed.unlisted))
        empty = pa.BufferOutputStream()
        # Arrow before 26 writes no fixed-size list that is null. A list of no fixed size is the same in Parquet, except
        # for what this footer says of it.
        with self._open(empty, typed, vector_type(self._definition.dimension)) as writer:
            writer.add_key_value_metadata({FOOTER: msgspec.json.encode(told)})
        bare = footer.split(empty.getvalue().to_pybytes())
        return footer.joined(bare, self._journal.groups, self.records)

    def _write_group(self) -> None:
        if not self._waiting:
            return
        records = pa.Table.from_batches(self._waiting, self._schema)
        metadata = _decoded(records.column("metadata").to_pylist())
        if self.typed is None:
            self.typed = Typed.of(metadata)
        id, vectors, document, uri, text = records.columns
        columns = [id, as_lists(vectors), document, uri, _as_json(text), *self.typed.columns(metadata)]
        with writing(self.path):
            if self._writer is None:
                self._begin = self._output.size
                self._writer = self._open(self._output, self.typed, vector_type(None))
            self._writer.write_table(pa.table(columns, schema=self._writer.schema), records.num_rows)
        self._waiting, self._bytes, self._count = [], 0, 0

    def _end_segment(self) -> None:
        """Take the row groups that Arrow has written since the last time over into the journal."""
        if self._writer is None or self.typed is None:
            return
        with self._output.aside() as end:
            self._writer.close()
        self._writer = None
        groups = footer.groups_of(footer.split(bytes(end)), self._begin)
        rows = self.records - self._journal.records
        with writing(self.path):
            self._journal.add(Segment(groups, self._output.size, rows, self.typed.kinds, sorted(self.typed.unlisted)))

    def _open(self, output: Any, typed: Typed, vectors: pa.DataType) -> Any:
        id, _, document, uri, _ = self._schema
        fields = [id, pa.field("embedding", vectors), document, uri, pa.field("metadata", json_type()), *typed.fields]
        columns = ["id", "document", "uri", "metadata", *(_path(field) for field in typed.fields)]
        # Vectors have nothing to compress: PLAIN is the fastest, and BYTE_STREAM_SPLIT with zstd the smallest.
        compression = {**dict.fromkeys(columns, "zstd"), _VECTORS: "zstd" if self._compact else "none"}
        return pq.ParquetWriter(
            output,
            pa.schema(fields),
            version="2.6",
            compression=compression,
            compression_level={path: _LEVEL for path, codec in compression.items() if codec == "zstd"},
            use_dictionary=typed.repetitive,
            use_byte_stream_split=[_VECTORS] if self._compact else False,
            write_statistics=["id", *(_path(field) for field in typed.fields)],
            write_page_checksum=True,
            store_schema=True,
        )


def as_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Vectors as lists of no fixed size, without a copy where none is null."""
    chunks = []
    for chunk in column.chunks:
        if pa.types.is_fixed_size_list(chunk.type):
            present = ~np.asarray(chunk.is_null(), bool) if chunk.null_count else np.ones(len(chunk), bool)
            ends = np.cumsum(present * chunk.type.list_size, dtype=np.int32)
            offsets = numbers(np.concatenate([np.zeros(1, np.int32), ends]), pa.int32())
            mask = None if present.all() else pa.array(~present)
            width = chunk.type.list_size
            every = mask is None  # then there is nothing to leave out, which takes an import of pyarrow.compute
            flat = chunk.values.slice(chunk.offset * width, len(chunk) * width) if every else chunk.flatten()
            chunk = pa.ListArray.from_arrays(offsets, flat, type=vector_type(None), mask=mask)
        chunks.append(chunk)
    return pa.chunked_array(chunks, vector_type(None))


def last_ids(path: Path, most: int) -> list[str]:
    """The ids of the last row groups of a file: of ``most`` records or more, or of all."""
    found: list[str] = []
    with pq.ParquetFile(path) as file:
        for group in reversed(range(file.num_row_groups)):
            if len(found) >= most:
                break
            found += file.read_row_group(group, ["id"], use_threads=False).column("id").to_pylist()
    return found


def json_type() -> pa.DataType:
    """Arrow's JSON, which Parquet and DuckDB know too; plain text in a pyarrow that has none."""
    return pa.json_() if hasattr(pa, "json_") else pa.string()


def _decoded(texts: list[str | None]) -> list[dict[str, Any]]:
    """The metadata of records, at once where that goes. Raises ``UsageError``."""
    try:
        found = _ENTRIES.decode(f"[{','.join([text or '{}' for text in texts])}]")
        if len(found) == len(texts):
            return found
    except (ValueError, RecursionError):
        pass
    return [decode(text) or {} for text in texts]


def _as_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = json_type()
    if kind == pa.string():
        return column
    return pa.chunked_array([pa.ExtensionArray.from_storage(kind, chunk) for chunk in column.chunks], kind)


def _path(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
