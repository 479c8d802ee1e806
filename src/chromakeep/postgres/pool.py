"""Pool: a bounded number of connections, and transactions that are tried again where that is safe.

All connections go to a server that takes writes (``target_session_attrs=read-write``): a client reads what it wrote,
whichever instance it asks. After a failover the URL's other hosts are tried in turn.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from chromakeep.engine import Refused
from chromakeep.events import Observer, ignore
from chromakeep.postgres.conninfo import connection_parameters
from chromakeep.postgres.refusals import FULL, LATE, RETRY_AFTER, Reasons, crowded, refusal
from chromakeep.waiting import waiting

T = TypeVar("T")
Connection = psycopg.Connection[Any]

SIZE = 10
PATIENCE = 5.0  # seconds that a request waits for a connection
STATEMENT = 300.0  # seconds that a statement may take
STOPPED = 60.0  # seconds between two statements of a transaction, after which PostgreSQL undoes it
ATTEMPTS = 12  # of a transaction that deadlocked or was not serializable
LOST = 3  # of one whose connection was lost before it was committed
LIFETIME = 3600.0  # seconds of a connection, after which another takes its place; half as much at random
IDLE = 300.0  # seconds after which one that nobody needs is closed
HASTY = 0.1  # seconds for a statement, with fewer of which one is not used again: to give it more is a statement, too
# An instance whose machine is gone says no goodbye, and its session would keep its locks for two hours
_FOUND_OUT = b"SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
# How often PostgreSQL looks, while it works on a statement, whether we are there yet
_CHECKED = b"SET client_connection_check_interval = '2s'"


class Pool:
    """Asked by any number of threads. The ``observer`` is told why something was refused, where callers are not.

    Raises ``UsageError`` for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        size: int = SIZE,
        *,
        patience: float = PATIENCE,
        statement_timeout: float = STATEMENT,
        idle_timeout: float = STOPPED,
        observer: Observer = ignore,
    ) -> None:
        self._parameters = connection_parameters(url)
        self._size, self._patience = size, patience
        self._statement_timeout = statement_timeout
        self._session = b"%s; SET jit = off; SET idle_in_transaction_session_timeout = %d; %s" % (
            _timeout(statement_timeout),
            idle_timeout * 1000,
            _FOUND_OUT,
        )
        self._idle: deque[_Kept] = deque()  # the last that was given back is at the right, and taken first
        self._open = 0
        self._changed = threading.Condition()
        self._closed = False
        self.connected = 0.0  # when the last connection was made, monotonic
        self._reasons = Reasons(observer)

    def __repr__(self) -> str:
        return f"Pool({self._parameters.get('host', '')}, {self._open} of {self._size})"  # never the password

    def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        """What ``work`` returns. It may be called several times. With ``write`` it is done in one transaction which is
        committed by then, whoever waits for it; else each of its statements is one, which saves two round trips, and
        they end when nobody waits for them any more.

        Raises ``Refused``: 503 where nothing is changed and another try may help, 504 where nobody knows whether it was
        committed, or where nobody waits any more (``waiting``): a statement that goes on then is ended, and
        nothing is changed; ``Vanished``, and whatever ``work`` raises that is not psycopg's.
        """
        conflicts = losses = 0
        asked = waiting()
        while True:
            if asked.left <= 0:
                raise Refused(504, LATE)
            kept = self._take(asked.left)
            committing = False
            try:
                self._limit(kept, asked.left)
                if kept.connection.autocommit is write:
                    kept.connection.autocommit = not write
                with contextlib.nullcontext() if write else asked.until(kept.cut):
                    done = work(kept.connection)
                committing = True
                if write:
                    kept.connection.commit()
            except psycopg.Error as error:
                if asked.gone and not write:
                    self._discard(kept)
                    raise Refused(503, "nobody waits for this any more") from error
                lost = self._discard_if_lost(kept)
                if lost and committing and write:
                    unsure = Refused(504, "the connection to PostgreSQL was lost during a commit")
                    raise self._reasons.told(unsure, error) from error
                conflicts += _conflict(error)
                losses += lost
                if not (lost or _conflict(error)) or conflicts >= ATTEMPTS or losses >= LOST:
                    raise self._reasons.told(refusal(error), error) from error
                if conflicts:
                    time.sleep(random.uniform(0, 0.01 * 1.6**conflicts))
            except BaseException:
                self._discard_if_lost(kept)
                raise
            else:
                self._give(kept)
                return done

    @contextlib.contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection on which every statement is a transaction of its own and may take as long as it likes, beyond
        those that are counted. Closed at the end. Errors are psycopg's; one to connect is ``Refused``."""
        try:
            connection = self._connect()
            connection.execute("SET statement_timeout = 0")
        except psycopg.Error as error:
            raise self._reasons.told(refusal(error), error) from error
        with contextlib.closing(connection):
            yield connection

    def close(self) -> None:
        """Close all that are idle now, and others when they are given back; twice is once."""
        self._closed = True
        self._discard(*self._idle_ones())

    def _limit(self, kept: _Kept, left: float) -> None:
        """Its statements end when nobody waits for them any more. Most requests may take as long as the one before."""
        most = min(self._statement_timeout, left)
        if kept.limit != most:
            kept.connection.autocommit = True  # else it would be undone with the transaction
            kept.connection.execute(_timeout(most))
            kept.limit = most

    def _take(self, left: float) -> _Kept:
        until, full = time.monotonic() + min(self._patience, left), False
        kept: _Kept | None
        while True:
            with self._changed:
                while True:
                    if self._closed:
                        raise Refused(503, "this instance is stopping", retry_after=RETRY_AFTER)
                    if self._idle:
                        kept = self._idle.pop()
                        break
                    if self._open < self._size and not (full and self._open):  # whose are waited for, may be lost
                        self._open += 1
                        kept = None
                        break
                    if not self._changed.wait(until - time.monotonic()):
                        said = FULL if full else "all connections are busy"
                        raise Refused(503, said, retry_after=RETRY_AFTER)
            if kept is not None:
                if kept.usable():
                    return kept
                self._discard(kept)
                continue
            try:
                return _Kept(self._connect(), self._statement_timeout)
            except BaseException as error:
                with self._changed:
                    self._open -= 1
                    others = self._open
                    self._changed.notify()
                if not isinstance(error, psycopg.Error):
                    raise
                full = others > 0 and crowded(error)
                if not full:
                    raise self._reasons.told(refusal(error), error) from error

    def _connect(self) -> Connection:
        connection = psycopg.connect(**self._parameters, autocommit=True)
        try:
            connection.execute(self._session)
            with contextlib.suppress(errors.UndefinedObject, errors.InvalidParameterValue):
                connection.execute(_CHECKED)  # PostgreSQL has it from 14 on, not on Windows
        except BaseException:
            connection.close()
            raise
        self._reasons.reached()
        self.connected = time.monotonic()
        return connection

    def _give(self, kept: _Kept) -> None:
        now = time.monotonic()
        kept.since = now
        with self._changed:
            unneeded = [self._idle.popleft()] if self._idle and self._idle[0].since < now - IDLE else []
            if self._closed or now > kept.until or kept.limit < HASTY:
                unneeded.append(kept)
            else:
                self._idle.append(kept)
                self._changed.notify()
        if unneeded:
            self._discard(*unneeded)

    def _discard_if_lost(self, kept: _Kept) -> bool:
        """Undo its transaction and keep it, or close it where it is lost; True then."""
        with contextlib.suppress(psycopg.Error):
            kept.connection.rollback()
        if not kept.connection.closed:
            self._give(kept)
            return False
        self._discard(kept, *self._idle_ones())  # what cut this one has cut the others, too
        return True

    def _idle_ones(self) -> list[_Kept]:
        with self._changed:
            idle, self._idle = list(self._idle), deque()
        return idle

    def _discard(self, *several: _Kept) -> None:
        for kept in several:
            kept.close()
        with self._changed:
            self._open -= len(several)
            self._changed.notify_all()


class _Kept:
    """A connection, since when it is idle and until when it may live; ``limit``: seconds that a statement may take."""

    def __init__(self, connection: Connection, limit: float) -> None:
        self.connection, self.limit = connection, limit
        # A copy of its own, whatever libpq does with the one it has; of what family does not matter to a shutdown
        self._socket = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        self.since = time.monotonic()
        self.until = self.since + LIFETIME * random.uniform(0.5, 1)

    def usable(self) -> bool:
        """False where the other side has closed it, for what an idle one has to read is its end."""
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        return not poll.poll(0)

    def cut(self) -> None:
        """Let whoever waits for an answer of it have none. PostgreSQL notices in a moment, and ends what it does."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """For good."""
        self._socket.close()
        self.connection.close()


def _timeout(seconds: float) -> bytes:
    return b"SET statement_timeout = %d" % max(1, seconds * 1000)  # 0 is none


def _conflict(error: psycopg.Error) -> bool:
    """Whether it may be done another time; what was not there when it was looked for, and then was, among that."""
    return isinstance(error, (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation))
