"""The end of a Parquet file, taken apart and put together: so that a file can be written in several goes.

Arrow's writer begins each file at its beginning and ends it with a footer. What it wrote as a file of its own, behind
what is there already, becomes part of that by shifting the offsets of its row groups and joining the footers.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import IO, NamedTuple

from chromakeep.exchange import thrift
from chromakeep.exchange.thrift import Field, List

MAGIC = b"PAR1"
_LENGTH = struct.Struct("<I")

# The numbers of fields in parquet.thrift.
_FILE_ROWS, _FILE_GROUPS, _FILE_METADATA = 3, 4, 5
_GROUP_COLUMNS, _GROUP_OFFSET, _GROUP_ORDINAL = 1, 5, 7
_CHUNK_OFFSETS, _CHUNK_METADATA = (2, 4, 6), 3
_COLUMN_OFFSETS = (9, 10, 11, 14)
_TYPE, _ENCODINGS, _PATH, _VALUES, _UNCOMPRESSED = 1, 2, 3, 5, 6
_TEXT = 6  # BYTE_ARRAY
_DICTIONARY = {2, 8}
_BEGINNINGS = 7  # DELTA_BYTE_ARRAY


class Chunk(NamedTuple):
    """One column of one row group. ``values``: numbers or texts, nulls too; ``bytes``: of its pages, unpacked. Of a
    column of text, whether it is stored as ``words`` and their numbers, and whether a long text that comes again may
    take no room (``folds``)."""

    path: str
    values: int
    bytes: int
    words: bool
    folds: bool


def chunks_of(footer: bytes) -> list[list[Chunk]]:
    """The columns of each row group. Arrow tells of them too, and ends the process for some that are damaged. Raises
    ``ValueError``."""
    try:
        (found,) = [field.value for field in thrift.load(footer) if field.id == _FILE_GROUPS]
        return [
            [_chunk(chunk) for field in group if field.id == _GROUP_COLUMNS for chunk in field.value.values]
            for group in found.values
        ]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("its columns are not described") from None


def _chunk(fields: list[Field]) -> Chunk:
    (described,) = [field.value for field in fields if field.id == _CHUNK_METADATA]
    told = {field.id: field.value for field in described}
    path = b".".join(told[_PATH].values).decode("utf-8", "replace")
    text, encodings = told[_TYPE] == _TEXT, set(told[_ENCODINGS].values)
    words = text and not encodings.isdisjoint(_DICTIONARY)
    folds = words or (text and _BEGINNINGS in encodings)
    return Chunk(path, int(told[_VALUES]), int(told[_UNCOMPRESSED]), words, folds)


def split(end: bytes) -> bytes:
    """The footer in the last bytes of a file. Raises ``ValueError``."""
    size = _LENGTH.unpack_from(end, len(end) - 8)[0] if end[-4:] == MAGIC and len(end) >= 8 else len(end)
    if size > len(end) - 8:
        raise ValueError("these bytes are no end of a Parquet file")
    return end[len(end) - 8 - size : len(end) - 8]


def read_footer(file: IO[bytes]) -> bytes:
    """The footer of a file. Raises ``ValueError``."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = _LENGTH.unpack_from(tail)[0] if len(tail) == 8 else 0
    file.seek(max(0, size - 8 - length))
    return split(file.read(length + 8))


def groups_of(footer: bytes, shift: int) -> list[bytes]:
    """The row groups in a footer, each as it is in one, ``shift`` bytes further on in the file."""
    (found,) = [field.value for field in thrift.load(footer) if field.id == _FILE_GROUPS]
    return [
        thrift.dump([_in_group(field, shift) for field in group if field.id != _GROUP_ORDINAL])
        for group in found.values
    ]


def joined(footer: bytes, groups: Sequence[bytes], rows: int) -> bytes:
    """The end of a file with these row groups and what ``footer``, of one without any, tells of it besides."""
    fields = []
    for field in thrift.load(footer):
        if field.id == _FILE_ROWS:
            field = Field(field.id, field.kind, rows)
        elif field.id == _FILE_GROUPS:
            field = Field(field.id, field.kind, List(thrift.STRUCT, list(groups), raw=True))
        fields.append(field)
    return _end(fields)


def without(footer: bytes, key: bytes) -> bytes:
    """The end of a file without one key of its key-value metadata."""
    fields = []
    for field in thrift.load(footer):
        if field.id == _FILE_METADATA:
            kept = [pair for pair in field.value.values if pair[0].value != key]
            field = Field(field.id, field.kind, List(thrift.STRUCT, kept))
        fields.append(field)
    return _end(fields)


def _end(fields: list[Field]) -> bytes:
    made = thrift.dump(fields)
    return made + _LENGTH.pack(len(made)) + MAGIC


def _in_group(field: Field, shift: int) -> Field:
    if field.id == _GROUP_OFFSET:
        return _moved(field, shift)
    if field.id == _GROUP_COLUMNS:
        chunks = [[_in_chunk(each, shift) for each in chunk] for chunk in field.value.values]
        return Field(field.id, field.kind, List(thrift.STRUCT, chunks))
    return field


def _in_chunk(field: Field, shift: int) -> Field:
    if field.id in _CHUNK_OFFSETS:
        return _moved(field, shift)
    if field.id == _CHUNK_METADATA:
        moved = [_moved(each, shift) if each.id in _COLUMN_OFFSETS else each for each in field.value]
        return Field(field.id, field.kind, moved)
    return field


def _moved(field: Field, shift: int) -> Field:
    return Field(field.id, field.kind, field.value + shift if field.value > 0 else field.value)
