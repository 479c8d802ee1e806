"""Waiting: whether, and how long, somebody waits for an answer, so that what is done for nobody ends early.

Who takes a request for another thread to answer makes a ``Waiting``, has that thread work within ``for_it``, and calls
``leave`` when nobody wants the answer any more. Who works says by ``Waiting.until`` how that can be ended; what must
not be left half done says nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

_here = threading.local()


class Waiting:
    """For one request, until ``end`` by ``time.monotonic``. ``leave`` may come from any thread, at any moment, and does
    not wait."""

    def __init__(self, end: float = inf) -> None:
        self.gone = False
        self._at = end
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None

    @property
    def left(self) -> float:
        """Seconds until nobody waits any more; ``inf``: that was not said."""
        return self._at - time.monotonic()

    @contextmanager
    def for_it(self) -> Iterator[None]:
        """What this thread does within is done for it."""
        _here.waiting = self
        try:
            yield
        finally:
            _here.waiting = None

    @contextmanager
    def until(self, end: Callable[[], None]) -> Iterator[None]:
        """``end`` is called when it is gone, at once where it is by now, never after the block. It must not wait."""
        with self._lock:
            self._end = end
            if self.gone:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def leave(self) -> None:
        """Nobody wants the answer any more."""
        with self._lock:
            self.gone = True
            if self._end is not None:
                self._end()


def waiting() -> Waiting:
    """For whom this thread works; one that never goes where nobody said."""
    return getattr(_here, "waiting", None) or Waiting()
