"""Sighting: whether the collections that were here are here still, or somebody has taken them away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf

AFTER = 60.0  # seconds in which a request to delete may have its effect


class Sighting:
    """Told how many collections there are, and of each request that may delete some. From any thread.

    That the last one went without such a request (files were deleted under the server, another disk is mounted) is an
    unexplained empty store. It is not ready until there are collections again, or its server has started anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._before, self._deleted, self._gone = 0, -inf, 0

    def seen(self, count: int) -> None:
        """So many are here now."""
        with self._lock:
            if count == 0 and self._clock() - self._deleted > AFTER:
                self._gone = self._gone or self._before
            else:
                self._gone = 0
            self._before = count

    def deleting(self) -> None:
        """Somebody deletes at this moment: that there are none afterwards is no surprise."""
        with self._lock:
            self._deleted = self._clock()

    @property
    def gone(self) -> str | None:
        """What is missing, None if nothing is."""
        with self._lock:
            count = self._gone
        return f"all {count} collections are gone, and nobody deleted them here" if count else None
