"""Positions in the parts of a collection: what marks are made of, and when they still lead on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from chromakeep.errors import UsageError
from chromakeep.exchange.reading import Part
from chromakeep.records import Mark

if TYPE_CHECKING:
    from chromakeep.conditions import Where


class Stretch:
    """Parts that follow each other, read as one. A mark is ``[part, row group, row]``: where to read next."""

    def __init__(self, parts: Sequence[Callable[[], Part]], dimension: int | None) -> None:
        """``parts`` open one each; whoever gave them closes them."""
        self._parts = parts
        self._dimension = dimension

    def batches(self, after: Mark, where: Where | None) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """As of ``Source``. Raises ``UsageError`` for a mark that is none."""
        number, group, row = numbers(after, 3) if after is not None else (0, 0, 0)
        for at in range(number, len(self._parts)):
            part = self._parts[at]()
            for records, next_group, next_row in part.batches(self._dimension, group, row):
                yield where.select(records) if where else records, [at, next_group, next_row]
            group = row = 0


def numbers(mark: Any, count: int) -> list[int]:
    """The numbers of a mark. Raises ``UsageError`` if it is none of ours."""
    if (
        not isinstance(mark, (list, tuple))
        or len(mark) != count
        or not all(type(number) is int and 0 <= number < 1 << 62 for number in mark)
    ):
        raise UsageError("this mark is none of this file", hint="begin anew, without what was noted of the last copy")
    return list(mark)


def fingerprint(paths: Sequence[Path], more: bytes = b"") -> str:
    """One word that changes when one of the files is written or replaced: by inode, size and time of change."""
    found = hashlib.blake2b(more, digest_size=16)
    for path in paths:
        status = path.stat()
        found.update(f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns};".encode())
    return found.hexdigest()
