"""subset: take collections out of a restored directory, so that only some remain.

For a directory that nobody uses yet and that this process made.
Tables and what refers to what are those of Chroma's migrations (metadb 1-6, sysdb 1-10, embeddings-queue 1-2).
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from chromakeep.chroma.catalog import DATABASE
from chromakeep.errors import DiskFull, VerificationFailed

# Order matters: what refers to a row goes before the row. {gone} are ids of collections, {rows} those of embeddings.
_GONE = "SELECT id FROM temp.gone"
_SEGMENTS = f"SELECT id FROM segments WHERE collection IN ({_GONE})"
_ROWS = f"SELECT id FROM embeddings WHERE segment_id IN ({_SEGMENTS})"
_DELETES = (
    ("embedding_fulltext_search", f"rowid IN ({_ROWS})"),
    ("embedding_metadata_array", f"id IN ({_ROWS})"),
    ("embedding_metadata", f"id IN ({_ROWS})"),
    ("embeddings", f"segment_id IN ({_SEGMENTS})"),
    ("max_seq_id", f"segment_id IN ({_SEGMENTS})"),
    ("segment_metadata", f"segment_id IN ({_SEGMENTS})"),
    ("embeddings_queue", "topic IN (SELECT 'persistent://default/default/' || id FROM temp.gone)"),
    ("segments", f"collection IN ({_GONE})"),
    ("collection_metadata", f"collection_id IN ({_GONE})"),
    ("collections", f"id IN ({_GONE})"),
)


def keep_only(directory: Path, collections: set[str]) -> None:
    """Remove every collection whose id is not in ``collections``, with its records, queue rows and segment files."""
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as db:
        try:
            db.execute("PRAGMA foreign_keys=OFF")
            db.execute("BEGIN IMMEDIATE")
            segments = remove(db, [i for (i,) in db.execute("SELECT id FROM collections") if i not in collections])
            db.execute("COMMIT")
        except sqlite3.Error as e:
            if "disk is full" in str(e):  # SQLite's words; its error number is not told before Python 3.11
                raise DiskFull(f"{directory}: the disk is full", hint="free some space; nothing was changed") from None
            raise VerificationFailed(f"{DATABASE}: the other collections cannot be taken out ({e})") from None
    remove_segments(directory, segments)


def remove(db: sqlite3.Connection, collections: list[str]) -> list[str]:
    """Delete these collections and all that refers to them, in the caller's transaction; returns their segments."""
    if not collections:
        return []
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    db.execute("CREATE TEMP TABLE IF NOT EXISTS gone (id TEXT PRIMARY KEY)")
    db.execute("DELETE FROM temp.gone")
    db.executemany("INSERT INTO temp.gone VALUES (?)", [(i,) for i in collections])
    segments = [s for (s,) in db.execute(_SEGMENTS)]
    for table, where in _DELETES:
        if table in tables:
            db.execute(f"DELETE FROM {table} WHERE {where}")
    return segments


def remove_segments(directory: Path, segments: list[str]) -> None:
    """Remove the files of segments that no collection has any more."""
    for segment in segments:
        place = directory / segment
        if place.parent == directory and place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
