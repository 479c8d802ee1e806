"""How a file is built of fixed-size rows: the unit in which a change is detected and stored.

A file is a run of rows of ``stride`` bytes (the last may be short); each row is cut into adjacent columns whose widths
sum to ``stride``. A plain file is one column of 4 KiB rows. The repository stores each column apart, so that a changed
neighbour link does not store the vector beside it anew.
"""

from __future__ import annotations

import msgspec

PLAIN, FLOAT32 = "plain", "float32"


class Column(msgspec.Struct, frozen=True):
    """``width`` bytes of each row. ``kind`` is ``plain`` or ``float32`` (little-endian, ``width`` a multiple of 4)."""

    width: int
    kind: str = PLAIN


class Layout(msgspec.Struct, frozen=True):
    """Row length in bytes and its columns, left to right."""

    stride: int
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        if self.stride < 1 or any(c.width < 1 for c in self.columns):
            raise ValueError("a row and its columns are at least one byte wide")
        if sum(c.width for c in self.columns) != self.stride:
            raise ValueError("columns do not fill the row")
        if any(c.kind == FLOAT32 and c.width % 4 for c in self.columns):
            raise ValueError("a float32 column is a multiple of four bytes wide")


def plain(stride: int = 4096) -> Layout:
    """The layout of a file that is not understood, or is made of pages."""
    return Layout(stride, (Column(stride),))
