"""One Parquet file with one collection as a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from chromakeep.errors import UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.exchange.files import reading
from chromakeep.exchange.once import Once
from chromakeep.exchange.position import Stretch, fingerprint
from chromakeep.exchange.reading import Part
from chromakeep.records import Definition, Mark

if TYPE_CHECKING:
    from chromakeep.conditions import Where

SHOWN = 20  # names in a message


class ParquetFileSource:
    """The collection in one Parquet file, by chromakeep or any other program; see ``exact`` for what it may hold.

    A mark is ``[0, row group, row]``. For one thread at a time. ``observer`` is told of columns that are not read.
    """

    def __init__(self, path: Path, observer: Observer = ignore) -> None:
        self.path, self._observer = path, observer
        self._part: Part | None = None
        self._definition: Definition | None = None

    def definitions(self) -> Sequence[Definition]:
        """The one collection. Raises ``SourceError``."""
        if self._definition is None:
            part = self._open()
            if part.foreign:
                ids = Once()
                for _, id in part.ids():
                    ids.add(id)
                ids.check(part.ids, str(self.path), "row")
                self._tell(part.unread)
            self._definition = part.definition()
        return [self._definition]

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """As of ``Source``; the records in the file's order."""
        (own,) = self.definitions()
        if definition.place != own.place:
            raise UsageError(f"{self.path} has no collection {definition.name}, but {own.name}")
        return Stretch([self._open], own.dimension).batches(after, where)

    def verify(self) -> int:
        """Read all of it and check each page's checksum; how many records that were. Raises ``SourceError``."""
        (own,) = self.definitions()
        return sum(len(batch) for batch, _ in self.batches(own))

    def state(self) -> str:
        with reading(self.path):
            return fingerprint([self.path])

    def close(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def _tell(self, unread: Sequence[str]) -> None:
        if unread:
            names = ", ".join(unread[:SHOWN]) + (", ..." if len(unread) > SHOWN else "")
            what = "1 column is" if len(unread) == 1 else f"{len(unread):,} columns are"
            how = "to have them in the collection, make them fields of the column metadata (a struct, or JSON text)"
            self._observer(Noted(f"{self.path}: {what} not read: {names}; {how}", "warning"))

    def _open(self) -> Part:
        if self._part is None:
            self._part = Part(self.path)
        return self._part
