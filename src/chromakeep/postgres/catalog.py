"""Collections in the catalog, and the tables of their records. Each function is part of a transaction.

Locks are taken in one order: the table of the records, then the row in the catalog; so a write that fixes the dimension
and a drop do not wait for each other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
from psycopg import errors

from chromakeep.engine import Change, CollectionShown, CollectionWanted, Refused, Target
from chromakeep.postgres import schemas
from chromakeep.postgres.held import Held, Segment
from chromakeep.postgres.migrations import RECORDS
from chromakeep.postgres.text import held as as_held
from chromakeep.postgres.text import told

Connection = psycopg.Connection[Any]

KEYS = 4096  # keys of a collection's metadata that are shown in its schema
DROPPED = 50  # tables in a transaction, each with its indexes: a server has room for some thousand locks
_SLUG = 40  # characters of its name in the name of its table

_SHOWN = """
    SELECT c.id::text, c.name, c.schema, c.metadata, c.dimension,
        (SELECT json_agg(json_build_array(k.key, k.kind)) FROM chromakeep.keys k WHERE k.collection = c.id)
    FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database
    WHERE d.tenant = %s AND d.name = %s
"""
_HELD = f"""
    SELECT c.name, c.relation, c.space, c.storage, c.dimension, c.schema,
        (SELECT json_agg(json_build_array(s.low, s.high, s.index) ORDER BY s.low)
            FROM chromakeep.segments s WHERE s.collection = c.id),
        (SELECT json_agg(json_build_array(k.key, k.kind))
            FROM (SELECT key, kind FROM chromakeep.keys WHERE collection = c.id LIMIT {KEYS}) k)
    FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database
    WHERE c.id = %s AND d.tenant = %s AND d.name = %s
"""
_CREATED = """
    INSERT INTO chromakeep.collections (id, database, name, relation, space, storage, metadata, configuration, schema)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (database, name) DO NOTHING
"""
# Ends what holds a table for long, that is the building of an index, so that a drop need not wait for it.
_FREED = """
    SELECT pg_cancel_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.relation = to_regclass(%s) AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_backend_pid()
        AND a.backend_type = 'client backend' AND a.usename = current_user
"""


def held(connection: Connection, target: Target) -> Held:
    """404 where there is none of this id in this tenant and database."""
    found = connection.execute(_HELD, (target.id, as_held(target.tenant), as_held(target.database))).fetchone()
    if found is None:
        raise no_collection(target)
    name, relation, space, storage, dimension, schema, segments, keys = found
    schema = msgspec.json.decode(schema)
    off, on = schemas.filterable(schema)
    settings = schemas.configuration_of(schema)["hnsw"]
    return Held(
        target.id,
        target.tenant,
        target.database,
        told(name),
        relation,
        space,
        storage,
        dimension,
        ef_search=settings["ef_search"],
        max_neighbors=settings["max_neighbors"],
        ef_construction=settings["ef_construction"],
        segments=tuple(Segment(*segment) for segment in segments or ()),
        unindexed=off,
        indexed=on,
        keys=frozenset((told(key), kind) for key, kind in keys or ()),
    )


def seen(connection: Connection, held: Held, keys: Collection[tuple[str, str]]) -> None:
    """Records have these (key, kind) now, of the kinds string, int, float and bool. Costs nothing for what is known."""
    if len(held.keys) >= KEYS or not (new := sorted(set(keys) - held.keys)[:KEYS]):
        return
    connection.execute(
        "INSERT INTO chromakeep.keys SELECT %s::uuid, * FROM unnest(%s::text[], %s::text[]) ON CONFLICT DO NOTHING",
        (held.id, [as_held(key) for key, _ in new], [kind for _, kind in new]),
    )


def create_collection(
    connection: Connection, tenant: str, database: str, wanted: CollectionWanted, storage: str = "vector"
) -> CollectionShown:
    """409 where there is one of the name, or that one as it is; 400 without the database."""
    place = (as_held(tenant), as_held(database))
    schema = schemas.schema_of(wanted.metadata, wanted.configuration, wanted.schema)  # wrong also where there is one
    if wanted.get_or_create and (there := _named(connection, tenant, database, wanted.name)):
        return there
    found = connection.execute(
        "SELECT id FROM chromakeep.databases WHERE tenant = %s AND name = %s FOR KEY SHARE", place
    ).fetchone()
    if found is None:
        raise Refused(400, f"Database [{database}] does not exist")
    configuration = schemas.configuration_of(schema)
    number, relation = str(uuid4()), new_relation(connection, wanted.name)
    row: tuple[Any, ...] = (number, found[0], as_held(wanted.name), relation, configuration["hnsw"]["space"], storage)
    row += (_json(_kept(wanted.metadata)), _json(configuration), _json(schema))
    while not connection.execute(_CREATED, row).rowcount:
        if not wanted.get_or_create:
            raise Refused(409, f"Collection [{wanted.name}] already exists")
        if there := _named(connection, tenant, database, wanted.name):  # else it was dropped between the two
            return there
    make_table(connection, relation, storage)
    return CollectionShown(number, wanted.name, configuration, schema, _kept(wanted.metadata), None, tenant, database)


def new_relation(connection: Connection, name: str) -> str:
    """A name for a table of records, from that of the collection: safe in SQL, and no other has it."""
    row = connection.execute("SELECT nextval('chromakeep.relations')").fetchone()
    assert row is not None
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower())[:_SLUG].strip("_")
    return f"c{row[0]}_{slug}"


def make_table(connection: Connection, relation: str, storage: str) -> None:
    """The empty table of a collection's records."""
    connection.execute(RECORDS.format(relation=relation, storage=storage).encode())


