"""Exposition: what was counted and what is known of the run, as a page that Prometheus reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from chromakeep.events import Noted, Observer, ignore
from chromakeep.server.gate import Page
from chromakeep.server.metrics import Metrics

if TYPE_CHECKING:
    from chromakeep.operations.gauges import Reading

EVERY = 2.0  # seconds between two readings
STARTING = b'{"error":"ChromaError","message":"nothing has been measured yet"}'
TEXT = "text/plain; version=0.0.4; charset=utf-8"
MISSING = b'{"error":"ChromaError","message":"metrics need a library: pip install \'chromakeep[server]\'"}'
T = TypeVar("T")


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
