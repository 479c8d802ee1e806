"""Connecting: one connection to a PostgreSQL that has collections, or one line of why not."""

from __future__ import annotations

from typing import Any

import psycopg

from chromakeep.errors import ServerFailed
from chromakeep.postgres.conninfo import connection_parameters, shown
from chromakeep.postgres.migrating import unreachable


def connect(url: str, *, writing: bool = True, bare: bool = False) -> psycopg.Connection[Any]:
    """A connection of its own; ``writing``: to a server that takes writes; ``bare``: also to a database that has no
    collections. Raises ``ServerFailed``, and ``UsageError``
    for a URL that is none."""
    parameters = connection_parameters(url)
    if not writing:
        parameters["target_session_attrs"] = "any"
    try:
        connection = psycopg.connect(**parameters)
        known = has_collections(connection)
        connection.rollback()
    except psycopg.Error as error:
        raise unreachable(url, error) from None
    if not (known or bare):
        connection.close()
        raise ServerFailed(f"{shown(url)} has no collections of chromakeep", hint="is it the right database?")
    return connection


def has_collections(connection: psycopg.Connection[Any]) -> bool:
    """Whether there are the tables for any."""
    return connection.execute("SELECT to_regclass('chromakeep.collections')").fetchone() != (None,)
