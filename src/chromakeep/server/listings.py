"""Listings as a key may see them: what it may not touch is not there."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl

import msgspec

from chromakeep.server.answers import refusal
from chromakeep.server.gate import Page, Refusal

_LARGEST = (1 << 32) - 1


class _Named(msgspec.Struct):
    name: str


_ROWS = msgspec.json.Decoder(list[msgspec.Raw])
_NAME = msgspec.json.Decoder(_Named)


def shown(body: bytes, query: str, permitted: Callable[[str], bool]) -> Page | Refusal:
    """A list of collections or databases without those whose name is not ``permitted``, and of the rest the part that
    ``limit`` and ``offset`` in the query ask for."""
    try:
        start, limit = _window(query)
    except ValueError:
        return refusal(400, "Failed to deserialize query string: limit and offset are numbers that are not negative")
    rows = [row for row in _ROWS.decode(body) if permitted(_NAME.decode(row).name)]
    return Page(msgspec.json.encode(rows[start : None if limit is None else start + limit]))


def counted(body: bytes, permitted: Callable[[str], bool]) -> Page:
    """How many there are of them."""
    return Page(str(sum(permitted(_NAME.decode(row).name) for row in _ROWS.decode(body))).encode())


def _window(query: str) -> tuple[int, int | None]:
    found: dict[str, int] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=100):
        if name in ("limit", "offset"):
            if name in found or not (value.isascii() and value.isdigit()) or int(value) > _LARGEST:
                raise ValueError(name)
            found[name] = int(value)
    return found.get("offset", 0), found.get("limit")
