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


def plain(where: Filter) -> bool:
    """Whether it is one condition, not several combined."""
    return isinstance(where, (Compare, Among, Holds, Matches))


def guessed(where: Filter) -> bool:
    """Whether an index answers it and the planner had better not say by its value how many records satisfy it: of what
    is in a jsonb or in a text it has seen a hundred samples. A range it knows well, and of a negated one it knows
    enough: no index answers it."""
    if isinstance(where, Matches):
        return where.operator in ("$contains", "$regex")
    if isinstance(where, Compare):
        return where.operator == "$eq"
    return isinstance(where, (Among, Holds)) and not where.negated


def unseen(condition: str) -> str:
    """The same with its values kept from the planner, which then takes any condition for one that some satisfy. What
    it makes of it is good for all values, so it may be prepared."""
    return _VALUE.sub(r"(SELECT \g<0>)\1", condition)
