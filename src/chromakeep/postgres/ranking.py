"""Ranking: the value of a rank expression of ``search`` for all records at once, as distributed Chroma defines it.

The records of an expression are those that one of its ``$knn`` found. A ``$knn`` without a ``default`` has no value for
any other record, and an expression over it has none then: the record is no answer. All arithmetic is of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.engine import Refused

Floats = NDArray[np.float32]
DEPTH = 64  # levels of an expression
KNNS = 64  # of an expression
LIMIT = 16  # of a $knn that says none
EMBEDDING = "#embedding"
_ENDLESS = float.fromhex("0x1.ffffffp127")  # from here on it is infinity as a float32
_FOLDED: dict[str, tuple[Callable[..., Any], float]] = {
    "$sum": (np.add, 0.0),
    "$mul": (np.multiply, 1.0),
    "$max": (np.fmax, float(np.finfo(np.float32).min)),
    "$min": (np.fmin, float(np.finfo(np.float32).max)),
}
_OF_TWO = {"$sub": np.subtract, "$div": np.divide}
_OF_ONE = {"$abs": np.abs, "$exp": np.exp, "$log": np.log}


class Sparse(msgspec.Struct, frozen=True):
    """A vector by those of its elements that are not zero."""

    indices: tuple[int, ...]
    values: tuple[float, ...]


class Knn(msgspec.Struct, frozen=True):
    """A ``$knn``: which records are nearest to a vector, by the embedding or a sparse vector in the metadata."""

    query: tuple[float, ...] | Sparse
    key: str = EMBEDDING
    limit: int = LIMIT
    default: float | None = None
    return_rank: bool = False


class Values(msgspec.Struct):
    """Values of the n records of an expression. ``there``: which have one; ``default``: of all that have none."""

    values: Floats
    there: NDArray[np.bool_]
    default: np.float32 | None


def malformed(said: str) -> Refused:
    """What Chroma says of JSON that is no search."""
    return Refused(
        422, f"Failed to deserialize the JSON body into the target type: searches: {said}", error="ChromaError"
    )


def knns(expression: object) -> list[Knn]:
    """All ``$knn`` of an expression, in order. Raises ``Refused`` for what is no expression at all."""
    found: list[Knn] = []
    _collect(expression, found, 0)
    return found


def evaluate(expression: Mapping[str, Any], found: list[tuple[NDArray[np.int64], Floats]], records: int) -> Values:
    """``expression`` has passed ``knns``; ``found`` are its ``$knn``'s records, as numbers below ``records``, nearest
    first, with their distances."""
    with np.errstate(all="ignore"):
        return _value(expression, iter(zip(knns(expression), found, strict=True)), records)


def _collect(expression: object, found: list[Knn], depth: int) -> None:
    if not isinstance(expression, Mapping) or len(expression) != 1 or depth > DEPTH:
        raise malformed("rank: expected one operator")
    ((operator, operand),) = expression.items()
    if operator == "$knn":
        found.append(_knn(operand))
        if len(found) > KNNS:
            raise Refused(400, f"A rank expression has more than {KNNS} $knn")
    elif operator == "$val":
        if not _number(operand):
            raise malformed("rank: $val takes a number")
    elif operator in _FOLDED:
        if not isinstance(operand, list):
            raise malformed(f"rank: {operator} takes a list")
        for part in operand:
            _collect(part, found, depth + 1)
    elif operator in _OF_TWO:
        if not isinstance(operand, Mapping) or set(operand) != {"left", "right"}:
            raise malformed(f"rank: {operator} takes left and right")
        _collect(operand["left"], found, depth + 1)
        _collect(operand["right"], found, depth + 1)
    elif operator in _OF_ONE:
        _collect(operand, found, depth + 1)
    else:
        raise malformed(f"rank: unknown operator {operator!r:.60}")


def _knn(operand: object) -> Knn:
    if not isinstance(operand, Mapping) or "query" not in operand:
        raise malformed("rank: $knn needs a query")
    key, limit = operand.get("key", EMBEDDING), operand.get("limit", LIMIT)
    default, as_rank = operand.get("default"), operand.get("return_rank", False)
    if not isinstance(key, str) or type(limit) is not int or not 0 <= limit < 1 << 32 or type(as_rank) is not bool:
        raise malformed("rank: $knn has a key, a limit or a return_rank that is none")
    if default is not None and not _number(default):
        raise malformed("rank: the default of a $knn is a number")
    query = operand["query"]
    if isinstance(query, list) and all(map(_number, query)):
        if key != EMBEDDING:
            raise Refused(400, f"A dense $knn is on {EMBEDDING}, not on {key!r:.60}")
        if any(abs(one) >= _ENDLESS for one in query):
            raise Refused(400, "Embeddings must not contain NaN or Infinity values")
        return Knn(tuple(map(float, query)), key, limit, default, as_rank)
    by = sparse(query)
    if key == EMBEDDING:
        raise Refused(400, f"A sparse $knn is on a key of the metadata, not on {EMBEDDING}")
    return Knn(by, key, limit, default, as_rank)


def sparse(value: object) -> Sparse:
    """From JSON, as metadata have it. Raises ``Refused``."""
    if not isinstance(value, Mapping) or value.get("#type") not in (None, "sparse_vector"):
        raise malformed("rank: the query of a $knn is a list of numbers or a sparse vector")
    indices, values = value.get("indices"), value.get("values")
    if not isinstance(indices, list) or not isinstance(values, list) or not all(map(_number, values)):
        raise malformed("rank: a sparse vector has indices and values")
    if not all(type(index) is int and 0 <= index < 1 << 32 for index in indices):
        raise malformed("rank: the indices of a sparse vector are numbers below 2^32")
    if len(indices) != len(values):
        raise Refused(400, "Invalid sparse vector in KNN query: indices and values must have the same length")
    if any(one >= other for one, other in pairwise(indices)):
        raise Refused(400, "Invalid sparse vector in KNN query: indices must be sorted in strictly ascending order")
    return Sparse(tuple(indices), tuple(map(float, values)))


def _value(expression: Mapping[str, Any], found: Any, records: int) -> Values:
    ((operator, operand),) = expression.items()
    if operator == "$knn":
        knn, (numbers, distances) = next(found)
        values, there = np.zeros(records, np.float32), np.zeros(records, bool)
        values[numbers] = np.arange(len(numbers), dtype=np.float32) if knn.return_rank else distances
        there[numbers] = True
        return Values(values, there, None if knn.default is None else np.float32(knn.default))
    if operator == "$val":
        return _flat(operand, records)
    if operator in _FOLDED:
        operation, start = _FOLDED[operator]
        so_far = _flat(start, records)
        for part in operand:
            so_far = _merged(so_far, _value(part, found, records), operation)
        return so_far
    if operator in _OF_TWO:
        left = _value(operand["left"], found, records)
        return _merged(left, _value(operand["right"], found, records), _OF_TWO[operator])
    one = _value(operand, found, records)
    operation = _OF_ONE[operator]
    return Values(operation(one.values), one.there, None if one.default is None else operation(one.default))


def _flat(value: float, records: int) -> Values:
    return Values(np.zeros(records, np.float32), np.zeros(records, bool), np.float32(value))


def _merged(left: Values, right: Values, operation: Callable[..., Any]) -> Values:
    if left.default is None:
        there = left.there & right.there if right.default is None else left.there
    else:
        there = right.there if right.default is None else left.there | right.there
    values = operation(
        *(one.values if one.default is None else np.where(one.there, one.values, one.default) for one in (left, right))
    )
    default = None if left.default is None or right.default is None else operation(left.default, right.default)
    return Values(values.astype(np.float32, copy=False), there, default)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
