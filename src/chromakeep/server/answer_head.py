"""The head of the backend's answer: read strictly, and written again for the client.

One expression says all that may be in it. Of requests, which strangers send, llhttp is asked as well."""

from __future__ import annotations

import re

import msgspec

from chromakeep.server.fields import HOP, Fields, Malformed, length_of, tokens

MOST = 256 << 10  # bytes of a head
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)


class AnswerHead(msgspec.Struct):
    """An answer as far as it is known before its body."""

    status: int
    reason: bytes
    fields: bytes  # that may be passed on, as lines
    length: int | None  # of the body that follows; None: chunked
    bodiless: bool  # 1xx, 204, 304, or to HEAD: none follows whatever the fields say
    reusable: bool  # the backend keeps the connection


def parse_answer(head: bytes, method: str) -> AnswerHead:
    """The head of the answer to a request of that method. Raises ``Malformed``.

    An answer that ends with its connection is malformed here: its end cannot be told from the backend's death.
    """
    read = _HEAD.fullmatch(head)
    if not read:
        raise Malformed("not a status line and fields")
    status = int(read[2])
    if status == 101:
        raise Malformed("an upgrade nobody asked for")
    lengths, codings, connection = [], [], []
    kept: Fields = []
    for line in read[4].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name not in HOP:
            kept.append((name, line))
            if name == b"content-length":
                lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"connection":
            connection.append(value)
    length = length_of(lengths, codings)
    bodiless = method == "HEAD" or status < 200 or status in (204, 304)
    if not (lengths or codings or bodiless):
        raise Malformed("an answer without a length")
    words = tokens(connection) - {b"content-length"}
    if words:
        kept = [field for field in kept if field[0] not in words]
    fields = b"".join([b"%s\r\n" % line for _, line in kept])
    reusable = read[1] == b"1" and b"close" not in words
    return AnswerHead(status, read[3] or b"", fields, 0 if bodiless else length, bodiless, reusable)


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
