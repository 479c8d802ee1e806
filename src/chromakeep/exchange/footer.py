"""The end of a Parquet file, taken apart and put together: so that a file can be written in several goes.

Arrow's writer begins each file at its beginning and ends it with a footer. What it wrote as a file of its own, behind
what is there already, becomes part of that by shifting the offsets of its row groups and joining the footers.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import IO

from chromakeep.exchange import thrift
from chromakeep.exchange.thrift import Field, List

MAGIC = b"PAR1"
_LENGTH = struct.Struct("<I")

# The numbers of fields in parquet.thrift.
_FILE_ROWS, _FILE_GROUPS, _FILE_METADATA = 3, 4, 5
_GROUP_COLUMNS, _GROUP_OFFSET, _GROUP_ORDINAL = 1, 5, 7
_CHUNK_OFFSETS, _CHUNK_METADATA = (2, 4, 6), 3
_COLUMN_OFFSETS = (9, 10, 11, 14)


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
