"""Bookkeeping: the books of a run's door, and the door together with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.errors import UsageError
from chromakeep.events import Observer
from chromakeep.operations.duty import Front
from chromakeep.operations.outputs import STDOUT, Rotated, Stream
from chromakeep.server.access_log import AccessLog
from chromakeep.server.answers import refusal
from chromakeep.server.auditing import Auditing
from chromakeep.server.door import Door
from chromakeep.server.exposition import Exposition, library
from chromakeep.server.gate import Page, Refusal
from chromakeep.server.guard import Account, Ledger, Plain
from chromakeep.server.ledgers import several
from chromakeep.server.metrics import Metrics
from chromakeep.server.request_head import RequestHead

if TYPE_CHECKING:
    from chromakeep.server.tracing import Tracing

FLUSH = 1.0  # seconds for what the books still have to write when the door is closed
METRICS = "/metrics"


class Bookkeeping:
    """What ``front`` asks for. ``ledger`` is the door's, ``metrics`` a page for it; ``pages`` are also shown on
    the port that the metrics may have of their own."""

    def __init__(self, front: Front, pages: Mapping[str, Callable[[], Page]] = {}) -> None:
        books = front.books
        self._audit, self._metrics_port = front.audit, books.metrics_port
        metrics, self._access_log = Metrics(), _access_log(front)
        self._auditing = Auditing(front.audit.record) if front.audit else None
        numbers: dict[str, Callable[[], float]] = {}
        if log := self._access_log:
            numbers["access_log_dropped_lines"] = lambda: log.dropped
        if audit := front.audit:
            numbers["audit_dropped_records"] = lambda: audit.dropped
            numbers["audit_failing"] = lambda: audit.failing is not None
            numbers["audit_unshipped_records"] = lambda: audit.unshipped
        self._tracing = _tracing(front.observer) if books.traces else None
        self.ledger: Ledger | None = several(metrics, self._access_log, self._auditing, self._tracing)
        self._exposition = Exposition(metrics, front.read, numbers, front.observer)
        self.metrics = self._exposition.page
        self._own: Door | None = None
        if books.metrics_port is not None:
            self._own = Door(
                books.metrics_host,
                books.metrics_port,
                front.backend,
                pages={**pages, METRICS: self._exposition.now},
                guard=_NothingElse(),
                observer=front.observer,
            )

    @property
    def metrics_port(self) -> int | None:
        """Where the metrics have a port of their own; once started."""
        return self._own.port if self._own else None

    def start(self) -> None:
        """Open all of them. Raises ``UsageError``, ``RefusedToServe``, ``ServerFailed``."""
        if self._own and not library():
            raise UsageError("metrics need a library", hint="pip install 'chromakeep[server]'")
        if self._access_log:
            self._access_log.start()
        if self._audit:
            self._audit.start()
        self._exposition.start()
        if self._own:
            self._own.start()

    def stop(self) -> None:
        """Write what is left. Any number of times; nothing may be told to the ledger any more."""
        if self._own:
            self._own.stop(0.0)
        self._exposition.stop()
        if self._auditing:
            self._auditing.close()
        if self._access_log:
            self._access_log.stop(FLUSH)
        if self._audit:
            self._audit.stop(FLUSH)
        if self._tracing:
            self._tracing.close()


class BookedDoor:
    """A door and its books, opened and closed together."""

    def __init__(self, door: Door, books: Bookkeeping) -> None:
        self.door, self.books = door, books

    def start(self) -> None:
        """The books first, so that no request is missing in them."""
        try:
            self.books.start()
            self.door.start()
        except BaseException:
            self.books.stop()
            raise

    def stop(self, drain: float) -> None:
        """The door first."""
        self.door.stop(drain)
        self.books.stop()


class _NothingElse(Plain):
    """The guard of a door that has pages only."""

    def rule(self, head: RequestHead, account: Account) -> Refusal | Page | None:
        return refusal(404, "there is nothing here but /metrics, /healthz and the like")


def _tracing(observer: Observer) -> Tracing:
    from chromakeep.server.tracing import Tracing  # few doors have one

    return Tracing(observer)


def _access_log(front: Front) -> AccessLog | None:
    books = front.books
    if books.access_log is None:
        return None
    if books.access_log == STDOUT:
        return AccessLog(Stream(1), front.observer)
    file = Rotated(Path(books.access_log), books.access_log_size, books.access_log_age, books.access_log_keep)
    return AccessLog(file, front.observer)
