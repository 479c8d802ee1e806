"""Metrics: requests, counted as they pass. The door's thread only adds to plain numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from chromakeep.server.guard import Account

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
MOST_SERIES = 1000  # of requests: what comes beyond is counted together
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
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


def refused(requests: Mapping[Series, int], statuses: Iterable[int]) -> dict[int, int]:
    """How many requests had each of these statuses."""
    wanted = dict.fromkeys(statuses, 0)
    for (_, _, status, _), count in requests.items():
        if status in wanted:
            wanted[status] += count
    return wanted
