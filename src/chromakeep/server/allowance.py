"""Allowances: how often, and how often at once, each key may ask."""

from __future__ import annotations

from chromakeep.access.keys import Key

BURST = 1.0  # seconds' worth of requests that may come at once


class Allowances:
    """A bucket of tokens and a count by key. For one thread."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}  # key -> tokens, and when
        self._running: dict[str, int] = {}

    def take(self, key: Key, now: float) -> float | None:
        """None where one more request may run, which must be given back; else seconds after which to try again."""
        if key.concurrency is not None and self._running.get(key.id, 0) >= key.concurrency:
            return 1.0
        if key.rate is not None:
            most = max(1.0, key.rate * BURST)
            tokens, then = self._buckets.get(key.id, (most, now))
            tokens = min(most, tokens + (now - then) * key.rate)
            if tokens < 1.0:
                self._buckets[key.id] = (tokens, now)
                return (1.0 - tokens) / key.rate
            self._buckets[key.id] = (tokens - 1.0, now)
        self._running[key.id] = self._running.get(key.id, 0) + 1
        return None

    def give_back(self, key: str) -> None:
        """The request with this key's id is over."""
        left = self._running.get(key, 0) - 1
        if left > 0:
            self._running[key] = left
        else:
            self._running.pop(key, None)
