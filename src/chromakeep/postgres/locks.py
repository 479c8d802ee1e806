"""Locks: advisory locks of a session, which go with it.

Nobody waits for one in a statement. That has a snapshot, and CREATE INDEX CONCURRENTLY waits for every snapshot that is
older than its index: whoever holds the lock, builds, and waits for those who wait for the lock, is in a deadlock.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg

FIRST, LONGEST = 0.01, 0.5  # seconds between two tries


def taken(connection: psycopg.Connection[Any], *key: int) -> bool:
    """Whether it is ours now. ``key``: one number, or two. ``connection`` is in autocommit."""
    asked = ", ".join(["%s"] * len(key))
    row = connection.execute(f"SELECT pg_try_advisory_lock({asked})".encode(), key).fetchone()
    return bool(row and row[0])


def wait(connection: psycopg.Connection[Any], *key: int) -> None:
    """Return when it is ours, however long that takes."""
    pause = FIRST
    while not taken(connection, *key):
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)
