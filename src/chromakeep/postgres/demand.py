"""Demand: by which numbers of its metadata a collection is filtered, as this process has seen it."""

from __future__ import annotations

from collections.abc import Set

from chromakeep.filters import Compare, Every, Filter, Some
from chromakeep.postgres.held import Held

RANGED = 8  # keys of a collection that have an index of numbers
COLLECTIONS = 4096  # of which it is known
LONGEST = 500  # bytes of such a key: a row of PostgreSQL's catalog of indexes has an end
_ranged: dict[str, set[str]] = {}


def asked(held: Held, where: Filter | None) -> None:
    """Note the keys that a filter asks for ranges of: upkeep makes an index of the numbers under each, at most
    ``RANGED`` a collection, and none where there are no numbers. Asked of every instance sooner or later, so that it
    need not be kept."""
    if isinstance(where, (Every, Some)):
        for part in where.parts:
            asked(held, part)
    elif isinstance(where, Compare) and where.operator in ("$gt", "$gte", "$lt", "$lte"):
        if held.keys.isdisjoint({(where.key, "int"), (where.key, "float")}) or len(where.key.encode()) > LONGEST:
            return
        if held.relation not in _ranged and len(_ranged) >= COLLECTIONS:
            return
        keys = _ranged.setdefault(held.relation, set())
        if len(keys) < RANGED:
            keys.add(where.key)


def ranged(relation: str) -> list[str]:
    """The keys that were asked for ranges."""
    return sorted(_ranged.get(relation, ()))


def keep(relations: Set[str]) -> None:
    """Forget those of all other collections: they are gone, or too small for an index."""
    for relation in list(_ranged):
        if relation not in relations:
            _ranged.pop(relation, None)
