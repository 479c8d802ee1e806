"""Arrivals: collections that a copy writes, which nobody sees until all of the copy become visible in one transaction.

They lie in a database of a tenant without a name, which no path of Chroma's API can say. Who writes them holds an
advisory lock, so that what a killed process left can be told from what is under way.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from chromakeep.engine import Change, CollectionWanted, Refused, Target
from chromakeep.errors import TargetNotEmpty
from chromakeep.postgres import catalog
from chromakeep.postgres.held import Held
from chromakeep.postgres.text import held as as_held
from chromakeep.postgres.text import told
from chromakeep.records import Definition

Connection = psycopg.Connection[Any]
NOWHERE = ("", "arriving")  # tenant and database
_LOCK = "pg_try_advisory_lock(hashtextextended('chromakeep.arriving ' || %s, 0))"
_SAME = "tenant = %s AND database = %s AND name = %s"


def hold(connection: Connection, run: str) -> bool:
    """Say that this run is under way, as long as the connection lives. False if another process says so."""
    row = connection.execute(f"SELECT {_LOCK}", (run,)).fetchone()
    return bool(row and row[0])


def begin(connection: Connection, run: str, definition: Definition, wanted: CollectionWanted, storage: str) -> Held:
    """A new collection of this run, to become that of the definition; takes away what was left of others of that place
    whose run is not under way, and what this run has begun without ever hearing of it."""
    for identity, other in _left(connection, definition):
        if other == run:
            forget(connection, identity)
        elif hold(connection, other):
            connection.execute("SELECT pg_advisory_unlock(hashtextextended('chromakeep.arriving ' || %s, 0))", (other,))
            forget(connection, identity)
    tenant, database = NOWHERE
    connection.execute("INSERT INTO chromakeep.tenants (name) VALUES (%s) ON CONFLICT DO NOTHING", (tenant,))
    connection.execute(
        "INSERT INTO chromakeep.databases (id, tenant, name) VALUES (gen_random_uuid(), %s, %s) ON CONFLICT DO NOTHING",
        (tenant, database),
    )
    unique = f"{definition.name[:40]} {time.time_ns()}"  # no name of Chroma's has a space
    made = catalog.create_collection(
        connection, tenant, database, CollectionWanted(unique, wanted.metadata, wanted.configuration, wanted.schema),
        storage,
    )  # fmt: skip
    return catalog.held(connection, Target(tenant, database, made.id))


def expect(connection: Connection, run: str, held: Held, definition: Definition, *, replaces: bool) -> None:
    """Note what it is to become."""
    connection.execute(
        "INSERT INTO chromakeep.arriving (collection, run, tenant, database, name, replaces)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (held.id, run, *map(as_held, definition.place), replaces),
    )


def find(connection: Connection, run: str, identity: str) -> Held:
    """One that this run has begun. 404."""
    known = connection.execute(
        "SELECT FROM chromakeep.arriving WHERE collection = %s AND run = %s", (identity, run)
    ).fetchone()
    if known is None:
        raise Refused(404, f"Collection [{identity}] does not exist")
    return catalog.held(connection, Target(*NOWHERE, identity))


def finish(connection: Connection, held: Held) -> None:
    """It is whole."""
    connection.execute("UPDATE chromakeep.arriving SET finished = true WHERE collection = %s", (held.id,))


def forget(connection: Connection, identity: str) -> None:
    """Take one away, records and all."""
    row = connection.execute(
        "SELECT relation FROM chromakeep.collections WHERE id = %s AND id IN (SELECT collection FROM"
        " chromakeep.arriving)",
        (identity,),
    ).fetchone()
    if row is not None:
        catalog.drop_tables(connection, [row[0]])
        connection.execute("DELETE FROM chromakeep.collections WHERE id = %s", (identity,))


def publish(connection: Connection, run: str) -> list[tuple[str, str]]:
    """Make all of the run that are whole visible. One that is replaced is kept under another name: (name, kept as).

    Raises ``TargetNotEmpty`` where somebody has made one of the name meanwhile: then nothing is visible.
    """
    kept = []
    rows = connection.execute(
        "SELECT collection, tenant, database, name, replaces FROM chromakeep.arriving"
        " WHERE run = %s AND finished ORDER BY tenant, database, name FOR UPDATE",
        (run,),
    ).fetchall()
    for identity, tenant, database, name, replaces in rows:
        place = _database(connection, tenant, database)
        there = connection.execute(
            "SELECT id::text FROM chromakeep.collections WHERE database = %s AND name = %s FOR UPDATE", (place, name)
        ).fetchone()
        if there is not None:
            if not replaces:
                raise TargetNotEmpty(
                    f"a collection {told(name)!r} was made by somebody else meanwhile",
                    hint="copy again, and say --on-conflict skip, upsert or replace",
                )
            old = _kept_as(connection, place, told(name))
            catalog.modify(connection, Target(told(tenant), told(database), there[0]), Change(name=old))
            kept.append((told(name), old))
        connection.execute(
            "UPDATE chromakeep.collections SET database = %s, name = %s WHERE id = %s", (place, name, identity)
        )
        connection.execute("DELETE FROM chromakeep.arriving WHERE collection = %s", (identity,))
    return kept


def _kept_as(connection: Connection, place: str, name: str) -> str:
    """A name that none has for the collection that is replaced: another may have been, within this second."""
    old = f"{name[:480]}.old-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    taken = connection.execute(
        "SELECT FROM chromakeep.collections WHERE database = %s AND name = %s", (place, as_held(old))
    ).fetchone()
    return old if taken is None else f"{old}-{secrets.token_hex(2)}"


def _database(connection: Connection, tenant: str, database: str) -> str:
    connection.execute("INSERT INTO chromakeep.tenants (name) VALUES (%s) ON CONFLICT DO NOTHING", (tenant,))
    connection.execute(
        "INSERT INTO chromakeep.databases (id, tenant, name) VALUES (gen_random_uuid(), %s, %s) ON CONFLICT DO NOTHING",
        (tenant, database),
    )
    row = connection.execute(
        "SELECT id::text FROM chromakeep.databases WHERE tenant = %s AND name = %s FOR KEY SHARE", (tenant, database)
    ).fetchone()
    assert row is not None
    return str(row[0])


def _left(connection: Connection, definition: Definition) -> Sequence[tuple[str, str]]:
    return connection.execute(
        f"SELECT collection::text, run FROM chromakeep.arriving WHERE {_SAME}", tuple(map(as_held, definition.place))
    ).fetchall()
