"""Documents and metadata as SQLite holds them, and as pending queue rows change them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma.catalog import Catalog, Entry
from chromakeep.chroma.queue import ADD, BACKFILL, DELETE, DOCUMENT, UPDATE, Queue, Row
from chromakeep.digests import hashes
from chromakeep.sets import among

URI = "chroma:uri"
HIDDEN = "chroma:"

_PORTION = 8192

Fields = dict[str, Any]  # of one record: metadata, and the document and URI under their internal keys


def read_fields(connection: sqlite3.Connection, rowids: Sequence[int], *, arrays: bool) -> dict[int, Fields]:
    """The fields of the records with these row numbers in ``embeddings``, of each that has any."""
    found: dict[int, Fields] = {}
    wanted = (json.dumps(list(rowids)),)
    for rowid, key, string, integer, real, flag in connection.execute(
        "SELECT id, key, string_value, int_value, float_value, bool_value FROM embedding_metadata "
        "WHERE id IN (SELECT value FROM json_each(?))",
        wanted,
    ):
        value = value_of(string, integer, real, flag)
        if value is not None:
            found.setdefault(rowid, {})[key] = value
    if arrays:
        for rowid, key, string, integer, real, flag in connection.execute(
            "SELECT id, key, string_value, int_value, float_value, bool_value FROM embedding_metadata_array "
            "WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id, key, rowid",
            wanted,
        ):
            value = value_of(string, integer, real, flag)
            fields = found.setdefault(rowid, {})
            before = fields.get(key)
            if isinstance(before, list) and type(before[0]) is type(value):
                before.append(value)
            elif value is not None:
                fields[key] = [value]
    return found


def value_of(string: Any, integer: Any, real: Any, flag: Any) -> Any:
    """The first column that is not null decides the type, in Chroma's order."""
    if string is not None:
        return string
    if integer is not None:
        return integer
    if real is not None:
        return real
    return None if flag is None else bool(flag)


