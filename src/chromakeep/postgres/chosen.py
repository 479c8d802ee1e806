"""Chosen: which records a request is about, by ids and filter, as one condition in SQL on the relation ``r``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from chromakeep.filters import Filter
from chromakeep.postgres import demand, packing
from chromakeep.postgres.clauses import Clause, clause
from chromakeep.postgres.held import Held


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
