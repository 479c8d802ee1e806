"""Gauges of an engine: the numbers of ``serve`` in front of a PostgreSQL, for whoever watches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from chromakeep.engine import Refused
from chromakeep.operations.duty import Duty
from chromakeep.operations.gauges import LOOK, SHARE, Reading, disk_of, resident

if TYPE_CHECKING:
    from chromakeep.postgres.counts import Counts


class EngineGauges:
    """Reads them, for one thread. ``count`` asks the database, now and then; where it raises ``Refused``, nothing is
    known of it until it is asked again. ``home`` is where a private PostgreSQL lies."""

    def __init__(
        self, duty: Duty, count: Callable[[], Counts], restarts: Callable[[], int | None], home: Path | None
    ) -> None:
        self._duty, self._count, self._restarts, self._home = duty, count, restarts, home
        self._counts: Counts | None = None
        self._next = 0.0  # monotonic: of the next look into the database

    def read(self) -> Reading:
        """All that can be had now."""
        if time.monotonic() >= self._next:
            self._look()
        found = Reading(self._duty.role, self._duty.ready, self._duty.readable, self._restarts(), snapshots=None)
        if counts := self._counts:
            found = replace(
                found,
                collections=counts.collections,
                records=tuple((one.tenant, one.database, one.name, one.records) for one in counts.largest),
                waiting=tuple((one.tenant, one.database, one.name, one.waiting) for one in counts.largest),
            )
        size, free = disk_of(self._home) if self._home else (None, None)
        return replace(found, disk_size=size, disk_free=free, own_memory=resident(None))

    def _look(self) -> None:
        begun, self._counts = time.monotonic(), None
        with suppress(Refused):
            self._counts = self._count()
        now = time.monotonic()
        self._next = now + max(LOOK, SHARE * (now - begun))
