"""Tenants and databases: the upper part of the catalog. Names are written as ``text`` says; errors are Chroma's.

Unlike Chroma's single node a database needs a tenant that is there.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg

from chromakeep.engine import DATABASE, TENANT, Database, Refused
from chromakeep.postgres.text import held, told

Connection = psycopg.Connection[Any]

FIRST = "00000000-0000-0000-0000-000000000000"  # the id of the default database, as in every Chroma


def create_tenant(connection: Connection, name: str) -> None:
    """409 where there is one."""
    made = connection.execute("INSERT INTO chromakeep.tenants (name) VALUES (%s) ON CONFLICT DO NOTHING", (held(name),))
    if not made.rowcount:
        raise Refused(409, f"Tenant [{name}] already exists")


def tenant(connection: Connection, name: str) -> str | None:
    """Its resource name. 404."""
    found = connection.execute("SELECT resource_name FROM chromakeep.tenants WHERE name = %s", (held(name),)).fetchone()
    if found is None:
        raise no_tenant(name)
    return None if found[0] is None else told(found[0])


def update_tenant(connection: Connection, name: str, resource_name: str) -> None:
    """404 where there is none: on Chroma's single node this does nothing, and answers 200 for any name."""
    done = connection.execute(
        "UPDATE chromakeep.tenants SET resource_name = %s WHERE name = %s", (held(resource_name), held(name))
    )
    if not done.rowcount:
        raise no_tenant(name)


def create_database(connection: Connection, tenant: str, name: str) -> None:
    """404 of the tenant, 409."""
    known = connection.execute("SELECT FROM chromakeep.tenants WHERE name = %s FOR KEY SHARE", (held(tenant),))
    if known.fetchone() is None:
        raise no_tenant(tenant)
    made = connection.execute(
        "INSERT INTO chromakeep.databases (id, tenant, name) VALUES (%s, %s, %s) ON CONFLICT (tenant, name) DO NOTHING",
        (str(uuid4()), held(tenant), held(name)),
    )
    if not made.rowcount:
        raise Refused(409, f"Database [{name}] already exists")


def databases(connection: Connection, tenant: str, limit: int | None, offset: int) -> list[Database]:
    """In the order of their names; none of a tenant that is not there."""
    found = connection.execute(
        "SELECT id::text, name FROM chromakeep.databases WHERE tenant = %s ORDER BY name LIMIT %s OFFSET %s",
        (held(tenant), limit, offset),
    )
    return [Database(number, told(name), tenant) for number, name in found]


def database(connection: Connection, tenant: str, name: str) -> Database:
    """404."""
    found = connection.execute(
        "SELECT id::text FROM chromakeep.databases WHERE tenant = %s AND name = %s", (held(tenant), held(name))
    ).fetchone()
    if found is None:
        raise Refused(404, f"Database [{name}] not found. Are you sure it exists?")
    return Database(found[0], name, tenant)


def drop_database(connection: Connection, tenant: str, name: str) -> list[str]:
    """The relations whose rows are gone from the catalog with it; their tables are dropped after. 404."""
    found = connection.execute(
        "SELECT id FROM chromakeep.databases WHERE tenant = %s AND name = %s FOR UPDATE", (held(tenant), held(name))
    ).fetchone()
    if found is None:
        raise Refused(404, f"Database [{name}] not found")
    relations = connection.execute("DELETE FROM chromakeep.collections WHERE database = %s RETURNING relation", found)
    gone = [relation for (relation,) in relations]
    connection.execute("DELETE FROM chromakeep.databases WHERE id = %s", found)
    return gone


def reset(connection: Connection) -> list[str]:
    """Everything anew; the relations as of ``drop_database``."""
    # Whoever makes something in a tenant or a database locks the row of that: it ends before, or begins after
    connection.execute("LOCK TABLE chromakeep.tenants, chromakeep.databases IN EXCLUSIVE MODE")
    gone = [name for (name,) in connection.execute("DELETE FROM chromakeep.collections RETURNING relation")]
    connection.execute("DELETE FROM chromakeep.databases")
    connection.execute("DELETE FROM chromakeep.tenants")
    connection.execute("INSERT INTO chromakeep.tenants (name) VALUES (%s)", (TENANT,))
    connection.execute(
        "INSERT INTO chromakeep.databases (id, tenant, name) VALUES (%s, %s, %s)", (FIRST, TENANT, DATABASE)
    )
    return gone


def no_tenant(name: str) -> Refused:
    """What is said of a tenant that is not there."""
    return Refused(404, f"Tenant [{name}] not found")
