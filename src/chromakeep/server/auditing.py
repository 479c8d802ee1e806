"""Auditing: which requests are recorded in the audit log, and what of them. A ledger."""

from __future__ import annotations

from collections.abc import Callable

from chromakeep.server.access_log import trace_of
from chromakeep.server.guard import UNREAD, Account
from chromakeep.server.routes import is_write

DENIALS = frozenset({401, 403, 429})
MOST_DENIALS = 100  # in a minute that are recorded one by one: a guesser must not fill the disk
MINUTE, HOUR = 60.0, 3600.0
_LONGEST = 1024  # characters of a name or path
_MOST_PAIRS = 10_000  # of key and peer that are remembered


class Auditing:
    """Records every write that was tried, denials, and the first use in an hour of a key by a peer.

    ``record`` takes the fields; it must not block.
    """

    def __init__(self, record: Callable[[dict[str, object]], None]) -> None:
        self._record = record
        self._used: dict[tuple[str, str], float] = {}
        self._minute, self._denials = 0.0, 0

    def begun(self, account: Account) -> None:
        """Nothing is known of it yet."""

    def ended(self, account: Account, now: float) -> None:
        """Record it, if it is of those."""
        if self._denials and now - self._minute >= MINUTE:
            self._close_minute()
        if account.status in DENIALS:
            self._denied(account, now)
            return
        if account.key:
            pair = account.identity, account.peer
            if now - self._used.get(pair, -HOUR) >= HOUR:
                if len(self._used) >= _MOST_PAIRS:
                    self._used.clear()
                self._used[pair] = now
                self._record({"event": "key", **_who(account)})
        path = account.target.partition("?")[0]
        # Chunks of a directory that is received have no effect before it is put in place, by a POST.
        chunk = account.method == "PUT" and path.startswith("/_keep/")
        if account.route != UNREAD and is_write(account.method, path) and not chunk:
            self._record(_fields("write", account, path))

    def _denied(self, account: Account, now: float) -> None:
        if not self._denials:
            self._minute = now
        self._denials += 1
        if self._denials <= MOST_DENIALS:
            self._record(_fields("denied", account, account.target.partition("?")[0]))

    def close(self) -> None:
        """Record what has only been counted."""
        self._close_minute()

    def _close_minute(self) -> None:
        more, self._denials = self._denials - MOST_DENIALS, 0
        if more > 0:
            self._record({"event": "denied more", "requests": more})


def outcome(status: int) -> str:
    """``done``, ``refused``, ``failed`` (it may have been done in part), or ``unanswered``."""
    if not status:
        return "unanswered"
    return "done" if status < 400 else "refused" if status < 500 else "failed"


def _who(account: Account) -> dict[str, object]:
    """The key's name is for people: those of an issuer's subjects may be alike, and a rotated key has that of the one
    before."""
    return {"key": account.key[:_LONGEST], "key_id": account.identity, "peer": account.peer}


def _fields(event: str, account: Account, path: str) -> dict[str, object]:
    fields: dict[str, object] = {
        "event": event,
        **_who(account),
        "method": account.method[:32],
        "route": account.route,
        "path": path[:_LONGEST],
        "tenant": account.tenant[:_LONGEST],
        "database": account.database[:_LONGEST],
        "collection": account.collection[:_LONGEST],
        "records": account.watch.records if account.watch else None,
        "status": account.status,
        "outcome": outcome(account.status),
    }
    if trace := trace_of(account.trace):
        fields["trace"] = trace
    return fields
