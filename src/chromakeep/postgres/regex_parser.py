"""Regex parser: Rust's syntax of regular expressions (regex-syntax 0.8), read into a tree. What is an error there is
one here, in the same words; what is only read by Rust is refused, too: classes of bytes, and scripts and properties of
Unicode that Python does not know.
"""

from __future__ import annotations

import re
import string

import msgspec

from chromakeep.engine import Refused
from chromakeep.postgres import characters as ch
from chromakeep.postgres.characters import Set
from chromakeep.postgres.regex_tree import Char, Chars, Choice, Node, Place, repeat, row

_DEPTH = 250  # as in Rust
_OPERATIONS = 64  # of classes with classes: each takes time by the size of both
_ESCAPES = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_HEX = {"x": 2, "u": 4, "U": 8}
_WORDS = {
    "start": "word_start", "end": "word_end", "start-half": "word_start_half", "end-half": "word_end_half",
}  # fmt: skip
_SPACE = " \t\n\r\v\f\x85\u200e\u200f\u2028\u2029"
_UNCLOSED = "special word boundary assertion is either unclosed or contains an invalid character"
_BEGINNING = (
    "found either the beginning of a special word boundary or a bounded repetition on a \\b with an opening brace, "
    "but no closing brace"
)
_UNKNOWN = "unrecognized special word boundary assertion, valid choices are: start, end, start-half or end-half"
_INCOMPLETE = "incomplete escape sequence, reached end of pattern prematurely"
_LOOK = "look-around, including look-ahead and look-behind, is not supported"


class _Flags(msgspec.Struct, frozen=True):
    i: bool = False
    m: bool = False
    s: bool = False
    x: bool = False
    R: bool = False


