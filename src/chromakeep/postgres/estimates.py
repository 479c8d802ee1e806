"""Estimates: how many records satisfy a filter, and whether that is few.

By a sample of the table's blocks. The planner's own estimate of what is in a jsonb is by a hundred values of it, or in
a table of regular data by a hundred that all have something in common: wrong by a factor of a hundred, as measured.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import psycopg

from chromakeep.filters import Filter
from chromakeep.postgres.held import Held

BELIEVED = 30.0  # seconds
BLOCKS = 300  # of the table that are looked at; of 8 KiB, so about a thousand records
REMEMBERED = 4096  # estimates
SPREAD = 2.5  # candidates for one that satisfies the filter, over what it takes if it does not care where vectors lie
WORTH = 8  # records that are measured one by one in the time of one candidate of an index
ALWAYS = 2_000  # records that are always measured one by one


class Estimate(msgspec.Struct, frozen=True):
    """Records that satisfy a filter, of all in the table."""

    matching: float
    total: float

    def candidates(self, wanted: int) -> float:
        """How many of an index's should be looked at so that ``wanted`` of them satisfy the filter."""
        return SPREAD * wanted * max(self.total, 1) / max(self.matching, 1)

    def few(self, wanted: int) -> bool:
        """Whether it is quicker to measure all that satisfy the filter. That is exact, so a doubt is decided for it."""
        return self.matching <= max(ALWAYS, WORTH * self.candidates(wanted))


class Estimates:
    """Kept for some seconds, for all threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Filter], tuple[float, Estimate]] = {}
        self._lock = threading.Lock()

    def of(
        self, connection: psycopg.Connection[Any], held: Held, where: Filter, condition: str, parameters: list[Any]
    ) -> Estimate:
        """``condition`` and ``parameters`` are what ``where`` is in SQL, over the table as ``r``."""
        now, name = time.monotonic(), (held.relation, where)
        known = self._known.get(name)
        if known is not None and known[0] > now:
            return known[1]
        size = f"SELECT reltuples, relpages FROM pg_class WHERE oid = '{held.table}'::regclass"
        total, pages = connection.execute(size).fetchone() or (0.0, 0)
        part = min(100.0, 100.0 * BLOCKS / max(pages, 1))
        sample = (
            f"SELECT count(*), count(*) FILTER (WHERE {condition}) FROM {held.table} r TABLESAMPLE SYSTEM ({part:f})"
        )
        seen, matching = connection.execute(sample, parameters).fetchone() or (0, 0)
        total = max(float(total), float(seen))
        estimate = Estimate(max(matching, 0.5) / max(seen, 1) * total, total)
        with self._lock:
            if len(self._known) >= REMEMBERED:
                self._known = {key: value for key, value in self._known.items() if value[0] > now}
            if len(self._known) < REMEMBERED:
                self._known[name] = (now + BELIEVED, estimate)
        return estimate
