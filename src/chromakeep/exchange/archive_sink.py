"""An archive directory of Parquet files as a sink: any number of collections."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from chromakeep.errors import SourceError, TargetNotEmpty, UsageError
from chromakeep.events import Observer, ignore
from chromakeep.exchange import manifest
from chromakeep.exchange.archive import ParquetArchiveSource
from chromakeep.exchange.archive_intake import ArchiveIntake, Progress
from chromakeep.exchange.described import place_hash, safe_name
from chromakeep.exchange.files import old, publish_folder, remove, sync_file, writing
from chromakeep.exchange.journal import ENDING
from chromakeep.exchange.keeping import noted, replace_folder
from chromakeep.exchange.workplace import MARKER, SPEED, Workplace, check_conflict
from chromakeep.records import Definition, Mark, Source

Place = tuple[str, str, str]


class ParquetArchiveSink:
    """A directory with one subdirectory for each collection, and a manifest.

    All of it is made below ``.NAME.partial`` and gets its name in ``publish``, in one step on Linux. An archive that is
    there keeps its other collections: they are linked into the new one, or copied where that cannot be. If it has
    anything else, such as a collection that is replaced, it is kept as it was, as a whole (``keeping``).

    What a killed process left is gone on with; and what it has finished is part of the archive, unless ``resume`` is
    False: then that is removed first.
    """

    several = True
    speed = SPEED

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = True,
        compact: bool = False,
        part_bytes: int = 256 << 20,
        observer: Observer = ignore,
    ) -> None:
        self.path, self._observer = path, observer
        self._work = Workplace(path, resume=resume)
        self._compact = compact
        self._part_bytes = part_bytes
        self._intakes: dict[str, ArchiveIntake] = {}
        self._former: list[manifest.Entry] | None = None
        with writing(path):
            is_file = path.exists() and not path.is_dir()
        if is_file:
            raise UsageError(f"{path} is a file", hint="without a slash at its end it is written as one")

    def definitions(self) -> Sequence[Definition]:
        """Those of the archive that is there. Raises ``SourceError`` if it is damaged, and ``UsageError`` for a
        directory that is neither empty nor an archive."""
        return [entry.definition for entry in self._there()]

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """As of ``Sink``."""
        check_conflict(conflict)
        with writing(self.path):
            self._work.check()

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> ArchiveIntake:
        """As of ``Sink``. Raises ``TargetNotEmpty`` if the archive has one of that name and ``conflict`` is ``fail``,
        ``UsageError`` for ``skip`` and ``upsert``, and for a mark that does not fit what is there."""
        self.check(definition, conflict=conflict)
        exists = any(entry.definition.place == definition.place for entry in self._there())
        if exists and conflict == "fail":
            raise TargetNotEmpty(
                f"{self.path} has a collection {definition.name!r}",
                hint="write to another directory, or replace it: --on-conflict replace",
            )
        progress = Progress.of(mark)
        with writing(self.path):
            self._work.begin()
            name = progress.directory if progress else self._name(definition)
            if name in self._intakes:
                raise UsageError(f"the collection {definition.name!r} was begun already")
            self._intakes[name] = ArchiveIntake(
                self._work.path / name,
                definition,
                progress or Progress(name),
                compact=self._compact,
                part_bytes=self._part_bytes,
            )
        return self._intakes[name]

    def finished(self, definition: Definition, mark: Mark, *, existed: bool) -> bool:
        """As of ``copy.Remembers``."""
        progress = Progress.of(mark)
        if progress is None or not (self._work.path / MARKER).exists():
            there = any(entry.definition.place == definition.place for entry in self._there())
            return there and not existed  # it was published
        try:
            return manifest.read_entry(self._work.path / progress.directory) is not None
        except SourceError:
            return False

    def reader(self) -> Source:
        """What is finished, before it is published; or what an earlier process has published."""
        if not self._work.is_there:
            return ParquetArchiveSource(self.path)
        return ParquetArchiveSource(self._work.path, manifest.manifest_of(self._finished()))

    def publish(self) -> None:
        """Write the manifest and give the directory its name. Without a finished collection, nothing."""
        for intake in self._intakes.values():
            if not intake.finished:
                raise UsageError(f"{self.path}: the collection {intake.definition.name!r} is not finished")
        with writing(self.path):
            if not self._work.is_there:
                if self.path.is_dir():
                    remove(old(self.path))  # of a process that died when it had published
                return
            self._work.begin()
            entries = self._finished()
            if not entries:
                self._work.leave()
                return
            self._clean({entry.directory for entry in entries} | {MARKER})
            entries += self._carry({entry.definition.place for entry in entries})
            manifest.write_manifest(self._work.path, sorted(entries, key=lambda entry: entry.definition.place))
            remove(self.path / MARKER)
            if self._has_more(entries):
                kept = replace_folder(self._work.path, self.path, witness=manifest.NAME)
                self._observer(noted(self.path, kept))
            else:
                publish_folder(self._work.path, self.path)
            remove(self.path / MARKER)
        self._intakes.clear()
        self._former = None

    def close(self) -> None:
        """Let go. What was marked or finished stays, hidden, to be gone on with."""
        for intake in self._intakes.values():
            intake.abandon()
        self._work.close()

    def _name(self, definition: Definition) -> str:
        """A directory that no other collection has."""
        name = safe_name(definition)
        taken = self._intakes[name].definition if name in self._intakes else None
        if taken is None:
            try:
                entry = manifest.read_entry(self._work.path / name)
            except SourceError:  # it is begun anew
                entry = None
            taken = entry.definition if entry else None
        return name if taken is None or taken.place == definition.place else f"{name}-{place_hash(definition, 16)}"

    def _there(self) -> list[manifest.Entry]:
        """The collections of the archive that this one replaces."""
        if self._former is None:
            with writing(self.path):
                empty = not self.path.is_dir() or not any(self.path.iterdir())
            if not empty and not (self.path / manifest.NAME).is_file():
                raise UsageError(f"{self.path} is not empty, and no archive of ours", hint="name another directory")
            self._former = [] if empty else manifest.read_manifest(self.path).collections
        return self._former

    def _finished(self) -> list[manifest.Entry]:
        folders = sorted(folder for folder in self._work.path.iterdir() if folder.is_dir())
        return [entry for entry in map(manifest.read_entry, folders) if entry is not None]

    def _clean(self, kept: set[str]) -> None:
        """Remove what only a copy under way needs."""
        for left in self._work.path.iterdir():
            if left.name not in kept:
                remove(left)
            else:
                for journal in left.glob(f"*{ENDING}"):
                    remove(journal)

    def _has_more(self, entries: Sequence[manifest.Entry]) -> bool:
        """Whether the archive that is there has anything that one of these collections has not."""
        carried = [(entry.definition, entry.parts) for entry in entries]
        known = {self.path / manifest.NAME}
        for entry in self._there():
            if (entry.definition, entry.parts) not in carried:
                return True
            folder = self.path / entry.directory
            known |= {folder, folder / manifest.ENTRY, *entry.paths(self.path)}
        return self.path.is_dir() and not known.issuperset(self.path.rglob("*"))

    def _carry(self, brought: set[Place]) -> list[manifest.Entry]:
        """Link what the archive that is there holds besides into the new one."""
        carried = []
        for entry in self._there():
            if entry.definition.place in brought:
                continue
            name = entry.directory
            if (self._work.path / name).exists():
                name = f"{name[:80]}-{place_hash(entry.definition, 16)}"
            kept = manifest.Entry(name, entry.definition, entry.count, entry.parts)
            (self._work.path / name).mkdir()
            for path, new in zip(entry.paths(self.path), kept.paths(self._work.path), strict=True):
                _link(path, new)
            manifest.write_entry(self._work.path, kept)
            carried.append(kept)
        return carried


def _link(path: Path, new: Path) -> None:
    """A second name for a file that nobody writes any more, or a durable copy where there are no links."""
    try:
        os.link(path, new)
    except OSError:
        shutil.copyfile(path, new)
        sync_file(new)
