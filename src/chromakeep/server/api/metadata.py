"""Metadata: which values records and collections may have, read from decoded JSON into what an engine keeps.

Values are str, bool, int (64 bits, signed), float, arrays of one of these, and sparse vectors. An integer of more bits
is a float; an array of integers and floats is one of floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

SPARSE = "sparse_vector"
LOW, HIGH = -(2**63), 2**63 - 1
Metadata = dict[str, Any]


class Invalid(ValueError):
    """Metadata that may not be; the text is Chroma's."""


def fits_collection(value: Any) -> bool:
    """Whether a collection may have this value. Of arrays and sparse vectors Chroma itself ends the connection."""
    return isinstance(value, str | int | float)


def fits_record(value: Any) -> bool:
    """Whether a record may have this value."""
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        return kinds <= {int, float} or (len(kinds) == 1 and kinds <= {str, bool})
    if isinstance(value, Mapping):
        return _fits_sparse(value)
    return isinstance(value, str | int | float)


def fits_update(value: Any) -> bool:
    """Whether an update or upsert may say this: null takes the key away."""
    return value is None or fits_record(value)


def _fits_sparse(value: Mapping[str, Any]) -> bool:
    tag, indices, values, tokens = (value.get(name) for name in ("#type", "indices", "values", "tokens"))
    return (
        tag in (None, SPARSE)
        and isinstance(indices, list)
        and all(type(index) is int and 0 <= index < 2**32 for index in indices)
        and isinstance(values, list)
        and all(type(one) in (int, float) for one in values)
        and (tokens is None or (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)))
    )


def sparse(value: Mapping[str, Any]) -> Metadata:
    """A sparse vector as it is kept. Raises ``Invalid``."""
    indices, values, tokens = value["indices"], [float(one) for one in value["values"]], value.get("tokens")
    if len(indices) != len(values) or (tokens is not None and len(tokens) != len(indices)):
        raise Invalid("Sparse vector indices, values, and tokens (when present) must have the same length")
    if any(a >= b for a, b in pairwise(indices)):
        raise Invalid("Sparse vector indices must be sorted in strictly ascending order (no duplicates)")
    kept: Metadata = {"#type": SPARSE, "indices": indices, "values": values}
    if tokens is not None:
        kept["tokens"] = tokens
    return kept


def check_key(key: str) -> None:
    """Raises ``Invalid``."""
    if not key:
        raise Invalid("Metadata key cannot be empty")
    if key[0] in "#$":
        raise Invalid(f"Metadata key cannot start with '#' or '$': {key}")


def of_record(given: Metadata | None) -> Metadata | None:
    """What is kept of a record's metadata, whose values fit; the same object where nothing is to be changed.

    An empty array takes its key away, as null does. Raises ``Invalid``.
    """
    if not given:
        return None
    kept = given
    for key, value in given.items():
        if not key or key[0] in "#$":
            check_key(key)
        kind = type(value)
        if kind is str or kind is float or kind is bool or value is None:
            continue
        if kind is int:
            if LOW <= value <= HIGH:
                continue
            new: Any = float(value)
        elif kind is list:
            if all(type(item) in (str, bool) for item in value) and value:
                continue
            new = _numbers(value)
        else:
            new = sparse(value)
        if kept is given:
            kept = dict(given)
        kept[key] = new
    return kept


def _numbers(items: list[Any]) -> list[Any] | None:
    if all(type(item) is int and LOW <= item <= HIGH for item in items):
        return items or None
    return [float(item) for item in items]


def of_collection(given: Mapping[str, Any] | None) -> Metadata | None:
    """What is kept of a collection's metadata, whose values fit; a null takes its key away. Raises ``Invalid``."""
    if given is None:
        return None
    if not given:
        raise Invalid("Metadata cannot be empty")
    for key in given:
        check_key(key)
    return {
        key: float(value) if type(value) is int and not LOW <= value <= HIGH else value
        for key, value in given.items()
        if value is not None
    }
