"""Vector segments as SQLite names them, and whether a persist (Chroma writing HNSW files in place) is under way.

Chroma holds no SQLite lock while it persists: ``header.bin``, ``data_level0.bin``, ``length.bin``, ``link_lists.bin``,
then ``index_metadata.pickle``, each in place, then the row in ``max_seq_id`` (hnswlib/hnswalg.h ``persistDirty``,
local_hnsw.rs ``persist``). So a finished persist leaves the pickle newest and whole.
"""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from chromakeep.chroma.signature import BINARIES, PICKLE, SEGMENT_FILES, UUID, Stamp, stamp
from chromakeep.errors import SourceBroken

DEFAULT_THRESHOLD = 1000
LOOK_BACK = 20_000  # rows of the queue looked at; a persist reads the newest ones

Stamps = tuple["Stamp | None", ...]  # of SEGMENT_FILES


class Segment(msgspec.Struct, frozen=True):
    """A live VECTOR segment, and the collection it belongs to."""

    id: str
    collection: str
    name: str

    def __str__(self) -> str:
        return f"collection {self.name!r}, segment {self.id}"


def segments(connection: sqlite3.Connection) -> tuple[Segment, ...]:
    """Live VECTOR segments of a database written by Chroma 0.4 to 1.5. Raises ``SourceBroken`` for an unsafe id."""
    rows = connection.execute(
        "SELECT s.id, s.collection, coalesce(c.name, s.collection) FROM segments s"
        " LEFT JOIN collections c ON c.id = s.collection WHERE s.scope = 'VECTOR' ORDER BY s.id"
    ).fetchall()
    for identity, _, _ in rows:
        if not isinstance(identity, str) or not UUID.fullmatch(identity):
            raise SourceBroken(f"the segments table names {identity!r}, which is no segment id")
    return tuple(Segment(identity, str(collection), str(name)) for identity, collection, name in rows)


def _progress(connection: sqlite3.Connection, segment: Segment) -> tuple[int, int]:
    """The last sequence number that a segment's files are registered to hold, and its ``sync_threshold``."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(collections)")}
    texts = ", ".join(c for c in ("schema_str", "config_json_str") if c in columns) or "NULL"
    parts: tuple[Any, ...] = (
        connection.execute(f"SELECT {texts} FROM collections WHERE id = ?", (segment.collection,)).fetchone() or ()
    )
    legacy = "SELECT int_value FROM collection_metadata WHERE collection_id = ? AND key = 'hnsw:sync_threshold'"
    thresholds = [t for text in parts if text for t in _thresholds(text)]
    thresholds += [n for (n,) in connection.execute(legacy, (segment.collection,)) if isinstance(n, int)]
    row = connection.execute("SELECT seq_id FROM max_seq_id WHERE segment_id = ?", (segment.id,)).fetchone()
    applied = row[0] if row else 0
    applied = int.from_bytes(applied, "big") if isinstance(applied, bytes) else int(applied or 0)  # bytes before 1.0
    return applied, max(1, min(thresholds, default=DEFAULT_THRESHOLD))


def _thresholds(text: str) -> tuple[int, ...]:
    """Every ``sync_threshold`` anywhere in a configuration, whatever version shaped it."""

    def walk(value: Any) -> list[int]:
        if isinstance(value, dict):
            own = value.get("sync_threshold")
            return ([own] if isinstance(own, int) and own > 0 else []) + [t for v in value.values() for t in walk(v)]
        return []

    try:
        return tuple(walk(json.loads(text)))
    except (ValueError, RecursionError):
        return ()


def stamps(folder: Path) -> Stamps:
    """Stamps of a segment's files, None for each that is not there."""
    return tuple(stamp(folder / name, follow=False) for name in SEGMENT_FILES)


def in_order(found: Stamps) -> bool:
    """Whether the pickle is the newest file, as a finished persist leaves it (trivially so before the first one)."""
    *binaries, pickle = found
    return pickle is None or all(b is not None and b.mtime <= pickle.mtime for b in binaries)


def may_be_unregistered(connection: sqlite3.Connection, segment: Segment, found: Stamps) -> bool:
    """Whether the files may hold more than ``max_seq_id`` says: a persist ended, its row is not yet written.

    Chroma would replay such rows a second time; it mostly does so without harm. A persist needs ``threshold`` rows
    past ``applied``, and they are not purged before their row is written; so it cannot be if there are fewer, or if
    the pickle is older than the row that made them that many.
    """
    pickle = found[-1]
    if pickle is None:
        return False
    applied, threshold = _progress(connection, segment)
    row = connection.execute(
        "SELECT created_at FROM embeddings_queue WHERE topic LIKE '%' || ? AND seq_id > max(?,"
        " (SELECT coalesce(max(seq_id), 0) FROM embeddings_queue) - ?) ORDER BY seq_id LIMIT 1 OFFSET ?",
        (segment.collection, applied, LOOK_BACK, threshold - 1),
    ).fetchone()
    if row is None:
        return False
    try:
        created = datetime.fromisoformat(str(row[0])).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return True
    return pickle.mtime >= created * 1e9


def incomplete(folder: Path) -> str | None:
    """What keeps a segment's copied files from being those of one finished persist, None if nothing does."""
    if not (folder / PICKLE).exists():
        return None  # never persisted: Chroma starts the binaries anew and replays the queue
    from chromakeep.chroma.pickles import read_id_map

    missing = [name for name in BINARIES if not (folder / name).exists()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        read_id_map(folder / PICKLE)
    except SourceBroken as error:
        return error.message
    return None
