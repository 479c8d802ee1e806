"""One Parquet file while it is read: whoever wrote it."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace

from chromakeep.batches import COLUMNS
from chromakeep.errors import SourceError, UnsupportedFormat
from chromakeep.exchange import footer
from chromakeep.exchange.described import MOST_BYTES, MOST_DIMENSIONS, checked
from chromakeep.exchange.exact import exact, is_list, texts
from chromakeep.exchange.files import reading
from chromakeep.exchange.part import FOOTER, VERSION, Footer
from chromakeep.records import Definition

BATCH_RECORDS = 2048
BATCH_BYTES = 64 << 20
FOLDED_BYTES = 128 << 20
"""Of a batch at most, where each of its texts may be as long as all that a file holds of them."""
_BUFFER = 1 << 20
OLD_ARROW = int(pa.__version__.partition(".")[0]) < 26


class Part:
    """A Parquet file that is open. Pages are read as they are needed, and checked where they have a checksum.

    Its memory is that of one batch, of at most 2048 records and about 64 MiB by what the file says, however far that
    unfolds; a page is unpacked whole, and the format allows it 2 GiB.
    """

    def __init__(self, path: Path) -> None:
        """Raises ``SourceError`` for what is no Parquet file, or lacks the columns ``id`` and ``embedding``."""
        self.path = path
        with damage(path), reading(path):
            if not stat.S_ISREG(path.stat().st_mode):
                raise SourceError(f"{path} is no regular file")
            self._file = _opened(path)
            self.schema = self._file.schema_arrow
            self._metadata = self._file.metadata
            with path.open("rb") as file:
                self._chunks = footer.chunks_of(footer.read_footer(file))
            words = {chunk.path for group in self._chunks for chunk in group if chunk.words}
            self._words = sorted(words.intersection(COLUMNS))
            options: dict[str, Any] = {}
            if OLD_ARROW and any(pa.types.is_fixed_size_list(kind) for kind in self.schema.types):
                options["metadata"] = _without_sizes(path)
            if self._words:  # which stay so until they are divided
                options["read_dictionary"] = self._words
            if options:
                self._file.close()
                self._file = _opened(path, **options)
        names = self.schema.names
        for name in COLUMNS:
            if names.count(name) > 1 or (name not in names and name in ("id", "embedding")):
                raise SourceError(
                    f"{path} has {names.count(name) or 'no'} columns {name!r}",
                    hint="a Parquet file of records has the columns id and embedding; document, uri and metadata may"
                    " be missing",
                )
        self.records = int(self._metadata.num_rows)
        self.groups = int(self._metadata.num_row_groups)
        if sum(self._metadata.row_group(each).num_rows for each in range(self.groups)) != self.records:
            raise SourceError(f"{path} is damaged: its row groups do not add up to {self.records} records")
        self._names = [name for name in COLUMNS if name in names]
        self._footer = self._read_footer()

    def definition(self) -> Definition:
        """As the footer has it; without one of ours, the file's name and the dimension of its first vector."""
        told = self._footer
        found = told.definition if told else Definition(self.path.stem)
        if found.dimension is None:
            found = replace(found, dimension=self.dimension())
        return checked(replace(found, count=self.records), str(self.path))

    def dimension(self) -> int | None:
        """By the column's type, else that of the first record with a vector; None if there is none."""
        kind = self.schema.field("embedding").type
        kind = getattr(kind, "storage_type", kind)
        if pa.types.is_fixed_size_list(kind):
            return _bounded(kind.list_size, self.path)
        for group in range(self.groups if is_list(kind) else 0):
            with damage(self.path):
                for batch in self._file.iter_batches(self._rows(group), [group], ["embedding"], use_threads=False):
                    column = batch.column("embedding")
                    present = np.flatnonzero(~np.asarray(column.is_null(), bool))
                    if len(present):
                        return _bounded(len(column[int(present[0])]), self.path)
        return None

    @property
    def foreign(self) -> bool:
        """Whether another program has written it."""
        return self._footer is None

    @property
    def unread(self) -> list[str]:
        """Columns of which nothing is read."""
        return [name for name in self.schema.names if name not in COLUMNS]

    def ids(self) -> Iterator[tuple[int, str]]:
        """All there are, each with the number of its row, counted from 1."""
        row = 0
        for group in range(self.groups):
            for batch in self._read(group, ["id"]):
                for id in texts(batch.column("id"), f"{self.path}: id").to_pylist():
                    row += 1
                    if id is not None:
                        yield row, id

    def batches(self, dimension: int | None, group: int = 0, row: int = 0) -> Iterator[tuple[pa.RecordBatch, int, int]]:
        """Batches as ``batches.schema(dimension)`` has them, from a row of a row group on, each with the position
        behind it."""
        first = sum(self._metadata.row_group(each).num_rows for each in range(group))
        for each in range(group, self.groups):
            rows = self._metadata.row_group(each).num_rows
            done = 0
            for batch in self._read(each, self._names):
                skipped = min(len(batch), max(0, row - done)) if each == group else 0
                done += len(batch)
                if skipped < len(batch):
                    batch = batch.slice(skipped)
                    records = exact(batch, dimension, str(self.path), first + done - len(batch) + 1)
                    yield (records, each, done) if done < rows else (records, each + 1, 0)
            if done != rows:
                raise SourceError(f"{self.path}: row group {each} has {done} records, and says {rows}")
            first += rows

    def close(self) -> None:
        """Close the file; twice is once."""
        self._file.close()

    def _read(self, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with damage(self.path):
            for batch in self._file.iter_batches(self._rows(group), [group], names, use_threads=False):
                yield from _bounded_slices(batch)

    def _rows(self, group: int) -> int:
        """Records of a batch of this row group: fewer where records are long, or may be."""
        described = self._metadata.row_group(group)
        count = max(1, described.num_rows)
        each, folded = described.total_byte_size // count, 1
        for chunk in self._chunks[group]:
            name = chunk.path.partition(".")[0]
            if name == "embedding" and chunk.values > count * MOST_DIMENSIONS:
                raise SourceError(f"{self.path}: a collection cannot have {chunk.values // count} dimensions")
            if name in COLUMNS:
                each = max(each, 8 * chunk.values // count)  # many of one value are stored as one
                if chunk.folds and chunk.path not in self._words:
                    folded = max(folded, chunk.bytes)
        return int(min(BATCH_RECORDS, max(1, min(BATCH_BYTES // max(1, each), FOLDED_BYTES // folded))))

    def _read_footer(self) -> Footer | None:
        data = (self._metadata.metadata or {}).get(FOOTER)
        if data is None:
            return None
        try:
            if len(data) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
            version = msgspec.json.decode(data, type=_Versioned).version
            if version != VERSION:
                raise UnsupportedFormat(
                    f"{self.path} is of version {version}, and this chromakeep reads {VERSION}",
                    hint="install a newer chromakeep",
                )
            told = msgspec.json.decode(data, type=Footer)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self.path}: the footer is damaged ({error})") from None
        if told.count != self.records or set(self._names) < set(COLUMNS):
            raise SourceError(
                f"{self.path} is damaged, or was changed by another program: it says it has {told.count} records and"
                f" all columns, and has {self.records} and {', '.join(self._names)}",
                hint="another program has to leave out the key chromakeep of its key-value metadata",
            )
        size = getattr(self.schema.field("embedding").type, "list_size", None)
        if None not in (size, told.definition.dimension) and size != told.definition.dimension:
            raise SourceError(f"{self.path} says {told.definition.dimension} dimensions, and has {size}")
        return told


def _opened(path: Path, **options: Any) -> Any:
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True, **options)


def _bounded_slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of which the words, unfolded, have about 64 MiB or are those of one record."""
    columns = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
    if columns:
        import pyarrow.compute as pc

        sizes = np.zeros(len(batch), np.int64)
        for column in columns:
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            sizes += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        while len(batch) > 1 and sizes.sum() > BATCH_BYTES:
            some = max(1, int(np.searchsorted(np.cumsum(sizes), BATCH_BYTES, "right")))
            yield batch.slice(0, some)
            batch, sizes = batch.slice(some), sizes[some:]
    if len(batch):
        yield batch


def _without_sizes(path: Path) -> pq.FileMetaData:
    """What a file tells of itself, but for the sizes of lists: so an old Arrow reads lists that are null."""
    with path.open("rb") as file:
        end = footer.without(footer.read_footer(file), b"ARROW:schema")
    return pq.read_metadata(pa.BufferReader(footer.MAGIC + end))


class _Versioned(msgspec.Struct):
    version: int


@contextmanager
def damage(path: Path) -> Iterator[Any]:
    """What Arrow says of a file that is damaged or foreign becomes a ``SourceError`` of one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise SourceError(
            f"{path} is damaged or no Parquet file ({reason})", hint="export it again, or take another copy"
        ) from None


def _bounded(dimension: int, path: Path) -> int:
    if not 0 < dimension <= MOST_DIMENSIONS:
        raise SourceError(f"{path}: a collection cannot have {dimension} dimensions")
    return dimension
