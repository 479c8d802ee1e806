"""Keep: a snapshot every so often when something changed, and a last one at the end, beside the serving.

Between snapshots Chroma's queue keeps every row (``chroma.purge``): with the last snapshot they make any state again.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.chroma.catalog import DATABASE, Catalog
from chromakeep.chroma.purge import hold, purge, release
from chromakeep.chroma.signature import signature
from chromakeep.errors import ChromakeepError, LeaseLost, NotAChromaDirectory, StoreError
from chromakeep.events import Event, Noted, Observer, PhaseStarted, ignore
from chromakeep.operations.beside import Beside
from chromakeep.operations.ship import Shipping
from chromakeep.operations.tenure import Tenure
from chromakeep.records import Collection
from chromakeep.repository.lease import Lease, newest
from chromakeep.repository.log import Log
from chromakeep.repository.merging import merge

if TYPE_CHECKING:
    from chromakeep.repository import Repository

PACE = 2e6  # bytes a second that snapshots may take of a directory whose commits are logged: some 1.5 % of a core
LOW = 0.1  # of the disk free: then the queue is let go, for a full disk ends the serving
FIRST_RETRY = 5.0  # seconds after a failed snapshot; doubled each time, never more than ``every`` or a minute


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
        self._beside, self._open, self._every, self._stage, self._observer = (
            beside, open_repository, every, stage, observer,
        )  # fmt: skip
        self._repository: Repository | None = None
        self._applied: dict[str, int] = {}  # by topic, of the newest snapshot
        self._counter = -1  # SQLite's, of that state
        self._size = 0  # bytes, of that snapshot
        self.awaited = False  # the repository was not there yet, and so there is no lease
        self._overtaken = False
        self._begun_in_vain: tuple[str | None, Mapping[str, int] | None] | None = None  # with what a log is to begin
        self.lease: Tenure | None = None  # set: what is committed between snapshots goes into the log
        self.shipping: Shipping | None = None
        self._ending, self._wake = threading.Event(), threading.Event()
        self._beginning = threading.Lock()  # held while a log begins: none does once the end has begun
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, name="keep", daemon=True)

    def start(self) -> None:
        """Begin, if it has not begun; the first look is ``every`` seconds from now."""
        if self._thread.ident is None:
            self._thread.start()

    def soon(self) -> None:
        """Have the next look now."""
        self._wake.set()

    def ship(self, base: str | None, known: Mapping[str, int] | None = None) -> None:
        """Begin the log on a snapshot that has all of the directory but what its queue still holds, or (None) on the
        end of the log before, from which the directory was made: by topic, up to the rows ``known``.

        Without effect without a lease, or with a log already.
        """
        with self._beginning:
            if not self._ending.is_set():
                self._ship(base, known)

    def _ship(self, base: str | None, known: Mapping[str, int] | None) -> None:
        if self.lease is None or self.shipping is not None:
            return
        data = self._beside.data
        try:
            with self.access:
                made = Shipping(
                    data / DATABASE, self.lease, source=str(data), base=base, known=known, observer=self._observer
                )
        except StoreError as error:
            self._observer(Noted(f"the log does not begin yet: {error.message}; trying again", "warning"))
            self._begun_in_vain = base, known
            return
        except ChromakeepError as error:
            self._observer(Noted(f"no log is written, only snapshots are taken: {error}", "warning"))
            self.lease = None
            return
        if made.schema != self._schema_of(base):
            # Chroma was upgraded since: what its tables are now does not fit what they were there.
            with self.access:
                made.close()
            self.soon()
            return
        made.start()
        self.shipping = made
        self._beside.remember(epoch=self.lease.epoch)

    @property
    def age(self) -> float | None:
        """Seconds since the newest snapshot of this run; None if there is none."""
        return round(time.monotonic() - self.newest_at, 1) if self.newest_at else None

    @property
    def lost(self) -> bool:
        """Whether another instance writes to the repository: nothing that is committed here may be acknowledged."""
        return self._overtaken or bool(self.lease and self.lease.lost.is_set())

    def _claim(self, repository: Repository) -> None:
        """Take the lease of a repository that was not there when this instance began, if nobody else was quicker."""
        if not self.awaited or self.lease:
            return
        self.awaited = False
        if newest(repository):
            self._overtaken = True
            raise LeaseLost("another instance began to write to this repository at the same time")
        with self._beginning:
            if not self._ending.is_set():  # a last snapshot needs no log
                self.lease = Tenure(Lease.take(repository), self._observer)

    def _schema_of(self, base: str | None) -> str | None:
        """The schema of what a log would build on."""
        assert self.lease
        repository, after = self.lease.repository, self.lease.after
        try:
            if base is not None:
                found = repository.snapshot(f"snapshots/{base}")
                return found.schema if found else None
            first = Log(repository).read(after[0], 1) if after else None
            return first.schema if first else None
        except ChromakeepError:
            return None

    def begin_anew(self) -> None:
        """The directory was replaced: end the log, and let the next snapshot begin another one. ``access`` is held."""
        if self.shipping and self.lease:
            self.shipping.close()
            self.lease.end()
            self.shipping, self.lease = None, Tenure(Lease.take(self.lease.repository), self._observer)

    def hold(self) -> None:
        """Hold Chroma's purge of its queue; beside a running server or without one, as often as one likes."""
        try:
            with self.access:  # never beside a capture in this process: its close would drop this one's locks
                hold(self._beside.data / DATABASE)
        except ChromakeepError as error:
            self._observer(Noted(f"the queue is not held: {error.message}; snapshots go on without it", "warning"))

    def release(self) -> None:
        """Leave the directory as Chroma would, without that counting as a change. Nobody may be writing."""
        if self.access.acquire(timeout=1):
            try:
                before = signature(self._beside.data).to_json()
                if release(self._beside.data / DATABASE) and before == self._beside.state.captured:
                    self._beside.remember(captured=signature(self._beside.data).to_json())
            finally:
                self.access.release()

    def _published(self, copy: Path, counter: int) -> None:
        """Remember which rows of the queue the snapshot that was made of ``copy`` has in its indexes."""
        self._counter = counter
        with Catalog(copy) as catalog:
            self._applied = {e.topic: min(e.metadata_seq, e.vector_seq or 0) for e in catalog.entries}

    def _purge(self) -> None:
        """Take those rows out of the queue. Only when there is a change to keep: it is one itself."""
        if self.shipping and self.shipping.counter < self._counter:
            return  # the log has not all of that state yet
        if self._applied and not self._ending.is_set():
            try:
                purge(self._beside.data / DATABASE, self._applied)
            except ChromakeepError as error:
                self._observer(Noted(f"the queue was not purged: {error.message}", "warning"))

    def _relieve(self) -> None:
        """Where snapshots fail and the disk fills up, rows that no snapshot has are not held any longer."""
        usage = shutil.disk_usage(self._beside.data)
        with suppress(ChromakeepError), self.access:
            if usage.free < LOW * usage.total and release(self._beside.data / DATABASE):
                said = (
                    f"{usage.free / 1e9:.1f} GB of the disk are left and no snapshot succeeds: Chroma's queue is let go"
                )
                self._observer(Noted(said, "warning"))

    def _live(self) -> None:
        failures = 0
        while not self._ending.is_set():
            self._wake.wait(self._pause(failures))
            self._wake.clear()
            if not self._ending.is_set():
                failures = 0 if self._attempt() else failures + 1
        self._attempt()
        self._done.set()

    def _pause(self, failures: int) -> float:
        if self._begun_in_vain:
            return min(self._every, FIRST_RETRY)
        if not failures:
            return max(self._every, self._size / PACE) if self.shipping else self._every
        return min(self._every, FIRST_RETRY * 2.0 ** (failures - 1), 60.0)

    def _attempt(self) -> bool:
        failure: ChromakeepError | None = None
        try:
            if begin := self._begun_in_vain:
                self._begun_in_vain = None
                self.ship(*begin)
            self._snapshot()
        except NotAChromaDirectory:
            pass  # a fresh server has not written yet
        except ChromakeepError as error:
            failure = error
        except Exception as error:  # a fault of ours must not end the keeping either
            failure = ChromakeepError(f"{type(error).__name__}: {error}")
        self.failure = failure
        if failure:
            again = "" if self._ending.is_set() else ", it will be tried again"
            self._observer(Noted(f"snapshot failed{again}: {failure}", "warning"))
            self._relieve()
        return failure is None

    def _snapshot(self) -> None:
        if self.lost:
            return
        from chromakeep.operations.backup import backup

        before = signature(self._beside.data).to_json()
        if before == self._beside.state.captured:
            return
        if self._repository is None:
            self._repository = self._open()
            self._claim(self._repository)
        with _Reading(self.access) as reading:
            self._purge()
            before = signature(self._beside.data).to_json()

            def watch(event: Event) -> None:
                # What follows the capture works on the copy: a rescue need not wait for an upload.
                if isinstance(event, PhaseStarted) and event.phase != "capture":
                    reading.end()
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
                published=self._published,
                observer=watch,
            )
        self.taken += 1
        self._size = done.total_bytes
        self.newest, self.newest_at, self.collections = done.snapshot, time.monotonic(), done.collections
        self._beside.remember(captured=before, snapshot=done.snapshot)
        self.ship(done.snapshot)
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

        Whether all is in the repository in time: for that the log alone is enough.
        """
        deadline = time.monotonic() + timeout
        self._ending.set()
        with self._beginning:
            shipping, lease = self.shipping, self.lease
        shipped = shipping is not None and shipping.finish(timeout)
        if lease and not shipping:
            with suppress(ChromakeepError):
                lease.release()  # nobody has to wait for this instance
        self._wake.set()
        self.start()
        while not self._done.wait(0.05):
            if time.monotonic() > deadline or hurry.is_set():
                return shipped
        return shipped or self.failure is None


class _Reading:
    """A lock that is let go when the block ends or earlier."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._held = lock, False

    def __enter__(self) -> _Reading:
        self._held = self._lock.acquire()
        return self

    def end(self) -> None:
        """Let go now."""
        if self._held:
            self._held = False
            self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.end()


def _megabytes(count: int) -> str:
    """In three digits: a small change must not read as none."""
    return f"{count / 1e6:.3g} MB" if count < 999e6 else f"{count / 1e6:,.0f} MB"
