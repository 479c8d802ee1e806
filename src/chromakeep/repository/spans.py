"""Span maps: how the bytes of one span (about 1 MiB of rows of one column) are put together from blocks.

A snapshot names a span by the keyed hash of its bytes; the map stored under that name says, for each unit of the span,
in which block and at which place it lies, and an 8-byte hash in which a later backup sees whether the unit changed.
Any map for the same bytes is as good as any other, so equal spans of any two directories share one.

Encoding: magic ``SM1`` kind(0); u32 unit length, u32 count, u32 span length, u16 number of blocks; block ids; then
columns: u64 hash, u16 block number, i32 slot (difference to the slot before), each per unit; 16 bytes of BLAKE3 of
all before. (The id is of the span's bytes, so the map needs a checksum of its own.)
"""

from __future__ import annotations

import struct

import blake3
import msgspec
import numpy as np
import numpy.typing as npt

from chromakeep.layout import Column, Layout
from chromakeep.repository.keys import Keys

SPAN = 1 << 20
MOST_ROWS = 4096
SMALLEST_UNIT = 64  # bytes
CHECKSUM = 16
_HEAD = struct.Struct("<4sIIIH")


def rows_per_span(layout: Layout) -> int:
    """Rows in a span of this layout: about 1 MiB of the file, between 1 and 4,096 rows."""
    return min(max(SPAN // layout.stride, 1), MOST_ROWS)


def unit_length(column: Column) -> int:
    """Bytes of the unit in which change is looked for: a row of the column, or several where a row is tiny."""
    return column.width if column.width >= SMALLEST_UNIT else column.width * max(4096 // column.width, 1)


class SpanMap(msgspec.Struct):
    """A decoded map: per unit ``hashes`` (u64), ``block`` (index into ``blocks``) and ``slot`` (unit within it)."""

    unit: int
    length: int
    blocks: list[bytes]
    hashes: npt.NDArray[np.uint64]
    block: npt.NDArray[np.uint16]
    slot: npt.NDArray[np.uint32]

    def encode(self) -> bytes:
        """The stored payload (before compression)."""
        steps = np.diff(self.slot.astype(np.int64), prepend=0).astype("<i4")
        head = _HEAD.pack(b"SM1\0", self.unit, len(self.hashes), self.length, len(self.blocks))
        columns = (self.hashes.astype("<u8"), self.block.astype("<u2"), steps)
        body = b"".join((head, *self.blocks, *(c.tobytes() for c in columns)))
        return body + blake3.blake3(body).digest(CHECKSUM)

    @staticmethod
    def decode(data: bytes) -> SpanMap:
        """Parse with bounds; raises ValueError for anything that is not a map."""
        if len(data) < _HEAD.size + CHECKSUM:
            raise ValueError("span map is truncated")
        data, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
        if blake3.blake3(data).digest(CHECKSUM) != checksum:
            raise ValueError("its checksum does not match")
        magic, unit, count, length, blocks = _HEAD.unpack_from(data)
        if magic != b"SM1\0" or not SMALLEST_UNIT <= unit <= max(length, 4096) or count != -(-length // unit):
            raise ValueError("not a span map")
        at = _HEAD.size + 32 * blocks
        if len(data) != at + 14 * count:
            raise ValueError("span map has the wrong length")
        hashes = np.frombuffer(data, "<u8", count, at)
        block = np.frombuffer(data, "<u2", count, at + 8 * count)
        slot = np.cumsum(np.frombuffer(data, "<i4", count, at + 10 * count).astype(np.int64))
        if count and (int(block.max()) >= blocks or int(slot.min()) < 0 or int(slot.max()) >= 1 << 32):
            raise ValueError("span map points outside its blocks")
        names = [data[_HEAD.size + 32 * i : _HEAD.size + 32 * (i + 1)] for i in range(blocks)]
        return SpanMap(unit, length, names, hashes, block, slot.astype(np.uint32))


def unit_hashes(data: memoryview, unit: int, keys: Keys) -> npt.NDArray[np.uint64]:
    """The 64-bit keyed hashes of the units of a span (the last may be short)."""
    hash_ = keys.unit_hash
    return np.array([hash_(data[i : i + unit]) for i in range(0, len(data), unit)], dtype=np.uint64)
