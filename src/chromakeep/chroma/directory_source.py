"""A data directory as a source of records: read straight from its files, by no process of Chroma."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa

from chromakeep.batches import batch, encode, texts_of
from chromakeep.chroma.catalog import Catalog, Entry, untrusted_rows
from chromakeep.chroma.columns import read_columns
from chromakeep.chroma.reader import Index, open_collection
from chromakeep.chroma.signature import signature
from chromakeep.conditions import Where
from chromakeep.errors import SourceBroken
from chromakeep.records import Definition, Mark

PORTION = 2048


class DirectorySource:
    """The collections of a directory at rest: one that was captured, or that nobody writes to.

    Vectors, documents and metadata are what ``collection.get`` returns (``reader.read_collection`` says how exactly).
    A mark is a pair of numbers: the last row, and how many of the records that only the queue has were read.
    """

    def __init__(self, directory: Path, *, state: str = "") -> None:
        """``state``: what ``state()`` says, for a capture of which the caller knows when it is the same as another one.

        Raises ``NotAChromaDirectory``, ``SourceBroken``.
        """
        self._state = state
        self.directory = directory
        self.catalog = Catalog(directory)

    def definitions(self) -> Sequence[Definition]:
        """Every collection, in order of creation. ``count`` is exact unless writes are queued."""
        return definitions_of(self.catalog)

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """As ``records.Source``. Raises ``SourceBroken`` for what cannot be read exactly."""
        entry = self.catalog.entry(definition.id)
        with untrusted_rows():
            records, vectors = open_collection(self.catalog, entry)
            for row in records.poisoned + vectors.poisoned + vectors.misfits:
                why = row.poison or "its vector has another dimension"
                raise SourceBroken(f"queue row {row.seq} of {entry.name!r} stops Chroma: {why}")
            index = Index(vectors)
            place = (int(after[0]), int(after[1])) if after else (-1, 0)
            for some in read_columns(records, PORTION, after=place):
                found = batch(
                    texts_of(some.ids),
                    index.vectors(some.ids),
                    some.documents,
                    some.uris,
                    [encode(metadata) for metadata in some.metadatas],
                    entry.dimension,
                )
                yield (where.select(found) if where else found), list(some.mark)

    def state(self) -> str:
        """What the caller said of it."""
        return self._state

    def close(self) -> None:
        """Close the database."""
        with suppress(sqlite3.Error):
            self.catalog.close()


def definitions_of(catalog: Catalog, *, counted: bool = True) -> list[Definition]:
    """Every collection, in order of creation. ``counted``: with the number of records, which takes a pass over the
    index of their ids. Raises ``SourceBroken``."""
    with untrusted_rows():
        metadata = _metadata(catalog)
        return [
            Definition(
                entry.name,
                entry.id,
                entry.tenant,
                entry.database,
                entry.dimension,
                metadata.get(entry.id),
                entry.configuration.shown(),
                entry.configuration.schema or None,
                _count(catalog, entry) if counted else None,
            )
            for entry in catalog.entries
        ]


def _count(catalog: Catalog, entry: Entry) -> int:
    (count,) = catalog.connection.execute(
        "SELECT count(*) FROM embeddings WHERE segment_id = ?", (entry.metadata_segment,)
    ).fetchone()
    return int(count)


def _metadata(catalog: Catalog) -> dict[str, dict[str, Any]]:
    """The metadata of collections that have any, as the API shows it."""
    flag = "bool_value" if "bool_value" in catalog.columns("collection_metadata") else "NULL"
    found: dict[str, dict[str, Any]] = {}
    for id_, key, text, integer, real, truth in catalog.connection.execute(
        f"SELECT collection_id, key, str_value, int_value, float_value, {flag} FROM collection_metadata ORDER BY rowid"
    ):
        value = next((v for v in (text, integer, real) if v is not None), None if truth is None else bool(truth))
        if value is not None:
            found.setdefault(id_, {})[key] = value
    return found


def state_of(directory: Path) -> str:
    """A word for the state that a directory is in, by its ``signature``: one that was written to just now equals no
    other one. Raises what ``signature`` raises."""
    return blake2b(signature(directory).to_json().encode(), digest_size=16).hexdigest()