class Parser:
    """One pattern."""

    def __init__(self, pattern: str) -> None:
        self._text, self._at, self._flags, self._depth = pattern, 0, _Flags(), 0
        self._open = 0  # where the innermost class that is open begins
        self._names: dict[str, int] = {}
        self._operations = 0

    def parse(self) -> Node:
        """The whole of it. Raises ``Refused``."""
        node = self._choice()
        if self._at < len(self._text):
            raise self._error("unopened group", self._at)
        return node

    # what is the next character

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _skip(self) -> None:
        """Blanks and comments, where the flag x is set."""
        while self._flags.x and self._at < len(self._text):
            if self._peek() in _SPACE:
                self._at += 1
            elif self._peek() == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end + 1
            else:
                return

    def _after_blanks(self) -> str:
        """The character behind the next one and any blanks."""
        at = self._at
        self._at += 1
        self._skip()
        found = self._peek()
        self._at = at
        return found

    def _error(self, message: str, start: int, stop: int | None = None, *, first: int | None = None) -> Refused:
        """``start`` to ``stop``: what is wrong; ``first``: where there was the same before."""
        marks = " " * start + "^" * max(1, (start + 1 if stop is None else stop) - start)
        if first is not None:
            again = len(marks.lstrip())
            marks = marks[:first] + "^" * again + marks[first + again :]
        return Refused(400, f"Regex syntax errror: regex parse error:\n    {self._text}\n    {marks}\nerror: {message}")

    # expressions

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > _DEPTH:
            raise self._error(f"exceed the maximum number of nested parentheses/brackets ({_DEPTH})", self._at)
        parts = [self._row()]
        while self._take("|"):
            parts.append(self._row())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _row(self) -> Node:
        parts: list[Node] = []
        repeatable = False
        while True:
            self._skip()
            c = self._peek()
            if c in ("", "|", ")"):
                return row(parts)
            if c in "*+?{":
                if not repeatable:
                    raise self._error("repetition operator missing expression", self._at)
                low, high = self._bounds()
                parts.append(repeat(parts.pop(), low, high))
                continue
            node = self._atom()
            repeatable = node is not None
            if node is not None:
                parts.append(node)

    def _bounds(self) -> tuple[int, int | None]:
        start = self._at
        c = self._peek()
        self._at += 1
        if c == "{":
            low, high = self._counted(start)
        else:
            low, high = (1 if c == "+" else 0), (1 if c == "?" else None)
        self._take("?")  # which of several matches is found does not matter
        return low, high

    def _counted(self, start: int) -> tuple[int, int | None]:
        low = self._decimal(start)
        high: int | None = low
        if self._take(","):
            self._blanks()
            high = None if self._peek() == "}" else self._decimal(start)
        if not self._take("}"):
            raise self._error("unclosed counted repetition", start, self._at)
        if high is not None and low > high:
            raise self._error("invalid repetition count range, the start must be <= the end", start, self._at)
        return low, high

    def _blanks(self) -> None:
        while self._peek() and self._peek() in _SPACE:
            self._at += 1

    def _decimal(self, start: int) -> int:
        self._blanks()
        if self._at >= len(self._text):
            raise self._error("unclosed counted repetition", start, self._at)
        begin = self._at
        while self._peek() and self._peek() in "0123456789":
            self._at += 1
        digits = self._text[begin : self._at]
        if not digits or len(digits) > 9:
            raise self._error("repetition quantifier expects a valid decimal", begin)
        self._blanks()
        return int(digits)

    def _atom(self) -> Node | None:
        """None of flags, which stand for nothing."""
        start, c = self._at, self._peek()
        if c == "(":
            return self._group()
        if c == "[":
            return self._class_node()
        if c == "\\":
            found = self._escape()
            return found if not isinstance(found, tuple) else self._chars(found)
        self._at = start + 1
        if c == ".":
            if self._flags.s:
                return Chars(ch.ALL)
            return Chars(ch.complement(((10, 10), (13, 13)) if self._flags.R else ((10, 10),)))
        if c in "^$":
            side = "start" if c == "^" else "end"
            return Place(("crlf_" if self._flags.R else "line_") + side if self._flags.m else side)
        return self._char(ord(c))

    def _char(self, code: int) -> Node:
        if self._flags.i:
            ranges = ch.folded(((code, code),))
            if ranges != ((code, code),):
                return Chars(ranges)
        return Char(code)

    def _chars(self, ranges: Set) -> Node:
        return Char(ranges[0][0]) if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else Chars(ranges)

    def _group(self) -> Node | None:
        start, outer = self._at, self._flags
        for look in ("(?=", "(?!", "(?<=", "(?<!"):
            if self._take(look):
                raise self._error(_LOOK, start, self._at)
        self._at += 1
        if self._take("?P<") or self._take("?<"):
            self._name()
        elif self._take("?"):
            self._read_flags(start)
            if self._take(")"):
                return None
            self._at += 1  # the colon
        node = self._choice()
        if not self._take(")"):
            raise self._error("unclosed group", start)
        self._flags = outer
        return node

    def _name(self) -> None:
        start = self._at
        end = self._text.find(">", start)
        if end < 0:
            raise self._error("unclosed capture group name", len(self._text))
        name = self._text[start:end]
        if not name:
            raise self._error("empty capture group name", start)
        if not (name[0] == "_" or name[0].isalpha()) or not all(c in "_.[]" or c.isalnum() for c in name):
            raise self._error("invalid capture group character", start, end)
        if name in self._names:
            raise self._error("duplicate capture group name", start, end, first=self._names[name])
        self._names[name] = start
        self._at = end + 1

    def _read_flags(self, start: int) -> None:
        value, negated = True, False
        seen: dict[str, int] = {}
        while True:
            c = self._peek()
            if c == "":
                raise self._error("expected flag but got end of regex", self._at)
            if c in ":)":
                break
            if c == "-":
                if "-" in seen:
                    raise self._error("flag negation operator repeated", self._at, first=seen["-"])
                value, negated = False, True
                seen["-"] = self._at
            elif c not in "imsxRUu":
                raise self._error("unrecognized flag", self._at)
            elif c in seen:
                raise self._error("duplicate flag", self._at, first=seen[c])
            else:
                seen[c] = self._at
                negated = False
                if c == "u" and not value:
                    raise Refused(400, "Byte pattern is not allowed")
                if c in "imsxR":
                    self._flags = msgspec.structs.replace(self._flags, **{c: value})
            self._at += 1
        if negated:
            raise self._error("dangling flag negation operator", self._at - 1)
        if c == ")" and not seen:
            raise self._error("repetition operator missing expression", start + 1)

    def _escape(self) -> Char | Chars | Place | Set:
        """What stands behind a backslash; a set where it is a class. Literals are folded if they shall be."""
        start = self._at
        c = self._peek(1)
        if c == "":
            raise self._error(_INCOMPLETE, start)
        self._at += 2
        if c in "0123456789":
            raise self._error("backreferences are not supported", start, self._at)
        if c in _HEX:
            return self._literal(self._hex(c))
        if c in "pP":
            return self._property(c, start)
        if c in "dswDSW":
            return ch.perl(c)
        if c in _ESCAPES:
            return self._literal(_ESCAPES[c])
        if c in "AzBb<>":
            return self._place(c, start)
        if not c.isascii() or c.isalnum():
            raise self._error("unrecognized escape sequence", start, self._at)
        return self._literal(ord(c))

    def _literal(self, code: int) -> Char | Chars:
        found = self._char(code)
        assert isinstance(found, (Char, Chars))
        return found

    def _place(self, c: str, start: int) -> Place:
        kind = {"A": "start", "z": "end", "B": "not_word", "b": "word", "<": "word_start", ">": "word_end"}[c]
        if c == "b" and self._peek() == "{" and self._peek(1) in ("", "-", *string.ascii_letters):
            begin = self._at + 1
            found = re.compile("[A-Za-z-]*").match(self._text, begin)
            assert found is not None
            name, end = found[0], found.end()
            if self._text[end : end + 1] != "}":
                raise self._error(_UNCLOSED if end > begin else _BEGINNING, start if end == begin else self._at, end)
            if name not in _WORDS:
                raise self._error(_UNKNOWN, begin, end)
            kind, self._at = _WORDS[name], end + 1
        return Place(kind)

    def _hex(self, c: str) -> int:
        if self._take("{"):
            begin, end = self._at, self._text.find("}", self._at)
            if end < 0:
                raise self._error(_INCOMPLETE, len(self._text))
            self._at = end + 1
            if begin == end:
                raise self._error("hexadecimal literal empty", begin - 1, end + 1)
        else:
            begin, end = self._at, self._at + _HEX[c]
            self._at = end
        digits = self._text[begin:end]
        for at, one in enumerate(digits, begin):
            if one not in string.hexdigits:
                raise self._error("invalid hexadecimal digit", at)
        if len(digits) < end - begin:
            raise self._error(_INCOMPLETE, len(self._text))
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise self._error("hexadecimal literal is not a Unicode scalar value", begin, end)
        return code

    def _property(self, c: str, start: int) -> Set:
        negated = c == "P"
        if self._take("{"):
            end = self._text.find("}", self._at)
            if end < 0:
                raise self._error(_INCOMPLETE, len(self._text))
            name, self._at = self._text[self._at : end], end + 1
        else:
            if self._at >= len(self._text):
                raise self._error(_INCOMPLETE, self._at)
            name, self._at = self._peek(), self._at + 1
        for sign in ("!=", ":", "="):
            if sign in name:
                kind, name = name.split(sign, 1)
                if kind.replace("_", "").replace(" ", "").lower() not in ("gc", "generalcategory"):
                    name = f"{kind}{sign}{name}"
                negated ^= sign == "!="
                break
        ranges = ch.named(name, folds=self._flags.i)
        if ranges is None:
            raise self._error(
                "Unicode property not found (of properties, the PostgreSQL engine knows general categories only)",
                start,
                self._at,
            )
        return ch.complement(ranges) if negated else ranges

    # classes in brackets

    def _class_node(self) -> Node:
        return self._chars(self._class())

    def _class(self) -> Set:
        self._depth += 1
        start = self._at
        if self._depth > _DEPTH:
            raise self._error(f"exceed the maximum number of nested parentheses/brackets ({_DEPTH})", start)
        self._at += 1
        self._skip()
        negated = self._take("^")
        left: Set | None = None
        operation = ""
        ranges: list[tuple[int, int]] = []
        self._skip()
        while self._peek() == "-":
            ranges.append((45, 45))
            self._at += 1
            self._skip()
        if not ranges and self._peek() == "]":
            ranges.append((93, 93))
            self._at += 1
        if self._at >= len(self._text):
            raise self._error("unclosed character class", start, self._at)
        while True:
            self._skip()
            c, self._open = self._peek(), start
            if c == "":
                raise self._error("unclosed character class", start)
            if c == "[":
                ranges += self._posix() or self._class()
            elif c == "]" or (c in "&-~" and self._peek(1) == c):
                left = _combined(left, operation, ch.union(ranges))
                ranges = []
                if c == "]":
                    self._at += 1
                    break
                operation = c
                self._at += 2
                self._operations += 1
                if self._operations > _OPERATIONS:
                    raise Refused(400, f"Regex is too large: more than {_OPERATIONS} operations on classes")
            else:
                ranges += self._range()
        self._depth -= 1
        return ch.complement(left) if negated else left

    def _posix(self) -> Set | None:
        end = self._text.find(":]", self._at + 2)
        if self._peek(1) != ":" or end < 0:
            return None
        name = self._text[self._at + 2 : end]
        negated = name.startswith("^")
        ranges = ch.ASCII.get(name.removeprefix("^"))
        if ranges is None:
            return None
        self._at = end + 2
        ranges = ch.folded(ranges) if self._flags.i else ranges
        return ch.complement(ranges) if negated else ranges

    def _range(self) -> Set:
        start = self._at
        low = self._item()
        end = self._at
        self._skip()
        if self._peek() != "-" or self._after_blanks() in ("]", "-"):
            return self._folded(low)
        if self._at + 1 >= len(self._text):
            raise self._error("unclosed character class", self._open)
        self._at += 1
        self._skip()
        second = self._at
        if second >= len(self._text):
            raise self._error("unclosed character class", self._open)
        high = self._item()
        for item, begin, behind in ((low, start, end), (high, second, self._at)):
            if isinstance(item, tuple):
                raise self._error("invalid range boundary, must be a literal", begin, behind)
        assert isinstance(low, int) and isinstance(high, int)
        if low > high:
            raise self._error("invalid character class range, the start must be <= the end", start, self._at)
        ranges = ch.difference(((low, high),), ())
        return ch.folded(ranges) if self._flags.i else ranges

    def _folded(self, item: int | Set) -> Set:
        if isinstance(item, tuple):
            return item
        return ch.folded(((item, item),)) if self._flags.i else ((item, item),)

    def _item(self) -> int | Set:
        if self._peek() != "\\":
            self._at += 1
            return ord(self._text[self._at - 1])
        start, flags = self._at, self._flags
        if self._peek(1) not in ("p", "P"):
            self._flags = msgspec.structs.replace(flags, i=False)
        found = self._escape()
        self._flags = flags
        if isinstance(found, Place):
            raise self._error("invalid escape sequence found in character class", start, self._at)
        assert not isinstance(found, Chars)
        return found.code if isinstance(found, Char) else found


def _combined(left: Set | None, operation: str, right: Set) -> Set:
    if left is None:
        return right
    if operation == "&":
        return ch.intersection(left, right)
    if operation == "-":
        return ch.difference(left, right)
    return ch.difference(ch.union(left, right), ch.intersection(left, right))
