"""Nudge: make a running Chroma apply what others have put into its queue, by a write that leaves nothing behind.

Chroma replays a collection's queue at the first read of it in the server's life, and after every write to it (1.5.9:
rust/frontend/src/executor/local.rs, rust/log/src/sqlite_log.rs). No request replays it and writes no row. So a trigger
in the database throws away the row of one certain id, which nobody else knows: Chroma's transaction commits nothing,
and what follows it is the replay of all rows that are there.
"""

from __future__ import annotations

import sqlite3
from secrets import token_hex

from chromakeep.chroma.client import ChromaClient, Ref

TRIGGER = "chromakeep_nudge"


class Nudge:
    """A trigger in one database, and the write that it swallows. For one server's life."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Put the trigger in place: one short transaction, beside a running server or without one."""
        self._id = f"chromakeep-nudge-{token_hex(12)}"
        connection.execute("BEGIN IMMEDIATE")
        remove(connection)
        connection.execute(
            f"CREATE TRIGGER {TRIGGER} BEFORE INSERT ON embeddings_queue WHEN NEW.id = '{self._id}'"
            " BEGIN SELECT RAISE(IGNORE); END"
        )
        connection.execute("COMMIT")

    def give(self, client: ChromaClient, ref: Ref, *, timeout: float) -> None:
        """Return when the collection has all rows of its queue. There must be a new one (``follow``).

        Raises ``ServerAnswered``, ``ServerSilent``.
        """
        client.request("POST", f"{ref.path}/update", {"ids": [self._id]}, timeout=timeout)


def remove(connection: sqlite3.Connection) -> None:
    """Take the trigger away, whoever put it there, in the caller's transaction."""
    connection.execute(f"DROP TRIGGER IF EXISTS {TRIGGER}")