def collections(
    connection: Connection, tenant: str, database: str, limit: int | None, offset: int
) -> list[CollectionShown]:
    """In the order of their ids; none of a database that is not there."""
    found = connection.execute(
        f"{_SHOWN} ORDER BY c.id LIMIT %s OFFSET %s".encode(), (as_held(tenant), as_held(database), limit, offset)
    )
    return [_shown(row, tenant, database) for row in found]


def count_collections(connection: Connection, tenant: str, database: str) -> int:
    """0 of a database that is not there."""
    row = connection.execute(
        "SELECT count(*) FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database"
        " WHERE d.tenant = %s AND d.name = %s",
        (as_held(tenant), as_held(database)),
    ).fetchone()
    return int(row[0]) if row else 0


def collection(connection: Connection, tenant: str, database: str, name: str) -> CollectionShown:
    """By its name. 404."""
    found = _named(connection, tenant, database, name)
    if found is None:
        raise Refused(404, f"Collection [{name}] does not exist")
    return found


def collection_by_id(connection: Connection, target: Target) -> CollectionShown:
    """404."""
    found = connection.execute(
        f"{_SHOWN} AND c.id = %s".encode(), (as_held(target.tenant), as_held(target.database), target.id)
    ).fetchone()
    if found is None:
        raise Refused(404, f"Collection [{target.id}] does not exist")
    return _shown(found, target.tenant, target.database)


def modify(connection: Connection, target: Target, change: Change) -> None:
    """404; 409 where another has the name."""
    found = connection.execute(
        "SELECT c.schema FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database"
        " WHERE c.id = %s AND d.tenant = %s AND d.name = %s FOR UPDATE OF c",
        (target.id, as_held(target.tenant), as_held(target.database)),
    ).fetchone()
    if found is None:
        raise no_collection(target)
    new: dict[str, str | None] = {}
    if change.name is not None:
        new["name"] = as_held(change.name)
    if change.metadata is not None:
        new["metadata"] = _json(_kept(change.metadata))
    if change.configuration is not None:
        schema = schemas.changed(msgspec.json.decode(found[0]), change.configuration)
        new |= {"schema": _json(schema), "configuration": _json(schemas.configuration_of(schema))}
    if not new:
        return
    settings = ", ".join(f"{column} = %s" for column in new)  # names of ours
    try:
        connection.execute(
            f"UPDATE chromakeep.collections SET {settings} WHERE id = %s".encode(), (*new.values(), target.id)
        )
    except errors.UniqueViolation:
        raise Refused(409, f"Collection [{change.name}] already exists") from None


def drop_collection(connection: Connection, tenant: str, database: str, name: str) -> str:
    """Its id. 404; of several at once one finds it."""
    found = connection.execute(
        "SELECT c.id::text, c.relation FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database"
        " WHERE d.tenant = %s AND d.name = %s AND c.name = %s",
        (as_held(tenant), as_held(database), as_held(name)),
    ).fetchone()
    missing = Refused(404, f"Collection [{name}] does not exist")
    if found is None:
        raise missing
    number, relation = found
    drop_tables(connection, [relation])
    # Not if it has got another name since: then there is none of this name to drop.
    if not connection.execute(
        "DELETE FROM chromakeep.collections WHERE id = %s AND name = %s", (number, as_held(name))
    ).rowcount:
        raise missing
    return str(number)


def drop_tables(connection: Connection, relations: Iterable[str]) -> None:
    """Tables of records, with all that was built on them; those that are gone are."""
    for relation in relations:
        table = f'chromakeep."{relation}"'
        connection.execute(_FREED, (table,))
        connection.execute(f"DROP TABLE IF EXISTS {table} CASCADE".encode())


def orphans(connection: Connection) -> list[str]:
    """Tables of records that the catalog does not know: of a drop that was cut short. None that somebody else has made
    under such a name, with all the columns even: it has not the index that is named by it."""
    found = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        r" WHERE n.nspname = 'chromakeep' AND c.relkind IN ('r', 'p') AND c.relname ~ '^c[0-9]+_'"
        " AND EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
        " WHERE i.indrelid = c.oid AND x.relname = c.relname || '_seq')"
        " AND NOT EXISTS (SELECT FROM chromakeep.collections k WHERE k.relation = c.relname)"
    )
    return [name for (name,) in found]


def no_collection(target: Target) -> Refused:
    """What is said of an id that is not there."""
    return Refused(404, f"Collection [{target.id}] does not exist.")


def _named(connection: Connection, tenant: str, database: str, name: str) -> CollectionShown | None:
    found = connection.execute(
        f"{_SHOWN} AND c.name = %s".encode(), (as_held(tenant), as_held(database), as_held(name))
    ).fetchone()
    return None if found is None else _shown(found, tenant, database)


def _shown(row: tuple[Any, ...], tenant: str, database: str) -> CollectionShown:
    number, name, schema, metadata, dimension, keys = row
    schema = msgspec.json.decode(schema)
    return CollectionShown(
        number,
        told(name),
        schemas.configuration_of(schema),
        schemas.grown(schema, [(told(key), kind) for key, kind in keys or ()]),
        None if metadata is None else msgspec.json.decode(metadata),
        dimension,
        tenant,
        database,
    )


def _kept(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Without keys that have no value; None where none is left."""
    return {key: value for key, value in (metadata or {}).items() if value is not None} or None


def _json(value: Mapping[str, Any] | None) -> str | None:
    """As text, in which U+0000 is an escape."""
    return None if value is None else msgspec.json.encode(value).decode()
