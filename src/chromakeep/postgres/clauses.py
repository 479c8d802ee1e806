"""Clauses: a filter as a condition in SQL on the records of a relation ``r``, and the indexes that make it quick.

Values go in as parameters, never as SQL. What an index can answer is written so that it does: equality and membership
as ``metadata @> {...}`` (GIN, jsonb_path_ops), ranges over ``_NUMBER`` (btree, one key each), text in documents by
trigrams (GIN). A condition is false, never null, for a record without the key or the document; negated ones are true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

from psycopg import sql

from chromakeep.engine import Refused
from chromakeep.filters import DOCUMENT, Among, Compare, Every, Filter, Holds, Matches, Named, Scalar, Some
from chromakeep.postgres import packing, regex, trigrams
from chromakeep.postgres.held import Held
from chromakeep.postgres.numbers import encoded, number, value_json
from chromakeep.postgres.text import held as as_held

Clause = tuple[str, list[Any]]
_NUMBER = "CASE jsonb_typeof({column} -> {key}) WHEN 'number' THEN ({column} -> {key})::numeric END"
_OPERATORS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_LOOKED_UP = 32  # values of $in that are each looked up in the index; more are hashed, and all records read
_KINDS = {"Str": "string", "Bool": "bool", "Int": "int", "Float": "float"}  # in a message, in a schema
_PENDING = 1024  # KiB of a GIN index that are searched one by one


def clause(filter: Filter, held: Held, *, trgm: bool) -> Clause:
    """The condition and its parameters. Raises ``Refused`` for what the schema forbids to ask, and for a regular
    expression that is none or that PostgreSQL cannot answer."""
    return _Clauses(held, trgm).of(filter)


def index_statements(held: Held, keys: Iterable[str], trgm: bool) -> list[str]:
    """What creates the indexes that filters use, each if there is none yet; ``keys``: those of metadata that are asked
    for ranges. Each runs outside a transaction, beside writers."""
    pending = f"WITH (gin_pending_list_limit = {_PENDING})"

    def create(suffix: str, what: str) -> str:
        return f'CREATE INDEX CONCURRENTLY IF NOT EXISTS "{held.relation}_{suffix}" ON {held.table} USING {what}'

    on_documents = "document gin_trgm_ops" if trgm else "trigrams"
    statements = [
        create("metadata", f"gin (metadata jsonb_path_ops) {pending}"),
        create("document", f"gin ({on_documents}) {pending}"),
    ]
    for key in keys:
        suffix = blake2b(key.encode(), digest_size=6).hexdigest()
        expression = _NUMBER.format(column="metadata", key=_literal(as_held(key)))
        statements.append(create(f"n_{suffix}", f"btree (({expression}))"))
    return statements


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None) + "::text"


class _Clauses:
    def __init__(self, held: Held, trgm: bool) -> None:
        self._held, self._trgm = held, trgm

    def of(self, filter: Filter) -> Clause:
        if isinstance(filter, (Every, Some)):
            return self._several(filter)
        if isinstance(filter, Matches):
            return self._matches(filter)
        if isinstance(filter, Named):
            found = "r.key = ANY(%b::uuid[])", [packing.uuids([packing.key(one) for one in filter.ids])]
            return _negated(found) if filter.negated else found
        if isinstance(filter, Compare):
            return self._compare(filter)
        if isinstance(filter, Among):
            self._allowed(filter.key, filter.values[0])
            found = self._among(filter.key, filter.values)
        else:
            self._allowed(filter.key, filter.value)
            found = _holds(filter)
        return _negated(found) if filter.negated else found

    def _several(self, filter: Every | Some) -> Clause:
        parts = [self.of(part) for part in filter.parts]
        every = isinstance(filter, Every)
        if not parts:
            return ("true" if every else "false"), []
        joined = (" AND " if every else " OR ").join(condition for condition, _ in parts)
        return f"({joined})", [value for _, values in parts for value in values]

    def _compare(self, filter: Compare) -> Clause:
        self._allowed(filter.key, filter.value)
        if filter.operator in _OPERATORS:
            key = as_held(filter.key)
            expression = _NUMBER.format(column="r.metadata", key="%s::text")
            condition = f"({expression} {_OPERATORS[filter.operator]} %s::numeric)"
            return condition, [key, key, number(filter.value)]  # type: ignore[arg-type]
        found = self._among(filter.key, (filter.value,))
        return _negated(found) if filter.operator == "$ne" else found

    @staticmethod
    def _among(key: str, values: Sequence[Scalar]) -> Clause:
        if len(values) > _LOOKED_UP:
            return "(r.metadata -> %s::text) = ANY(%b::jsonb[])", [
                as_held(key),
                packing.jsonbs([value_json(value) for value in values]),
            ]
        wanted = [_member(key, value) for value in values]
        if len(wanted) == 1:
            return "r.metadata @> %s::jsonb", [wanted[0].decode()]
        return "r.metadata @> ANY(%b::jsonb[])", [packing.jsonbs(wanted)]

    def _matches(self, filter: Matches) -> Clause:
        if (DOCUMENT, "fts") in self._held.unindexed:
            raise Refused(400, "Cannot filter using full-text search because FTS indexing is disabled")
        negated = filter.operator in ("$not_contains", "$not_regex")
        required: Sequence[str] = [as_held(filter.pattern)]
        if filter.operator in ("$contains", "$not_contains"):
            found = _contains(required[0])
        else:
            expression = regex.translated(filter.pattern)
            required = expression.required
            found = "textregexeq(r.document, %s::text)", [expression.pattern]  # never ``~``: see below
        if not negated:
            for condition, values in self._candidates(filter.operator, required):
                found = f"{found[0]} AND {condition}", [*found[1], *values]
        return _negated(found) if negated else (f"({found[0]})", found[1])

    def _candidates(self, operator: str, required: Sequence[str]) -> list[Clause]:
        """What an index answers of documents that have all these texts.

        With pg_trgm that is LIKE, never ``~``: of an expression with an upper case letter beyond ASCII (``abcÉ``) an
        index on a column of collation "C" misses documents, in PostgreSQL 15 to 18. As a function it uses none.
        """
        if self._trgm:
            return [] if operator == "$contains" else [_contains(one) for one in required if len(one) >= 3]
        hashes = trigrams.required(required)
        return [("r.trigrams @> %b::int4[]", [packing.integers(hashes)])] if len(hashes) else []

    def _allowed(self, key: str, value: Scalar) -> None:
        kind = {str: "Str", bool: "Bool", int: "Int", float: "Float"}[type(value)]
        if (key == DOCUMENT and kind == "Str") or not self._held.filterable(key, _KINDS[kind]):
            raise Refused(
                400, f"Cannot filter using metadata key '{key}' with type '{kind}' because indexing is disabled"
            )


def _contains(text: str) -> Clause:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return "r.document LIKE %s::text", [f"%{escaped}%"]


def _holds(filter: Holds) -> Clause:
    found = "r.metadata @> %s::jsonb", [_member(filter.key, [filter.value]).decode()]
    if isinstance(filter.value, bool) or not isinstance(filter.value, (int, float)):
        return found
    # 1 is not 1.0 here: a list has integers or floats, and only floats are written with a point
    point = "> 0" if isinstance(filter.value, float) else "= 0"
    condition = f"({found[0]} AND strpos(r.metadata -> %s::text ->> 0, '.') {point})"
    return condition, [*found[1], as_held(filter.key)]


def _member(key: str, value: Any) -> bytes:
    text = encoded({key: value})
    assert text is not None
    return text


def _negated(found: Clause) -> Clause:
    return f"({found[0]}) IS NOT TRUE", found[1]
