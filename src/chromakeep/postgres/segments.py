"""Segments: for which ranges of places an index of vectors should stand, and how one comes to be and goes.

An index is partial: on the records with ``low < place <= high``, of all times. A record that a slow writer commits into
the range after the index was begun is in it nevertheless: CREATE INDEX CONCURRENTLY waits for every transaction that
may not know of the index, and each later one keeps it up like any other index. So a segment is never wrong; whether it
is good is measured by how many of its entries are dead.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
from psycopg import errors

from chromakeep.postgres.held import UNINDEXABLE, Held, Segment
from chromakeep.postgres.measures import measure

Connection = psycopg.Connection[Any]
BLOCK = 65_536  # places of one batch
TAIL = 5_000  # records behind all segments that make another one worth while; fewer are searched one by one
LOOSE = 500  # records behind a segment for which it is made anew when nobody writes: they cost a query 0.5 ms
GROWTH = 3  # a segment is made anew with its successor when it has fewer than so many times as many records
WASTE = 0.5  # of a segment's entries dead: it is made anew
SECONDARY = 2_000  # records of a collection from which on filters have indexes


class Standing(msgspec.Struct, frozen=True):
    """A segment with the entries that its index was built with, and the records that are alive in its range, about."""

    segment: Segment
    built: float
    alive: float


class Range(msgspec.Struct, frozen=True):
    """Places of an index to build. ``replaced``: the segments it stands for when it is there."""

    low: int
    high: int
    replaced: tuple[Segment, ...]
    lists: int = 0  # of an index that is made in a tenth of the time, and gives way to a graph later; 0: a graph


def plan(standing: Sequence[Standing], tail: float, high: int, *, at_rest: bool = False) -> Range | None:
    """The next index to build, or None. ``tail``: records behind all segments, with places up to ``high``.

    Sizes of segments fall by more than ``GROWTH`` from each to the next, so that there are few of them and a record is
    built into an index a few times only. ``at_rest``: nobody writes, and all become one, the tail too.
    """
    merged, rows = list(standing), 0.0
    low = merged[-1].segment.high if merged else 0
    if tail >= TAIL:
        gone: list[Segment] = []
        rows = tail
        while merged and merged[-1].alive < GROWTH * rows:
            last = merged.pop()
            rows, low = rows + last.alive, last.segment.low
            gone.insert(0, last.segment)
        return Range(low, high, tuple(gone))
    for one in standing:
        if one.segment.lists or one.alive < (1 - WASTE) * one.built:
            return Range(one.segment.low, one.segment.high, (one.segment,))
    if at_rest and (len(standing) > 1 or (standing and tail >= LOOSE)):
        end = high if tail else standing[-1].segment.high
        return Range(standing[0].segment.low, end, tuple(one.segment for one in standing))
    return None


def standings(connection: Connection, held: Held) -> list[Standing]:
    """From the statistics of the last ANALYZE. One of which these say that much is dead is counted: of places that lie
    close together after others far apart the planner believes that there are few, and it would be made anew for ever.
    """
    built = dict(
        connection.execute("SELECT index, built FROM chromakeep.segments WHERE collection = %s", (held.id,)).fetchall()
    )
    found = []
    for segment in held.segments:
        entries, range = float(built.get(segment.index, 0)), f"place > {segment.low} AND place <= {segment.high}"
        alive = estimated(connection, held, range)
        if alive < (1 - WASTE) * entries:
            row = connection.execute(f"SELECT count(*) FROM {held.table} WHERE {range}").fetchone()
            alive = float(row[0]) if row else 0.0
        found.append(Standing(segment, entries, alive))
    return found


def estimated(connection: Connection, held: Held, condition: str) -> float:
    """Records of a condition on places, as the planner believes."""
    row = connection.execute(f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {held.table} r WHERE {condition}").fetchone()
    return float(row[0][0]["Plan"]["Plan Rows"]) if row else 0.0


def tail(connection: Connection, held: Held, most: int) -> int:
    """Records behind all segments that an index could hold, counted up to ``most``."""
    low = held.segments[-1].high if held.segments else 0
    row = connection.execute(
        f"SELECT count(*) FROM (SELECT FROM {held.table} WHERE place > {low} AND place < {UNINDEXABLE}"
        f" AND embedding IS NOT NULL LIMIT {most}) t"
    ).fetchone()
    return int(row[0]) if row else 0


def read(connection: Connection, collection: str) -> tuple[Segment, ...]:
    """The segments of a collection, in order."""
    found = connection.execute(
        "SELECT low, high, index FROM chromakeep.segments WHERE collection = %s ORDER BY low", (collection,)
    ).fetchall()
    return tuple(Segment(*row) for row in found)


def build(connection: Connection, held: Held, wanted: Range, *, alone: bool = False) -> Segment:
    """Build an index beside all others and let it stand for what it replaces. ``connection`` is in autocommit.

    Nobody waits for it. What is killed in it leaves an index that ``sweep`` takes away. ``alone``: nobody writes to the
    table meanwhile, or waits; it takes less, and other indexes may be built at the same time.
    """
    how, kind = measure(held), f"i{wanted.lists}_" if wanted.lists else "h"
    name = f"{held.relation.split('_')[0]}_{kind}{secrets.token_hex(4)}"
    made = Segment(wanted.low, wanted.high, name)
    neighbors = _within(held.max_neighbors, 2, 100)
    efforts = f"m = {neighbors}, ef_construction = {max(_within(held.ef_construction, 4, 1000), 2 * neighbors)}"
    method, options = ("ivfflat", f"lists = {wanted.lists}") if wanted.lists else ("hnsw", efforts)
    statement = (
        f'CREATE INDEX {"" if alone else "CONCURRENTLY"} "{name}" ON {held.table}'
        f" USING {method} ({how.indexed} {how.operators})"
        f" WITH ({options}) WHERE place > {wanted.low} AND place <= {wanted.high}"
    )
    try:
        connection.execute(statement)
    except (errors.DiskFull, errors.OutOfMemory):  # as shared memory of a container: what is not shared may do
        drop(connection, name)
        connection.execute("SET max_parallel_maintenance_workers = 0")
        connection.execute(statement)
    row = connection.execute(
        "SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass", (f'chromakeep."{name}"',)
    ).fetchone()
    with connection.transaction():
        connection.execute("SELECT FROM chromakeep.collections WHERE id = %s FOR KEY SHARE", (held.id,))
        for old in wanted.replaced:
            connection.execute("DELETE FROM chromakeep.segments WHERE collection = %s AND low = %s", (held.id, old.low))
        connection.execute(
            "INSERT INTO chromakeep.segments (collection, low, high, index, built) VALUES (%s, %s, %s, %s, %s)",
            (held.id, made.low, made.high, name, row[0] if row else 0),
        )
    for old in wanted.replaced:
        drop(connection, old.index)
    return made


def sweep(connection: Connection, held: Held) -> list[str]:
    """Drop what builds that were killed have left: indexes of vectors that no segment names, and those of filters that
    are not valid, whose names stand in the way of others. Nobody else may be building."""
    found = connection.execute(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
        " WHERE i.indrelid = to_regclass(%s) AND (a.amname IN ('hnsw', 'ivfflat') AND c.relname NOT IN"
        " (SELECT index FROM chromakeep.segments WHERE collection = %s) OR NOT i.indisvalid AND c.relname ~ %s)",
        (held.table, held.id, f"^{held.relation}_(metadata|document|n_[0-9a-f]+)$"),
    ).fetchall()
    for (name,) in found:
        drop(connection, name)
    return [name for (name,) in found]


def drop(connection: Connection, index: str) -> None:
    """Let an index go when nobody reads it any more."""
    connection.execute(f'DROP INDEX CONCURRENTLY IF EXISTS chromakeep."{index}"')


def new_high(connection: Connection) -> int:
    """The last place of a block that no batch has: all places that were given out are before it, later ones behind."""
    row = connection.execute("SELECT nextval('chromakeep.blocks')").fetchone()
    return (int(row[0]) if row else 0) * BLOCK


def memory(connection: Connection, held: Held, rows: float) -> int:
    """Set what a build of so many rows may take, in bytes: what the server gives, and for a large graph as much as it
    keeps of its tables in memory, which is a quarter of the machine where it is tuned."""
    row = connection.execute(
        "SELECT pg_size_bytes(current_setting('maintenance_work_mem')),"
        " pg_size_bytes(current_setting('shared_buffers'))"
    ).fetchone()
    usual, most = row or (64 << 20, 128 << 20)
    needed = int(rows * (4 * (held.dimension or 0) + 20 * 2 * held.max_neighbors + 256) * 1.2)
    given = max(usual, min(needed, most))
    connection.execute(f"SET maintenance_work_mem = '{given >> 10}kB'")
    return given


def _within(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
