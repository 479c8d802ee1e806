"""Keep: a snapshot every so often when something changed, and a last one at the end, beside the serving.

Between snapshots Chroma's queue keeps every row (``chroma.purge``): with the last snapshot they make any state again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.chroma.catalog import DATABASE, Catalog, collection_count
from chromakeep.chroma.signature import signature
from chromakeep.chroma.tail import catalog_of
from chromakeep.errors import (
    ChromakeepError,
    LeaseLost,
    NotAChromaDirectory,
    NotNow,
    SourceBroken,
    SourceBusy,
    StoreError,
    VerificationFailed,
)
from chromakeep.events import Event, Noted, Observer, PhaseStarted, ignore
from chromakeep.operations.beside import Beside
from chromakeep.operations.held_queue import HeldQueue
from chromakeep.operations.memory import give_back
from chromakeep.operations.reading import Reading
from chromakeep.operations.ship import Shipping
from chromakeep.operations.sighting import Sighting
from chromakeep.operations.tenure import Tenure
from chromakeep.records import Collection
from chromakeep.repository.lease import Lease, belongs, newest
from chromakeep.repository.log import Log
from chromakeep.repository.merging import merge

if TYPE_CHECKING:
    from chromakeep.repository import Repository

PACE = 2e6  # bytes a second that snapshots may take of a directory whose commits are logged: some 1.5 % of a core
FIRST_RETRY = 5.0  # seconds after a failed snapshot; doubled each time, never more than ``every`` or a minute
SETTLE = 10.0  # seconds for what is not in the log yet
RELEASE = 30.0  # seconds that a snapshot may read a directory that is to be left as Chroma would


class Keeping:
    """One thread that takes snapshots, never two at once. A failure is told and tried again; it never stops serving.

    ``access`` is held while the directory is read: whoever replaces it takes it first.
    """

    def __init__(
        self,
        beside: Beside,
        open_repository: Callable[[], Repository],
        *,
        every: float,
        stage: Path | None,
        observer: Observer = ignore,
    ) -> None:
        self.access = threading.Lock()
        self.taken = 0
        self.newest: str | None = beside.state.snapshot
        self.newest_at: float | None = None  # monotonic; None: none in this run
        self.failure: ChromakeepError | None = None  # of the last attempt
        self.collections: tuple[Collection, ...] = ()
        self.sighting = Sighting()  # where something is missing that was here, that is no state to keep
        self._beside, self._open, self._every, self._stage, self._observer = (
            beside, open_repository, every, stage, observer,
        )  # fmt: skip
        self._repository: Repository | None = None
        self._queue = HeldQueue(beside.data / DATABASE, observer)
        self._applied: dict[str, int] = {}  # by topic, of the newest snapshot
        self._counter = -1  # SQLite's, of that state
        self._size = 0  # bytes, of that snapshot
        self.awaited = False  # the repository was not there yet, and so there is no lease
        self.undecided = False  # the repository does not answer, and so it is not known whether another one writes
        self._token = secrets.token_hex(8)  # of a lease that is tried for again and again
        self._overtaken = False
        self._barred = False  # this directory can have no log
        self._begun_in_vain: Callable[[], None] | None = None  # begins the log that could not begin yet
        self._directories = 0  # how many have taken the place of the first one
        self._over = False  # the lease's log has ended: the next one begins under another
        self._asked: list[Future[None]] = []
        self.lease: Tenure | None = None  # set: what is committed between snapshots goes into the log
        self.shipping: Shipping | None = None
        self._ending, self._wake = threading.Event(), threading.Event()
        self._beginning = threading.Lock()  # held while a log begins, or a snapshot is asked for
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, name="keep", daemon=True)

    def start(self) -> None:
        """Begin, if it has not begun; the first look is ``every`` seconds from now."""
        if self._thread.ident is None:
            self._thread.start()

    def soon(self) -> None:
        """Have the next look now."""
        self._wake.set()

    def ship(self, base: str | None, known: Mapping[str, int] | None = None, *, held: str | None, of: int = 0) -> None:
        """Begin the log on a snapshot that has all of the directory but what its queue still holds, or (None) on the
        end of the log before, from which the directory was made: by topic, up to the rows ``known``. ``held``: the
        hold that its queue was under since then.

        Without effect without a lease, or with a log already. ``of``: of which directory that snapshot is; where
        another one has taken its place since, a snapshot of that one is asked for.
        """
        with self._beginning:
            self._ship(base, known, held, of)

    def _ship(self, base: str | None, known: Mapping[str, int] | None, held: str | None, of: int) -> None:
        if self.lease is None or self._barred or self.shipping is not None:
            return
        data = self._beside.data
        try:
            schema = self._schema_of(base)
            with self.access:
                if of != self._directories:
                    self.soon()
                    return
                if self._over:
                    self._succeed()
                made = Shipping(
                    data / DATABASE,
                    self.lease,
                    source=str(data),
                    base=base,
                    known=known,
                    held=held,
                    hold=self.hold,
                    on_broken=self.soon,
                    observer=self._observer,
                )
                if made.schema != schema:
                    # Chroma was upgraded since: what its tables are now does not fit what they were there.
                    made.close()
                    self.soon()
                    return
                # Before anything is put: who dies in between has not been overtaken by himself.
                self._beside.remember(epoch=self.lease.epoch)
                if self._ending.is_set():
                    made.let_go(held)  # it was, for a clean end; and nobody writes any more
                made.start()
                self.shipping = made
        except (StoreError, SourceBusy) as error:
            self._observer(Noted(f"the log does not begin yet: {error.message}; trying again", "warning"))
            self._begun_in_vain = partial(self.ship, base, known, held=held, of=of)
            return
        except LeaseLost:
            return  # which ``lost`` tells
        except ChromakeepError as error:
            self._observer(Noted(f"no log is written, only snapshots are taken: {error}", "warning"))
            self._barred = True

    def _succeed(self) -> None:
        """Begin another reign, after that whose log has ended. Raises ``StoreError``, ``LeaseLost``."""
        assert self.lease
        try:
            self.lease = self.lease.succeeded()
        except LeaseLost as error:
            self.lease.give_up(error)
            raise
        self._over = False

    @property
    def age(self) -> float | None:
        """Seconds since the newest snapshot of this run; None if there is none."""
        return round(time.monotonic() - self.newest_at, 1) if self.newest_at else None

    @property
    def size(self) -> int:
        """Bytes of the directory in the newest snapshot of this run; 0 if there is none."""
        return self._size

    @property
    def lost(self) -> bool:
        """Whether another instance writes to the repository: nothing that is committed here may be acknowledged."""
        return self._overtaken or bool(self.lease and self.lease.lost.is_set())

    def _claim(self, repository: Repository) -> None:
        """Take the lease of a repository that was not there when this instance began, if nobody else was quicker.

        Raises ``LeaseLost``; ``StoreError``, and then it is to be tried again.
        """
        if not self.awaited:
            return
        try:
            taken = newest(repository)
            if taken and not belongs(repository, taken, self._token):
                raise LeaseLost("another instance began to write to this repository at the same time")
            if repository.config.conditional_put and not self._ending.is_set():  # a last snapshot needs no log
                self.lease = Tenure(Lease.take(repository, over=taken, token=self._token), self._observer)
        except LeaseLost:
            self._overtaken = True
            raise
        self.awaited = False

    def _schema_of(self, base: str | None) -> str | None:
        """The schema of what a log would build on; None where it cannot be told. Raises ``StoreError``."""
        assert self.lease
        repository, after = self.lease.repository, self.lease.after
        try:
            if base is not None:
                found = repository.snapshot(f"snapshots/{base}")
                return found.schema if found else None
            first = Log(repository).read(after[0], 1) if after else None
            return first.schema if first else None
        except VerificationFailed:
            return None

    def begin_anew(self) -> None:
        """Another directory has taken the place, or will before anything is written, or the log has nothing to build
        on: end the log, and let the next snapshot begin another one. ``access`` is held. Raises ``LeaseLost``."""
        self._directories += 1
        self._applied, self._counter, self._size = {}, -1, 0  # of the one before
        self._begun_in_vain, self._barred, self.collections = None, False, ()
        self._beside.remember(captured=None)
        if not self._ending.is_set():
            self._queue.anew()
        shipping, self.shipping = self.shipping, None
        if shipping and self.lease:
            shipping.close()
            self._over = True
            with suppress(StoreError):  # then when the next one begins
                self._succeed()

    @property
    def replaced(self) -> bool:
        """Whether somebody has put another directory in the place of the one whose log is written."""
        shipping = self.shipping
        return shipping is not None and shipping.replaced

    def recognise(self) -> bool:
        """Where the directory was ``replaced``, begin anew with what lies there: what will be written to, or is by a
        server that is not ours. Whether it was. Raises ``LeaseLost``."""
        with self.access:
            if not self.replaced:
                return False
            self._observer(Noted(f"{self._beside.data} was replaced: its log begins anew", "warning"))
            self.begin_anew()
        self.soon()
        return True

    def _see_to_the_log(self) -> None:
        """Begin it where it could not yet; where nothing leads on from it, let the next snapshot begin it anew."""
        with self.access:
            if self.shipping and self.shipping.broken:
                self._observer(Noted(f"{self.shipping.broken}: the log begins anew", "warning"))
                self.begin_anew()
        if begin := self._begun_in_vain:
            self._begun_in_vain = None
            begin()

    def settle(self, *, snapshot: bool = False) -> None:
        """Have all that was committed before this call in the repository: in the log, or in a ``snapshot``.

        Raises what hinders it; ``NotNow`` when it takes too long. A directory that is broken has no snapshot: that is
        told, and the disk keeps it.
        """
        if self.shipping:
            try:
                self.shipping.shipped().result(SETTLE)
            except Late:
                raise NotNow(f"the repository has not taken what was written last in {SETTLE:g} s") from None
        if snapshot or not self.shipping:
            try:
                self.snapshot().result()
            except SourceBroken as error:
                self._observer(Noted(f"no snapshot can be taken of what is replaced: {error.message}", "warning"))

    def snapshot(self) -> Future[None]:
        """Done when a snapshot that began after this call is there, or the newest one has everything; or fails."""
        ticket: Future[None] = Future()
        with self._beginning:
            if self._done.is_set():
                ticket.set_exception(NotNow("this instance has stopped"))
            else:
                self._asked.append(ticket)
        self.soon()
        return ticket

    def hold(self, *, anew: bool = False) -> str | None:
        """Hold Chroma's purge of its queue; beside a running server or without one, as often as one likes; ``anew``:
        also where it was let go, for a server begins.

        Which hold it is (``chroma.purge``); None where it is not held.
        """
        with self.access:  # never beside a capture in this process: its close would drop this one's locks
            return self._queue.begin(self.shipping) if anew else self._queue.hold()

    def release(self, patience: float = RELEASE, hurry: threading.Event | None = None) -> None:
        """Leave the directory as Chroma would, without that counting as a change. Nobody may be writing. Not where a
        snapshot reads it for longer than that."""
        deadline = time.monotonic() + patience
        while not self.access.acquire(timeout=0.05):
            if time.monotonic() > deadline or (hurry and hurry.is_set()):
                return
        try:
            before = signature(self._beside.data).to_json()
            if self._queue.release(self.shipping) and before == self._beside.state.captured:
                self._beside.remember(captured=signature(self._beside.data).to_json())
        finally:
            self.access.release()

    def _ready(self, copy: Path, begun: float) -> None:
        """Before a snapshot is there: see to it that nothing is missing in it, and that the log leads on from it."""
        if missing := self.sighting.captured(collection_count(copy / DATABASE), begun):
            raise NotNow(missing)
        shipping = None if self._ending.is_set() else self.shipping  # at the end nobody writes
        ticket = shipping.captured(catalog_of(copy / DATABASE)) if shipping else None
        if ticket:
            try:
                ticket.result(SETTLE)
            except Late:
                raise NotNow(
                    f"the log does not lead on from what was captured: nothing was put for {SETTLE:g} s"
                ) from None

    def _published(self, copy: Path, counter: int, of: int) -> None:
        """Remember which rows of the queue the snapshot that was made of ``copy`` has in its indexes."""
        with Catalog(copy) as catalog:
            applied = {e.topic: min(e.metadata_seq, e.vector_seq or 0) for e in catalog.entries}
        with self.access:
            if of == self._directories:
                self._counter, self._applied = counter, applied

    def _purge(self) -> None:
        """Take those rows out of the queue. Only when there is a change to keep: it is one itself."""
        if self.shipping and self.shipping.counter < self._counter:
            return  # the log has not all of that state yet
        if self._applied and not self._ending.is_set():
            self._queue.purge(self._applied)

    def _live(self) -> None:
        failures = 0
        while not self._ending.is_set():
            self._wake.wait(self._pause(failures))
            self._wake.clear()
            if not self._ending.is_set():
                failures = 0 if self._attempt() else failures + 1
        self._attempt()
        with self._beginning:
            self._done.set()
            for ticket in self._asked:
                ticket.set_exception(NotNow("this instance has stopped"))

    def _pause(self, failures: int) -> float:
        if self._begun_in_vain:
            return min(self._every, FIRST_RETRY)
        if not failures:
            return max(self._every, self._size / PACE) if self.shipping else self._every
        return min(self._every, FIRST_RETRY * 2.0 ** (failures - 1), 60.0)

    def _attempt(self) -> bool:
        failure: ChromakeepError | None = None
        with self._beginning:
            asked, self._asked = self._asked, []
        try:
            self._see_to_the_log()
            self._snapshot()
        except NotAChromaDirectory:
            pass  # a fresh server has not written yet
        except ChromakeepError as error:
            failure = error
        except Exception as error:  # a fault of ours must not end the keeping either
            failure = ChromakeepError(f"{type(error).__name__}: {error}")
        give_back()
        self.failure = failure
        if failure:
            again = "" if self._ending.is_set() else ", it will be tried again"
            self._observer(Noted(f"snapshot failed{again}: {failure}", "warning"))
            with self.access:
                self._queue.relieve(self.shipping)
        for ticket in asked:
            if failure:
                ticket.set_exception(failure)
            else:
                ticket.set_result(None)
        return failure is None

    def _snapshot(self) -> None:
        if self.lost:
            raise LeaseLost("another instance writes to this repository")
        if self.undecided:
            raise NotNow("it is not known yet whether another instance writes to this repository")
        if missing := self.sighting.gone:
            raise NotNow(missing)
        from chromakeep.operations.backup import backup

        before = signature(self._beside.data).to_json()
        if before == self._beside.state.captured:
            return
        if self._repository is None:
            self._repository = self._open()
        self._claim(self._repository)
        with Reading(self.access) as reading:
            if self.replaced:
                raise NotNow(f"{self._beside.data} is not the directory any more whose log is written")
            held = self._queue.hold(again=not self._ending.is_set())
            self._purge()
            before = signature(self._beside.data).to_json()
            of = self._directories

            def watch(event: Event) -> None:
                # What follows the capture works on the copy: a rescue need not wait for an upload.
                if isinstance(event, PhaseStarted) and event.phase != "capture":
                    reading.end()
                elif isinstance(event, PhaseStarted):
                    reading.begin()  # again, where the first capture was not exact
                    if of != self._directories:  # it would be published as a state of the log of the one before
                        raise NotNow("another directory has taken the place of this one meanwhile")
                self._observer(event)

            # That the last collection was deleted is a state too, where there was one before.
            emptied = self.newest is not None
            line = self.shipping.line if self.shipping else None
            done = backup(
                self._beside.data,
                self._repository,
                stage=self._stage,
                allow_empty=emptied or self.lease is not None,  # a log needs something to build on
                line=line,
                ready=partial(self._ready, begun=time.monotonic()),
                published=partial(self._published, of=of),
                observer=watch,
            )
        self.taken += 1
        self._size = done.total_bytes
        self.newest, self.newest_at = done.snapshot, time.monotonic()
        with self.access:
            if self._queue.relieved and of == self._directories and not self._ending.is_set():
                self._queue.relieved = False
                self.begin_anew()
                of = self._directories
            if of == self._directories:
                self.collections = done.collections
                self._beside.remember(captured=before, snapshot=done.snapshot)
        self.ship(done.snapshot, held=held, of=of)
        self._observer(
            Noted(
                f"snapshot {done.snapshot}: {_megabytes(done.new_bytes)} new of {_megabytes(done.total_bytes)}"
                f" in {done.seconds:.1f} s, writers waited {done.pause_seconds * 1000:.0f} ms"
            )
        )
        if line and not self._ending.is_set():
            self._merge(*line)

    def _merge(self, epoch: int, number: int) -> None:
        """Merge the log that lies before a snapshot, and the end of the log that this one goes on from."""
        assert self.lease
        before = self.lease.after
        try:
            for one, upto in ((before[0], None), (epoch, number)) if before else ((epoch, number),):
                merge(self.lease.repository, one, upto, stop=self._ending.is_set)
        except ChromakeepError as error:  # the log is as good as before, in more objects
            self._observer(Noted(f"the log was not merged: {error}", "warning"))

    def end(self) -> None:
        """Show no sign of life any more, released or not."""
        if self.lease:
            self.lease.end()

    def finish(self, timeout: float, hurry: threading.Event) -> bool:
        """Ship what is left and take a last snapshot if something changed. Nobody may be writing.

        Whether all is in the repository in time: for that the log alone is enough. A snapshot alone is only where there
        is none: one that holds more than its log is refused once another instance has taken over.
        """
        deadline = time.monotonic() + timeout
        self._ending.set()
        shipping = self.shipping
        shipped = shipping is not None and shipping.finish(timeout, hurry)
        self._wake.set()
        self.start()
        while not self._done.wait(0.05):
            if time.monotonic() > deadline or hurry.is_set():
                return shipped
        while self._begun_in_vain and time.monotonic() < deadline and not hurry.wait(0.1):
            self._see_to_the_log()
        if self.shipping is not shipping:  # it began on that snapshot: who takes over builds on it, as a standby would
            return self.shipping is not None and self.shipping.finish(deadline - time.monotonic(), hurry)
        if self.lease and not shipping:
            with suppress(ChromakeepError):
                self.lease.release()  # nobody has to wait for this instance
        behind = shipping is not None and shipping.counter < self._counter
        return shipped or not (self.failure or behind or self._begun_in_vain)


def _megabytes(count: int) -> str:
    """In three digits: a small change must not read as none."""
    return f"{count / 1e6:.3g} MB" if count < 999e6 else f"{count / 1e6:,.0f} MB"
