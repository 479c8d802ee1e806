"""Chosen: which records a request is about, by ids and filter, as one condition in SQL on the relation ``r``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import psycopg

from chromakeep.filters import Among, Compare, Filter, Holds, Matches
from chromakeep.postgres import demand, packing
from chromakeep.postgres.clauses import Clause, clause
from chromakeep.postgres.held import Held

_VALUE = re.compile(r"%[sb](::\w+(?:\[\])?)")


def chosen(connection: psycopg.Connection[Any], held: Held, ids: Sequence[str] | None, where: Filter | None) -> Clause:
    """The condition, "" for all records, and its parameters; upkeep learns what is filtered by. Raises ``Refused``."""
    conditions: list[str] = []
    parameters: list[Any] = []
    if ids is not None:
        conditions.append("r.key = ANY(%b::uuid[])")
        parameters.append(packing.uuids([packing.key(one) for one in ids]))
    if where is not None:
        demand.asked(held, where)
        condition, values = clause(where, held, trgm=packing.server(connection).trgm)
        conditions.append(f"({condition})")
        parameters += values
    return " AND ".join(conditions), parameters


def unprepared(where: Filter | None) -> bool | None:
    """What psycopg is told of a statement with this filter: it is not prepared, else PostgreSQL would plan it once for
    all values, and these decide which index answers it. What has no filter is planned once, and takes half the time."""
    return None if where is None else False


def guessed(where: Filter) -> bool:
    """Whether it is one condition that an index answers, and the planner had better not say by its value how many
    records satisfy it: of what is in a jsonb or in a text it has seen a hundred samples. Ranges it knows well; several
    combined it would take for rarer than they are, and a negated one no index answers."""
    if isinstance(where, Matches):
        return where.operator in ("$contains", "$regex")
    if isinstance(where, Compare):
        return where.operator == "$eq"
    return isinstance(where, (Among, Holds)) and not where.negated


def unseen(condition: str) -> tuple[str, str]:
    """Its values as columns of a relation ``v``, and the condition with these in their places: so kept from the
    planner, which then takes it for one that some records satisfy. What it makes of that may be prepared."""
    values: list[str] = []

    def column(found: re.Match[str]) -> str:
        values.append(f"{found[0]} AS v{len(values)}")
        return f"(SELECT v{len(values) - 1} FROM v){found[1]}"

    condition = _VALUE.sub(column, condition)
    return ", ".join(values), condition
