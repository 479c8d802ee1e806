"""A file of collections as a sink, whatever its format: each is written apart, and all become one file at the end."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from chromakeep.errors import SourceError, TargetNotEmpty, UsageError
from chromakeep.events import Observer, ignore
from chromakeep.exchange.described import place_hash
from chromakeep.exchange.files import remove, sync_file, sync_folder, write_whole, writing
from chromakeep.exchange.keeping import noted, replace_file
from chromakeep.exchange.recent import Recent
from chromakeep.exchange.workplace import SPEED, Workplace, check_conflict
from chromakeep.records import Definition, Limits, Mark, Source

if TYPE_CHECKING:
    from chromakeep.conditions import Where

_DONE, _REPLACES, _READY, _WHOLE = ".done", "replaces", "ready", "whole"


class FileSink(ABC):
    """A file that gets its name in ``publish``, whole; one that is there is replaced as a whole and kept (``keeping``),
    or it is left alone.

    Until then it is made in the directory ``.NAME.partial`` beside it. What a killed process left there is gone on
    with; and what it has finished is part of the file, unless ``resume`` is False: then that is removed first.
    """

    several = True
    """Whether it may hold more than one collection."""
    speed = SPEED

    def __init__(self, path: Path, *, resume: bool = True, observer: Observer = ignore) -> None:
        self.path, self._observer = path, observer
        self._work = Workplace(path, resume=resume)
        self._intakes: dict[str, FileIntake] = {}

    @abstractmethod
    def read(self, path: Path) -> Source:
        """A file of this format."""

    @abstractmethod
    def begin(self, path: Path, definition: Definition, mark: Mark) -> FileIntake:
        """Write one collection to a file of its own, behind ``mark`` if there is one."""

    def definitions(self) -> Sequence[Definition]:
        """Those of the file that is there; none if it cannot be read."""
        with writing(self.path):
            if not self.path.is_file():
                return []
        source = self.read(self.path)
        try:
            return source.definitions()
        except SourceError:
            return []
        finally:
            source.close()

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """As of ``Sink``; also raises ``TargetNotEmpty`` if there is a file, whatever is in it."""
        check_conflict(conflict)
        self._refuse(replaces=conflict == "replace")
        with writing(self.path):
            self._work.check()

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> FileIntake:
        """As of ``Sink``. Raises ``TargetNotEmpty`` if there is a file and ``conflict`` is ``fail``, ``UsageError`` for
        ``skip`` and ``upsert``, and for a mark that does not fit what is there."""
        self.check(definition, conflict=conflict)
        name = place_hash(definition, 32)
        if name in self._intakes:
            raise UsageError(f"the collection {definition.name!r} was begun already")
        if self._intakes and not self.several:
            raise UsageError(
                f"{self.path} is one file, with one collection",
                hint=f"end the path with a slash to write a directory of any number: {self.path}/",
            )
        with writing(self.path):
            self._work.begin()
            if not self.several and mark is None:
                self._work.clear()
            for stale in (_READY, _WHOLE, name + _DONE):
                remove(self._work.path / stale)
            if conflict == "replace":
                write_whole(self._work.path / _REPLACES, b"")
            else:
                remove(self._work.path / _REPLACES)
            self._intakes[name] = self.begin(self._work.path / name, definition, mark)
        return self._intakes[name]

    def finished(self, definition: Definition, mark: Mark, *, existed: bool) -> bool:
        """As of ``copy.Remembers``."""
        if not self._work.is_there:
            return not existed and any(
                each.place == definition.place for each in self.definitions()
            )  # it was published
        note = self._work.path / (place_hash(definition, 32) + _DONE)
        return note.exists() or (self._work.path / _READY).exists()

    def reader(self) -> Source:
        """What is finished, before it is published; or what an earlier process has published."""
        if not self._work.is_there:
            return self.read(self.path)
        return Together([self.read(path) for path in self._finished()])

    def publish(self) -> None:
        """Give the file its name; one that it replaces is kept under another. Without a finished collection, nothing.
        Raises ``TargetNotEmpty`` if a file has come there meanwhile."""
        for intake in self._intakes.values():
            if not intake.finished:
                raise UsageError(f"{self.path}: the collection {intake.definition.name!r} is not finished")
        if not self._work.is_there:
            return
        ready = self._work.path / _READY
        with writing(self.path):
            self._work.begin()
            if not ready.exists():
                name = self._join(self._finished())
                if name is None:
                    self._work.leave()
                    return
                write_whole(ready, name.encode())  # from now on: if there is no such file, it was published
            whole = self._work.path / ready.read_text()
            if whole.exists():
                self._refuse(replaces=(self._work.path / _REPLACES).exists())
                if kept := replace_file(whole, self.path):
                    self._observer(noted(self.path, kept))
            for left in self._work.path.iterdir():
                if left != ready:
                    remove(left)
            remove(self._work.path)
        self._intakes.clear()

    def close(self) -> None:
        """Let go. What was marked or finished stays, hidden, to be gone on with."""
        for intake in self._intakes.values():
            intake.abandon()
        self._work.close()

    def _refuse(self, *, replaces: bool) -> None:
        with writing(self.path):
            if not self.path.exists() and not self.path.is_symlink():
                return
        if not replaces:
            raise TargetNotEmpty(f"{self.path} exists", hint="name another file, or replace it: --on-conflict replace")
        if not self.path.is_file():
            raise UsageError(f"{self.path} is no regular file, and is not replaced")

    def _finished(self) -> list[Path]:
        """The files of finished collections, by tenant, database and name."""
        found = []
        for note in self._work.path.glob(f"*{_DONE}"):
            path = note.with_name(note.name.removesuffix(_DONE))
            if path.is_file():
                try:
                    place = msgspec.json.decode(note.read_bytes(), type=tuple[str, str, str])
                except msgspec.MsgspecError:
                    raise UsageError(f"{note} is damaged", hint=f"remove {note.parent}, and begin anew") from None
                found.append((place, path))
        return [path for _, path in sorted(found)]

    def _join(self, paths: Sequence[Path]) -> str | None:
        """Make one file of them; its name, None if there are none."""
        if len(paths) < 2:
            return paths[0].name if paths else None
        with (self._work.path / _WHOLE).open("wb") as out:
            for path in paths:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
        sync_file(self._work.path / _WHOLE)
        return _WHOLE


class FileIntake(ABC):
    """One collection while it is written. Records of an id that was written lately are not written again.

    ``mark`` makes durable what was written. For one thread at a time.
    """

    limits = Limits(writers=1)

    def __init__(self, path: Path, definition: Definition) -> None:
        self.path = path
        self.definition = definition
        self.finished = False
        self._recent = Recent()

    def write(self, batch: pa.RecordBatch) -> None:
        if self.finished:
            raise UsageError(f"the collection {self.definition.name!r} is finished")
        if len(fresh := self._recent.fresh(batch)):
            self.put(fresh)

    def finish(self) -> None:
        """Make it whole and durable; twice is once."""
        if self.finished:
            return
        self.end()
        with writing(self.path):
            note = self.path.with_name(self.path.name + _DONE)
            write_whole(note, msgspec.json.encode(self.definition.place))
            sync_folder(self.path.parent)
        self.finished = True

    @abstractmethod
    def mark(self) -> Mark:
        """Make durable what was written; where it ends."""

    @abstractmethod
    def put(self, batch: pa.RecordBatch) -> None:
        """Append records."""

    @abstractmethod
    def end(self) -> None:
        """Write what makes the file whole, and make it durable."""

    @abstractmethod
    def abandon(self) -> None:
        """Close the file as it is."""


class Together:
    """Several sources as one; their marks do not lead on."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def definitions(self) -> Sequence[Definition]:
        return [definition for source in self._sources for definition in source.definitions()]

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        for source in self._sources:
            if any(each.place == definition.place for each in source.definitions()):
                return source.batches(definition, after=after, where=where)
        raise UsageError(f"there is no collection {definition.name!r}")

    def state(self) -> str:
        return ""

    def close(self) -> None:
        for source in self._sources:
            source.close()
