"""SQLite's SHARED lock on a live database: while it is held no commit can complete, and no writer gets an error.

Not BEGIN IMMEDIATE: a RESERVED lock makes Chroma's deferred transactions (modify a configuration, delete a database)
fail at once with "database is locked", where a SHARED one lets every writer wait (SQLite, "File Locking And
Concurrency", 3.0; seen with Chroma 1.5.9).

The trap of POSIX locks (fcntl(2)): a process loses all its locks on a file as soon as it closes *any* descriptor of
that file, whoever opened it. So nothing here closes the database while it is locked, and on Linux a second lock on the
open file description (which no other close can drop) covers what the rest of this process may do. The other way round
there is no cure: if *this* process holds the database open (an embedded Chroma), our close would unlock it, and its
``add`` would keep the GIL while it waits for us. ``open_in_this_process`` tells; capture then works from a child.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chromakeep.chroma.signature import Stamp, stamp, unreadable
from chromakeep.errors import ChromakeepError, DiskFull, NotAChromaDirectory, SourceBroken, SourceBusy, SourceError

LINUX = sys.platform.startswith("linux")
PENDING, SHARED, SHARED_BYTES = 0x40000000, 0x40000002, 510  # SQLite, os.h: the bytes that stand for locks
FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, pid
HEADER = 100
POLL = 0.0002  # seconds; a writer that commits without a pause leaves gaps of less than a millisecond


class HotJournal(Exception):
    """The last writer died in a transaction: SQLite must undo it, and only somebody who writes can do that."""


def open_in_this_process(path: Path) -> bool:
    """Whether a descriptor of this process refers to the file (always False where the system cannot tell)."""
    try:
        wanted, table = path.stat(), Path("/proc/self/fd" if LINUX else "/dev/fd")
        descriptors = [entry.name for entry in table.iterdir()]
    except OSError:
        return False
    for name in descriptors:
        try:
            found = os.fstat(int(name))
        except (OSError, ValueError):
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


class LiveDatabase:
    """A database that others write to: a raw descriptor and a read-only connection, both open until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.longest = 0.0  # seconds for which ``shared`` kept writers waiting, the longest time
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotAChromaDirectory(f"{path.parent}: there is no {path.name}") from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            header = os.pread(self.descriptor, HEADER, 0)
            if not header:
                raise NotAChromaDirectory(f"{path}: the file is empty", hint="nothing was ever stored here")
            if len(header) < HEADER or not header.startswith(b"SQLite format 3\0"):
                raise NotAChromaDirectory(f"{path}: not a SQLite database")
            self.wal = self.in_wal_mode()
            address = f"file:{urllib.parse.quote(os.fsencode(path.absolute()))}?mode=ro"
            self._connection = sqlite3.connect(
                address, uri=True, timeout=0, isolation_level=None, check_same_thread=False
            )
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        self._connection.close()
        os.close(self.descriptor)

    def stamp(self) -> tuple[Stamp | None, bytes]:
        """Equal stamps, the first one settled: no byte of the file was written in between.

        The change counter (offset 24) is with it for file systems that are careless with times.
        """
        return stamp(self.descriptor), os.pread(self.descriptor, 4, 24)

    def moved(self) -> bool:
        """Whether another file, or none, is at the path now."""
        try:
            there = self.path.stat()
        except OSError:
            return True
        own = os.fstat(self.descriptor)
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino)

    def in_wal_mode(self) -> bool:
        """Whether the header says so now. It can only change while nobody holds a lock."""
        return os.pread(self.descriptor, 1, 18) == b"\2"

    def locked_by_others(self) -> bool:
        """Whether any process holds a lock on the database file now (False where the system cannot tell)."""
        if not LINUX:
            return False
        import fcntl

        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, PENDING, SHARED_BYTES + 2, 0)
        try:
            answer = fcntl.fcntl(self.descriptor, fcntl.F_OFD_GETLK, asked)
        except OSError:  # gVisor knows no such locks
            answer = fcntl.fcntl(self.descriptor, fcntl.F_GETLK, asked)
        return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)

    @contextmanager
    def shared(self, deadline: float) -> Iterator[sqlite3.Connection]:
        """Hold the SHARED lock (in WAL mode: pin a snapshot) for the body; queries inside see that one state.

        Polls until ``time.monotonic()`` passes ``deadline``, then ``SourceBusy``. Raises ``HotJournal`` when the last
        writer died, ``SourceBroken`` for a malformed file.
        """
        while not self._begin():
            if time.monotonic() > deadline:
                raise SourceBusy(
                    f"{self.path}: a writer kept the database locked", hint="try again, or with a longer timeout"
                )
            time.sleep(POLL)
        since = time.perf_counter()
        try:
            self._guard(acquire=True)
            yield self._connection
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error
        finally:
            self._guard(acquire=False)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if not self.wal:
                self.longest = max(self.longest, time.perf_counter() - since)

    def _begin(self) -> bool:
        try:
            self._connection.execute("BEGIN")
            self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if "locked" in str(error):
                return False
            # read-only connections report a journal to be rolled back as either of these (SQLITE_READONLY_ROLLBACK)
            if "readonly" in str(error) or "unable to open" in str(error):
                raise HotJournal from error
            raise self._explained(error) from error
        return True

    def _guard(self, *, acquire: bool) -> None:
        """Repeat SQLite's lock on the open file description. Read locks do not exclude each other.

        Where there are no such locks (gVisor), SQLite's own has to do.
        """
        if LINUX and not self.wal:
            import fcntl

            kind = fcntl.F_RDLCK if acquire else fcntl.F_UNLCK
            lock = struct.pack(FLOCK, kind, os.SEEK_SET, SHARED, SHARED_BYTES, 0)
            with suppress(OSError):
                fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, lock)

    def _explained(self, error: sqlite3.DatabaseError) -> ChromakeepError:
        text = str(error)
        if "not a database" in text or "encrypted" in text:
            return NotAChromaDirectory(f"{self.path}: not a SQLite database")
        if "no such" in text:
            return NotAChromaDirectory(f"{self.path}: a SQLite database, but not Chroma's ({text})")
        if "malformed" in text or "corrupt" in text:
            return SourceBroken(f"{self.path}: {text}", hint="restore the newest snapshot")
        if "disk is full" in text:  # of the copy that a backup writes to
            return DiskFull(text, hint="free some space or choose another place for the copy")
        return SourceError(f"{self.path}: {text}")
