"""A data directory as a sink: filled by a Chroma of its own beside the place it is for, and put there when it is whole.

Chroma writes it, so that it is what Chroma would have written; nobody else sees it before. A directory that is there
already is copied first, exactly, and kept as ``NAME.old-TIME`` when the new one has taken its place. In a mount point,
which cannot be renamed, all of that lies, hidden.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.chroma.capture import capture
from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.directory_source import DirectorySource, state_of
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.naming import check_name
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.server_sink import ServerSink
from chromakeep.errors import DiskFull, ServerAnswered, ServerFailed, SourceBroken, SourceBusy, UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.exchange.files import hold, remove
from chromakeep.operations import place
from chromakeep.operations.copy import Remembers
from chromakeep.operations.restore import refuse_in_use, was_chosen
from chromakeep.records import Definition, Intake, Mark, Sink, Source, check_conflict

if TYPE_CHECKING:
    import pyarrow as pa

LITTLE = 16 << 20  # bytes: with fewer on its disk a Chroma that fails has had no room
STATE = "state"  # file beside the directory that is being filled: in which state what it is a copy of was


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """A server that fails because its disk is full does not say so: that becomes ``DiskFull``."""
    try:
        yield
    except ServerFailed as error:
        free = shutil.disk_usage(folder).free if folder.exists() else LITTLE
        if free >= LITTLE or (isinstance(error, ServerAnswered) and error.status < 500):
            raise
        raise DiskFull(
            f"{folder}: there is no room to go on ({free >> 10:,} KiB are free), so Chroma said: {error.message}",
            hint="free some room, then run the command again: it goes on where it was",
        ) from None


class _Filled:
    """An intake whose server writes to the disk of ``folder``."""

    def __init__(self, intake: Intake, folder: Path) -> None:
        self.limits, self.mark, self._intake, self._folder = intake.limits, intake.mark, intake, folder

    def write(self, batch: pa.RecordBatch) -> None:
        """As ``records.Intake``. Raises ``DiskFull``."""
        with room(self._folder):
            self._intake.write(batch)

    def finish(self) -> None:
        """As ``records.Intake``. Raises ``DiskFull``."""
        with room(self._folder):
            self._intake.finish()


class DirectorySink:
    """One directory. ``kept`` is where its old content is after ``publish``."""

    several = True
    speed = ServerSink.speed

    def __init__(
        self,
        target: Path,
        over: Callable[[ChromaClient], Sink],
        *,
        env: Mapping[str, str],
        program: str | None = None,
        resume: bool = False,
        observer: Observer = ignore,
    ) -> None:
        """``over``: a sink that writes to a server; ``env`` and ``program``: with which the server is run. ``resume``:
        go on with what an earlier process has begun; else that is removed before anything is written."""
        self.target, self._observer = target.resolve(), observer
        self.kept: Path | None = None
        self._over = over
        self._fixed = place.is_fixed(self.target)
        self._work = (self.target if self._fixed else self.target.parent) / f".{self.target.name}.copying"
        self._new = self._work / "data"
        self._env, self._program, self._resume = env, program, resume
        self._server: ChromaServer | None = None
        self._sink: Sink | None = None
        self._lock: int | None = None
        self._idle = False  # nobody else was writing to the directory when that was asked
        self._fresh = False  # this process has begun the work
        self._completed = False  # it has put in place what an earlier one had made

    def definitions(self) -> Sequence[Definition]:
        """What the directory has, or the one that is being filled. What an earlier process was putting in place is
        first put there wholly."""
        if self._fixed and self._sink is None and self._new.exists():
            from chromakeep.operations.beside import complete

            if complete(self.target, self._new):
                self._completed = True
                was_chosen(self.target)
        if self._resume and self._new.exists():
            return self._open().definitions()
        if place.is_empty(self.target):
            return []
        source = DirectorySource(self.target)
        try:
            return source.definitions()
        finally:
            source.close()

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """As ``records.Sink``: what its Chroma would refuse, and a directory that another process writes to."""
        check_conflict(conflict)
        check_name(definition.name)
        if not self._idle:
            refuse_in_use(self.target)
            self._idle = True

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> Intake:
        """As ``records.Sink``."""
        with room(self._work):
            self._open()
            if mark is not None and self._fresh:  # a collection of the target's own has the id that the mark tells
                raise UsageError("what the copy was writing is not there any more", hint="begin the copy anew")
            return _Filled(self._open().collection(definition, conflict=conflict, mark=mark), self._work)

    def finished(self, definition: Definition, mark: Mark, *, existed: bool) -> bool:
        """As of ``copy.Remembers``."""
        if self._new.exists() and not self._fresh:
            inner = self._open()
            return isinstance(inner, Remembers) and inner.finished(definition, mark, existed=existed)
        there = any((each.place, each.id) == (definition.place, mark["id"]) for each in self.definitions())
        return there and (self._completed or not existed)

    def reader(self) -> Source:
        """What was written so far, before it is published, or what an earlier process has published; ends the server,
        for its files to be at rest."""
        self._stop()
        return DirectorySource(self.target if self._published else self._new)

    def publish(self) -> None:
        """Check what was built, sync it and put it in place. Raises ``SourceBroken``; ``UsageError`` while a process
        writes to the directory and ``SourceBusy`` when one has: then it is as it was."""
        if self._published:
            return
        if not (self._resume and self._new.exists()):
            self._open()  # no collection at all: an empty Chroma
        self._stop()
        refuse_in_use(self.target)
        found = inspect(self._new, digests=False)
        if found.problems:
            raise SourceBroken(f"{self._new}: what Chroma has written is not whole: {found.problems[0].message}")
        before = self._work / STATE
        if before.exists() and before.read_text() != state_of(self.target):
            shutil.rmtree(self._new)  # or it would be gone on with
            raise SourceBusy(
                f"{self.target} was written to while the copy was made",
                hint="stop what writes there, and copy again; the directory is as it was",
            )
        for folder, _, files in os.walk(self._new):
            for name in files:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
            place.sync(Path(folder))
        if self._fixed:
            from chromakeep.operations.beside import move

            self.kept = move(self._new, self.target, place.kept_as(self.target))
        else:
            self.kept = place.install(self._new, self.target)
        was_chosen(self.target)
        shutil.rmtree(self._work, ignore_errors=True)
        if self.kept:
            self._observer(Noted(f"what was there is kept as {self.kept}"))

    def close(self) -> None:
        """Stop the server. What was not published stays beside, for the copy to go on with."""
        with suppress(OSError):
            self._stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _published(self) -> bool:
        """Whether an earlier process has done that, and this one had nothing to write."""
        return self._resume and self._lock is None and not self._new.exists() and not place.is_empty(self.target)

    def _open(self) -> Sink:
        if self._sink is None:
            self._begin()
            if not self._new.exists():
                self._prepare()
            self._server = ChromaServer(self._new, env=self._env, program=self._program)
            self._server.start()
            self._sink = self._over(self._server.client)
        return self._sink

    def _begin(self) -> None:
        """Hold the work against other processes, once, and begin it anew unless it is to be gone on with."""
        if self._lock is None:
            self._work.parent.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self._work)
        if not self._resume:
            for left in self._work.iterdir():
                remove(left)
        self._resume = True

    def _prepare(self) -> None:
        self._fresh = True
        (self._work / STATE).unlink(missing_ok=True)
        if place.is_empty(self.target):
            self._new.mkdir()
            return
        refuse_in_use(self.target)
        half = self._work / "capture"
        shutil.rmtree(half, ignore_errors=True)
        before = state_of(self.target)
        capture(self.target, half, observer=self._observer)
        (self._work / STATE).write_text(before)
        half.rename(self._new)

    def _stop(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        if self._server is not None:
            self._server.stop(60)
            self._server = None
