"""The head of a request: read strictly, and written again for the backend.

What the backend reads is written here from what was understood here, so that the two cannot understand different
things. Names are in lower case. Fields of the hop are dropped, those that ``connection`` names too. So are
``forwarded``, ``x-forwarded-*`` and ``x-real-ip``: Chroma reads none of them, and from a client they are only a claim.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import httptools
import msgspec

from chromakeep.server.credentials import token_of
from chromakeep.server.fields import HOP, Fields, Malformed, check, length_of, tokens
from chromakeep.server.limits import Limits

_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_LINE = re.compile(rb"([A-Z-]{1,32}) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
# Written anew, answered here, or dropped; what connection names of these changes nothing.
FORWARDED = b"chromakeep-forwarded"  # by another instance: once is enough
_OURS = HOP | {b"host", b"content-length", b"expect", b"forwarded", b"x-real-ip", FORWARDED}
_TRACE = (b"traceparent:", b"tracestate:")
_KNOWN_WORDS = frozenset({b"keep-alive", b"close"})
NOTHING: frozenset[bytes] = frozenset()
_REMEMBERED = 1024  # heads
_SHORT = 2048  # bytes of one that is remembered


class RequestHead(msgspec.Struct, frozen=True):
    """A request as far as it is known before its body."""

    method: str
    target: str
    fields: tuple[tuple[bytes, bytes], ...]  # as sent, names in lower case
    length: int | None  # of the body in bytes; None: chunked
    modern: bool  # HTTP/1.1, not 1.0
    keep: bool  # the client means to go on with the connection
    expects: bool  # the client waits for 100 before it sends the body
    forward: bytes  # the head for the backend, with its empty line
    token: str | None = None  # what it says who its client is: see ``token_of``


class _Seen:
    __slots__ = ("fields", "whole")

    def __init__(self) -> None:
        self.fields: Fields = []
        self.whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.whole = True


def reader(
    limits: Limits, dropped: frozenset[bytes] = NOTHING, authority: bytes | None = None
) -> Callable[[bytes], RequestHead]:
    """``parse_request`` with these, which remembers: a client sends the same few heads again and again, and a processor
    that has slept between two requests needs ten times as long to read one as to find it."""

    def parse(head: bytes) -> RequestHead:
        return parse_request(head, limits, dropped, authority)

    remembered = lru_cache(_REMEMBERED)(parse)
    return lambda head: remembered(head) if len(head) <= _SHORT else parse(head)


def parse_request(
    head: bytes, limits: Limits, dropped: frozenset[bytes] = NOTHING, authority: bytes | None = None
) -> RequestHead:
    """A head of at most ``limits.head_bytes``, with its empty line. Raises ``Malformed`` with the status to answer.

    Fields of the names in ``dropped`` are not passed on. ``authority`` is what the backend calls itself, where that is
    not what its clients call it.
    """
    check(head)
    line = _LINE.fullmatch(head, 0, head.index(b"\r\n"))
    if not line:
        raise Malformed("not a request line")
    method, target = line[1].decode(), line[2].decode()
    if (line[3], line[4]) not in ((b"1", b"1"), (b"1", b"0")):
        raise Malformed("only HTTP/1.1 and HTTP/1.0 are spoken here", 505)
    if method not in _METHODS:
        raise Malformed("a method that Chroma does not know", 501)
    if not target.startswith("/") or "#" in target:
        raise Malformed("the target must be a path")
    seen = _read(head, limits)
    return _understood(method, target, line[4] == b"1", seen.fields, dropped, authority)


def _read(head: bytes, limits: Limits) -> _Seen:
    lines = head.count(b"\r\n") - 2
    if lines > limits.fields:
        raise Malformed("too many header fields", 431)
    seen = _Seen()
    try:
        httptools.HttpRequestParser(seen).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise Malformed(f"not HTTP: {error}") from None
    if not seen.whole or len(seen.fields) != lines:
        raise Malformed("header fields that cannot be told apart")
    return seen


def _understood(
    method: str, target: str, modern: bool, fields: Fields, dropped: frozenset[bytes], authority: bytes | None
) -> RequestHead:
    hosts, lengths, codings, expects, connection = [], [], [], [], []
    kept: Fields = []
    for field in fields:
        name, value = field
        if name not in _OURS:
            if not name.startswith(b"x-forwarded-") and name not in dropped:
                kept.append(field)
        elif name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"connection":
            connection.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"expect":
            expects.append(value.lower())
        elif name == b"upgrade" and value.lower() != b"h2c":
            # h2c is only offered (Java's client always does) and may be ignored; others have no use without it.
            raise Malformed("no protocol to upgrade to", 501)
    if len(hosts) > 1 or (modern and not hosts) or (hosts and not _HOST.fullmatch(hosts[0])):
        raise Malformed("host is missing, doubled or no host")
    if codings and not modern:
        raise Malformed("transfer-encoding in HTTP/1.0")
    if expects and expects != [b"100-continue"]:
        raise Malformed("an expectation other than 100-continue", 417)
    length = length_of(lengths, codings)
    words = tokens(connection)
    if words - _KNOWN_WORDS:
        kept = [field for field in kept if field[0] not in words]
    # HTTP/1.0 needs no host, what we write does.
    host = authority or (hosts[0] if hosts else b"chroma")
    lines = [b"%s %s HTTP/1.1\r\nhost: %s\r\n" % (method.encode(), target.encode(), host)]
    lines += [b"%s: %s\r\n" % field for field in kept]
    if length is None:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif lengths:
        lines.append(b"content-length: %d\r\n" % length)
    lines.append(b"\r\n")
    keep = modern and b"close" not in words
    expects_more, forward = bool(expects) and modern, b"".join(lines)
    return RequestHead(method, target, tuple(fields), length, modern, keep, expects_more, forward, token_of(fields))


def retraced(forward: bytes, context: bytes) -> bytes:
    """A head for the backend with the trace ``context`` (lines of it, each with its end) in place of the client's."""
    kept = [line for line in forward[:-2].splitlines(keepends=True) if not line.startswith(_TRACE)]
    return b"".join(kept) + context + b"\r\n"


def forwarded(head: RequestHead, authority: bytes) -> bytes:
    """The head for the door of another instance: as ``forward``, but with the client's key, for that door asks for it
    again, and with the mark that it is not to be forwarded once more. Its trace is that in ``forward``."""
    words = tokens([value for name, value in head.fields if name == b"connection"])
    lines = [b"%s %s HTTP/1.1\r\nhost: %s\r\n" % (head.method.encode(), head.target.encode(), authority)]
    for name, value in head.fields:
        passed = name not in _OURS and name not in words and not name.startswith(b"x-forwarded-")
        if passed and name + b":" not in _TRACE:
            lines.append(b"%s: %s\r\n" % (name, value))
    lines += [line for line in head.forward.splitlines(keepends=True) if line.startswith(_TRACE)]
    lines.append(b"%s: 1\r\n" % FORWARDED)
    if head.length is None:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif any(name == b"content-length" for name, _ in head.fields):
        lines.append(b"content-length: %d\r\n" % head.length)
    lines.append(b"\r\n")
    return b"".join(lines)
