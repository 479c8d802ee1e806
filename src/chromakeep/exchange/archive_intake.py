"""One collection of an archive directory while it is written, part after part."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
from msgspec.structs import replace

from chromakeep.errors import UsageError
from chromakeep.exchange.files import remove, sync_folder, writing
from chromakeep.exchange.journal import ENDING
from chromakeep.exchange.manifest import Entry, is_safe, part_name, write_entry
from chromakeep.exchange.part import PartWriter, Point, Written, last_ids
from chromakeep.exchange.reading import Part
from chromakeep.exchange.recent import MOST, Recent
from chromakeep.exchange.typed import Typed
from chromakeep.records import Definition, Limits, Mark


class Progress(msgspec.Struct):
    """A mark: the finished parts of a collection, the directory they are in, and how far the next one is durable."""

    directory: str
    parts: list[Written] = []
    next: Point | None = None

    @classmethod
    def of(cls, mark: Mark) -> Progress | None:
        """Raises ``UsageError`` for what is no mark of an archive."""
        if mark is None:
            return None
        try:
            found = msgspec.convert(mark, cls)
        except msgspec.ValidationError:
            found = cls("")
        if not is_safe(found.directory, found.parts):
            raise UsageError("this mark is none of an archive", hint="begin anew, without it")
        return found


class ArchiveIntake:
    """Writes parts of about ``part_bytes``. Records of an id that was written lately are not written again.

    ``mark`` ends a row group and makes durable what was written. For one thread at a time.
    """

    limits = Limits(writers=1)

    def __init__(
        self, folder: Path, definition: Definition, progress: Progress, *, compact: bool, part_bytes: int
    ) -> None:
        """Go on behind ``progress``; whatever else is in ``folder`` is removed. Raises ``UsageError`` if what it tells
        of is not there."""
        self.definition = definition
        self.finished = False
        self._folder = folder
        self._parts = list(progress.parts)
        self._compact = compact
        self._part_bytes = part_bytes
        self._recent = Recent()
        self._typed: Typed | None = None
        self._writer: PartWriter | None = None
        self._go_on(progress.next)

    def write(self, batch: pa.RecordBatch) -> None:
        if self.finished:
            raise UsageError(f"the collection {self.definition.name!r} is finished")
        fresh = self._recent.fresh(batch)
        writer = self._writer or self._next(None)
        writer.add(fresh)
        if writer.size >= self._part_bytes:
            self._end_part(writer)

    def mark(self) -> Mark:
        """Make durable what was written; the parts, each with its size and hash, and how far the last one is."""
        point = self._writer.mark() if self._writer is not None else None
        return msgspec.to_builtins(Progress(self._folder.name, self._parts, point))

    def finish(self) -> None:
        """End the last part and note that this was all; twice is once. A collection without records is one part."""
        if self.finished:
            return
        if self._writer is not None or not self._parts:
            self._end_part(self._writer or self._next(None))
        count = sum(part.records for part in self._parts)
        with writing(self._folder):
            write_entry(
                self._folder.parent,
                Entry(self._folder.name, replace(self.definition, count=count), count, self._parts),
            )
        self.finished = True

    def abandon(self) -> None:
        """Let go of the part that is not finished."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _go_on(self, point: Point | None) -> None:
        self._folder.mkdir(exist_ok=True)
        for part in self._parts:
            path = self._folder / part.name
            if not path.is_file() or path.stat().st_size != part.bytes:
                raise UsageError(
                    f"{path} is not as the last copy left it, so it cannot be gone on with",
                    hint="begin anew, without what was noted of that copy",
                )
        kept = {part.name for part in self._parts}
        if point is not None:
            kept |= {self._number(), self._number() + ENDING}
        for left in self._folder.iterdir():
            if left.name not in kept:
                remove(left)
        sync_folder(self._folder.parent)
        if self._parts:
            first = Part(self._folder / self._parts[0].name)
            self._typed = Typed.in_schema(first.schema)
            first.close()
        if point is not None:
            self._recent.remember(self._next(point).recent)
        if self._parts:
            self._recent.remember(last_ids(self._folder / self._parts[-1].name, MOST))

    def _number(self) -> str:
        """The name of the next part."""
        return part_name(1 + max((int(part.name[5:-8]) for part in self._parts), default=-1))

    def _next(self, point: Point | None) -> PartWriter:
        # All parts have the columns of the first one, so that they can be read as one table.
        typed = Typed(self._typed.kinds) if self._typed else None
        path = self._folder / self._number()
        self._writer = PartWriter(path, self.definition, typed=typed, compact=self._compact, start=point)
        return self._writer

    def _end_part(self, writer: PartWriter) -> None:
        self._parts.append(writer.finish())
        self._typed, self._writer = writer.typed, None
