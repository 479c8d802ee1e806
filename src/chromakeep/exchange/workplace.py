"""The hidden directory beside a file or directory in which it is made: ``.NAME.partial``."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from chromakeep.errors import UsageError
from chromakeep.exchange.files import hold, partial, remove, sync_folder
from chromakeep.records import CONFLICTS, Speed

SPEED = Speed(200_000, 100e6)
MARKER = ".copying"
"""A file that is in a workplace from its beginning. When a directory was published by swapping the two, the former one
stands under the hidden name, and has none: nobody must take it for work that was done."""


class Workplace:
    """Held by one process at a time. It stays until what is made in it is published, for a later one to go on."""

    def __init__(self, final: Path, *, resume: bool) -> None:
        """``resume``: what an earlier process left is kept, whatever it is; else it is removed in ``begin``."""
        self.path = partial(final)
        self.begun = False
        self._resume = resume
        self._lock: int | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is anything that may be published."""
        return self.path.is_dir() and (self.begun or self._resume)

    def check(self) -> None:
        """Raise ``OSError`` where it cannot be made."""
        folder = self.path.parent
        folder.stat()
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    def begin(self) -> None:
        """Make it and lock it, once. Raises ``RepositoryBusy`` while another process holds it."""
        if self.begun:
            return
        self._lock = hold(self.path)
        if not (self._resume and (self.path / MARKER).exists()):
            self.clear()
        sync_folder(self.path.parent)
        self.begun = True

    def clear(self) -> None:
        """Remove all that is in it."""
        for left in self.path.iterdir():
            remove(left)
        (self.path / MARKER).touch()
        sync_folder(self.path)

    def leave(self) -> None:
        """Remove it if nothing was done in it."""
        if [left.name for left in self.path.iterdir()] == [MARKER]:
            remove(self.path)

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def check_conflict(conflict: str) -> None:
    """Raise ``UsageError`` for a way to deal with a conflict that a file has not."""
    if conflict not in CONFLICTS:
        raise UsageError(f"{conflict!r} is no way to deal with a conflict", hint="it is fail or replace")
    if conflict in ("skip", "upsert"):
        raise UsageError(
            f"a file cannot be merged into ({conflict})", hint="write another file, or replace this one: replace"
        )
