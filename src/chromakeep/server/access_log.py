"""The access log: a line of JSON for each request, written by a thread. No token, no query string, no body."""

from __future__ import annotations

import json
import re
import time

from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.outputs import Output, utc
from chromakeep.operations.scribe import Scribe
from chromakeep.server.guard import Account

_LONGEST = 2048  # characters of a path that are written
_TRACE = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)
Told = tuple[float, Account, float]  # when it ended (seconds since 1970), what it was, how long it took


class AccessLog:
    """A ledger. Drops lines that the thread cannot write, rather than let a request wait."""

    def __init__(self, output: Output, observer: Observer = ignore) -> None:
        self._output, self._observer, self._failed = output, observer, False
        self._lost = 0  # lines that could not be written
        self._scribe: Scribe[Told] = Scribe("access log", self._write)

    def start(self) -> None:
        """Begin. Raises ``UsageError`` if nothing can be written there."""
        self._output.open()
        self._scribe.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Write what is left, as far as that is possible in this time."""
        self._scribe.stop(timeout)

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._scribe.dropped + self._lost

    def begun(self, account: Account) -> None:
        """Nothing is told of it yet."""

    def ended(self, account: Account, now: float) -> None:
        """Have it written."""
        self._scribe.put((time.time(), account, now - account.begun))

    def _write(self, batch: list[Told]) -> None:
        if not batch:
            return
        try:
            self._output.write(b"".join([line_of(*each) for each in batch]))
            self._failed = False
        except OSError as error:
            self._lost += len(batch)
            if not self._failed:
                self._failed = True
                why = error.strerror or str(error)
                self._observer(Noted(f"the access log cannot be written: {why}; its lines are dropped", "warning"))


def line_of(at: float, account: Account, seconds: float) -> bytes:
    """A request as one line of ASCII JSON that ends in a newline and has no other control character."""
    fields = {
        "time": utc(at),
        "method": account.method,
        "route": account.route,
        "path": account.target.partition("?")[0][:_LONGEST],
        "status": account.status,
        "seconds": round(seconds, 6),
        "received": account.received,
        "sent": account.sent,
        "key": account.key,
        "tenant": account.tenant,
        "database": account.database,
        "collection": account.collection,
        "peer": account.peer,
        "trace": trace_of(account.trace),
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def trace_of(field: bytes) -> str:
    """The id of the trace in a ``traceparent``; "" where it is none."""
    found = _TRACE.fullmatch(field)
    return found[1].decode() if found else ""
