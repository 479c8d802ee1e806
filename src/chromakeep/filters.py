"""Filters: what a Chroma ``where`` and ``where_document`` say, read once into values that every engine can translate.

The operators and their operands are those of Chroma's HTTP API (1.5.9). Numbers are compared as numbers: Chroma itself
compares an integer with the whole part of a float, so that ``{"v": {"$eq": 1.5}}`` finds 1; nobody who reads these
values should.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

DEPTH = 256  # levels of a filter; what is deeper is refused
CLAUSES = 4096  # conditions of a filter
DOCUMENT, ID = "#document", "#id"

Scalar = str | bool | int | float
Comparison = Literal["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]
Matching = Literal["$contains", "$not_contains", "$regex", "$not_regex"]


class Compare(msgspec.Struct, frozen=True):
    """A metadata value against another. ``$ne`` is satisfied by a record without the key, too; the last four take
    numbers."""

    key: str
    operator: Comparison
    value: Scalar


class Among(msgspec.Struct, frozen=True):
    """A metadata value is one of several, which are of one kind; ``negated``: of none, or there is none."""

    key: str
    values: tuple[Scalar, ...]
    negated: bool = False


class Holds(msgspec.Struct, frozen=True):
    """An array in the metadata has this item; ``negated``: it has not, or there is no array. Never part of a text."""

    key: str
    value: Scalar
    negated: bool = False


class Matches(msgspec.Struct, frozen=True):
    """The document has this text in it (case counts), or a match of this expression in Rust's syntax. The negated
    operators are satisfied by a record without a document, too; the other two are not, be the pattern empty or not."""

    operator: Matching
    pattern: str


class Named(msgspec.Struct, frozen=True):
    """The record has one of these ids (of ``search`` only); ``negated``: none of them."""

    ids: tuple[str, ...]
    negated: bool = False


class Every(msgspec.Struct, frozen=True):
    """All parts are satisfied; without parts it always is."""

    parts: tuple[Filter, ...]


class Some(msgspec.Struct, frozen=True):
    """One of the parts is satisfied; without parts it never is."""

    parts: tuple[Filter, ...]


Filter = Compare | Among | Holds | Matches | Named | Every | Some


class Unreadable(ValueError):
    """What is no filter. The text is Chroma's, ``why`` and ``hint`` are for whoever wrote it."""

    def __init__(self, text: str, why: str = "", hint: str | None = None) -> None:
        super().__init__(text)
        self.why, self.hint = why, hint


_INVALID = "Invalid where clause"
_INVALID_DOCUMENT = "Invalid where document clause"
_ORDERED = ("$gt", "$gte", "$lt", "$lte")
_MATCHING = ("$contains", "$not_contains", "$regex", "$not_regex")


def read_where(clause: object, *, ids: bool = False) -> Filter:
    """The filter of a ``where``, as decoded JSON. ``ids``: ``#id`` is the record's id, as in ``search``; else it is a
    key like any other, which no record has. Raises ``Unreadable``."""
    return _Reader(ids=ids).where(clause, 0)


def read_where_document(clause: object) -> Filter:
    """The filter of a ``where_document``, as decoded JSON. Raises ``Unreadable``."""
    return _Reader().document(clause, 0)


class _Reader:
    def __init__(self, *, ids: bool = False) -> None:
        self._ids, self._left = ids, CLAUSES

    def where(self, clause: object, depth: int) -> Filter:
        key, value = self._entry(clause, depth, _INVALID)
        if key in ("$and", "$or"):
            if not isinstance(value, list):
                raise Unreadable(_INVALID, f"{key} takes a list of conditions")
            parts = tuple(self.where(part, depth + 1) for part in value)
            return Every(parts) if key == "$and" else Some(parts)
        if key.startswith("$"):
            raise Unreadable(_INVALID, f"{key} is no operator that stands before a key")
        if not isinstance(value, Mapping):
            value = {"$eq": value}
        if len(value) != 1:
            why = f"{key!r} has {len(value)} operators"
            raise Unreadable(_INVALID, why, 'combine them with "$and": [...]')
        ((operator, operand),) = value.items()
        if key == DOCUMENT:
            if operator in _MATCHING and isinstance(operand, str):
                return Matches(operator, operand)
        elif key == ID and self._ids:
            return self._named(operator, operand)
        if operator in ("$in", "$nin"):
            return Among(key, _several(key, operator, operand), operator == "$nin")
        if not _scalar(operand):
            raise Unreadable(_INVALID, f"{operator} of {key!r} takes text, a number, true or false")
        if operator in ("$contains", "$not_contains"):
            return Holds(key, operand, operator == "$not_contains")
        if operator not in ("$eq", "$ne", *_ORDERED):
            raise Unreadable(_INVALID, f"{operator} is no operator", "see Chroma's documentation of where filters")
        if operator in _ORDERED and not is_number(operand):
            raise Unreadable(_INVALID, f"{operator} of {key!r} takes a number")
        return Compare(key, operator, operand)

    def document(self, clause: object, depth: int) -> Filter:
        key, value = self._entry(clause, depth, _INVALID_DOCUMENT)
        if key in ("$and", "$or"):
            if not isinstance(value, list):
                raise Unreadable(_INVALID_DOCUMENT, f"{key} takes a list of conditions")
            parts = tuple(self.document(part, depth + 1) for part in value)
            return Every(parts) if key == "$and" else Some(parts)
        if key not in _MATCHING or not isinstance(value, str):
            raise Unreadable(_INVALID_DOCUMENT, f"{key} is no operator on a document, or takes a text")
        return Matches(key, value)  # type: ignore[arg-type]

    def _entry(self, clause: object, depth: int, otherwise: str) -> tuple[str, Any]:
        self._left -= 1
        if depth > DEPTH or self._left < 0:
            raise Unreadable(otherwise, f"it has more than {DEPTH} levels or {CLAUSES} conditions")
        if not isinstance(clause, Mapping) or len(clause) != 1:
            why, hint = "each level is an object with one key", 'combine with "$and": [...], "$or": [...]'
            raise Unreadable(otherwise, why, hint)
        ((key, value),) = clause.items()
        return str(key), value

    @staticmethod
    def _named(operator: str, operand: object) -> Filter:
        ids: list[Any] = operand if operator in ("$in", "$nin") and isinstance(operand, list) else [operand]
        if operator not in ("$eq", "$ne", "$in", "$nin") or not all(isinstance(one, str) for one in ids):
            raise Unreadable(_INVALID, f"{operator} of {ID} takes ids")
        return Named(tuple(ids), operator in ("$ne", "$nin"))


def _several(key: str, operator: str, operand: object) -> tuple[Scalar, ...]:
    """All of the kind of the first; integers among floats are floats."""
    if not isinstance(operand, list) or not operand or not all(map(_scalar, operand)):
        raise Unreadable(_INVALID, f"{operator} of {key!r} takes a list of values")
    kinds = {type(item) for item in operand}
    if len(kinds) > 1 and (kinds != {int, float} or type(operand[0]) is int):
        why, hint = f"{operator} of {key!r} takes values of one kind", "write a list of numbers as [1.0, 2.5]"
        raise Unreadable(_INVALID, why, hint)
    return tuple(operand)


def is_number(value: object) -> bool:
    """Whether it is compared as one: true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scalar(value: object) -> bool:
    return isinstance(value, (str, bool, int, float))
