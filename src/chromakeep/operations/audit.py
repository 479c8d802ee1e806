"""Audit: a log that shows who did what, in a chain that shows whether it was changed; a copy goes to the repository."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep import __version__
from chromakeep.errors import ChromakeepError, NotNow, RefusedToServe
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.audit_file import AuditFile
from chromakeep.operations.audit_shipping import SEGMENT, AuditShipping
from chromakeep.operations.scribe import Scribe

if TYPE_CHECKING:
    from chromakeep.repository import Repository

MOST = 20_000  # records that wait for a disk to have room
_PORTION = 200  # of them that are tried at a time: while it has none, all of them would keep a processor busy
SYNC = 1.0  # seconds: what a power cut can take; of a kill it is a tenth of a second
Record = Mapping[str, object]


class Audit:
    """``record`` never waits. While the disk is full records wait in memory; what has no room there is lost, and a
    record says how many were.

    ``required``: ``refusal`` then says that no write may be taken.
    """

    def __init__(
        self,
        path: Path,
        largest: int,
        *,
        required: bool = False,
        open_repository: Callable[[], Repository] | None = None,
        observer: Observer = ignore,
    ) -> None:
        self.failing: str | None = None  # why nothing can be written at the moment
        self._file = AuditFile(path, largest, observer)
        self._required, self._open, self._observer = required, open_repository, observer
        self._scribe: Scribe[Record] = Scribe("audit", self._write, MOST)
        self._shipping: AuditShipping | None = None
        self._waiting: list[Record] = []  # could not be written yet; the scribe's thread alone
        self._forgotten = self._told = 0  # dropped for want of room; and how many of all that a record tells
        self._dirty, self._synced, self._grown = False, 0.0, 0

    def start(self) -> None:
        """Open the file and begin. Raises ``UsageError``, ``RefusedToServe``."""
        self._file.open({"hostname": socket.gethostname(), "pid": os.getpid(), "version": __version__})
        self._dirty = True
        if self._open:
            self._shipping = AuditShipping(self._file.path, self._file.instance, self._open, self._observer)
            self._shipping.start()
        self._scribe.start()

    def record(self, fields: Record) -> None:
        """Have this written. ``event`` says what it is; values are text and numbers."""
        self._scribe.put(fields)

    def refusal(self) -> ChromakeepError | None:
        """Why no write may be taken, where each has to be recorded."""
        if self._required and self.failing:
            return NotNow(f"the audit log cannot be written ({self.failing}), and no write goes unrecorded")
        return None

    def stop(self, timeout: float) -> None:
        """Write and ship what is left, as far as that goes in this time. Any number of times."""
        deadline = time.monotonic() + timeout
        self._scribe.stop(timeout)
        if self._shipping:
            self._shipping.stop(max(0.1, deadline - time.monotonic()))

    @property
    def dropped(self) -> int:
        """Records that are lost."""
        return self._scribe.dropped + self._forgotten

    @property
    def unshipped(self) -> int:
        """Records that are in the file, and not in the repository; 0 where there is none."""
        return max(0, self._file.number - self._shipping.shipped) if self._shipping else 0

    def _write(self, batch: list[Record]) -> None:
        room = max(0, MOST - len(self._waiting))
        self._forgotten += max(0, len(batch) - room)
        self._waiting += batch[:room]
        try:
            while some := self._waiting[:_PORTION]:
                self._append(some)
                del self._waiting[:_PORTION]
            if lost := self.dropped - self._told:
                self._append([{"event": "lost", "records": lost}])
                self._told += lost
            self._sync()
            if self.failing:
                self._observer(Noted("the audit log is written again"))
            self.failing = None
        except (OSError, RefusedToServe) as error:  # told to clients, who need not know of paths
            why = (error.strerror or str(error)) if isinstance(error, OSError) else "another process writes there"
            if not self.failing:
                self._observer(Noted(f"the audit log cannot be written: {why}", "warning"))
            self.failing = why
        if self._shipping and self._grown * 400 > SEGMENT:  # a record has some 400 bytes
            self._grown = 0
            self._shipping.soon()

    def _append(self, some: list[Record]) -> None:
        self._file.append(some)
        self._dirty = True
        self._grown += len(some)

    def _sync(self) -> None:
        if self._dirty and time.monotonic() - self._synced > SYNC:
            self._file.sync()
            self._dirty, self._synced = False, time.monotonic()
