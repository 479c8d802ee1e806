"""Conditions: a filter on metadata, for places that cannot be asked to filter: each record is held against it.

Only metadata can be asked for: a condition on a document is refused. See ``filters`` for what is compared how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import TYPE_CHECKING, Any

import msgspec

from chromakeep.errors import UsageError
from chromakeep.filters import DOCUMENT, Among, Compare, Every, Filter, Holds, Some, Unreadable, is_number, read_where

if TYPE_CHECKING:
    import pyarrow as pa

Test = Callable[[Mapping[str, Any]], bool]

_ORDERED: dict[str, Callable[[Any, Any], bool]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}


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
        try:
            self._test = _test(read_where(self.json))
        except Unreadable as error:
            raise UsageError(f"--where: {error.why}", hint=error.hint) from None

    def matches(self, metadata: Mapping[str, Any] | None) -> bool:
        """Whether a record with this metadata satisfies it."""
        return self._test(metadata or {})

    def select(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """The records of a batch that satisfy it, in order."""
        import pyarrow as pa

        from chromakeep.batches import decode

        chosen = [self.matches(decode(text)) for text in records.column("metadata").to_pylist()]
        return records if all(chosen) else records.filter(pa.array(chosen, pa.bool_()))


def _test(filter: Filter) -> Test:
    if isinstance(filter, (Every, Some)):
        parts = [_test(part) for part in filter.parts]
        every = all if isinstance(filter, Every) else any
        return lambda metadata: every(part(metadata) for part in parts)
    if not isinstance(filter, (Compare, Among, Holds)) or filter.key == DOCUMENT or filter.key.startswith("chroma:"):
        # What Chroma keeps under these keys is not in ``metadata``
        key = getattr(filter, "key", DOCUMENT)
        raise UsageError(f"--where: {key} is no metadata", hint="only metadata can be asked for")
    key, test = filter.key, _value_test(filter)
    if filter.operator == "$ne" if isinstance(filter, Compare) else filter.negated:
        return lambda metadata: not (key in metadata and test(metadata[key]))  # also without the key
    return lambda metadata: key in metadata and test(metadata[key])


def _value_test(filter: Compare | Among | Holds) -> Callable[[Any], bool]:
    """Of a value that is there, not negated."""
    if isinstance(filter, Among):
        values = filter.values
        return lambda value: any(_equal(value, one) for one in values)
    operand = filter.value
    if isinstance(filter, Holds):
        kind = type(operand)
        return lambda value: isinstance(value, list) and any(type(item) is kind and item == operand for item in value)
    if compare := _ORDERED.get(filter.operator):
        return lambda value: is_number(value) and compare(value, operand)
    return lambda value: _equal(value, operand)


def _equal(value: Any, operand: Any) -> bool:
    if is_number(value) and is_number(operand):
        return bool(value == operand)
    return type(value) is type(operand) and bool(value == operand)
