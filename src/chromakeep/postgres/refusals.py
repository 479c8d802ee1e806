"""What a caller is told when PostgreSQL did not do something, and what the operator is.

PostgreSQL's own words name hosts, sockets, users, databases and tables: clients get fixed sentences, the log the words.
"""

from __future__ import annotations

import threading
import time
from typing import TypeVar

import psycopg
from psycopg import errors

from chromakeep.engine import Refused
from chromakeep.events import Noted, Observer, ignore

RETRY_AFTER = 1.0
QUIET = 60.0  # seconds without it, after which a trouble is told again
LONGEST = 500  # characters of PostgreSQL's words
AWAY = "PostgreSQL cannot be reached"
FULL = "PostgreSQL takes no more connections"
LATE = "PostgreSQL took too long, and nothing was changed"
_KNOWN = {  # SQLSTATE, or its class -> status, sentence
    "57014": (504, LATE),
    "53100": (507, "PostgreSQL has no space left, and nothing was changed"),
    "53200": (507, "PostgreSQL has no memory left, and nothing was changed"),
    "53300": (503, FULL),
    "25006": (503, "PostgreSQL takes no writes at the moment"),
    "08": (503, AWAY),
    "57": (503, AWAY),
    "54": (400, "this is larger than PostgreSQL takes"),
}
_CROWDED = ("too many clients", "too many connections", "remaining connection slots")  # before there is a SQLSTATE
E = TypeVar("E", bound=Exception)


class Vanished(Exception):
    """A table that a statement named, or a row that one is to belong to, is not there, or not any more."""


class Reasons:
    """Tells the operator why something was refused: once a trouble, not once a request. For any number of threads."""

    def __init__(self, observer: Observer = ignore, quiet: float = QUIET) -> None:
        self._observer, self._quiet = observer, quiet
        self._last: dict[str, float] = {}  # what was said of it -> when it was last, monotonic
        self._lock = threading.Lock()

    def told(self, refused: E, error: psycopg.Error) -> E:
        """What will be raised from psycopg's error. What a client did wrongly, and what vanished, is no trouble."""
        if not isinstance(refused, Refused) or refused.status < 500:
            return refused
        kind, now = refused.message, time.monotonic()
        with self._lock:
            last, self._last[kind] = self._last.get(kind), now
        if last is None or now - last > self._quiet:
            self._observer(Noted(f"{refused.message}: {words(error)}", "warning"))
        return refused

    def reached(self) -> None:
        """It was reached: that it is not will be news."""
        with self._lock:
            self._last.pop(AWAY, None)


def refusal(error: psycopg.Error) -> Refused | Vanished:
    """What a caller is told in place of psycopg's error, of a transaction that was undone. Raise it from the error."""
    said, state = words(error), error.sqlstate
    if isinstance(error, (errors.UndefinedTable, errors.ForeignKeyViolation)) or "could not open relation" in said:
        return Vanished(said)
    if isinstance(error, errors.InvalidRegularExpression):  # one that is right, but too large for PostgreSQL
        return Refused(400, f"Regex cannot be answered by PostgreSQL: {said}")
    passing = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    if state is None:
        status, sentence = (
            (503, FULL if crowded(error) else AWAY) if passing else (500, "PostgreSQL could not be asked this")
        )
    else:
        unknown = (503 if passing else 500, f"PostgreSQL did not do this (SQLSTATE {state})")
        status, sentence = _KNOWN.get(state) or _KNOWN.get(state[:2]) or unknown
    return Refused(status, sentence, retry_after=RETRY_AFTER if status == 503 else None)


def crowded(error: psycopg.Error) -> bool:
    """Whether a server that is there had no connection for us."""
    return any(said in str(error) for said in _CROWDED)


def explained(refused: Exception) -> str:
    """The refusal with PostgreSQL's words, for eyes of the operator."""
    error = refused.__cause__
    return f"{refused}: {words(error)}" if isinstance(error, psycopg.Error) else str(refused)


def words(error: psycopg.Error) -> str:
    """PostgreSQL's reason, or libpq's, in one line."""
    lines = [line.strip() for line in (error.diag.message_primary or str(error)).splitlines()]
    each = [line for line in lines if line.startswith("- host:")]  # where several were tried
    return "; ".join(each or [line for line in lines if line])[:LONGEST] or "no reason given"
