"""Contrast: what two collections are, beside their records, and in what that differs.

What a search or a reader would find otherwise is a difference; how an index is tuned is only told: no record depends on
it, and places have indexes of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from chromakeep.chroma.outline import own_metadata, traits
from chromakeep.chroma.rounding import through_json
from chromakeep.records import Definition

LONGEST = 60  # of a value that is told


def contrasts(one: Definition, two: Definition) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A phrase for each thing that differs, by its name: space, metadata, embedding function, schema; and for each
    setting of the index. None where one of the two tells nothing of itself, as a file of another program."""
    if _silent(one) or _silent(two):
        return (), ()
    mine, theirs = traits(one), traits(two)
    told = [*_either("space", mine.space, theirs.space)]
    left, right = own_metadata(one), own_metadata(two)
    for key in sorted(left.keys() | right.keys()):
        if not _same(left.get(key), right.get(key)):
            told += _either(f"metadata {_shown(key)}", left.get(key), right.get(key), sure=True)
    told += _either("embedding function", mine.function, theirs.function)
    told += _schemas(mine.schema, theirs.schema)
    tuned = [*_either("index", mine.index, theirs.index)]
    if not tuned:
        for name in sorted(mine.settings.keys() | theirs.settings.keys()):
            tuned += _either(name, mine.settings.get(name), theirs.settings.get(name))
    return tuple(told), tuple(tuned)


def _silent(definition: Definition) -> bool:
    return not (definition.configuration or definition.metadata or definition.schema)


def _same(one: Any, two: Any) -> bool:
    """Whether two values are one, or one of them what Chroma's rounding makes of the other."""
    if type(one) is float and type(two) is float and isfinite(one) and isfinite(two):
        return one == two or through_json(one) == two or one == through_json(two)
    return type(one) is type(two) and bool(one == two)


def _schemas(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    if not (one and two):
        if one:  # a place may say more of a plain one than another does
            yield "the schema of the first is one of its own, of the second plain"
        return
    keys = [{path.split(".")[1] for path in each if path.startswith("keys.")} for each in (one, two)]
    for path in sorted(one.keys() | two.keys()):
        key = path.split(".")[1] if path.startswith("keys.") else ""
        if (path in one and path in two) or (key and not (key in keys[0] and key in keys[1])):
            yield from _either(f"schema {path}", one.get(path), two.get(path))


def _either(name: str, one: Any, two: Any, *, sure: bool = False) -> list[str]:
    return [f"the {name} is {_shown(one)} and {_shown(two)}"] if sure or one != two else []


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value.isidentifier() else "not there" if value is None else repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "\N{HORIZONTAL ELLIPSIS}"
