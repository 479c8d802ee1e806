"""Gauges: the numbers of a run, for whoever watches it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from chromakeep.chroma.catalog import DATABASE
from chromakeep.chroma.measures import Measures, link_lists_ratio, measure, size_of
from chromakeep.chroma.signature import signature
from chromakeep.errors import ChromakeepError
from chromakeep.operations.beside import Beside
from chromakeep.operations.duty import SERVING, STANDBY, Duty
from chromakeep.operations.keep import Keeping

if TYPE_CHECKING:
    from chromakeep.operations.beside import Process

LOOK = 15.0  # seconds between two looks into the database at least
SHARE = 50  # and so many times as long as the last one took: a count keeps writers waiting while it lasts


class Reading(msgspec.Struct, frozen=True):
    """What was found; None: not known, or there is no such thing. Bytes, seconds, counts.

    ``records`` has (tenant, database, collection, records) of a bounded number of ``collections``, ``waiting`` those
    that an index of vectors should have and has not.
    """

    role: str
    ready: bool
    readable: bool
    restarts: int | None = None  # of the server behind
    lag: float | None = None
    failing: float | None = None
    behind: float | None = None  # of a standby
    epoch: int | None = None
    segment: int | None = None
    snapshots: int | None = 0
    snapshot_age: float | None = None
    snapshot_size: int | None = None
    snapshot_failed: bool | None = None
    snapshot_pending: bool | None = None
    restored_at: float | None = None  # seconds since 1970
    records: tuple[tuple[str, str, str, int], ...] = ()
    waiting: tuple[tuple[str, str, str, int], ...] = ()
    collections: int | None = None
    queue: int | None = None
    data_size: int | None = None
    disk_size: int | None = None
    disk_free: int | None = None
    link_lists: float | None = None
    server_memory: int | None = None
    own_memory: int | None = None


class Gauges:
    """Reads the numbers of one run. For one thread, which must not be the door's: it reads files."""

    def __init__(self, beside: Beside, duty: Duty, keeping: Keeping | None, restarts: Callable[[], int]) -> None:
        self._beside, self._duty, self._keeping, self._restarts = beside, duty, keeping, restarts
        self._measured: Measures | None = None
        self._pending: bool | None = None
        self._next = 0.0  # monotonic: of the next look into the database

    def read(self) -> Reading:
        """All that can be had now."""
        duty, data = self._duty, self._beside.data
        found = Reading(duty.role, duty.ready, duty.readable, self._restarts())
        if shipping := duty.shipping:
            standing = shipping.standing
            found = replace(
                found,
                lag=standing.lag,
                failing=standing.failing or 0.0,
                epoch=standing.epoch,
                segment=standing.number,
            )
        if duty.role == STANDBY and duty.standby:
            found = replace(found, behind=duty.standby.behind)
        if keeping := self._keeping:
            found = replace(
                found,
                snapshots=keeping.taken,
                snapshot_age=duty.snapshot_age,
                snapshot_size=keeping.size or None,
                snapshot_failed=keeping.failure is not None,
            )
        self._look()
        if measured := self._measured:
            found = replace(found, records=measured.records, collections=measured.collections, queue=measured.queue)
        disk = disk_of(data)
        return replace(
            found,
            snapshot_pending=self._pending,
            restored_at=self._beside.state.restored_at or None,
            data_size=size_of(data),
            disk_size=disk[0],
            disk_free=disk[1],
            link_lists=link_lists_ratio(data),
            server_memory=resident(self._beside.state.server),
            own_memory=resident(None),
        )

    def _look(self) -> None:
        """Into the database, if it is time and nobody else reads it: to close it would drop a capture's locks."""
        begun = time.monotonic()
        if begun < self._next or self._duty.role not in (SERVING, STANDBY):
            return
        keeping = self._keeping
        if keeping and not keeping.access.acquire(blocking=False):
            return
        try:
            with suppress(ChromakeepError, OSError):
                self._measured = measure(self._beside.data / DATABASE)
                if keeping and self._duty.role == SERVING:
                    self._pending = signature(self._beside.data).to_json() != self._beside.state.captured
        finally:
            if keeping:
                keeping.access.release()
        now = time.monotonic()
        self._next = now + max(LOOK, SHARE * (now - begun))


def resident(process: Process | None) -> int | None:
    """Bytes of memory that a process (None: this one) has in RAM; None where nobody tells."""
    if process and not process.alive():
        return None
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{process.pid if process else 'self'}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def disk_of(data: Path) -> tuple[int | None, int | None]:
    """Its size and its free bytes."""
    with suppress(OSError):
        usage = shutil.disk_usage(data)
        return usage.total, usage.free
    return None, None
