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
from chromakeep.postgres.chosen import chosen, guessed, unprepared, unseen
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
    page, values = "LIMIT %s OFFSET %s", [*parameters, limit, offset]
    if where is not None and ids is None and limit is not None and limit + offset <= _PROBE_LIMIT:
        if guessed(where):
            bound = _beginnings.of(connection, held).bound(_WINDOW * (limit + offset))
            cursor.execute(first(held, columns, condition, bound), [*parameters, limit + offset, offset])
            return rows(cursor, held, wanted)
        cursor.execute(  # prepared, for whatever the values are, there is one way to do it
            f"SELECT {columns} FROM {_probed(held)} WHERE {condition} ORDER BY r.seq {page}", values
        )
        if cursor.rowcount == limit:
            return rows(cursor, held, wanted)
        page = f"+ 0 {page}"  # not by a walk in order: matches are few, or late
    cursor.execute(
        f"SELECT {columns} FROM {held.table} r WHERE {condition} ORDER BY r.seq {page}", values, prepare=prepare
    )
    return rows(cursor, held, wanted)


def first(held: Held, columns: str, condition: str, bound: int | None) -> str:
    """The statement for the first records of a condition that is ``guessed``; its parameters are those of the
    condition, how many, and how many of these are left out.

    Where matches are many, the first of them are among very few records. Where they are few, an index finds all sooner
    than a walk in order finds the first. Between, they are among the some thousand up to the ``bound``, and of what the
    index finds only those there are visited: by both indexes, the filter's and that of ``seq``. The planner cannot
    know which it is, so one after the other is tried until one has found enough, of which each is right by itself.
    """
    values, condition = unseen(condition)
    matching = f"SELECT {columns}, r.seq FROM {held.table} r WHERE {condition}"
    tried = [f"SELECT {columns}, r.seq FROM {_probed(held)} WHERE {condition} ORDER BY r.seq"]
    short = "(SELECT count(*) FROM t0) < (SELECT enough FROM v)"
    if bound is not None:  # in digits, for the planner must know that few are up to there
        tried.append(f"{matching} AND r.seq <= {bound} AND {short} ORDER BY r.seq + 0")
        short += " AND (SELECT count(*) FROM t1) < (SELECT enough FROM v)"
    tried.append(f"{matching} AND {short} ORDER BY r.seq + 0")  # not by a walk in order
    last = len(tried) - 1
    parts = [f"t{n} AS MATERIALIZED ({one} LIMIT (SELECT enough FROM v))" for n, one in enumerate(tried)]
    found = [f"SELECT * FROM t{n} WHERE (SELECT count(*) FROM t{n}) = (SELECT enough FROM v)" for n in range(last)]
    return (
        f"WITH v AS MATERIALIZED (SELECT {values}, %s::int8 AS enough), {', '.join(parts)}"
        f" {' UNION ALL '.join([*found, f'SELECT * FROM t{last}'])} ORDER BY seq OFFSET %s"
    )


def _probed(held: Held) -> str:
    return f"(SELECT * FROM {held.table} ORDER BY seq LIMIT {_PROBED}) r"


def names(wanted: Wanted) -> list[str]:
    """The columns of ``r`` that must be selected, in this order, for ``rows``."""
    members = ("documents", "metadatas", "embeddings", "uris")
    return ["id", *(member.removesuffix("s") for member in members if getattr(wanted, member))]


def rows(cursor: psycopg.Cursor[Any], held: Held, wanted: Wanted) -> Rows:
    """What a binary cursor found: the columns that ``names`` says, others behind them are left alone."""
    result = cursor.pgresult
    assert result is not None
    value, n = result.get_value, range(result.ntuples)
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
