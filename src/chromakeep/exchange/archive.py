"""An archive directory of Parquet files as a source: any number of collections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial as bound
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from msgspec.structs import replace

from chromakeep.errors import SourceError, UsageError
from chromakeep.exchange import manifest
from chromakeep.exchange.files import reading
from chromakeep.exchange.position import Stretch, fingerprint
from chromakeep.exchange.reading import Part
from chromakeep.records import Definition, Mark

if TYPE_CHECKING:
    from chromakeep.conditions import Where


class ParquetArchiveSource:
    """The collections of an archive. One without a manifest is refused: a copy into it was not finished.

    Each part's size is compared with the manifest's, its hash only by ``verify``. A mark is ``[part, row group, row]``.
    For one thread at a time.
    """

    def __init__(self, path: Path, unpublished: manifest.Manifest | None = None) -> None:
        """``unpublished``: what the manifest will say of a directory that has none yet."""
        self.path = path
        self._manifest = unpublished
        self._lasting = unpublished is None
        self._known: dict[tuple[str, str, str], tuple[Definition, manifest.Entry]] = {}
        self._open: Part | None = None

    def definitions(self) -> Sequence[Definition]:
        """The collections in the manifest. Raises ``SourceError``."""
        if not self._known:
            for entry in self._read().collections:
                definition = replace(entry.definition, count=entry.count)
                if definition.dimension is None:
                    definition = replace(definition, dimension=self._dimension(entry))
                if definition.place in self._known:
                    raise SourceError(f"{self.path} has two collections {definition.name!r}")
                self._known[definition.place] = definition, entry
        return [definition for definition, _ in self._known.values()]

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """As of ``Source``; the records in the order in which they were written."""
        self.definitions()
        if definition.place not in self._known:
            raise UsageError(f"{self.path} has no collection {definition.name!r}")
        own, entry = self._known[definition.place]
        return Stretch(self._parts(entry), own.dimension).batches(after, where)

    def verify(self) -> int:
        """Hash every part; how many bytes that were. Raises ``VerificationFailed``."""
        return manifest.verify(self.path, self._read())

    def state(self) -> str:
        if not self._lasting:
            return ""
        found = self._read()
        paths = [path for entry in found.collections for path in entry.paths(self.path)]
        with reading(self.path):
            return fingerprint([self.path / manifest.NAME, *paths])

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _read(self) -> manifest.Manifest:
        if self._manifest is None:
            self._manifest = manifest.read_manifest(self.path)
        return self._manifest

    def _parts(self, entry: manifest.Entry) -> list[Callable[[], Part]]:
        parts = zip(entry.paths(self.path), entry.parts, strict=True)
        return [bound(self._part, path, part.records) for path, part in parts]

    def _part(self, path: Path, records: int) -> Part:
        """Open one, and close the one before it."""
        if self._open is not None and self._open.path != path:
            self.close()
        if self._open is None:
            self._open = Part(path)
        if self._open.records != records:
            raise SourceError(f"{path} has {self._open.records} records, and had {records} when it was written")
        return self._open

    def _dimension(self, entry: manifest.Entry) -> int | None:
        """The definition was taken before the first record was there."""
        return next((found for part in self._parts(entry) if (found := part().dimension()) is not None), None)
