"""The head of the backend's answer: read as strictly as a request's, and written again for the client."""

from __future__ import annotations

import re

import httptools
import msgspec

from chromakeep.server.fields import HOP, Fields, Malformed, check, length_of, tokens

MOST = 256 << 10  # bytes of a head
_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")


class AnswerHead(msgspec.Struct):
    """An answer as far as it is known before its body."""

    status: int
    reason: bytes
    fields: bytes  # that may be passed on, as lines
    length: int | None  # of the body that follows; None: chunked
    bodiless: bool  # 1xx, 204, 304, or to HEAD: none follows whatever the fields say
    reusable: bool  # the backend keeps the connection


class _Seen:
    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))


def parse_answer(head: bytes, method: str) -> AnswerHead:
    """The head of the answer to a request of that method. Raises ``Malformed``.

    An answer that ends with its connection is malformed here: its end cannot be told from the backend's death.
    """
    check(head)
    line = _LINE.fullmatch(head, 0, head.index(b"\r\n"))
    if not line:
        raise Malformed("not a status line")
    status = int(line[2])
    if status == 101:
        raise Malformed("an upgrade nobody asked for")
    seen = _Seen()
    try:
        httptools.HttpResponseParser(seen).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise Malformed(str(error)) from None
    lengths, codings, connection = [], [], []
    kept: Fields = []
    for field in seen.fields:
        name = field[0].lower()
        if name not in HOP:
            kept.append(field)
            if name == b"content-length":
                lengths.append(field[1])
        elif name == b"transfer-encoding":
            codings.append(field[1])
        elif name == b"connection":
            connection.append(field[1])
    length = length_of(lengths, codings)
    bodiless = method == "HEAD" or status < 200 or status in (204, 304)
    if not (lengths or codings or bodiless):
        raise Malformed("an answer without a length")
    words = tokens(connection) - {b"content-length"}
    if words:
        kept = [field for field in kept if field[0].lower() not in words]
    fields = b"".join([b"%s: %s\r\n" % field for field in kept])
    reusable = line[1] == b"1" and b"close" not in words
    return AnswerHead(status, line[3] or b"", fields, 0 if bodiless else length, bodiless, reusable)


def relayed(answer: AnswerHead, *, chunked: bool, close: bool, extra: bytes = b"") -> bytes:
    """The head for the client; ``chunked`` says how the body will be framed if the answer's own is not counted.

    ``extra`` are fields of ours, as lines.
    """
    return b"HTTP/1.1 %d %b\r\n%b%b%b%b\r\n" % (
        answer.status,
        answer.reason,
        answer.fields,
        extra,
        b"transfer-encoding: chunked\r\n" if chunked else b"",
        b"connection: close\r\n" if close else b"",
    )
