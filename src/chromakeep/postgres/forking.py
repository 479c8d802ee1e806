"""Forking: a collection copied into another one, as it is at one moment.

A plain copy by the server itself: the two share nothing, so that either may change or go without the other. Upkeep
gives the new one its indexes. ``parent`` of all that descend from one collection is that one: Chroma counts forks by
family.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg

from chromakeep.engine import CollectionShown, Refused, Target
from chromakeep.postgres import catalog
from chromakeep.postgres.held import Held
from chromakeep.postgres.text import held as as_held

Connection = psycopg.Connection[Any]
_COPIED = """
    INSERT INTO chromakeep.collections
        (id, database, name, relation, space, storage, dimension, metadata, configuration, schema, parent)
    SELECT %s, database, %s, %s, space, storage, dimension, metadata, configuration, schema, coalesce(parent, id)
    FROM chromakeep.collections WHERE id = %s
    ON CONFLICT (database, name) DO NOTHING
"""


def fork(connection: Connection, held: Held, new_name: str) -> CollectionShown:
    """As ``Engine.fork``, in the transaction. 404 where the collection is gone, 409 where one has this name."""
    connection.execute(f"LOCK TABLE {held.table} IN ACCESS SHARE MODE")  # before the row, as all do
    found = connection.execute(
        "SELECT dimension FROM chromakeep.collections WHERE id = %s FOR SHARE", (held.id,)
    ).fetchone()
    if found is None:
        raise catalog.no_collection(Target(held.tenant, held.database, held.id))
    number, relation = str(uuid4()), catalog.new_relation(connection, new_name)
    if not connection.execute(_COPIED, (number, as_held(new_name), relation, held.id)).rowcount:
        raise Refused(409, f"Collection [{new_name}] already exists")
    catalog.make_table(connection, relation, held.storage)
    connection.execute(  # in one statement, so that the keys are those of the records
        "WITH k AS (INSERT INTO chromakeep.keys SELECT %s, key, kind FROM chromakeep.keys WHERE collection = %s)"
        f' INSERT INTO chromakeep."{relation}" SELECT * FROM {held.table}',
        (number, held.id),
    )
    return catalog.collection_by_id(connection, Target(held.tenant, held.database, number))


def count_forks(connection: Connection, held: Held) -> int:
    """How many collections descend from the one that this one descends from, itself not counted."""
    row = connection.execute(
        "SELECT count(*) FROM chromakeep.collections f, chromakeep.collections c"
        " WHERE c.id = %s AND f.parent = coalesce(c.parent, c.id)",
        (held.id,),
    ).fetchone()
    return int(row[0]) if row else 0
