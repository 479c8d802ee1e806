"""Capture: an exact copy of a data directory that Chroma goes on writing to.

What is copied is one instant: the state of SQLite while a SHARED lock keeps commits out, and HNSW files that did not
change from before they were copied until that lock was held. The bulk is copied without the lock; under it only what
was committed since is read again (nothing at all, if nothing was). Where writers leave no gap for that, patience ends
after seconds: they are then held until what they were faster with is copied too.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import child
from chromakeep.chroma.copying import Copier, Patch, apply, clone, copy_file
from chromakeep.chroma.freelist import zero_free_pages
from chromakeep.chroma.locking import HotJournal, LiveDatabase, open_in_this_process
from chromakeep.chroma.persists import (
    Segment,
    Stamps,
    in_order,
    incomplete,
    may_be_unregistered,
    segments,
    stamps,
)
from chromakeep.chroma.premises import COMPANIONS, PART, allocated, check_paths, check_room, translated
from chromakeep.chroma.purge import release_copy
from chromakeep.chroma.signature import COARSE, DATABASE, SEGMENT_FILES, TICK, Stamp, settled, stamp
from chromakeep.errors import SourceBroken, SourceBusy
from chromakeep.events import Noted, Observer, PhaseStarted, Progressed, ignore

RETRY = 0.01  # seconds between attempts
QUIET = 3.0  # seconds without a write after which a torn set of files will not be finished by anybody
UNREGISTERED = 2.0  # seconds to wait for a persist to be registered before taking the state a crash would leave
PATIENCE = 1.0  # seconds to go on with unlocked passes in the hope of a moment without commits
CLOSE_ENOUGH = 1 << 20  # bytes; after that time, a pass that finds no more than this is the last one
SMALL = 16 << 20  # bytes; a database of which a comparison holds writers for milliseconds anyway: no hoping there
LAST_RESORT = 3.0  # seconds of being overtaken by persists, after which writers are held until the last one is copied
HOLD = 0.5  # seconds to hold them for a persist that is under way
PATCHES = 64 << 20  # bytes of differences kept in memory while the lock is held
ABSURD = 1 << 30  # bytes; link_lists.bin holds one level in sixteen of data_level0.bin's links


class Capture(msgspec.Struct, frozen=True):
    """What a capture did. ``pause``: the longest that it kept writers waiting, in seconds; 0 in WAL mode.

    ``counter`` is SQLite's change counter of the state that was copied; -1 in WAL mode, where it does not count.
    """

    path: Path
    pause: float
    attempts: int
    copied_bytes: int
    method: str  # "reflink" where files that were not there before could be cloned, else "copy"
    counter: int = -1

    def blank(self) -> NDArray[np.int64]:
        """Pages to be stored as zeros: none, for those of the copy are zeros. See ``Standstill``."""
        return np.zeros(0, np.int64)

    def confirm(self) -> None:
        """Nobody else writes to a copy. See ``Standstill``."""


def capture(source: Path, into: Path, *, timeout: float = 30.0, observer: Observer = ignore) -> Capture:
    """Copy the data directory ``source`` to ``into``, exactly, whoever writes to it meanwhile.

    Afterwards ``into`` holds ``chroma.sqlite3`` (a plain rollback-mode database, free pages zeroed) and the files of
    live VECTOR segments, with the source's mtimes, and nothing else. An earlier capture of the same source in
    ``into`` is brought up to date by rewriting what differs. ``source`` is never written to nor opened with chromadb.
    A purge of the queue that chromakeep holds off (``chroma.purge``) is not held in the copy.
    Not durable: nothing is fsynced.

    Writers wait while the lock is held (``pause``), and readers that come while one waits. If this very process has
    the database open (an embedded client), the work is done in a child process: see ``locking``. Do not open a client
    on ``source`` in this process *while* a capture runs.

    Raises ``NotAChromaDirectory``; ``SourceBroken`` if a crash left files that Chroma cannot open (after at most about
    3 s without a write); ``SourceBusy`` if there was no whole state within ``timeout`` seconds; ``SourceError`` if it
    cannot be read; ``DiskFull``; ``UsageError`` for a URL, overlapping paths, or foreign files in ``into``. After an
    error ``into`` is no capture, but still good as the start of another one.
    """
    with translated(into):
        check_paths(source, into)
        if open_in_this_process((source / DATABASE).resolve()):
            return Capture(**child.capture(source, into, timeout))
        into.mkdir(parents=True, exist_ok=True)
        with Copier() as copier:
            return _Capturing(source, into, copier, observer).run(time.monotonic() + timeout, timeout)


class _NotNow(Exception):
    """The directory is not whole at this moment; try again."""


class _Capturing:
    """One call of ``capture``."""

    def __init__(self, source: Path, into: Path, copier: Copier, observer: Observer) -> None:
        self.source, self.into, self.copier, self.observer = source, into, copier, observer
        self.database = (source / DATABASE).resolve()  # its journal lies beside the file, not beside a link to it
        self.copy = into / DATABASE
        self.started = time.monotonic()
        self.copied, self.pause = 0, 0.0
        self.reflink = False
        self.counter = -1
        self.approached: float | None = None  # when the first pass over the database had ended
        self.overtaken: float | None = None  # when an attempt failed for the first time
        self.seen: dict[str, tuple[Stamps, float]] = {}  # when each segment's present stamps were first seen
        self.whole: dict[str, Stamps] = {}  # stamps of which the copy in ``into`` is exact and complete

    def run(self, deadline: float, timeout: float) -> Capture:
        self._begin()
        attempt, told = 0, ""
        while True:
            attempt += 1
            try:
                self._attempt(deadline)
                break
            except _NotNow as reason:
                self.overtaken = self.overtaken or time.monotonic()
                if str(reason) != told and attempt > 1 / RETRY:
                    told = str(reason)
                    self.observer(Noted(f"waiting: {told}"))
                if time.monotonic() > deadline:
                    raise SourceBusy(
                        f"{self.source}: never whole in {timeout:g} s and {attempt} attempts; last: {reason}",
                        hint="try again with a longer timeout, or while fewer writers are at work",
                    ) from None
                time.sleep(RETRY)
        return Capture(self.into, self.pause, attempt, self.copied, "reflink" if self.reflink else "copy", self.counter)

    def _begin(self) -> None:
        """Announce the size, and fail now rather than half-way if the disk cannot hold it."""
        with closing(LiveDatabase(self.database)) as database:  # all refusals that need no copying
            probe = self.into / (DATABASE + PART)
            target = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                self.reflink = clone(database.descriptor, target)
            finally:
                os.close(target)
                probe.unlink()
        total = allocated(self.source)
        if not self.reflink:
            check_room(self.into, total)
        self.observer(PhaseStarted("capture", total))

    def _attempt(self, deadline: float) -> None:
        with closing(LiveDatabase(self.database)) as database:
            try:
                if database.wal and not all(Path(f"{self.database}{c}").exists() for c in ("-wal", "-shm")):
                    return self._cold(database)  # nobody has it open; opening it here would create files in the source
                try:
                    with database.shared(deadline) as connection:
                        live = segments(connection)
                except HotJournal:
                    return self._cold(database)
                copied = {segment: self._copy_unlocked(segment, database) for segment in live}
                if database.wal:
                    self._copy_wal(database, copied, deadline)
                else:
                    self._copy_live(database, copied, deadline)
            except HotJournal:
                raise _NotNow("a writer died in a transaction") from None
            finally:
                self.pause = max(self.pause, database.longest)
        self._check_registered(copied)
        self._finish(copied)
        return None

    # segments

    def _copy_unlocked(self, segment: Segment, database: LiveDatabase) -> Stamps:
        """``_copy_segment``; in the last resort without success too (no stamps), for the lock comes."""
        try:
            return self._copy_segment(segment)
        except _NotNow:
            if database.wal or not self._desperate():
                raise
            return ()

    def _copy_segment(self, segment: Segment) -> Stamps:
        """Copy a segment's files if they are those of one finished persist; the stamps they had all the while."""
        source, into = self.source / segment.id, self.into / segment.id
        found = stamps(source)
        if self.whole.get(segment.id) == found:
            return found
        present = [s for s in found if s is not None]
        first, since = self.seen.setdefault(segment.id, (found, time.monotonic()))
        if first != found:
            since = time.monotonic()
            self.seen[segment.id] = (found, since)
        watched = time.monotonic() - since
        quiet = watched > QUIET or settled(present, QUIET)
        if not (settled(present) or watched > COARSE) or not (in_order(found) or quiet):
            raise _NotNow(f"the index of {segment} is being written")
        _refuse_bloated(segment, found)
        if present:
            into.mkdir(exist_ok=True)
        for name, now in zip(SEGMENT_FILES, found, strict=True):
            target = into / name
            if now is None:
                target.unlink(missing_ok=True)
            elif not _same_as_before(now, target):
                try:
                    self._copied(copy_file(self.copier, source / name, target, reflink=self.reflink))
                except FileNotFoundError:
                    raise _NotNow(f"the files of {segment} are being replaced") from None
        if stamps(source) != found:
            raise _NotNow(f"the index of {segment} is being written")
        problem = incomplete(into) or (None if in_order(found) else _torn(into))
        if problem and quiet:
            raise SourceBroken(
                f"{self.source}: {segment} is torn: {problem}; its files have not changed for "
                f"{max(watched, _age(present)):.0f} s, so their writer died while it wrote them",
                hint="Chroma cannot open this collection any more; `chromakeep run` or a restore brings it back",
            )
        if problem:
            raise _NotNow(f"the index of {segment} is being written")
        self.whole[segment.id] = found
        return found

    def _still(self, copied: dict[Segment, Stamps]) -> None:
        """Files unchanged from before they were copied until now were so at every moment between, the lock's too."""
        for segment, found in copied.items():
            if stamps(self.source / segment.id) != found:
                raise _NotNow(f"the index of {segment} was written")

    def _check_registered(self, copied: dict[Segment, Stamps]) -> None:
        """The copied database names the segments that were copied, and awaits no row about a persist of theirs."""
        address = f"file:{quote(os.fsencode(self.copy.absolute()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            if set(segments(connection)) != set(copied):
                raise _NotNow("a collection was created, renamed or deleted")
            if time.monotonic() - self.started > UNREGISTERED:
                return
            for segment, found in copied.items():
                lately = not settled([s for s in found if s], QUIET)
                if lately and may_be_unregistered(connection, segment, found):
                    raise _NotNow(f"the index of {segment} was written and is not registered yet")

    # the database

    def _copy_live(self, database: LiveDatabase, copied: dict[Segment, Stamps], deadline: float) -> None:
        """Look for a moment without commits, in which the lock is held only to see that there were none; failing
        that for ``PATIENCE``, hold it while the whole database is compared with the copy at memory speed."""
        with self._target() as target:
            while True:
                before = self._approach(database, target)
                if not self._desperate():
                    self._still(copied)  # while nobody waits for us
                with database.shared(deadline) as connection:
                    now = database.stamp()
                    if now != before and not self._impatient(database):
                        continue
                    if now[0] is None or stamp(self.database) != now[0] or database.wal != database.in_wal_mode():
                        raise _NotNow("the directory was replaced")
                    if self._desperate():
                        self._overtake(copied, segments(connection))
                    else:
                        self._still(copied)
                    self.counter = int.from_bytes(now[1], "big")
                    size, patches, changed = now[0].size, list[Patch](), 0
                    if now != before:
                        size, patches, changed = self.copier.differences(database.descriptor, target, limit=PATCHES)
                break
            apply(target, size, patches)
            self._copied(changed)
            self._settle(target, now[0])

    def _impatient(self, database: LiveDatabase) -> bool:
        """Whether to hold writers while the database is compared, rather than to hope for a moment without commits."""
        waited = self.approached is not None and time.monotonic() - self.approached > PATIENCE
        return waited or os.fstat(database.descriptor).st_size <= SMALL

    def _desperate(self) -> bool:
        """Whether to hold writers while segments are copied, rather than to hope for a gap between two persists."""
        return self.overtaken is not None and time.monotonic() - self.overtaken > LAST_RESORT

    def _overtake(self, copied: dict[Segment, Stamps], live: tuple[Segment, ...]) -> None:
        """Under the lock: copy again what was persisted since, waiting for a persist that is under way.

        It ends: Chroma's one compactor cannot register that persist, nor begin another one, before we let go.
        """
        until = time.monotonic() + HOLD
        for gone in copied.keys() - set(live):
            del copied[gone]
        for segment in live:
            found = copied.get(segment, ())
            while stamps(self.source / segment.id) != found:
                try:
                    found = copied[segment] = self._copy_segment(segment)
                except _NotNow:
                    if time.monotonic() > until:
                        raise
                    time.sleep(RETRY / 10)

    def _approach(self, database: LiveDatabase, target: int) -> tuple[Stamp | None, bytes] | None:
        """Unlocked passes over the database until one sees no commit, or ``PATIENCE`` is over and they gain little.

        Returns the stamp from before the last pass; None if a write right after it might not have changed it.
        """
        last = 0
        while True:
            before = database.stamp()
            aged = before[0] is not None and settled([before[0]], TICK)
            changed = self.copier.bring_up(database.descriptor, target, reflink=self.reflink)
            self._copied(changed)
            self.approached = self.approached or time.monotonic()
            if aged and database.stamp() == before:
                return before
            if self._impatient(database) and (changed <= CLOSE_ENOUGH or 0 < last <= changed):
                return before if aged else None
            last = changed

    def _copy_wal(self, database: LiveDatabase, copied: dict[Segment, Stamps], deadline: float) -> None:
        """A read transaction pins one state without keeping writers out; SQLite's backup reads it page by page."""
        part = self.into / (DATABASE + PART)
        part.unlink(missing_ok=True)
        with database.shared(deadline) as connection, closing(sqlite3.connect(part)) as copy:
            self._still(copied)
            connection.backup(copy)
        found = stamp(database.descriptor)
        self._copied(part.stat().st_size)
        part.replace(self.copy)
        _plain(self.copy)
        with self._target() as target:
            if found:
                self._settle(target, found)

    def _cold(self, database: LiveDatabase) -> None:
        """A dead writer's journal or log: copy it along and let SQLite undo or redo in the copy, not in the source."""
        companion = "-wal" if database.wal else "-journal"
        beside, found = Path(f"{self.database}{companion}"), database.stamp()
        if database.locked_by_others() or found[0] is None:
            raise _NotNow("a process has the database open and does not let us read it")
        journal = stamp(beside)
        # SQLite, run by root, gives the journal its database's owner whenever it looks at it: ctime tells nothing.
        if not settled(s._replace(ctime=s.mtime) for s in (found[0], journal) if s):
            raise _NotNow("the database is being written")
        with self._target() as target:
            self._copied(self.copier.bring_up(database.descriptor, target, reflink=self.reflink))
        if journal:
            self._copied(copy_file(self.copier, beside, Path(f"{self.copy}{companion}"), reflink=False))
        if database.stamp() != found or stamp(beside) != journal or database.locked_by_others():
            raise _NotNow("the database is being written")
        _plain(self.copy)
        with closing(LiveDatabase(self.copy)) as recovered, recovered.shared(0) as connection:
            live = segments(connection)
        copied = {segment: self._copy_segment(segment) for segment in live}
        if database.stamp() != found or stamp(beside) != journal:
            raise _NotNow("the database is being written")
        with self._target() as target:
            self._settle(target, found[0])
        self._finish(copied)

    @contextmanager
    def _target(self) -> Iterator[int]:
        """The copy of the database, open for writing, nothing of SQLite's beside it."""
        for companion in COMPANIONS:
            Path(f"{self.copy}{companion}").unlink(missing_ok=True)
        descriptor = os.open(self.copy, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _settle(self, target: int, source: Stamp) -> None:
        release_copy(self.copy)  # whoever serves what is restored from this must not find the purge held for ever
        zero_free_pages(target)
        os.utime(target, ns=(source.mtime, source.mtime))

    def _finish(self, copied: dict[Segment, Stamps]) -> None:
        """Remove what belongs to no live segment (``check_paths`` has seen that nothing here is anybody else's)."""
        live = {s.id for s, found in copied.items() if any(found)}
        for entry in self.into.iterdir():
            if entry.name not in live and entry.name != DATABASE:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for folder in live:
            for entry in (self.into / folder).iterdir():
                if entry.name not in SEGMENT_FILES:
                    entry.unlink()

    def _copied(self, count: int) -> None:
        self.copied += count
        self.observer(Progressed("capture", self.copied))


def _same_as_before(source: Stamp, target: Path) -> bool:
    """Whether an earlier capture left this very content: same size and mtime, and no power cut since.

    A capture takes ``mtime`` over only after the content, and only of a file that had settled. After a crash of the
    machine the time could have reached the disk without the content, hence the look at the boot.
    """
    own = stamp(target)
    if own is None or (own.size, own.mtime) != (source.size, source.mtime) or not hasattr(time, "CLOCK_BOOTTIME"):
        return False
    booted = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return own.ctime > booted


def _refuse_bloated(segment: Segment, found: Stamps) -> None:
    links, level0 = found[SEGMENT_FILES.index("link_lists.bin")], found[SEGMENT_FILES.index("data_level0.bin")]
    if links and level0 and links.size > max(ABSURD, 10 * level0.size):
        raise SourceBroken(
            f"{segment}: link_lists.bin claims {links.size:,} bytes beside {level0.size:,} of data_level0.bin; a torn"
            " record made Chroma write past its end (chroma-core/chroma #7510)",
            hint="rebuild the collection, or restore the newest snapshot",
        )


def _torn(folder: Path) -> str | None:
    """Structural check of copied files whose times tell nothing."""
    from chromakeep.chroma.hnsw import check_segment

    problems: list[str] = check_segment(folder)
    return problems[0] if problems else None


def _age(present: list[Stamp]) -> float:
    return time.time() - max((s.touched for s in present), default=0) / 1e9


def _plain(copy: Path) -> None:
    """Recover a copied database from its copied journal or log and leave it in rollback mode, in one file."""
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise
        raise SourceBroken(f"the database cannot be recovered from its journal: {error}") from error
