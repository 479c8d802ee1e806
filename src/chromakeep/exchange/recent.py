"""Which records were written lately: files are only appended to, and a batch that comes again must change nothing."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa

MOST = 1 << 16
_LONG = 64


class Recent:
    """Remembers the ids of at least the last 65,536 records. What comes again later than that is written again."""

    def __init__(self) -> None:
        self._new: set[str | bytes] = set()
        self._old: set[str | bytes] = set()

    def remember(self, ids: Iterable[str]) -> None:
        """These were written by an earlier process, and were its last ones."""
        self._old |= set(map(_key, ids))

    def fresh(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The records that were not seen lately, which they are from now on."""
        ids = [_key(each) for each in batch.column("id").to_pylist()]
        seen = set(ids)
        if len(seen) < len(ids) or not (seen.isdisjoint(self._new) and seen.isdisjoint(self._old)):
            batch = batch.filter(pa.array(self._choose(ids)))
        self._new |= seen
        if len(self._new) >= MOST:
            self._old, self._new = self._new, set()
        return batch

    def _choose(self, ids: list[str | bytes]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        chosen = np.zeros(len(ids), bool)
        met: set[str | bytes] = set()
        for at, each in enumerate(ids):
            chosen[at] = each not in met and each not in self._new and each not in self._old
            met.add(each)
        return chosen


def _key(id: str) -> str | bytes:
    """A long id takes no more memory than a short one."""
    return id if len(id) <= _LONG else blake2b(id.encode(), digest_size=16).digest()
