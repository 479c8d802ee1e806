"""Pace: at most so many records a second, however many threads write them and to however many collections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PORTIONS = 10  # of what a second allows: a target that serves others, too, is better off with little at a time
_WAIT = 0.1  # seconds after which it is looked whether there still is anything to wait for


class Pace:
    """One for all that has the rate in common. ``portion``: records that may be written at a time."""

    def __init__(self, rate: float | None) -> None:
        """``rate``: records a second; None: as many as can be."""
        self._rate = rate
        self.portion = max(1, int(rate / PORTIONS)) if rate else 1 << 62
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, records: int, over: Callable[[], bool]) -> bool:
        """Until so many records may be written. False: it is ``over``, and they may not.

        What was not used while the target was slow is not made up for.
        """
        if self._rate is None:
            return not over()
        with self._lock:
            while not over():
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + records / self._rate
                    return True
                time.sleep(min(self._next - now, _WAIT))
        return False
