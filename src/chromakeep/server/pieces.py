"""Pieces: JSON that streams past, cut at its quotes into what is outside of strings and what is inside.

For a portion of numbers or base64 that is a few C calls, where a tokenizer in Python would look at each of them. It is
no parser: of what is not JSON it makes something, and Chroma refuses it. What it promises holds for what Chroma takes:
UTF-8 without a mark at its beginning, whole before anything of it is acted upon.
"""

from __future__ import annotations

import re

SPACE = b" \t\r\n"
_KEPT = 128  # bytes of a long string: more than any key that is looked for, escaped
_RARE, _TRIED = 128, 8  # bytes from one quote to the next on the average, after so many quotes
_PAIR, _QUOTE = b"\\\\", b'\\"'
_BLANK = b"\0\0"  # in the place of either: JSON has no NUL in a string but as an escape
_ESCAPE = re.compile(rb"\\u00([0-7][0-9a-fA-F])")


class Cutter:
    """Cuts one body. The pieces of a portion alternate: outside, inside, outside, ..., outside.

    What is outside may go on with the next portion. A string comes when it has been closed, without its quotes and
    with NULs in the place of escaped quotes and backslashes; of a long one only the beginning, at least 128 bytes.
    """

    __slots__ = ("_begun", "_half", "_within", "escapes")

    def __init__(self) -> None:
        self._within = False  # the last portion ended in a string
        self.escapes = False  # a string of the last pieces may hold escapes
        self._begun = b""  # of that string
        self._half = False  # it ended in half an escape

    def cut(self, data: bytes) -> list[bytes]:
        """The pieces of the next portion; an odd number of them, at least one."""
        if self._half:
            data = b"\\" + data
            self._half = False
        self.escapes = self._within and b"\\" in self._begun
        if b"\\" in data:
            data = data.replace(_PAIR, _BLANK)  # first: what then still stands before a quote does escape it
            if data.endswith(b"\\"):
                data, self._half = data[:-1], True
            data = data.replace(_QUOTE, _BLANK)
            self.escapes = self.escapes or b"\\u00" in data
        pieces = _split(data, self._within)
        if self._within:
            pieces[0] = self._begun if len(self._begun) >= _KEPT else self._begun + pieces[0][:_KEPT]
            pieces.insert(0, b"")
        self._within = len(pieces) % 2 == 0
        if self._within:
            self._begun = pieces.pop()
        return pieces


def _split(data: bytes, inside: bool) -> list[bytes]:
    """At quotes, long strings cut short. ``inside``: the first piece belongs to a string.

    ``bytes.split`` looks at every byte and copies it; ``find`` is ten times as quick where quotes are rare.
    """
    pieces: list[bytes] = []
    find, add, kept = data.find, pieces.append, _KEPT
    begun = not inside
    start = end = 0
    while True:
        if begun:
            if (end := find(b'"', start)) < 0:
                add(data[start:] if start else data)
                return pieces
            add(data[start:end])
            start = end + 1
        begun = True
        if (end := find(b'"', start)) < 0:
            add(data[start : start + kept])
            return pieces
        add(data[start:end] if end - start < kept else data[start : start + kept])
        start = end + 1
        if start < _RARE * (len(pieces) - _TRIED):
            return pieces + data[start:].split(b'"')


def means(string: bytes, word: bytes) -> bool:
    """Whether a string of ``Cutter`` is this ASCII word, with or without escapes."""
    return string == word or (b"\\" in string and _ESCAPE.sub(_character, string) == word)


def _character(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 16)])


class Value:
    """What follows a string: ``begins`` tells the first byte of its value if it was a key."""

    __slots__ = ("_colon",)

    def __init__(self) -> None:
        self._colon = False

    def begins(self, outside: bytes, *, string: bool) -> bytes | None:
        """Of what came after it outside of strings, and whether a whole ``string`` came then.

        ``b""``: it was no key; None: that cannot be told yet.
        """
        outside = outside.strip(SPACE)
        if not self._colon:
            if not outside:
                return b"" if string else None
            if not outside.startswith(b":"):
                return b""
            self._colon = True
            outside = outside[1:].lstrip(SPACE)
        if outside:
            return outside[:1]
        return b'"' if string else None
