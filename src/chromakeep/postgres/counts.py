"""Counts: how many records collections have, about, for whoever watches. No large table is read through."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import psycopg

from chromakeep.engine import Refused, Target
from chromakeep.postgres import catalog, segments
from chromakeep.postgres.arrivals import NOWHERE
from chromakeep.postgres.held import UNINDEXABLE, Held
from chromakeep.postgres.measures import measure
from chromakeep.postgres.pool import Pool
from chromakeep.postgres.refusals import Vanished
from chromakeep.postgres.text import told

T = TypeVar("T")
Connection = psycopg.Connection[Any]
MOST = 100  # collections that are told of: the largest
EXACT = segments.SECONDARY  # records of a table up to which they are counted: of it there may be no statistics yet
_TIMEOUT = "SET LOCAL statement_timeout = '5s'"

# A crash takes the statistics, and what is counted since is less than what there is: then as the last VACUUM found it.
_SURVEY = """
    SELECT c.id::text, d.tenant, d.name, c.name, CASE
        WHEN coalesce(s.last_analyze, s.last_autoanalyze, s.last_vacuum, s.last_autovacuum) IS NOT NULL
        THEN s.n_live_tup ELSE greatest(s.n_live_tup, p.reltuples::bigint, 0) END AS records, count(*) OVER ()
    FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database
    JOIN pg_class p ON p.oid = to_regclass('chromakeep."' || c.relation || '"')
    JOIN pg_stat_user_tables s ON s.relid = p.oid
    WHERE d.tenant <> %s ORDER BY records DESC, c.id LIMIT %s
"""


class Counted(msgspec.Struct, frozen=True):
    """One collection. ``waiting``: records that an index of vectors is being made for, or should be; 0 where all are in
    one, or so few are not that none is made."""

    tenant: str
    database: str
    name: str
    records: int
    waiting: int


class Counts(msgspec.Struct, frozen=True):
    """``largest`` has a hundred of the ``collections`` at most."""

    collections: int
    largest: tuple[Counted, ...]


def counts(pool: Pool) -> Counts:
    """Of small collections exact, else from the server's statistics, which are a second behind and about right.

    Raises ``Refused``, and ``Vanished`` where the catalog is gone.
    """
    surveyed = pool.run(_within(_survey), write=False)
    found = []
    for row in surveyed:
        with contextlib.suppress(Vanished):
            if one := pool.run(_within(functools.partial(_look, row=row)), write=False):
                found.append(one)
    return Counts(surveyed[0][5] if surveyed else 0, tuple(found))


def _within(work: Callable[[Connection], T]) -> Callable[[Connection], T]:
    """In a transaction whose statements wait for nobody for long."""

    def limited(connection: Connection) -> T:
        with connection.transaction():
            connection.execute(_TIMEOUT)
            return work(connection)

    return limited


def _survey(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(_SURVEY, (NOWHERE[0], MOST)).fetchall()


def _look(connection: Connection, row: tuple[Any, ...]) -> Counted | None:
    """None: it is gone."""
    number, tenant, database, name, estimated = row[:5]
    target = Target(told(tenant), told(database), number)
    try:
        held = catalog.held(connection, target)
    except Refused as refused:
        if refused.status == 404:
            return None
        raise
    found = connection.execute(f"SELECT count(*) FROM (SELECT FROM {held.table} LIMIT {EXACT}) r".encode()).fetchone()
    counted = int(found[0]) if found else 0
    records = counted if counted < EXACT else max(EXACT, estimated)
    return Counted(target.tenant, target.database, told(name), records, _waiting(connection, held))


def _waiting(connection: Connection, held: Held) -> int:
    """As indexes are made from so many records on, fewer wait for none."""
    if held.dimension is None or measure(held).index_kind is None:
        return 0
    most = 2 * segments.TAIL
    behind = segments.tail(connection, held, most)
    if behind == most:
        low = held.segments[-1].high if held.segments else 0
        behind = max(most, int(segments.estimated(connection, held, f"place > {low} AND place < {UNINDEXABLE}")))
    return behind if behind >= segments.TAIL else 0
