"""Regex tree: what an expression in Rust's syntax says, as far as it matters whether a text has a match in it.

So there are no groups, no names and no greed: ``(a)+?`` is ``a+``.
"""

from __future__ import annotations

import msgspec

from chromakeep.postgres.characters import Set


class Char(msgspec.Struct, frozen=True):
    """One code point."""

    code: int


class Chars(msgspec.Struct, frozen=True):
    """One of several code points."""

    ranges: Set


class Place(msgspec.Struct, frozen=True):
    """A place between two characters: start, end, line_start, line_end, crlf_start, crlf_end, word, not_word,
    word_start, word_end, word_start_half, word_end_half."""

    kind: str


class Row(msgspec.Struct, frozen=True):
    """One after the other."""

    parts: tuple[Node, ...]


class Choice(msgspec.Struct, frozen=True):
    """One of them."""

    parts: tuple[Node, ...]


class Repeat(msgspec.Struct, frozen=True):
    """``low`` to ``high`` times; None: any number."""

    part: Node
    low: int
    high: int | None


Node = Char | Chars | Place | Row | Choice | Repeat
EMPTY = Row(())


def empty(node: Node) -> bool:
    """It matches no character, only places."""
    if isinstance(node, (Row, Choice)):
        return all(map(empty, node.parts))
    return isinstance(node, Place) or (isinstance(node, Repeat) and empty(node.part))


def nullable(node: Node) -> bool:
    """It may match nothing at all."""
    if isinstance(node, Row):
        return all(map(nullable, node.parts))
    if isinstance(node, Choice):
        return any(map(nullable, node.parts))
    return isinstance(node, Place) or (isinstance(node, Repeat) and (not node.low or nullable(node.part)))


def row(parts: list[Node]) -> Node:
    """One after the other, rows in it laid flat."""
    flat = [one for part in parts for one in (part.parts if isinstance(part, Row) else (part,))]
    return flat[0] if len(flat) == 1 else Row(tuple(flat))


def repeat(part: Node, low: int, high: int | None) -> Node:
    """That often; what has no characters once or not at all."""
    if high == 0:
        return EMPTY
    if empty(part):
        return part if low else EMPTY
    if isinstance(part, Repeat) and not part.low and high != 1:  # (a?){9} is a{0,9}, for which PostgreSQL is quicker
        if part.high is None:
            return part
        low, part = 0, repeat(part.part, 1, part.high)
    return part if low == high == 1 else Repeat(part, low, high)
