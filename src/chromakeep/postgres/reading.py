"""Reading: records out of the table of a collection, in the order in which they were added. Raises ``Refused``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg

from chromakeep.engine import Rows, Wanted
from chromakeep.filters import Filter
from chromakeep.postgres import packing
from chromakeep.postgres.beginnings import Beginnings
from chromakeep.postgres.chosen import chosen, guessed, plain, unprepared, unseen
from chromakeep.postgres.clauses import Clause
from chromakeep.postgres.held import Held
from chromakeep.postgres.numbers import shown
from chromakeep.postgres.text import MARKS, told

Connection = psycopg.Connection[Any]
_PROBED = 256  # first records among which a filter's first matches are looked for
_PROBE_LIMIT = 64
_WINDOW = 300  # first records for each that is wanted, among which they are looked for by two indexes
_beginnings = Beginnings()


def count(connection: Connection, held: Held) -> int:
    """How many records there are."""
    row = connection.execute(f"SELECT count(*) FROM {held.table}").fetchone()
    assert row is not None
    return int(row[0])


def get(
    connection: Connection,
    held: Held,
    ids: Sequence[str] | None,
    where: Filter | None,
    limit: int | None,
    offset: int,
    wanted: Wanted,
) -> Rows:
    """Those with these ids that satisfy the filter."""
    condition, parameters = chosen(connection, held, ids, where)
    condition = condition or "true"
    columns = ", ".join(f"r.{name}" for name in names(wanted))
    cursor, prepare = connection.cursor(binary=True), unprepared(where)
    if limit is None and not offset:
        cursor.execute(
            f"SELECT {columns} FROM {held.table} r WHERE {condition} ORDER BY r.seq", parameters, prepare=prepare
        )
        return rows(cursor, held, wanted)
    page = "LIMIT %s OFFSET %s"
    if where is not None and ids is None and limit is not None and limit + offset <= _PROBE_LIMIT:
        if (found := _among_first(connection, held, where, (condition, parameters), limit, offset, wanted)) is not None:
            return found
        page = f"+ 0 {page}"  # not by a walk in order: matches are few, or late
    cursor.execute(
        f"SELECT {columns} FROM {held.table} r WHERE {condition} ORDER BY r.seq {page}",
        [*parameters, limit, offset],
        prepare=prepare,
    )
    return rows(cursor, held, wanted)


def _among_first(
    connection: Connection, held: Held, where: Filter, clause: Clause, limit: int, offset: int, wanted: Wanted
) -> Rows | None:
    """The page, if all of it is found among the first records; each answer is that of one statement.

    Where matches are many, it is among very few. Where they are few, none is among these, and an index finds all sooner
    than a walk in order finds the first. Between, it is among some thousand, and of what an index finds only those are
    visited: by both indexes, the filter's and that of ``seq``. The planner cannot know what holds, so it is tried.
    """
    condition, parameters = clause
    columns = ", ".join(f"r.{name}" for name in names(wanted))
    cursor = connection.cursor(binary=True)
    cursor.execute(  # prepared, for there is but one way to do this
        f"SELECT {columns} FROM (SELECT * FROM {held.table} ORDER BY seq LIMIT {_PROBED}) r"
        f" WHERE {condition} ORDER BY r.seq LIMIT %s",
        [*parameters, limit + offset],
    )
    if cursor.rowcount == limit + offset:
        return rows(cursor, held, wanted, offset)
    if not cursor.rowcount or not plain(where):  # the planner takes what combines several for rare
        return None
    bound = _beginnings.of(connection, held).bound(_WINDOW * (limit + offset))
    if bound is None:
        return None
    cursor.execute(
        f"SELECT {columns} {up_to(held, where, condition, bound)} LIMIT %s OFFSET %s",
        [*parameters, limit, offset],
        prepare=None if guessed(where) else False,
    )
    return rows(cursor, held, wanted) if cursor.rowcount == limit else None


def up_to(held: Held, where: Filter, condition: str, bound: int) -> str:
    """What comes after SELECT for those up to this ``seq``, so that both indexes are asked.

    The bound stands in it as a number, for the planner must know that few are up to there. Of the filter it must not
    take some for so rare that it need not ask the other index.
    """
    if guessed(where):
        condition = unseen(condition)
    return f"FROM {held.table} r WHERE {condition} AND r.seq <= {bound} ORDER BY r.seq + 0"


def names(wanted: Wanted) -> list[str]:
    """The columns of ``r`` that must be selected, in this order, for ``rows``."""
    members = ("documents", "metadatas", "embeddings", "uris")
    return ["id", *(member.removesuffix("s") for member in members if getattr(wanted, member))]


def rows(cursor: psycopg.Cursor[Any], held: Held, wanted: Wanted, offset: int = 0) -> Rows:
    """What a binary cursor found, from ``offset`` on: the columns that ``names`` says, others behind them are left
    alone."""
    result = cursor.pgresult
    assert result is not None
    value, n = result.get_value, range(offset, result.ntuples)
    column = iter(range(1, 6))
    found = Rows([_text(value(i, 0) or b"") for i in n])
    if wanted.documents:
        c = next(column)
        found.documents = [None if (text := value(i, c)) is None else _text(text) for i in n]
    if wanted.metadatas:
        c = next(column)
        found.metadatas = [None if (text := value(i, c)) is None else shown(text[1:]) for i in n]
    if wanted.embeddings:
        c = next(column)
        vectors = [value(i, c) for i in n]
        dimension = next((int.from_bytes(one[:2], "big") for one in vectors if one is not None), held.dimension or 0)
        found.embeddings = (
            packing.unpacked(vectors, dimension, half=held.storage == "halfvec")
            if vectors
            else np.zeros((0, dimension), np.float32)
        )
    if wanted.uris:
        c = next(column)
        found.uris = [None if (text := value(i, c)) is None else _text(text) for i in n]
    return found


def _text(held_text: bytes) -> str:
    text = held_text.decode()
    return told(text) if MARKS in held_text else text
