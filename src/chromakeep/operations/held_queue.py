"""Held queue: Chroma does not purge it while the directory is kept (``chroma.purge``), unless it was let go."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from chromakeep.chroma.purge import hold, purge, release
from chromakeep.errors import ChromakeepError
from chromakeep.events import Noted, Observer
from chromakeep.operations.ship import Shipping

LOW = 0.1  # of the disk free: then the queue is let go, for a full disk ends the serving


class HeldQueue:
    """Of one database. Nobody in this process may capture it meanwhile: a close here would drop the capture's locks."""

    def __init__(self, database: Path, observer: Observer) -> None:
        self.relieved = False  # let go while the log went on: rows may be gone that it does not have
        self._database, self._observer = database, observer
        self._let_go = False

    def hold(self, *, again: bool = False) -> str | None:
        """Hold it, as often as one likes; which hold it is, None where it is not held. ``again``: also where it was
        let go to relieve the disk."""
        if again and self.relieved:
            self._let_go = False
        if self._let_go:
            return None
        try:
            return hold(self._database)
        except ChromakeepError as error:
            self._observer(Noted(f"the queue is not held: {error.message}; snapshots go on without it", "warning"))
            return None

    def anew(self) -> None:
        """Let it be held again, whatever it was let go for: another directory is there."""
        self._let_go = False

    def begin(self, shipping: Shipping | None) -> str | None:
        """A server begins: hold it, whatever it was let go for, and tell the log. What was let go since the last one
        ended lost nothing, but what went with the disk full: from then on only a snapshot makes the log whole."""
        with shipping.still if shipping else nullcontext():
            self.anew()
            held = self.hold()
            if shipping and not self.relieved:
                shipping.held_again(held)
        return held

    def release(self, shipping: Shipping | None) -> bool:
        """Let Chroma purge, and tell the log; whether it was held."""
        with shipping.still if shipping else nullcontext():  # a look in between would take it for a reset
            held = release(self._database)
            self._let_go = self._let_go or bool(held)
            if shipping and held:  # one that Chroma never purges is as it was
                shipping.let_go(held)
        return bool(held)

    def relieve(self, shipping: Shipping | None) -> None:
        """Where the disk fills up, rows that no snapshot has are not held any longer."""
        with suppress(ChromakeepError, OSError):
            usage = shutil.disk_usage(self._database.parent)
            if usage.free < LOW * usage.total and self.release(shipping):
                self.relieved = True
                left = f"{usage.free / 1e9:.1f} GB of the disk are left"
                said = f"{left} and no snapshot succeeds: Chroma's queue is let go"
                self._observer(Noted(said, "warning"))

    def purge(self, applied: Mapping[str, int]) -> None:
        """Take out what a snapshot has in its indexes: by topic, the rows before this one."""
        try:
            purge(self._database, applied)
        except ChromakeepError as error:
            self._observer(Noted(f"the queue was not purged: {error.message}", "warning"))
