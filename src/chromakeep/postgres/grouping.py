"""Grouping: the ``group_by`` of a ``search``: of the records that agree in some metadata the first or the last k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from chromakeep.engine import Refused
from chromakeep.postgres.ranking import malformed

SCORE = "#score"


class Grouping(msgspec.Struct, frozen=True):
    """``keys`` make the groups, ``by`` orders within one; the first ``k`` are kept, of ``largest`` from the end."""

    keys: tuple[str, ...]
    by: tuple[str, ...]
    k: int
    largest: bool


def read(group_by: Mapping[str, Any] | None) -> Grouping | None:
    """From decoded JSON; None: everything stays. Raises ``Refused``."""
    keys, aggregate = (group_by or {}).get("keys") or [], (group_by or {}).get("aggregate")
    if not _names(keys) or not isinstance(aggregate, (Mapping, type(None))):
        raise malformed("group_by: expected keys and an aggregate")
    if bool(keys) != bool(aggregate):
        raise Refused(400, "group_by keys and aggregate must both be specified or both be omitted")
    if not aggregate:
        return None
    if any(key.startswith("#") for key in keys):
        raise Refused(
            400,
            "group_by keys must be metadata fields (cannot use #score, #document, #embedding, or #metadata)",
        )
    operator, operand = next(iter(aggregate.items())) if len(aggregate) == 1 else ("", None)
    if operator not in ("$min_k", "$max_k") or not isinstance(operand, Mapping):
        raise malformed("group_by: the aggregate is $min_k or $max_k")
    by, k = operand.get("keys"), operand.get("k")
    if not _names(by) or type(k) is not int or not 0 <= k < 1 << 32:
        raise malformed("group_by: an aggregate has keys and k")
    if not by:
        raise Refused(400, "aggregate keys must not be empty")
    if k == 0:
        raise Refused(400, "aggregate k must be greater than 0")
    if any(key.startswith("#") and key != SCORE for key in by):
        raise Refused(
            400, "aggregate keys must be metadata fields or #score (cannot use #document, #embedding, or #metadata)"
        )
    return Grouping(tuple(keys), tuple(by), k, operator == "$max_k")


def kept(grouping: Grouping, scores: Sequence[float], metadatas: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which of the records stay, in the order they are given in; that is the order of equals, too."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, metadata in enumerate(metadatas):
        groups.setdefault(tuple(_ordered(metadata.get(key)) for key in grouping.keys), []).append(number)

    def order(number: int) -> tuple[Any, ...]:
        value = metadatas[number].get
        return tuple((2, scores[number]) if key == SCORE else _ordered(value(key)) for key in grouping.by)

    stay: list[int] = []
    for group in groups.values():
        stay += sorted(group, key=order, reverse=grouping.largest)[: grouping.k]
    return sorted(stay)


def _ordered(value: Any) -> tuple[Any, ...]:
    """None before all, then by kind: as Chroma orders values of several kinds. 1 and 1.0 are two values."""
    if isinstance(value, Mapping):
        return (4, tuple(value.get("indices", ())), tuple(value.get("values", ())))
    if isinstance(value, (list, tuple)):
        return (5 + _kind(value[0]) if value else 5, tuple(value))
    return (-1,) if value is None else (_kind(value), value)


def _kind(value: Any) -> int:
    return {bool: 0, int: 1, float: 2}.get(type(value), 3)


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
