"""Regex: an expression in Rust's syntax as one in PostgreSQL's, which matches the same documents.

PostgreSQL's own classes depend on the locale, so every class is written out in ranges of code points. U+0000 is what it
is held as.
"""

from __future__ import annotations

import msgspec

from chromakeep.engine import Refused
from chromakeep.postgres import characters as ch
from chromakeep.postgres.characters import Set
from chromakeep.postgres.regex_parser import Parser
from chromakeep.postgres.regex_tree import Char, Chars, Choice, Node, Place, Repeat, Row, nullable
from chromakeep.postgres.text import held

_LONGEST = 10_000  # characters of an expression: it is read in Python
_BOUND = 255  # of PostgreSQL's {n,m}
_SIZE = 5_000  # characters and classes, with all repetitions
_NULLABLE = 20  # what may be nothing, many times, takes PostgreSQL time by the third power
_NUL = ord(held("\0"))
_SPECIAL = frozenset("\\^$.[]|()*+?{}")


class Expression(msgspec.Struct, frozen=True):
    """``pattern``: for the operator ``~``. ``required``: texts that every match has in it, as they are held."""

    pattern: str
    required: tuple[str, ...]


def translated(pattern: str) -> Expression:
    """Raises ``Refused`` for what is none, and for what is too large."""
    if len(pattern) > _LONGEST:
        raise Refused(400, f"Regex is too large: more than {_LONGEST} characters")
    try:
        tree = Parser(pattern).parse()
        if _size(tree) > _SIZE:
            raise Refused(400, f"Regex is too large: more than {_SIZE} characters and classes, repetitions counted")
        runs: list[str] = []
        _require(tree, runs)
        return Expression("***:" + _Writer().write(tree), tuple(run for run in runs if run))
    except RecursionError:
        raise Refused(400, "Regex is nested too deeply") from None


def _size(node: Node, weight: int = _NULLABLE) -> int:
    """``weight``: of what may be nothing and is repeated, counted once for all levels."""
    if isinstance(node, (Row, Choice)):
        return 1 + sum(_size(part, weight) for part in node.parts)
    if isinstance(node, Repeat):
        times = max(1, node.low if node.high is None else node.high)
        heavy = weight if times > 1 and nullable(node.part) else 1
        return _size(node.part, 1 if heavy > 1 else weight) * times * heavy
    return 1


def _require(node: Node, runs: list[str]) -> None:
    """Texts that must be there: the neighbours in a row; of a choice nothing is sure."""
    run = ""
    for part in node.parts if isinstance(node, Row) else (node,):
        if isinstance(part, Char):
            run += held(chr(part.code))
        elif not isinstance(part, Place):
            runs.append(run)
            run = ""
            if isinstance(part, Row) or (isinstance(part, Repeat) and part.low):
                _require(part if isinstance(part, Row) else part.part, runs)
    runs.append(run)


class _Writer:
    def __init__(self) -> None:
        self._classes: dict[Set, str] = {}  # that have been written

    def write(self, node: Node) -> str:
        """A branch, or several."""
        if isinstance(node, Char):
            return _char(node.code)
        if isinstance(node, Chars):
            return self._brackets(node.ranges)
        if isinstance(node, Place):
            return self._place(node.kind)
        if isinstance(node, Choice):
            return "|".join(self.write(part) for part in node.parts)
        if isinstance(node, Row):
            return "".join(
                f"(?:{self.write(part)})" if isinstance(part, Choice) else self.write(part) for part in node.parts
            )
        atom = self.write(node.part)
        if not isinstance(node.part, (Char, Chars)) or len(held(chr(getattr(node.part, "code", 1)))) > 1:
            atom = f"(?:{atom})"
        if node.high is None:
            if node.low <= 1:
                return atom + ("+" if node.low else "*")
            return f"{_times(atom, node.low, '')}{atom}*"
        optional = node.high - node.low
        return _times(atom, node.low, "") + _times(atom, optional, "0,")

    def _brackets(self, ranges: Set) -> str:
        if (known := self._classes.get(ranges)) is None:
            known = self._classes[ranges] = _brackets(ranges)
        return known

    def _place(self, kind: str) -> str:
        word = self._brackets(ch.perl(ch.WORD)) if "word" in kind else ""
        before, after, not_before, not_after = f"(?<={word})", f"(?={word})", f"(?<!{word})", f"(?!{word})"
        return {
            "start": "\\A",
            "end": "\\Z",
            "line_start": "(?:\\A|(?<=\n))",
            "line_end": "(?:\\Z|(?=\n))",
            "crlf_start": "(?:\\A|(?<=\n)|(?<=\r)(?!\n))",
            "crlf_end": "(?:\\Z|(?=\r)|(?<!\r)(?=\n))",
            "word": f"(?:{before}{not_after}|{not_before}{after})",
            "not_word": f"(?:{before}{after}|{not_before}{not_after})",
            "word_start": f"{not_before}{after}",
            "word_end": f"{before}{not_after}",
            "word_start_half": not_before,
            "word_end_half": not_after,
        }[kind]


def _times(atom: str, n: int, least: str) -> str:
    out = []
    while n > 0:
        now = min(n, _BOUND)
        out.append(atom if now == 1 and not least else f"{atom}{{{least}{now}}}")
        n -= now
    return "".join(out)


def _char(code: int) -> str:
    return "".join("\\" + c if c in _SPECIAL else c for c in held(chr(code)))


def _brackets(ranges: Set) -> str:
    if not ranges:
        raise Refused(400, "Byte pattern is not allowed")  # so Chroma calls what matches no character
    if ranges == ch.ALL:
        return "."
    if ranges[0][0] == 0:  # U+0000 is held as another
        first = ((1, ranges[0][1]),) if ranges[0][1] else ()
        ranges = ch.union(first, ranges[1:], ((_NUL, _NUL),))
        others = ch.difference(ch.complement(ranges), ((0, 0),))
    else:
        others = ch.difference(ch.complement(ranges), ((0, 0),))
        others = ch.union(others, ((_NUL, _NUL),))
        ranges = ch.difference(ranges, ((_NUL, _NUL),))
    if len(others) < len(ranges):
        return f"[^{''.join(map(_range, others))}]"
    return f"[{''.join(map(_range, ranges))}]"


def _range(ends: tuple[int, int]) -> str:
    low, high = (("\\" + chr(code)) if chr(code) in "\\]^-[" else chr(code) for code in ends)
    if ends[0] == ends[1]:
        return low
    return f"{low}{high}" if ends[0] + 1 == ends[1] else f"{low}-{high}"
