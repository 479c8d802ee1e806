"""Migrating: the tables of the catalog brought to this program's version, by whichever instance comes first."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import psycopg
from psycopg import errors

from chromakeep.errors import RefusedToServe, ServerFailed, UnsupportedFormat
from chromakeep.events import Noted, Observer, ignore
from chromakeep.postgres import locks
from chromakeep.postgres.conninfo import connection_parameters, shown
from chromakeep.postgres.migrations import MIGRATIONS
from chromakeep.postgres.pooling import need_sessions

_ASIDE = "Is the server running"  # libpq's question below its errors
_GUESS = "This probably means"  # and what follows it, of a connection that was lost
LOCK = 0x6368726F6D616B65  # "chromake": of an advisory lock
LEAST, GOOD = (0, 8, 0), (0, 8, 4)  # pgvector: iterative scans; indexes that survive a VACUUM
# Three letters have four trigrams, of which all but the last are in whatever goes on with these letters.
_FINDS_ALL = """
    SELECT cardinality(show_trgm('中文字')) > 0 AND 3 =
        (SELECT count(*) FROM unnest(show_trgm('ΑΒΣ')) part WHERE part = ANY(show_trgm('ΑΒΣΓ')))
"""


class Server(msgspec.Struct, frozen=True):
    """What a PostgreSQL has: pgvector's version, and whether there is a pg_trgm that finds all texts."""

    pgvector: tuple[int, ...]
    trigrams: bool


def migrate(url: str, observer: Observer = ignore) -> Server:
    """Bring the tables up. Any number of instances may do so at once: one works, the others wait for it.

    Raises ``ServerFailed`` where the server cannot be reached or lacks what is needed, ``RefusedToServe`` where its
    pgvector is too old or not searched, the database cannot hold all texts or a pooler shares sessions,
    ``UnsupportedFormat`` where a newer chromakeep was here.
    """
    parameters = connection_parameters(url)
    try:
        with psycopg.connect(**parameters, autocommit=True) as connection:
            need_sessions(connection, url, parameters)
            return _migrate(connection, observer)
    except errors.InsufficientPrivilege as error:
        raise ServerFailed(
            f"{shown(url)}: {_said(error)}",
            hint='as its owner: GRANT CREATE ON DATABASE; as an administrator: CREATE EXTENSION vector SCHEMA "public"',
        ) from None
    except psycopg.Error as error:
        raise unreachable(url, error) from None


def _migrate(connection: psycopg.Connection[Any], observer: Observer) -> Server:
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise RefusedToServe(
            f"this database has the encoding {encoding}, which cannot hold all texts",
            hint="make another one: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0",
        )
    locks.wait(connection, LOCK)  # let go of with the connection
    version, trigrams = _vector(connection), _trigrams(connection)
    if version < GOOD:
        observer(
            Noted(
                f"pgvector {'.'.join(map(str, version))} has faults in its indexes: 0.8.4 or later is better", "warning"
            )
        )
    connection.execute("SELECT set_config('chromakeep.documents', %s, false)", ("pg_trgm" if trigrams else "trigrams",))
    if connection.execute("SELECT to_regclass('chromakeep.version')").fetchone() == (None,):
        with connection.transaction():
            connection.execute("CREATE SCHEMA IF NOT EXISTS chromakeep")
            connection.execute("CREATE TABLE chromakeep.version (number integer NOT NULL)")
            connection.execute("INSERT INTO chromakeep.version VALUES (0)")
    row = connection.execute("SELECT max(number) FROM chromakeep.version").fetchone()
    have = int(row[0] or 0) if row else 0
    if have > len(MIGRATIONS):
        raise UnsupportedFormat(
            f"the tables in this database are of a newer chromakeep (version {have}, this one knows {len(MIGRATIONS)})",
            hint="upgrade this instance",
        )
    for number, statements in enumerate(MIGRATIONS[have:], have + 1):
        with connection.transaction():
            connection.execute(statements.encode())
            connection.execute("UPDATE chromakeep.version SET number = %s", (number,))
    return Server(version, trigrams)


def _vector(connection: psycopg.Connection[Any]) -> tuple[int, ...]:
    found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    if found is None:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
        except (errors.UndefinedFile, errors.FeatureNotSupported):
            raise ServerFailed(
                "this PostgreSQL has no pgvector", hint="install pgvector 0.8.4 or later on the server"
            ) from None
        found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = tuple(int(part) for part in re.findall(r"\d+", found[0])[:3]) if found else ()
    if version < LEAST:
        raise RefusedToServe(
            f"pgvector {'.'.join(map(str, version))} is too old: 0.8.0 is needed, 0.8.4 is better",
            hint="install it on the server, then: ALTER EXTENSION vector UPDATE",
        )
    if connection.execute("SELECT to_regtype('vector')").fetchone() == (None,):
        found = connection.execute("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
        ((schema,),) = found.fetchall()
        raise RefusedToServe(
            f"pgvector is in the schema {schema}, which this user's search_path does not have",
            hint=f'as the user who connects: ALTER ROLE CURRENT_USER SET search_path = "$user", public, {schema}',
        )
    return version


def _trigrams(connection: psycopg.Connection[Any]) -> bool:
    """pg_trgm is made where the server has it and lets us, and used where it does what we need in this database.

    It sees only letters that the locale knows: in C, ASCII. And it makes them small as the locale does: where
    that looks at the letters around (ICU), ``ΑΒΣ`` alone gets another sigma than in ``ΑΒΣΓ``, and is not found there.
    """
    known = "SELECT installed_version FROM pg_available_extensions WHERE name = 'pg_trgm'"
    found = connection.execute(known).fetchone()
    if found is None:
        return False
    try:
        if found[0] is None:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public")
        row = connection.execute(_FINDS_ALL).fetchone()
    except (errors.InsufficientPrivilege, errors.UndefinedFunction):  # or it is in a schema that is not searched
        return False
    return bool(row and row[0])


def unreachable(url: str, error: psycopg.Error) -> ServerFailed:
    """One line of why it cannot be used, and what to do."""
    said = _said(error)
    if "read-only" in said or "read-write" in said:
        return ServerFailed(
            f"{shown(url)} is a replica: it takes no writes",
            hint="name the primary, or all hosts: postgresql://USER@ONE,TWO/DATABASE",
        )
    if "password" in said:
        return ServerFailed(f"{shown(url)} does not take this user and password", hint="set PGPASSWORD or PGPASSFILE")
    return ServerFailed(f"{shown(url)}: {said}", hint="is it running, and may this machine connect?")


def _said(error: psycopg.Error) -> str:
    """One line of it; of several hosts that were tried the last one's."""
    told = (error.diag.message_primary or str(error)).partition(_GUESS)[0]
    lines = [line.strip() for line in told.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_ASIDE)]
    return lines[-1] if lines else "no reason given"
