"""Typed columns beside the JSON: ``m_<key>``, derived for those who query; no reader of ours looks at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

PREFIX = "m_"
MOST_KEYS = 128
MOST_UNLISTED = 1000
"""Names of keys without a column that are remembered: there may be as many keys as records."""

_SCALARS: dict[type, tuple[str, pa.DataType]] = {
    bool: ("bool", pa.bool_()),
    int: ("int64", pa.int64()),
    float: ("double", pa.float64()),
    str: ("string", pa.string()),
}
TYPES: dict[str, pa.DataType] = {
    **dict(_SCALARS.values()),
    **{f"list<{name}>": pa.list_(kind) for name, kind in _SCALARS.values()},
}
_PYTHON: dict[str, type] = {name: python for python, (name, _) in _SCALARS.items()}
_WIDER = {"int64": "double", "list<int64>": "list<double>"}

Metadata = Sequence[Mapping[str, Any]]
"""Of each record; that of one without any is empty."""


class Typed:
    """Which keys have a column, of which kind, and which have none (``unlisted``: none that has all their values)."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = dict(sorted(kinds.items()))
        self.unlisted: set[str] = set()

    @classmethod
    def of(cls, metadata: Metadata) -> Typed:
        """Decide by what the first records hold: a key's most frequent kind, integers among floats being floats; the
        most frequent keys if there are more than 128."""
        seen = Counter(chain.from_iterable(metadata))
        named = sorted(filter(_can_be_named, seen), key=lambda key: (-seen[key], key))[:MOST_KEYS]
        decided = {key: _decide([entries[key] for entries in metadata if key in entries]) for key in named}
        return cls({key: kind for key, kind in decided.items() if kind})

    @classmethod
    def in_schema(cls, schema: pa.Schema) -> Typed:
        """Those of a file that was written before."""
        names = {kind: name for name, kind in TYPES.items()}
        found = {field.name[len(PREFIX) :]: _plain(field.type) for field in schema if field.name.startswith(PREFIX)}
        return cls({key: names[kind] for key, kind in found.items() if kind in names})

    @property
    def fields(self) -> list[pa.Field]:
        return [pa.field(PREFIX + key, TYPES[kind]) for key, kind in self.kinds.items()]

    @property
    def repetitive(self) -> list[str]:
        """The Parquet paths of the columns of text."""
        ends = {"string": "", "list<string>": ".list.element"}
        return [f"{PREFIX}{key}{ends[kind]}" for key, kind in self.kinds.items() if kind in ends]

    def columns(self, metadata: Metadata) -> list[pa.Array]:
        """The columns of these records, in the order of ``fields``; null where a record has no such value."""
        self._note(set(chain.from_iterable(metadata)) - self.kinds.keys())
        return [self._column(key, kind, [entries.get(key) for entries in metadata]) for key, kind in self.kinds.items()]

    def _column(self, key: str, kind: str, values: list[Any]) -> pa.Array:
        if _all_are(values, kind):
            try:
                return pa.array(values, TYPES[kind])
            except (pa.ArrowInvalid, OverflowError):  # an integer of more than 64 bits
                pass
        fitted = [None if value is None else _fitted(value, kind) for value in values]
        if any(new is None and given is not None for new, given in zip(fitted, values, strict=True)):
            self._note([key])
        return pa.array(fitted, TYPES[kind])

    def _note(self, keys: Iterable[str]) -> None:
        for key in keys:
            if len(self.unlisted) < MOST_UNLISTED:
                self.unlisted.add(key)


def _decide(values: list[Any]) -> str:
    """The kind of most values; empty if they are of none."""
    kinds: Counter[str] = Counter()
    for python, count in Counter(map(type, values)).items():
        if python in _SCALARS:
            kinds[_SCALARS[python][0]] = count
    for value in values if list in set(map(type, values)) else ():
        if isinstance(value, list) and value and type(value[0]) in _SCALARS:
            kinds[f"list<{_SCALARS[type(value[0])][0]}>"] += 1
    for narrow, wide in _WIDER.items():
        if kinds[wide]:
            kinds[wide] += kinds.pop(narrow, 0)
    return kinds.most_common(1)[0][0] if kinds.total() else ""


def _all_are(values: list[Any], kind: str) -> bool:
    """Whether no value needs to be fitted: a look at the types alone."""
    if not kind.startswith("list"):
        return set(map(type, values)) <= {_PYTHON[kind], type(None)}
    lists = [value for value in values if value is not None]
    return set(map(type, lists)) <= {list} and set(map(type, chain.from_iterable(lists))) <= {_PYTHON[kind[5:-1]]}


def _fitted(value: Any, kind: str) -> Any:
    """The value as one of this kind, None if it is none."""
    if kind.startswith("list"):
        items = [_fitted(item, kind[5:-1]) for item in value] if isinstance(value, list) else [None]
        return None if None in items else items
    wanted = _PYTHON[kind]
    if wanted is float and type(value) is int:
        try:
            return float(value) if int(float(value)) == value else None
        except OverflowError:
            return None
    if type(value) is not wanted or (type(value) is int and not -(1 << 63) <= value < 1 << 63):
        return None
    return value


def _can_be_named(key: str) -> bool:
    """Names with control characters end other readers' strings."""
    return 0 < len(key.encode()) <= 200 and not any(ord(character) < 32 or ord(character) == 127 for character in key)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_type) if pa.types.is_list(kind) else kind
