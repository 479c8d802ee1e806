"""Conditions: Chroma's ``where`` over the metadata of records, for places that cannot be asked to filter.

The operators are those of Chroma's HTTP API, with two differences. Numbers are compared as numbers: Chroma 1.5 compares
an integer with the whole part of a float, so that ``{"v": {"$eq": 1.5}}`` finds 1; here it does not. And only metadata
can be asked for: a condition on a document is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from chromakeep.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

Test = Callable[[Mapping[str, Any]], bool]

DEPTH = 32
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: bool(a > b),
    "$gte": lambda a, b: bool(a >= b),
    "$lt": lambda a, b: bool(a < b),
    "$lte": lambda a, b: bool(a <= b),
}
_NEGATED = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}


class Where:
    """A condition on metadata."""

    def __init__(self, text: str) -> None:
        """``text``: the JSON of it. Raises ``UsageError`` for what Chroma would refuse."""
        try:
            self.json: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UsageError(
                f"--where is no JSON object ({error})", hint="""write --where '{"year": {"$gt": 2020}}'"""
            ) from None
        self._test = _clause(self.json, 0)

    def matches(self, metadata: Mapping[str, Any] | None) -> bool:
        """Whether a record with this metadata satisfies it."""
        return self._test(metadata or {})

    def select(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """The records of a batch that satisfy it, in order."""
        import pyarrow as pa

        from chromakeep.batches import decode

        chosen = [self.matches(decode(text)) for text in records.column("metadata").to_pylist()]
        return records if all(chosen) else records.filter(pa.array(chosen, pa.bool_()))


def _clause(clause: Any, depth: int) -> Test:
    if not isinstance(clause, Mapping) or len(clause) != 1 or depth > DEPTH:
        raise UsageError(
            "each level of --where is an object with one key", hint='combine with "$and": [...], "$or": [...]'
        )
    ((key, value),) = clause.items()
    if key in ("$and", "$or"):
        if not isinstance(value, list):
            raise UsageError(f"--where: {key} takes a list of conditions")
        parts = [_clause(part, depth + 1) for part in value]
        every = all if key == "$and" else any
        return lambda metadata: every(part(metadata) for part in parts)
    if key.startswith("$"):
        raise UsageError(f"--where: {key} is no operator that stands before a key")
    if key == "#document" or key.startswith("chroma:"):  # what Chroma keeps under these is not in ``metadata``
        raise UsageError(f"--where: {key} is no metadata", hint="only metadata can be asked for")
    if not isinstance(value, Mapping):
        value = {"$eq": value}
    if len(value) != 1:
        raise UsageError(f"--where: {key!r} has {len(value)} operators", hint='combine them with "$and": [...]')
    ((operator, operand),) = value.items()
    test = _operator(key, operator, operand)
    if operator in _NEGATED:  # and so a record without the key satisfies it
        return lambda metadata: not (key in metadata and test(metadata[key]))
    return lambda metadata: key in metadata and test(metadata[key])


def _operator(key: str, operator: str, operand: Any) -> Callable[[Any], bool]:
    kind = _NEGATED.get(operator, operator)
    if kind == "$in":
        if not isinstance(operand, list) or not operand or not all(_is_scalar(item) for item in operand):
            raise UsageError(f"--where: {operator} of {key!r} takes a list of values")
        kinds = {type(item) for item in operand}
        if len(kinds) > 1 and (kinds != {int, float} or type(operand[0]) is int):
            raise UsageError(
                f"--where: {operator} of {key!r} takes values of one kind", hint="write a list of numbers as [1.0, 2.5]"
            )
        return lambda value: any(_equal(value, item) for item in operand)
    if not _is_scalar(operand):
        raise UsageError(f"--where: {operator} of {key!r} takes text, a number, true or false")
    if kind == "$eq":
        return lambda value: _equal(value, operand)
    if kind == "$contains":
        return lambda value: (
            isinstance(value, list) and any(type(item) is type(operand) and item == operand for item in value)
        )
    if kind not in _ORDERED:
        raise UsageError(f"--where: {operator} is no operator", hint="see Chroma's documentation of where filters")
    if not _is_number(operand):
        raise UsageError(f"--where: {operator} of {key!r} takes a number")
    compare = _ORDERED[kind]
    return lambda value: _is_number(value) and compare(value, operand)


def _equal(value: Any, operand: Any) -> bool:
    if _is_number(value) and _is_number(operand):
        return bool(value == operand)
    return type(value) is type(operand) and bool(value == operand)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float))
