"""RetryingStore: tries again what failed in a way that may pass, around any Store."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from chromakeep.errors import ObjectExists, ObjectNotFound, StoreUnavailable
from chromakeep.events import Observer, Retried, ignore
from chromakeep.store.base import ObjectInfo, Store, brisk

T = TypeVar("T")


class RetryingStore:
    """A Store that repeats a call that raised StoreUnavailable, and no other.

    The wait before attempt ``n + 1`` is random in ``[d/2, d]`` for ``d = first_delay * 2**(n-1)``, at most
    ``longest_delay`` seconds ("equal jitter": no thundering herd, yet never at once). After ``attempts`` attempts, or
    when the next wait would end later than ``total`` seconds after the first one began, the last error is raised.
    ``stop`` ends waiting early: when it is set, the error at hand is raised.

    **A lost answer.** A ``put(if_absent=True)`` may be done by the store and its answer be lost; the next attempt then
    finds its own object. So when a *repeated* put finds the name taken, the object there is read: if it holds exactly
    ``data``, the put is taken to have succeeded. Two writers who must not both believe they won therefore put
    something unique, such as a random id, into what they write.
    """

    def __init__(
        self,
        inner: Store,
        *,
        attempts: int = 8,
        total: float = 120.0,
        first_delay: float = 0.2,
        longest_delay: float = 15.0,
        observer: Observer = ignore,
        stop: threading.Event | None = None,
    ) -> None:
        self.inner = inner
        self._attempts = attempts
        self._total = total
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._observer = observer
        self._stop = stop or threading.Event()

    def brisk(self) -> Store:
        """Two attempts."""
        return RetryingStore(brisk(self.inner), attempts=2, observer=self._observer, stop=self._stop)

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        answers_lost = 0

        def attempt() -> None:
            nonlocal answers_lost
            try:
                self.inner.put(name, data, if_absent=if_absent)
            except StoreUnavailable:
                answers_lost += 1
                raise
            except ObjectExists:
                if not answers_lost or self._read_to_compare(name) != data:
                    raise

        self._persist(f"put {name}", attempt)

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self._persist(f"get {name}", lambda: self.inner.get(name, start=start, length=length))

    def head(self, name: str) -> ObjectInfo:
        return self._persist(f"head {name}", lambda: self.inner.head(name))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As of Store. A listing that breaks off is begun again and goes on after the last name already given."""
        last = ""
        listing: Iterator[ObjectInfo] | None = None

        def following() -> ObjectInfo | None:
            nonlocal listing, last
            try:
                if listing is None:
                    listing = self.inner.list(prefix)
                for found in listing:
                    if found.name > last:
                        last = found.name
                        return found
            except StoreUnavailable:
                listing = None
                raise
            return None

        while (found := self._persist(f"list {prefix}", following)) is not None:
            yield found

    def delete(self, name: str) -> None:
        self._persist(f"delete {name}", lambda: self.inner.delete(name))

    def _read_to_compare(self, name: str) -> bytes:
        try:
            return self.inner.get(name)
        except ObjectNotFound:  # deleted meanwhile: the put was neither done nor refused
            raise StoreUnavailable(f"{name}: was deleted while it was put") from None

    def _persist(self, what: str, attempt: Callable[[], T]) -> T:
        began = time.monotonic()
        for number in range(1, self._attempts + 1):
            try:
                return attempt()
            except StoreUnavailable as error:
                longest = min(self._first_delay * 2 ** (number - 1), self._longest_delay)
                delay = longest * random.uniform(0.5, 1.0)
                if number == self._attempts or time.monotonic() + delay - began > self._total:
                    raise
                self._observer(Retried(what, error.message, number, delay))
                if self._stop.wait(delay):
                    raise
        raise AssertionError("unreachable")
