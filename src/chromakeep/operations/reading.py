"""Reading: the lock on a directory, for as long as a snapshot reads it."""

from __future__ import annotations

import threading


class Reading:
    """A lock that is let go when the block ends or earlier."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._held = lock, False

    def __enter__(self) -> Reading:
        self.begin()
        return self

    def begin(self) -> None:
        """Take it, if it is not held."""
        self._held = self._held or self._lock.acquire()

    def end(self) -> None:
        """Let go now."""
        if self._held:
            self._held = False
            self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.end()
