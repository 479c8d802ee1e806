"""Sighting: whether the collections that were here are here still, or somebody has taken them away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from chromakeep.events import Noted, Observer, ignore

if TYPE_CHECKING:
    from chromakeep.operations.beside import Beside
    from chromakeep.operations.keep import Keeping

AFTER = 60.0  # seconds in which a request to delete may have its effect
NOT_READY = (
    "not ready, and no snapshot is taken of that. Is another disk mounted? If it is meant, create a collection here "
    "and delete it again"
)


class Sighting:
    """Told how many collections there are, and of each request that may delete some. From any thread.

    That the last one went without such a request (files were deleted under the server, another disk is mounted) is an
    unexplained empty store. It is not ready until there are collections again, however often anything starts anew:
    ``remember`` is given how many are known, where it matters, and ``known`` is what it was given last.
    """

    def __init__(
        self,
        known: int = 0,
        remember: Callable[[int], object] = lambda count: None,
        *,
        observer: Observer = ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.found: Callable[[], object] = lambda: None  # is called when there are some again
        self._lock, self._remember, self._observer, self._clock = threading.Lock(), remember, observer, clock
        self._before, self._kept, self._deleted, self._gone = known, known, -inf, 0
        self._since = -inf  # when some were first seen

    def seen(self, count: int) -> None:
        """So many are here now."""
        missed = self.gone
        with self._lock:
            if count == 0 and self._clock() - self._deleted > AFTER:
                self._gone = self._gone or self._before
            else:
                self._gone = 0
            if count and not self._before:
                self._since = self._clock()
            self._before = count
            if not self._gone:
                self._keep(count)
        if not missed and self.gone:
            self._observer(Noted(f"{self.gone}: {NOT_READY}", "warning"))
        elif missed and not self.gone:
            said = "there are collections again" if count else "a client has deleted here since: nothing is missing"
            self._observer(Noted(said))
            self.found()

    def captured(self, count: int, begun: float) -> str | None:
        """So many were here at some time after ``begun``, by the clock; what is missing (``gone``)."""
        if count == 0 and begun >= self._since:  # else it may be how it was before there were any
            self.seen(0)
        return self.gone

    def deleting(self) -> None:
        """Somebody deletes at this moment: that there are none afterwards is no surprise, to whoever starts next
        neither."""
        with self._lock:
            self._deleted = self._clock()
            self._keep(0)

    def forget(self) -> None:
        """Another directory was put in the place, on purpose: what is in it is what is to be there."""
        with self._lock:
            self._before = self._gone = 0
            self._keep(0)

    def _keep(self, count: int) -> None:
        """Written down only where it is another answer: whether there are any."""
        if bool(count) != bool(self._kept):
            with suppress(OSError):  # a full disk: at worst it is asked about again
                self._remember(count)
                self._kept = count

    @property
    def gone(self) -> str | None:
        """What is missing, None if nothing is."""
        with self._lock:
            count = self._gone
        if count == 1:
            return "the only collection is gone, and nobody deleted it here"
        return f"all {count} collections are gone, and nobody deleted them here" if count else None


def sighting_of(beside: Beside, keeping: Keeping | None, observer: Observer) -> Sighting:
    """That of a run: written down beside the directory, and no snapshot is taken while something is missing."""
    made = Sighting(beside.state.sighted, lambda count: beside.remember(sighted=count), observer=observer)
    if keeping:
        made.found, keeping.sighting = keeping.soon, made
    return made
