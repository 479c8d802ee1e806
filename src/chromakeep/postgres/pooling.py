"""Pooling: whether a pooler between us and PostgreSQL gives a connection another session with each transaction.

What we need of a session is kept by no such pooler: the locks of upkeep and migrations, settings, prepared statements.
"""

from __future__ import annotations

import secrets
from typing import Any

import psycopg

from chromakeep.errors import RefusedToServe
from chromakeep.postgres.conninfo import shown

ROUNDS = 16  # others may use the pooler just then, and hide for a moment that a session is shared


def need_sessions(connection: psycopg.Connection[Any], url: str, parameters: dict[str, Any]) -> None:
    """Costs one statement where no pooler is. ``connection`` has autocommit; another one is made by the ``parameters``.

    Raises ``RefusedToServe`` where two connections share a session, and psycopg's errors.
    """
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    if row == (connection.info.backend_pid,):  # a pooler has processes of its own making to tell
        return
    with psycopg.connect(**parameters, autocommit=True) as other:
        for _ in range(ROUNDS):
            words = [secrets.token_hex(8) for _ in range(2)]
            for one, word in zip((connection, other), words, strict=True):
                one.execute(f"SET chromakeep.session = '{word}'".encode(), prepare=False)
            if [_word(one) for one in (connection, other)] != words:
                raise RefusedToServe(
                    f"the pooler at {shown(url)} shares sessions of PostgreSQL between connections",
                    hint="let it keep one for each connection (PgBouncer: pool_mode = session), or name PostgreSQL",
                )


def _word(connection: psycopg.Connection[Any]) -> str | None:
    row = connection.execute("SELECT current_setting('chromakeep.session', true)", prepare=False).fetchone()
    return row[0] if row else None
