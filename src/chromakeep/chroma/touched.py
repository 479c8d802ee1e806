"""Touched: the ids that a database's queue names behind a position, and what has become of each, in one transaction.

What it costs depends on how many they are, and not on how many records there are: rows of the queue, the catalog, and
of each id its row. A vector is not looked for in the index, which Chroma may be writing: an id of which no row behind
the position has one has still the vector that it had there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chromakeep.changes import Position, Row
from chromakeep.chroma import hnsw
from chromakeep.chroma.catalog import Catalog, Entry, untrusted_rows
from chromakeep.chroma.columns import Columns
from chromakeep.chroma.directory_source import definitions_of
from chromakeep.chroma.locking import open_in_this_process
from chromakeep.chroma.metadata import Fields, canonical, overlay, read_fields
from chromakeep.chroma.queue import ADD, BACKFILL, DELETE, DOCUMENT, UPDATE, UPSERT, replay
from chromakeep.chroma.queue import Row as Queued
from chromakeep.chroma.tail import TOPIC, Tail
from chromakeep.errors import SourceBroken, SourceBusy, SourceError
from chromakeep.records import Definition

DATABASE = "chroma.sqlite3"


class Unfollowable(Exception):
    """The rows do not tell all; one line that says why. Whoever wants to know reads the records."""


class Outcome(NamedTuple):
    """Of the ids of one collection: ``new`` have the vector at the same place in ``vectors``, (n, dimension), ``kept``
    that which they had, ``gone`` are no more; ``new`` and ``kept`` with all they hold but their vectors. ``doubtful``:
    the records at the position cannot have been those that were named."""

    new: Columns
    vectors: NDArray[np.float32]
    kept: Columns
    gone: list[bytes]
    doubtful: bool


def position_of(directory: Path) -> Position:
    """The end of the queue of a directory at rest. Reads the number of every row."""
    with Catalog(directory) as catalog, untrusted_rows():
        rows = dict(catalog.connection.execute("SELECT topic, max(seq_id) FROM embeddings_queue GROUP BY topic"))
        last = catalog.connection.execute("SELECT seq_id, topic FROM embeddings_queue ORDER BY seq_id DESC LIMIT 1")
        found = {
            entry.id: max(int(rows.get(entry.topic, 0)), _applied(entry)) if entry.dimension else 0
            for entry in catalog.entries
        }
        early = any(entry.topic in rows for entry in catalog.entries if not entry.dimension)
        return Position(found, None if early else last.fetchone())


class Look:
    """What one look has found. ``purged``: ids of collections of which rows may be missing. ``more``: the rows are not
    all, so what the ids hold may be of later than the rows."""

    def __init__(self, position: Position) -> None:
        self.before, self.position, self.more = position, position, False
        self.definitions: list[Definition] = []
        self.entries: dict[str, Entry] = {}
        self.purged: set[str] = set()
        self.rows: dict[str, list[Row]] = {}
        self.fields: dict[str, dict[bytes, Fields | None]] = {}

    def read(self, directory: Path, connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
        """All of it, in the transaction that the rows were read in."""
        catalog = Catalog.within(directory, connection)
        self.definitions = definitions_of(catalog, counted=False)
        self.entries = {entry.id: entry for entry in catalog.entries}
        for row in rows:
            self.rows.setdefault(row.topic.removeprefix(TOPIC), []).append(row)
        with untrusted_rows():
            for id_, entry in self.entries.items():
                if _is_purged(connection, entry, self.before.rows.get(id_, 0)):
                    self.purged.add(id_)
                elif id_ in self.rows and entry.dimension:
                    ids = {row.id for row in self.rows[id_]}
                    self.fields[id_] = _fields(connection, entry, ids, arrays=catalog.has_arrays)

    def ids(self, collection: str) -> list[bytes]:
        """The ids that are named of a collection, each once."""
        return list(dict.fromkeys(row.id for row in self.rows.get(collection, ())))

    def outcome(self, collection: str, existing: set[bytes]) -> Outcome:
        """What has become of these; ``existing`` are those that were there at the position. Raises ``Unfollowable``
        for rows that stop Chroma."""
        entry, rows, fields = self.entries[collection], self.rows[collection], self.fields[collection]
        queued = [_queued(row, entry) for row in rows]
        alive = replay(queued, existing).alive
        there = {id_ for id_ in self.ids(collection) if fields.get(id_) is not None}
        vectors = {row.seq: row.vector for row in rows}
        new = [id_ for id_ in self.ids(collection) if alive.get(id_) and id_ in there]
        kept = [id_ for id_ in self.ids(collection) if alive.get(id_) == 0 and id_ in there]
        chosen = [vectors[alive[id_]] for id_ in new]
        if None in chosen:
            raise Unfollowable(f"a row of {entry.name} that adds a record has no vector")
        data = np.frombuffer(b"".join(each or b"" for each in chosen), "<f4").reshape(len(new), entry.dimension or 0)
        if entry.space == "cosine" and len(data):
            data = hnsw.through_cosine(data)
        gone = [id_ for id_ in self.ids(collection) if id_ not in alive or id_ not in there]
        doubtful = not self.more and set(alive) & set(self.ids(collection)) != there
        return Outcome(_columns(new, fields), data, _columns(kept, fields), gone, doubtful)


class Looking:
    """Looks at one directory, live or at rest. A context."""

    def __init__(self, directory: Path, position: Position, *, still: bool = False) -> None:
        """``still``: nobody writes to it. Raises ``Unfollowable``."""
        self._directory, self._position = directory, position
        database = (directory / DATABASE).resolve()
        if not still and open_in_this_process(database):
            raise Unfollowable("this process has the database open itself")
        try:
            topics = {TOPIC + id_: seq for id_, seq in position.rows.items()}
            self._tail = Tail(database, topics, last=position.last)
        except SourceError as error:
            raise Unfollowable(error.message) from None

    def look(self) -> Look:
        """The next rows, some MiB of them. Raises ``Unfollowable``."""
        found = Look(self._position)
        try:
            change = self._tail.look(also=lambda connection, rows: found.read(self._directory, connection, rows))
        except SourceBusy:
            raise  # a whole reading would wait for the same writer
        except (SourceError, SourceBroken) as error:
            raise Unfollowable(error.message) from None
        found.more = change is not None and change.more
        topics, last = self._tail.position
        rows = {id_: self._position.rows.get(id_, 0) for id_ in found.entries}
        for topic, seq in topics.items():
            id_ = topic.removeprefix(TOPIC)
            rows[id_] = max(rows.get(id_, 0), seq)
        for id_ in found.purged:  # whoever goes on from here has read them whole
            rows[id_] = max(rows[id_], _applied(found.entries[id_]))
        for id_, entry in found.entries.items():
            if not entry.dimension and id_ in found.rows:  # nothing of them has an effect before it has one: read again
                rows[id_], last = self._position.rows.get(id_, 0), None
        found.position = self._position = Position(rows, last)
        return found

    def __enter__(self) -> Looking:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error), closing(self._tail):
            pass


def _applied(entry: Entry) -> int:
    return max(entry.metadata_seq, entry.vector_seq or 0)


def _is_purged(connection: sqlite3.Connection, entry: Entry, seen: int) -> bool:
    """Whether rows behind ``seen`` may have been deleted. Chroma deletes those before the last one that both segments
    have applied: as long as the one that was seen last is there, or none behind it is applied, all behind it are."""
    if _applied(entry) <= seen:
        return False
    row = connection.execute("SELECT topic FROM embeddings_queue WHERE seq_id = ?", (seen,)).fetchone()
    return bool(row != (entry.topic,))


def _queued(row: Row, entry: Entry) -> Queued:
    floats = None if row.vector is None or row.encoding is None else len(row.vector) // 4
    if row.operation not in (ADD, UPDATE, UPSERT, DELETE, BACKFILL):
        raise Unfollowable(f"a row of {entry.name} is of the unknown operation {row.operation}")
    if row.vector is not None and (row.encoding not in (None, "FLOAT32") or floats not in (None, entry.dimension)):
        raise Unfollowable(f"a row of {entry.name} has a vector that is not of {entry.dimension} dimensions")
    return Queued(row.seq, row.operation, row.id, floats, None)


def _fields(
    connection: sqlite3.Connection, entry: Entry, ids: set[bytes], *, arrays: bool
) -> dict[bytes, Fields | None]:
    """What these ids hold now, pending rows applied; None for those that are not there. Raises ``Unfollowable``."""
    before: dict[bytes, Fields] = {}
    for id_ in ids:
        found = connection.execute(
            "SELECT id FROM embeddings WHERE segment_id = ? AND embedding_id = ?",
            (entry.metadata_segment, id_.decode()),
        ).fetchone()
        if found:
            before[id_] = read_fields(connection, found, arrays=arrays).get(found[0], {})
    pending = [
        (operation, id_, _update(text, entry))
        for operation, id_, text in connection.execute(
            "SELECT operation, CAST(id AS BLOB), metadata FROM embeddings_queue WHERE seq_id > ? AND topic = ? "
            "ORDER BY seq_id",
            (entry.metadata_seq, entry.topic),
        )
        if id_ in ids
    ]
    after, _ = overlay(pending, before)
    return {id_: after.get(id_) for id_ in ids}


def _update(text: Any, entry: Entry) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
        update = {key: canonical(value) for key, value in found.items()}
    except (ValueError, AttributeError, RecursionError):
        raise Unfollowable(f"a row of {entry.name} has metadata that stops Chroma") from None
    if not isinstance(update.get(DOCUMENT), str | None):
        raise Unfollowable(f"a row of {entry.name} has a document that stops Chroma")
    return update


def _columns(ids: list[bytes], fields: dict[bytes, Fields | None]) -> Columns:
    found = Columns(ids, (-1, 0))
    for at, id_ in enumerate(ids):
        found.put(at, fields[id_] or {})
    return found
