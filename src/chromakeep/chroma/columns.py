"""Columns: documents, URIs and metadata of many records at once, as ``collection.get`` shows them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from chromakeep.chroma.metadata import HIDDEN, URI, Fields, Records, read_fields
from chromakeep.chroma.queue import DOCUMENT
from chromakeep.errors import SourceBroken

SPARSE = 4  # a range of row numbers is read whole unless it has this many times more rows than are wanted
# One value a row, by the first column that is not null: Chroma's order. A truth value is a blob, as nothing else is.
_VALUE = (
    "coalesce(string_value, int_value, float_value, "
    "CASE WHEN bool_value THEN x'31' WHEN bool_value IS NOT NULL THEN x'30' END)"
)

Mark = tuple[int, int]
"""How far records were read: the last row number, and how many of the ids that only the queue has."""


class Columns:
    """Some records; position ``i`` is one record throughout. ``mark`` leads behind the last of them."""

    __slots__ = ("documents", "ids", "mark", "metadatas", "uris")

    def __init__(self, ids: list[bytes], mark: Mark) -> None:
        self.ids, self.mark = ids, mark
        self.documents: list[str | None] = [None] * len(ids)
        self.uris: list[str | None] = [None] * len(ids)
        self.metadatas: list[dict[str, Any] | None] = [None] * len(ids)

    def put(self, at: int, fields: Fields) -> None:
        """Set what one record has."""
        document, uri = fields.get(DOCUMENT), fields.get(URI)
        self.documents[at] = document if isinstance(document, str) else None
        self.uris[at] = uri if isinstance(uri, str) else None
        shown = {key: value for key, value in fields.items() if not key.startswith(HIDDEN)}
        # Chroma shows {} for a record that has nothing but hidden keys, and null for one that has no key at all
        self.metadatas[at] = shown if shown or fields.keys() - {DOCUMENT} else None


def read_columns(records: Records, size: int, *, after: Mark = (-1, 0)) -> Iterator[Columns]:
    """The living records in the order of ``collection.get``, ``size`` at a time, from behind a mark."""
    reading, last = _Reading(records), after[0]
    for rowids, ids in records.in_place(size, after=after[0]):
        last = rowids[-1]
        yield reading.portion(rowids, ids)
    for at in range(after[1], len(records.appended), size):
        ids = records.appended[at : at + size]
        found = Columns(ids, (last, at + len(ids)))
        for number, id_ in enumerate(ids):
            found.put(number, records.changed[id_] or {})
        yield found


class _Reading:
    """Portions of the records that SQLite has."""

    def __init__(self, records: Records) -> None:
        self.records, self.connection = records, records.connection
        self.arrays = records.arrays and _has_rows(self.connection, "embedding_metadata_array")

    def portion(self, rowids: list[int], ids: list[bytes]) -> Columns:
        """These records, row numbers ascending."""
        found = Columns(ids, (rowids[-1], 0))
        if self.arrays:
            stored = read_fields(self.connection, rowids, arrays=True)
            for at, rowid in enumerate(rowids):
                found.put(at, stored.get(rowid, {}))
        else:
            self._fill(found, rowids)
        if self.records.changed:
            for at, id_ in enumerate(ids):
                if id_ in self.records.changed:
                    found.put(at, self.records.changed[id_] or {})
        return found

    def _fill(self, found: Columns, rowids: list[int]) -> None:
        """The plain case, in one loop: most of the time of reading a directory is spent here."""
        at = {rowid: number for number, rowid in enumerate(rowids)}
        documents, uris, metadatas = found.documents, found.uris, found.metadatas
        where, bounds = _range(rowids)
        for rowid, key, value in self.connection.execute(
            f"SELECT id, key, {_VALUE} FROM embedding_metadata WHERE {where}", bounds
        ):
            number = at.get(rowid)
            if number is None or value is None:
                continue
            if key == DOCUMENT:
                documents[number] = value if type(value) is str else None
                continue
            fields = metadatas[number]
            if fields is None:
                fields = metadatas[number] = {}
            if type(value) is bytes:
                if value not in (b"0", b"1"):
                    raise SourceBroken(f"the value of {key!r} is of no type that Chroma has")
                value = value == b"1"
            if not key.startswith(HIDDEN):
                fields[key] = value
            elif key == URI and type(value) is str:
                uris[number] = value


def _range(rowids: Sequence[int]) -> tuple[str, tuple[Any, ...]]:
    """SQL for rows that include those with these numbers, ascending: they lie together, or are looked up one by one."""
    if rowids[-1] - rowids[0] < SPARSE * len(rowids):
        return "id BETWEEN ? AND ?", (rowids[0], rowids[-1])
    return "id IN (SELECT value FROM json_each(?))", (json.dumps(list(rowids)),)


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None