def canonical(value: Any) -> Any:
    """A queued metadata value as Chroma's parser takes it (``UpdateMetadataValue``, rust/types/src/metadata.rs).

    Integers past 64 bits and lists of mixed numbers become floats; an empty list deletes its key. Raises ValueError for
    what Chroma cannot parse: objects, null inside a list, lists of mixed types.
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else float(value)
    if isinstance(value, list):
        items = [canonical(item) for item in value]
        kinds = {type(item) for item in items}
        if kinds == {int, float}:
            return [float(item) for item in items]
        if not kinds:
            return None
        if len(kinds) == 1 and kinds <= {bool, int, float, str}:
            return items
    raise ValueError(f"a value Chroma cannot parse ({type(value).__name__})")


def overlay(
    rows: Iterable[tuple[int, bytes, Any]], before: dict[bytes, Fields]
) -> tuple[dict[bytes, Fields | None], list[bytes]]:
    """Apply pending rows (values ``canonical``) to the records they name, given those that exist.

    Returns what becomes of each (a deleted record: None), and the ids that are new or re-added, in that order:
    ``collection.get`` returns them last.
    """
    after: dict[bytes, Fields | None] = dict(before)
    created: dict[bytes, None] = {}
    for operation, id_, changes in rows:
        fields = after.get(id_)
        if operation == DELETE:
            if fields is not None:
                after[id_] = None
                created.pop(id_, None)
        elif (
            operation == BACKFILL
            or (operation == ADD and fields is not None)
            or (operation == UPDATE and fields is None)
        ):
            continue
        else:
            if fields is None:
                created[id_] = None
                fields = after[id_] = {}
            for key, value in (changes or {}).items():
                if value is None or (key == DOCUMENT and not isinstance(value, str)):
                    fields.pop(key, None)
                else:
                    fields[key] = value
    return after, list(created)


class Records:
    """The records of one collection as SQLite has them, and what pending rows change (usually nothing).

    ``touched`` are the row numbers, in the METADATA segment, of those that pending rows name; ``changed`` has what
    becomes of these (None: deleted) and the new ones, ``renewed`` those of them that live. In the order of
    ``collection.get`` come the rows that are ``in_place`` and then the ids ``appended``.
    """

    def __init__(self, catalog: Catalog, entry: Entry, queue: Queue) -> None:
        self.connection, self.segment, self.arrays = catalog.connection, entry.metadata_segment, catalog.has_arrays
        self.touched = np.zeros(0, np.int64)
        self.changed: dict[bytes, Fields | None] = {}
        self.appended: list[bytes] = []
        self._moved: list[int] = []
        self.poisoned: list[Row] = []
        pending = queue.pending(entry.topic, entry.metadata_seq)
        if len(pending) and entry.dimension:  # Chroma replays nothing before a collection has its dimension
            self._replay(queue, pending)
        self.renewed = [id_ for id_, fields in self.changed.items() if fields is not None]

    def _base(self) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
        """Row numbers and ids, in portions: read from the index on (segment_id, embedding_id), in the order of ids."""
        cursor = self.connection.execute(
            "SELECT id, CAST(embedding_id AS BLOB) FROM embeddings WHERE segment_id = ?", (self.segment,)
        )
        while rows := cursor.fetchmany(_PORTION):
            yield np.array([row[0] for row in rows], np.int64), [row[1] for row in rows]

    def living(self) -> Iterator[list[bytes]]:
        """The ids of all records, in portions and no order."""
        for rowids, ids in self._base():
            kept = np.flatnonzero(~among(rowids, self.touched)).tolist() if len(self.touched) else range(len(ids))
            yield [ids[i] for i in kept]
        yield self.renewed

    def _replay(self, queue: Queue, pending: NDArray[np.int64]) -> None:
        rows = list(queue.rows(pending))
        sound = np.array([row.seq for row in rows if not row.poison], np.int64)
        changes = []
        for row, (operation, id_, update) in zip([r for r in rows if not r.poison], queue.metadata(sound), strict=True):
            try:
                changes.append((operation, id_, {k: canonical(v) for k, v in (update or {}).items()}))
            except ValueError as error:
                rows[rows.index(row)] = row._replace(poison=f"its metadata holds {error}")
        self.poisoned = [row for row in rows if row.poison]
        before: dict[bytes, Fields] = {}
        rowid_of: dict[bytes, int] = {}
        for id_ in {row.id for row in rows}:
            found = self.connection.execute(
                "SELECT id FROM embeddings WHERE segment_id = ? AND embedding_id = ?", (self.segment, id_.decode())
            ).fetchone()
            if found:
                before[id_] = read_fields(self.connection, found, arrays=self.arrays).get(found[0], {})
                rowid_of[id_] = found[0]
        self.touched = np.array(sorted(rowid_of.values()), np.int64)
        self.changed, self.appended = overlay(changes, before)
        created = set(self.appended)
        self._moved = [rowid for id_, rowid in rowid_of.items() if self.changed[id_] is None or id_ in created]

    def in_place(self, size: int, *, after: int = -1) -> Iterator[tuple[list[int], list[bytes]]]:
        """Row numbers and ids of the records that pending rows neither delete nor re-add, ascending, from behind a row
        number on; about ``size`` at a time."""
        moved = set(self._moved)
        cursor = self.connection.execute(  # by row number: the + keeps SQLite from sorting all of an index of ids
            "SELECT id, CAST(embedding_id AS BLOB) FROM embeddings WHERE +segment_id = ? AND id > ? ORDER BY id",
            (self.segment, after),
        )
        while rows := cursor.fetchmany(size):
            kept = [row for row in rows if row[0] not in moved] if moved else rows
            if kept:
                yield [row[0] for row in kept], [row[1] for row in kept]

    def id_portions(self, size: int) -> Iterator[list[bytes]]:
        """The living ids in the order of ``collection.get``."""
        for _, ids in self.in_place(size):
            yield ids
        for start in range(0, len(self.appended), size):
            yield self.appended[start : start + size]

    def names(self, wanted: NDArray[np.uint64]) -> tuple[str, ...]:
        """The ids whose hashes begin with these words."""
        found = {name for ids in self.living() for name in named(ids, wanted)}
        return tuple(sorted(found))


def named(ids: list[bytes], wanted: NDArray[np.uint64]) -> tuple[str, ...]:
    """Those of the ids whose hashes begin with one of these words, sorted."""
    which = np.flatnonzero(among(hashes(ids)[:, 0], wanted))
    return tuple(sorted({ids[i].decode(errors="replace") for i in which}))
