"""Metrics: requests, counted as they pass, and what is known of the run, as a page that Prometheus reads.

The door's thread only adds to plain numbers; all else is done in a thread of its own.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from chromakeep.events import Noted, Observer, ignore
from chromakeep.server.gate import Page
from chromakeep.server.guard import Account

if TYPE_CHECKING:
    from chromakeep.operations.gauges import Reading

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
MOST_SERIES = 1000  # of requests: what comes beyond is counted together
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
EVERY = 2.0  # seconds between two readings
STARTING = b'{"error":"ChromaError","message":"nothing has been measured yet"}'
TEXT = "text/plain; version=0.0.4; charset=utf-8"
MISSING = b'{"error":"ChromaError","message":"metrics need a library: pip install \'chromakeep[server]\'"}'
T = TypeVar("T")
Series = tuple[str, str, int, str]  # route, method, status, key


class Metrics:
    """A ledger that counts. Labels are bounded: routes are templates, keys those that were let in."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.received = self.sent = 0  # bytes of payload
        self.requests: dict[Series, int] = {}
        self.durations: dict[str, list[float]] = {}  # by route: a count for each bound, one above, and the sum

    def begun(self, account: Account) -> None:
        """A request is in flight."""
        self.in_flight += 1

    def ended(self, account: Account, now: float) -> None:
        """It is not any more."""
        self.in_flight -= 1
        self.received += account.received
        self.sent += account.sent
        route, seconds = account.route or OTHER, now - account.begun
        series = (route, account.method, account.status, account.key)
        try:
            self.requests[series] += 1
            counts = self.durations[route]
        except KeyError:
            counts = self._rare(series)
        counts[bisect_left(BOUNDS, seconds)] += 1
        counts[-1] += seconds

    def _rare(self, series: Series) -> list[float]:
        """Count a request of a series that is not there under its own name, or not yet."""
        route, method, status, key = series
        if method not in METHODS:
            method = OTHER
        found = (route, method, status, key)
        if found not in self.requests:
            if len(self.requests) >= MOST_SERIES:
                route, found = OTHER, (OTHER, OTHER, status if 0 <= status < 600 else 599, OTHER)
            self.requests.setdefault(found, 0)
        if series != found or self.requests[found] == 0:
            self.requests[found] += 1
        return self.durations.setdefault(route, [0] * (len(BOUNDS) + 1) + [0.0])


class Exposition:
    """The page ``/metrics``. Every few seconds a thread reads what needs time (``read``) and makes the text anew: with
    a thousand series that takes some 20 ms, which are not the door's to spend.

    ``books``: more numbers, by the names in ``families.BOOKS``.
    """

    def __init__(
        self,
        metrics: Metrics,
        read: Callable[[], Reading] | None = None,
        books: Mapping[str, Callable[[], float]] = {},
        observer: Observer = ignore,
    ) -> None:
        self.reading: Reading | None = None  # what was found last
        self._metrics, self._read, self._books, self._observer = metrics, read, books, observer
        self._page = Page(STARTING, status=503, retry_after=1.0)
        self._render: Callable[[], bytes] | None = None
        self._ending, self._told = threading.Event(), ""
        self._thread = threading.Thread(target=self._live, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; a reading that is under way is left alone."""
        self._ending.set()

    def page(self) -> Page:
        """As it was a few seconds ago. Takes no time."""
        return self._page

    def now(self) -> Page:
        """As it is; not for the door's thread. 501 where the library is missing."""
        if self._render is None:
            if not library():
                return Page(MISSING, status=501)
            from chromakeep.server.families import exposition

            self._render = exposition(self._metrics, lambda: self.reading, self._books)
        return Page(self._render(), TEXT)

    def _live(self) -> None:
        while True:
            self.reading = self._attempt(self._read) if self._read else None
            self._page = self._attempt(self.now) or self._page
            if self._ending.wait(EVERY):
                return

    def _attempt(self, what: Callable[[], T]) -> T | None:
        """A number that cannot be had does not take the others away."""
        try:
            return what()
        except Exception as error:  # of any reading: told once, and the page goes on without that number
            if (said := f"metrics: {type(error).__name__}: {error}") != self._told:
                self._told = said
                self._observer(Noted(said, "warning"))
            return None


def library() -> bool:
    """Whether ``prometheus_client`` is there."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        return False
    return True


def refused(requests: Mapping[Series, int], statuses: Iterable[int]) -> dict[int, int]:
    """How many requests had each of these statuses."""
    wanted = dict.fromkeys(statuses, 0)
    for (_, _, status, _), count in requests.items():
        if status in wanted:
            wanted[status] += count
    return wanted
