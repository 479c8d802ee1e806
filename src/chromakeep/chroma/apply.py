"""Apply changes to a copy of a data directory at rest.

The rows go into its queue, pending as they were in the original before Chroma had applied them: Chroma's own replay,
at the first read, makes records, documents and vectors of them. Indexes stay as the copy has them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from chromakeep.changes import Change, Row
from chromakeep.chroma.catalog import DATABASE
from chromakeep.chroma.subset import remove, remove_segments
from chromakeep.chroma.tail import TABLES
from chromakeep.errors import DiskFull, VerificationFailed


def apply(directory: Path, changes: Iterable[Change]) -> Change | None:
    """Bring ``directory`` up to the last change that completes a state, and return it; None if none does.

    Changes that are continued by none are left out. Nobody may have the directory open. One transaction a state, not
    durable until the caller syncs the files. Raises ``VerificationFailed`` for changes that do not fit, ``DiskFull``.
    """
    last: Change | None = None
    gone: list[str] = []
    try:
        with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as db:
            db.execute("PRAGMA foreign_keys=OFF")
            db.execute("PRAGMA synchronous=OFF")
            db.execute("BEGIN IMMEDIATE")
            for change in changes:
                if change.tables:
                    gone += put_catalog(db, change)
                put_rows(db, change.rows)
                if not change.more:
                    db.execute("COMMIT")
                    last = change
                    db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "full" in str(error):
            raise DiskFull(f"{directory}: the disk is full", hint="free some space; nothing was changed") from None
        raise VerificationFailed(f"{DATABASE}: the log does not fit the snapshot it follows ({error})") from None
    remove_segments(directory, gone)
    return last


def put_rows(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Put rows into the queue under their own numbers, in the caller's transaction."""
    db.executemany(
        "INSERT OR REPLACE INTO embeddings_queue (seq_id, created_at, operation, topic, id, vector, encoding, metadata)"
        " VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?, ?, CAST(? AS TEXT))",
        rows,
    )


def put_catalog(db: sqlite3.Connection, change: Change) -> list[str]:
    """Bring the tables up to date in the caller's transaction; returns the segments of collections that are no more.

    Raises ``VerificationFailed`` for tables and columns that are not there.
    """
    if unknown := change.tables.keys() - set(TABLES):
        raise VerificationFailed(f"the log writes to the table {sorted(unknown)[0]!r}, which is none of the catalog")
    gone: list[str] = []
    collections = change.tables.get("collections")
    if collections:
        at = collections.columns.index("id") + 1
        stay = {row[at] for row in collections.put}
        had = dict(db.execute("SELECT id, rowid FROM collections"))
        numbers = set(collections.gone)
        lost = [i for i, number in had.items() if i not in stay and (change.whole or number in numbers)]
        # A number may stand for another collection already: whoever held it before is gone, too.
        taken = {row[0] for row in collections.put}
        lost += [i for i, number in had.items() if i not in stay and i not in lost and number in taken]
        gone = remove(db, lost)
    for name, table in change.tables.items():
        have = {row[1] for row in db.execute(f"PRAGMA table_info({name})")}
        if strange := set(table.columns) - have:
            raise VerificationFailed(
                f"the log knows a column {sorted(strange)[0]!r} of {name} that the snapshot has not",
                hint="the snapshot is of an older Chroma; choose a later one",
            )
        if change.whole:
            db.execute(f"DELETE FROM {name}")
        db.executemany(f"DELETE FROM {name} WHERE rowid = ?", [(n,) for n in (*table.gone, *(r[0] for r in table.put))])
        columns = ", ".join(("rowid", *(f'"{column}"' for column in table.columns)))
        marks = ", ".join("?" * (len(table.columns) + 1))
        db.executemany(f"INSERT INTO {name} ({columns}) VALUES ({marks})", table.put)
    return gone
