"""JsonReader: reads JSON as Chroma's parser does, to say of a body what that would say is wrong with it, and where.

Chroma's parser (Rust's serde_json, behind serde_path_to_error) reads a body while it checks its shape, so that the
first mistake of either kind decides between 400 (no JSON) and 422 (another shape). This one is slow, and only asked
about small bodies that are known to be wrong: see ``bodies``.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

DEPTH = 128
_SPACE = frozenset(b" \t\n\r")
_DIGITS = frozenset(b"0123456789")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_NAMED = {"\0": "\\0", "\t": "\\t", "\r": "\\r", "\n": "\\n", '"': '\\"', "\\": "\\\\"}
_ESCAPES = dict(zip(b'"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))


class Mistake(Exception):
    """What is wrong. ``syntax``: it is no JSON; else of another shape. ``at`` is in bytes; None: see ``placed``."""

    def __init__(self, text: str, path: str, *, syntax: bool, at: int | None) -> None:
        super().__init__(text)
        self.text, self.path, self.syntax, self.at = text, path, syntax, at

    def placed(self, at: int) -> Mistake:
        """The same, at this place if it has none yet."""
        if self.at is None:
            self.at = at
        return self

    def line(self, data: bytes) -> str:
        """As Chroma writes it."""
        before = data[: self.at or 0]
        line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1)
        path = f"{self.path}: " if self.path else ""
        return f"{path}{self.text} at line {line} column {column}"


class JsonReader:
    """A place in a text, the way to it (``path``), and what can be read there. Raises ``Mistake``."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.depth = data, 0, DEPTH
        self.path: list[str | int] = []

    def way(self) -> str:
        """The path as it stands before a message."""
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path]
        text = "".join(parts).removeprefix(".")
        return "" if text == "?" else text

    def syntax(self, text: str, ahead: int = 1) -> Mistake:
        """No JSON, seen this many bytes ahead."""
        return Mistake(text, self.way(), syntax=True, at=min(len(self.data), self.at + ahead))

    def broken(self, text: str, ahead: int = 1) -> NoReturn:
        raise self.syntax(text, ahead)

    def wrong(self, text: str, *, here: bool = True) -> NoReturn:
        """Another shape."""
        raise Mistake(text, self.way(), syntax=False, at=self.at if here else None)

    def peek(self) -> int:
        """The next byte that is no white space; -1 at the end."""
        while self.at < len(self.data) and self.data[self.at] in _SPACE:
            self.at += 1
        return self.data[self.at] if self.at < len(self.data) else -1

    def deeper(self) -> None:
        self.depth -= 1
        if not self.depth:
            self.broken("recursion limit exceeded")
        self.at += 1

    def word(self, text: bytes) -> None:
        """``null``, ``true`` or ``false``, whose first letter has been seen."""
        self.at += 1
        for letter in text[1:]:
            if self.at >= len(self.data):
                self.broken("EOF while parsing a value", 0)
            self.at += 1
            if self.data[self.at - 1] != letter:
                self.broken("expected ident", 0)

    def string(self, *, checked: bool = True) -> str:
        """One that begins here. ``checked``: its code points, too."""
        self.at += 1
        parts: list[bytes] = []
        while True:
            plain = _PLAIN.match(self.data, self.at)
            assert plain
            parts.append(plain[0])
            self.at = plain.end()
            if self.at >= len(self.data):
                self.broken("EOF while parsing a string", 0)
            byte = self.data[self.at]
            self.at += 1
            if byte == 0x22:
                break
            if byte != 0x5C:
                self.broken("control character (\\u0000-\\u001F) found while parsing a string", 0)
            parts.append(self._escape(checked).encode("utf-8", "surrogatepass"))
        try:
            return b"".join(parts).decode()
        except UnicodeDecodeError:
            if checked:
                self.broken("invalid unicode code point", 0)
            return ""

    def _escape(self, checked: bool) -> str:
        if self.at >= len(self.data):
            self.broken("EOF while parsing a string", 0)
        byte = self.data[self.at]
        self.at += 1
        if byte in _ESCAPES:
            return _ESCAPES[byte]
        if byte != 0x75:
            self.broken("invalid escape", 0)
        first = self._hex()
        if not checked or not 0xD800 <= first < 0xE000:
            return chr(first) if not 0xD800 <= first < 0xE000 else "?"
        if first >= 0xDC00:
            self.broken("lone leading surrogate in hex escape", 0)
        for expected in b"\\u":
            if self.at >= len(self.data):
                self.broken("EOF while parsing a string", 0)
            self.at += 1
            if self.data[self.at - 1] != expected:
                self.broken("unexpected end of hex escape", 0)
        second = self._hex()
        if not 0xDC00 <= second < 0xE000:
            self.broken("lone leading surrogate in hex escape", 0)
        return chr(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))

    def _hex(self) -> int:
        if self.at + 4 > len(self.data):
            self.at = len(self.data)
            self.broken("EOF while parsing a string", 0)
        self.at += 4
        if not _HEX.match(self.data, self.at - 4):
            self.broken("invalid escape", 0)
        return int(self.data[self.at - 4 : self.at], 16)

    def number(self, *, checked: bool = True) -> int | float:
        """One that begins here. ``checked``: it must be finite, and Chroma's parser says it when its end is missing."""
        start, ended = self.at, "EOF while parsing a value" if checked else "invalid number"
        if self.data[self.at] == 0x2D:
            self.at += 1
        if self.at >= len(self.data):
            self.broken(ended, 0)
        first = self.data[self.at]
        if first not in _DIGITS:
            self.broken("invalid number")
        self.at += 1
        if first == 0x30:
            if self._digit():
                self.broken("invalid number")
        else:
            self._digits()
        whole = True
        if self._byte() == b".":
            whole = False
            self.at += 1
            if not self._digit():
                self.broken("invalid number" if self._byte() else ended)
            self._digits()
        if self._byte() in (b"e", b"E"):
            whole = False
            self.at += 1
            if self._byte() in (b"+", b"-"):
                self.at += 1
            if not self._byte():
                self.broken(ended, 0)
            if not self._digit():
                self.broken("invalid number")
            self._digits()
        text = self.data[start : self.at]
        if whole and len(text) < 21 and -(2**63) <= int(text) < 2**64 and text != b"-0":
            return int(text)
        value = float(text)
        if checked and abs(value) == float("inf"):
            self.broken("number out of range", 0)
        return value

    def _byte(self) -> bytes:
        return self.data[self.at : self.at + 1]

    def _digit(self) -> bool:
        return self.at < len(self.data) and self.data[self.at] in _DIGITS

    def _digits(self) -> None:
        while self._digit():
            self.at += 1

    def unexpected(self, expected: str) -> NoReturn:
        """A value of another kind than ``expected`` stands here."""
        byte = self.peek()
        if byte == -1:
            self.broken("EOF while parsing a value")
        if byte == 0x5B:
            shown = "sequence"
        elif byte == 0x7B:
            shown = "map"
        else:
            shown = show(self.scalar())
        self.wrong(f"invalid type: {shown}, expected {expected}")

    def scalar(self) -> object:
        """Whatever is neither an array nor an object."""
        byte = self.peek()
        if byte == -1:
            self.broken("EOF while parsing a value")
        if byte == 0x22:
            return self.string()
        if byte == 0x2D or byte in _DIGITS:
            return self.number()
        for word, value in ((b"null", None), (b"true", True), (b"false", False)):
            if byte == word[0]:
                self.word(word)
                return value
        raise self.syntax("expected value")

    def has_item(self, first: bool) -> bool:
        """Whether an array goes on, of which this is the first item or not."""
        byte = self.peek()
        if byte == -1:
            self.broken("EOF while parsing a list")
        if byte == 0x5D:
            return False
        if first:
            return True
        if byte != 0x2C:
            self.broken("expected `,` or `]`")
        self.at += 1
        byte = self.peek()
        if byte == 0x5D:
            self.broken("trailing comma")
        if byte == -1:
            self.broken("EOF while parsing a value")
        return True

    def has_key(self, first: bool) -> bool:
        """Whether an object goes on: then a key begins here."""
        byte = self.peek()
        if byte == -1:
            self.broken("EOF while parsing an object")
        if byte == 0x7D:
            return False
        if not first:
            if byte != 0x2C:
                self.broken("expected `,` or `}`")
            self.at += 1
            byte = self.peek()
        if byte == 0x22:
            return True
        if byte == 0x7D:
            self.broken("trailing comma")
        raise self.syntax("EOF while parsing a value" if byte == -1 else "key must be a string")

    def colon(self) -> None:
        byte = self.peek()
        if byte != 0x3A:
            self.broken("EOF while parsing an object" if byte == -1 else "expected `:`")
        self.at += 1

    def close(self, bracket: int) -> None:
        """After a mistake within: what Chroma still reads before it says where."""
        byte = self.peek()
        if byte == bracket:
            self.at += 1
        elif byte == 0x2C and bracket == 0x5D:
            self.at += 1
            self.peek()

    def skip(self) -> object:
        """A value that nobody wants: any depth, and its strings need not be text."""
        opened: list[int] = []
        while True:
            byte = self.peek()
            if byte in (0x5B, 0x7B):
                opened.append(byte)
                self.at += 1
                if self.has_item(True) if byte == 0x5B else self._skip_key(True):
                    continue
                self.at += 1
                opened.pop()
            elif byte == 0x22:
                self.string(checked=False)
            elif byte == 0x2D or byte in _DIGITS:
                self.number(checked=False)
            else:
                self.scalar()
            while opened:
                if self.has_item(False) if opened[-1] == 0x5B else self._skip_key(False):
                    break
                self.at += 1
                opened.pop()
            else:
                return None

    def _skip_key(self, first: bool) -> bool:
        if not self.has_key(first):
            return False
        self.string(checked=False)
        self.colon()
        return True


def show(value: object) -> str:
    """A scalar in the words of serde."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{json.dumps(value)}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{float_shown(value)}`"
    return f"string {debug(str(value))}"


def debug(text: str) -> str:
    """A text as Rust shows it in quotes."""
    return '"' + "".join(map(_shown, text)) + '"'


def _shown(letter: str) -> str:
    if letter in _NAMED:
        return _NAMED[letter]
    return letter if letter.isprintable() else f"\\u{{{ord(letter):x}}}"


def float_shown(value: float) -> str:
    """As serde displays it: the shortest, with an exponent where Python has one."""
    return repr(value).replace("e-0", "e-")
