"""Ship: every commit of a live database goes into the log, a fraction of a second after it was made.

One thread looks whether anything was committed (a ``stat``), reads what it was in one read transaction and puts it as
one segment; however many writers there were meanwhile, they share it. What cannot be put is tried again for as long as
it takes; the rest stays in the queue, so memory is bounded by one segment.

It stays there as long as the purge of the queue is held (``chroma.purge``). Where it was not between two looks, as
after a reset of Chroma, and the queue does not show that no row is gone, the log ends: ``broken``.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from chromakeep.changes import Change
from chromakeep.chroma.catalog import schema_of
from chromakeep.chroma.purge import complete, holding
from chromakeep.chroma.tail import Tables, Tail
from chromakeep.errors import ChromakeepError, LeaseLost, NotNow, SourceBusy, StoreError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.tenure import Tenure
from chromakeep.repository.log import Log, Segment
from chromakeep.repository.trimming import stands

LOOK = 0.2  # seconds between two looks: some commits share a put, which costs more than all else here
PATIENCE = 4  # looks at which a purge is found not held before it is held all the same
SLOWEST = 5.0  # seconds between two tries of a put that fails
T = TypeVar("T")


class Standing(msgspec.Struct, frozen=True):
    """How far the log is: epoch, last segment, seconds that it lags, seconds for which puts have failed (or None)."""

    epoch: int
    number: int
    lag: float
    failing: float | None


class Shipping:
    """Ships into the epoch of ``lease``. ``base`` names the snapshot it builds on, None: ``lease.after``; ``known``
    gives by topic the last row that this has already. ``held``: the hold that the purge has been under since then;
    ``hold`` holds it again, ``on_broken`` is called in the thread that ships.

    Nothing is shipped once the lease is lost.
    """

    def __init__(
        self,
        database: Path,
        lease: Tenure,
        *,
        source: str,
        base: str | None,
        known: Mapping[str, int] | None = None,
        held: str | None,
        hold: Callable[[], object],
        on_broken: Callable[[], None],
        observer: Observer = ignore,
    ) -> None:
        self.lease = lease
        self.broken = ""  # why nothing leads on from this log, if so: rows may have gone that it has not, or its base
        self._held, self._hold, self._on_broken, self._let_go = held, hold, on_broken, False
        self._unheld: list[int] = []  # states in which the purge was not held, one look after the other
        self.counter = -1  # SQLite's, of the newest state in the log
        self._log = Log(lease.repository.brisk)
        # Clocks of two instances may differ by minutes: the log's times rise all the same.
        since = Log(lease.repository).last_time(*lease.after) if lease.after else None
        self._tail = Tail(database, dict(known or {}), since=since)
        self.schema = self._tail.schema
        self._source, self._base, self._observer = source, base, observer
        self._wake, self._ending, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._waiting: list[Future[None]] = []
        self._lock = threading.Lock()
        self.still = threading.Lock()  # while it is held nobody looks: whoever lets the purge go tells it in one step
        self._letting_go, self._gone = threading.Lock(), False  # of the database: its descriptor may be another file's
        self._behind: float | None = None  # monotonic; when something not yet shipped was first seen
        self._failing: float | None = None
        self._until = 0.0  # monotonic; how long the store is tried again at the end
        self._thread = threading.Thread(target=self._ship, name="ship", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.lease.on_lost = self._stop
        self._thread.start()

    # -- asked from other threads --------------------------------------------------------------------------------

    def shipped(self) -> Future[None]:
        """Done when everything committed before this call is in the log; fails with ``LeaseLost``."""
        ticket: Future[None] = Future()
        with self._lock:
            if self.lease.lost.is_set() or self._closed.is_set():
                ticket.set_exception(self._over("this instance does not write to the repository any more"))
                return ticket
            self._waiting.append(ticket)
        self._wake.set()
        return ticket

    def captured(self, catalog: Tables) -> Future[None] | None:
        """Done when the log leads on from a state with this catalog (``Tail.captured``); None where it does already."""
        return self.shipped() if self._tail.captured(catalog) else None

    def let_go(self, held: str | None) -> None:
        """The purge, ``held`` until now, is not any longer, on purpose: what becomes of the rows is not asked again."""
        self._let_go = self._let_go or held == self._held

    def held_again(self, held: str | None) -> None:
        """What was let go is ``held`` again (None: by nobody), and nobody has written in between."""
        if self._let_go:
            self._held, self._let_go = held, False

    @property
    def line(self) -> tuple[int, int]:
        """Epoch and number of the last segment."""
        return self.lease.epoch, self.lease.number

    @property
    def replaced(self) -> bool:
        """As ``Tail.replaced``; False of one that is closed, from which nothing leads anywhere."""
        with self._letting_go:
            return not self._gone and self._tail.replaced

    @property
    def standing(self) -> Standing:
        """How far the log is now."""
        now, behind, failing = time.monotonic(), self._behind, self._failing
        return Standing(*self.line, now - behind if behind else 0.0, now - failing if failing else None)

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self, timeout: float, hurry: threading.Event) -> bool:
        """Ship what is left, which is what changed since the last look, and let the next instance take over at once.

        Whether all of it is in the log. Nobody may be writing.
        """
        self._until = time.monotonic() + timeout
        self._ending.set()
        self._wake.set()
        while not self._closed.wait(0.05) and time.monotonic() < self._until and not hurry.is_set():
            pass
        done = self._closed.is_set() and not self.lease.lost.is_set() and self._behind is None
        if done:
            with suppress(StoreError, LeaseLost):
                self.lease.release()
        return done

    def close(self) -> None:
        """Let go of the database. Not while this process holds a lock on it (``chroma.locking``)."""
        self._ending.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._closed.wait(SLOWEST)
        with self._letting_go:
            self._gone = True
            self._tail.close()

    # -- the threads ---------------------------------------------------------------------------------------------

    def _ship(self) -> None:
        try:
            while not self._ending.is_set():
                self._wake.wait(LOOK)
                self._wake.clear()
                self._round()
            self._round(final=True)
        except LeaseLost as error:
            self.lease.give_up(error)
        except _Ended:
            pass
        except _Broken as error:
            self.broken = str(error)
        finally:
            self._closed.set()
            self._fail_waiting(self._over("this instance has stopped"))
        if self.broken:
            self._on_broken()

    def _over(self, why: str) -> ChromakeepError:
        return NotNow("the log begins anew") if self.broken else LeaseLost(why)

    def _round(self, *, final: bool = False) -> None:
        with self._lock:
            tickets, self._waiting = self._waiting, []
        try:
            if tickets or final or self._try(self._tail.changed):
                begun = time.monotonic()
                self._behind = self._behind or begun
                while (change := self._try(partial(self._look, final))) is not None:
                    self._try(partial(self._put, change))
                    if not change.more:
                        break
                self._behind = None
            for ticket in tickets:
                if ticket.set_running_or_notify_cancel():  # whoever waited may have gone
                    ticket.set_result(None)
        except BaseException:
            with self._lock:
                self._waiting = tickets + self._waiting
            raise

    def _look(self, final: bool) -> Change | None:

        def look() -> Change | None:
            with self.still:  # not while the purge is held again, for which others may have to end first
                return self._tail.look(final=final, also=self._see_that_it_was_held)

        try:
            return look()
        except _NotHeld:
            self._hold()
            return look()

    def _see_that_it_was_held(self, connection: sqlite3.Connection, _rows: object) -> None:
        held = holding(connection)
        if self._let_go or (held is not None and held == self._held):
            return
        if schema_of(connection) != self.schema:
            raise SourceBusy("Chroma is making its tables anew")
        if held is None and not self._ending.is_set():
            self._wait_for_the_end_of_a_reset(connection)
            raise _NotHeld("Chroma may purge its queue")
        if held is None or not complete(connection):
            raise _Broken("Chroma has purged what the log may not have")
        self._held = held

    def _wait_for_the_end_of_a_reset(self, connection: sqlite3.Connection) -> None:
        """``SourceBusy`` while commits follow each other: a write of ours in the middle would have the rest fail."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()  # another one after each commit of others
        self._unheld = [*self._unheld, version]
        if version not in self._unheld[:-1] and len(self._unheld) <= PATIENCE:
            raise SourceBusy("Chroma is making its tables anew")
        self._unheld = []

    def _put(self, change: Change) -> None:
        first = self.lease.number == 0
        segment = Segment(
            (change,),
            base=self._base if first else None,
            after=self.lease.after if first and self._base is None else None,
            schema=self.schema if first else None,
            source=self._source if first else None,
        )
        self._log.append(self.lease.epoch, self.lease.number + 1, segment)
        if segment.base is not None and not stands(self._log.repository, segment.base):
            raise _Broken("a prune takes away the snapshot that the log builds on")
        self.lease.number += 1
        if not change.more:
            self.counter = change.counter

    def _try(self, work: Callable[[], T]) -> T:
        """Until it succeeds; at the end only what a store refuses, until the time is up (``_Ended``)."""
        wait = 0.1
        while True:
            try:
                found = work()
            except (LeaseLost, _Broken):
                raise
            except Exception as error:  # also a fault of ours must not end the log while writes are acknowledged
                if self._failing is None:
                    self._failing = time.monotonic()
                    what = str(error) if isinstance(error, ChromakeepError) else f"{type(error).__name__}: {error}"
                    self._observer(Noted(f"the log is not written: {what}; trying again", "warning"))
                if self._ending.wait(wait):
                    if not isinstance(error, StoreError) or time.monotonic() > self._until:
                        raise _Ended from None
                    time.sleep(LOOK)
                wait = min(wait * 2, SLOWEST)
            else:
                if self._failing is not None:
                    seconds = time.monotonic() - self._failing
                    self._failing = None
                    self._observer(Noted(f"the log is written again, after {seconds:.1f} s"))
                return found

    def _stop(self, error: LeaseLost) -> None:
        self._ending.set()
        self._wake.set()
        self._fail_waiting(error)

    def _fail_waiting(self, error: ChromakeepError) -> None:
        with self._lock:
            tickets, self._waiting = self._waiting, []
        for ticket in tickets:
            if ticket.set_running_or_notify_cancel():
                ticket.set_exception(error)


class _NotHeld(SourceBusy):
    """A row may go before it is seen."""


class _Broken(Exception):
    """Nothing leads on from the log; why."""


class _Ended(Exception):
    """The time to ship what is left is up."""
