"""Portions: how many records go into one request, learned from how large and how slow the last ones were."""

from __future__ import annotations

import re
import threading

from chromakeep.chroma.wire import AnswerTooLarge
from chromakeep.errors import ServerAnswered, ServerFailed, ServerSilent

_LIMIT = re.compile(r"(?:limit of|maximum batch size(?: of)?|exceeds limit of|max(?:imum)? (?:is|of)) ([0-9]{1,7})\b")
_COUNTED = re.compile(r"number of (?:records|results|ids)|limit value|batch size", re.IGNORECASE)
_LATE, _LATE_BY = 3, 8  # so many timeouts in a row, each of so many times fewer records


class Portions:
    """Threads may share it.

    It grows to at most twice the last size while requests are small and quick, and shrinks when they are not, towards
    ``size_aim`` bytes and ``seconds_aim`` seconds each, between 1 and ``most`` records. A server that answers in time
    for no number of records is not blamed on their number for ever.
    """

    def __init__(self, start: int, most: int, *, size_aim: int = 8 << 20, seconds_aim: float = 2.0) -> None:
        self.most = max(1, most)
        self.now = min(max(1, start), self.most)
        self._size, self._seconds = size_aim, seconds_aim
        self._ceiling = float(self.most)
        self._late = 0  # timeouts in a row
        self._lock = threading.Lock()

    def went(self, records: int, size: int, seconds: float) -> None:
        """A request of so many records, bytes and seconds was answered."""
        if not records:
            return
        with self._lock:
            self._late = 0
            self._ceiling = min(self.most, self._ceiling * 1.05)
            fitting = min(self._size / max(size, 1), self._seconds / max(seconds, 1e-3)) * records
            if records < self.now and fitting > self.now:
                return  # a last portion says nothing of larger ones
            self.now = int(max(1, self.now // 2, min(fitting, 2 * self.now, self._ceiling)))
            self.now = min(self.now, max(1, int(self._ceiling)))

    def failed(self, records: int, *, by: int = 2) -> None:
        """A request of so many was too large: now ``by`` times fewer."""
        with self._lock:
            self.now = max(1, min(self.now, records // by))
            self._ceiling = self.now

    def cap(self, most: int) -> None:
        """Never more than so many, from now on."""
        with self._lock:
            self.most = max(1, min(self.most, most))
            self._ceiling = self.now = self.most

    def blame(self, error: ServerFailed, records: int) -> bool:
        """Whether a request of so many records may have failed for being too large; then they are fewer from now on."""
        if isinstance(error, ServerAnswered):
            return self._learn(error, records)
        if isinstance(error, ServerSilent) and error.timed_out:
            self._late += 1
            self.failed(records, by=_LATE_BY)
            return self._late < _LATE
        if isinstance(error, AnswerTooLarge):
            self.failed(records)
            return True
        return False

    def _learn(self, error: ServerAnswered, records: int) -> bool:
        """Whether the server says that these were too many; if it names a limit, that holds from now on."""
        too_many = error.status == 413
        if error.status in (400, 422) and _COUNTED.search(error.message) and (found := _LIMIT.search(error.message)):
            limit = int(found[1])
            if 0 < limit < records:
                self.cap(limit)
                return True
        if too_many:
            self.failed(records)
        return too_many
