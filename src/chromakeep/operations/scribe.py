"""Scribe: a thread that writes what others hand it, who never wait: when it cannot keep up, something is dropped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
EVERY = 0.1  # seconds between two rounds


class Scribe(Generic[T]):
    """Calls ``write`` every tenth of a second, in its own thread, with what was put since, in order: maybe nothing.

    ``write`` must not raise. At most ``most`` items wait.
    """

    def __init__(self, name: str, write: Callable[[list[T]], None], most: int = 10_000) -> None:
        self.dropped = 0
        self._write, self._most = write, most
        self._waiting: deque[T] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def put(self, item: T) -> bool:
        """Hand over; False if it was dropped. From one thread, or dropping may begin a few items late."""
        if len(self._waiting) >= self._most:
            self.dropped += 1
            return False
        self._waiting.append(item)
        return True

    def stop(self, timeout: float) -> bool:
        """Write what waits and end; whether that was done within ``timeout`` seconds. Nothing may be put any more."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _live(self) -> None:
        over = False
        while not over:
            over = self._ending.wait(EVERY)
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._write(batch)
