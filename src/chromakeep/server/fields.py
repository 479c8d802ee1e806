"""What the heads of requests and answers have in common: strict bytes, and fields that end at the next hop.

llhttp (httptools) reads heads; ``check`` is a second opinion in a few C calls, on what proxies have disagreed about.
Only heads are given to it: it does not say where a message ended, and would read all pipelined ones at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Fields = list[tuple[bytes, bytes]]

END = b"\r\n\r\n"
# Of one connection, never of a message (RFC 9110, 7.6.1); http2-settings goes with an upgrade to h2c.
HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade http2-settings".split()
)
FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_TEXT = bytes([9, 10, 13, *range(32, 127), *range(128, 256)])
_DIGITS = re.compile(rb"[0-9]{1,18}")


class Malformed(Exception):
    """A message that is not passed on. ``status`` is what its sender is told if it was a request."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def check(head: bytes) -> None:
    """Raises ``Malformed`` for control bytes, a CR or LF that is not of a CRLF, and for folded fields."""
    if head.translate(None, _TEXT):
        raise Malformed("a control character in the head")
    if not whole_lines(head):
        raise Malformed("a line that does not end in CRLF")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise Malformed("a folded field")


def whole_lines(data: bytes | bytearray) -> bool:
    """Whether every CR and LF is part of a CRLF."""
    return data.count(b"\n") == data.count(b"\r") == data.count(b"\r\n")


def length_of(lengths: list[bytes], codings: list[bytes]) -> int | None:
    """The framing of a body: its length in bytes, 0 without either field, None for chunked.

    Raises ``Malformed`` for anything that two readers could take for two things.
    """
    if codings:
        if lengths:
            raise Malformed("both content-length and transfer-encoding")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise Malformed("a transfer-encoding other than chunked")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
        raise Malformed("content-length is not one number")
    return int(lengths[0])


def tokens(values: Iterable[bytes]) -> set[bytes]:
    """The comma-separated words of a field, in lower case."""
    return {word.strip(b" \t").lower() for value in values for word in value.split(b",")}
