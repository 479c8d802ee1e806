"""Beginnings: up to which ``seq`` the first so many records of a table lie, about.

By the hundred parts of equal size in which ANALYZE has cut the column: what that costs does not depend on the table.
``seq`` itself tells nothing of it, for each batch of writes begins 65,536 further on. Whoever asks must be right
whatever the answer is; statistics may be of before many writes.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import msgspec
import psycopg

from chromakeep.postgres.held import Held

BELIEVED = 30.0  # seconds
REMEMBERED = 4096  # tables


class Beginning(msgspec.Struct, frozen=True):
    """How many records there are, and the ``seq`` at which each part of them begins, and the last one ends."""

    total: float
    bounds: tuple[int, ...]

    def bound(self, records: int) -> int | None:
        """Not fewer than so many are up to there. None: they are a quarter of all or more."""
        parts = len(self.bounds) - 1
        if parts < 1 or self.total <= 4 * records:  # a table that was emptied may still have bounds
            return None
        return self.bounds[math.ceil(records * parts / self.total)]


class Beginnings:
    """Kept for some seconds, for all threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Beginning]] = {}
        self._lock = threading.Lock()

    def of(self, connection: psycopg.Connection[Any], held: Held) -> Beginning:
        """Nothing of a table without statistics."""
        now = time.monotonic()
        known = self._known.get(held.relation)
        if known is not None and known[0] > now:
            return known[1]
        row = connection.execute(
            "SELECT c.reltuples, s.histogram_bounds::text::int8[] FROM pg_class c JOIN pg_stats s"
            " ON s.schemaname = 'chromakeep' AND s.tablename = c.relname AND s.attname = 'seq'"
            " WHERE c.oid = %s::regclass",
            (held.table,),
        ).fetchone()
        beginning = Beginning(float(row[0]), tuple(row[1] or ())) if row else Beginning(0.0, ())
        with self._lock:
            if len(self._known) >= REMEMBERED:
                self._known = {name: one for name, one in self._known.items() if one[0] > now}
            if len(self._known) < REMEMBERED:
                self._known[held.relation] = (now + BELIEVED, beginning)
        return beginning
