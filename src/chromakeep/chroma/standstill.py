"""Standstill: a directory that nobody has written to for a while is read where it lies, and copied nowhere.

A copy of it would be a second whole pass over the data, into memory and disk that were free. What makes it exact is
what makes a capture exact: stamps from before the first byte was read, found again under SQLite's SHARED lock after the
last one. If somebody did write, what was read is thrown away, and the directory is captured.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from chromakeep.chroma.freelist import free_leaves
from chromakeep.chroma.locking import HotJournal, LiveDatabase, open_in_this_process
from chromakeep.chroma.persists import Segment, Stamps, in_order, segments, stamps
from chromakeep.chroma.premises import COMPANIONS
from chromakeep.chroma.purge import held_after
from chromakeep.chroma.signature import DATABASE, TICK, Stamp, settled, stamp
from chromakeep.errors import SourceBusy, SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUIET = 10.0  # seconds without a write, and besides them
PACE = 50e6  # bytes a second that will be read: as long as that takes, too
WAIT = 5.0  # seconds to wait at the end for a writer that keeps the database locked


def standstill(source: Path) -> Standstill | None:
    """``source`` as it lies; None where it may be written soon, is open in this process (``chroma.locking``), a purge
    is held in it, or anything about it is odd: a capture tells what. It is only read."""
    with suppress(SourceError, HotJournal, OSError):
        database = (source / DATABASE).resolve()
        if not source.is_dir() or any(Path(f"{database}{c}").exists() for c in COMPANIONS):
            return None
        if not open_in_this_process(database):
            return _standing(source, LiveDatabase(database))
    return None


def _standing(source: Path, database: LiveDatabase) -> Standstill | None:
    found = None
    try:
        before = database.stamp()
        if not database.wal and before[0] and settled([before[0]], TICK):
            with database.shared(0) as connection:
                live = {segment: stamps(source / segment.id) for segment in segments(connection)}
                held = held_after(connection) is not None
            if not held and _quiet(before[0], live):
                found = Standstill(source, database, before, live)
    finally:
        if found is None:
            database.close()
    return found


def _quiet(database: Stamp, live: dict[Segment, Stamps]) -> bool:
    present = [one for found in live.values() for one in found if one]
    size, newest = database.size + sum(s.size for s in present), max(s.mtime for s in (database, *present))
    sound = settled(present) and all(in_order(found) for found in live.values())
    return sound and time.time() - newest / 1e9 > QUIET + size / PACE


class Standstill:
    """What was found. A context: it keeps the database open, to look once more."""

    def __init__(
        self, source: Path, database: LiveDatabase, before: tuple[Stamp | None, bytes], live: dict[Segment, Stamps]
    ) -> None:
        self.path, self._database, self._before, self._live = source, database, before, live
        self.counter = int.from_bytes(before[1], "big")

    @property
    def pause(self) -> float:
        """The longest that writers were kept waiting, in seconds."""
        return self._database.longest

    def blank(self) -> NDArray[np.int64]:
        """Pages of the database, numbered from 0, ascending, that hold nothing but what was deleted."""
        return free_leaves(self._database.descriptor)

    def confirm(self) -> None:
        """Raise ``SourceBusy`` unless all that was read until now is one state: that of every moment since."""
        with self._database.shared(time.monotonic() + WAIT):
            same = self._database.stamp() == self._before and stamp(self._database.path) == self._before[0]
            same = same and all(stamps(self.path / segment.id) == found for segment, found in self._live.items())
        if not same:
            raise SourceBusy(f"{self.path} was written while it was read")

    def __enter__(self) -> Standstill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()
