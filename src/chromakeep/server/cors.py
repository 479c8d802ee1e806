"""CORS: which pages in a browser may read the answers. The rules are the Fetch standard's; the browser keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from chromakeep.errors import UsageError
from chromakeep.server import answers
from chromakeep.server.gate import Refusal
from chromakeep.server.request_head import RequestHead

ANY = "*"
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_NAMES = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_MOST = 2048  # bytes of the names of fields that a page wants to send
_METHODS = b"access-control-allow-methods: GET, HEAD, POST, PUT, PATCH, DELETE\r\n"
_USUAL = b"authorization, content-type, x-chroma-token"  # what Chroma's JavaScript client sends
_EXPOSED = b"access-control-expose-headers: chroma-trace-id, retry-after\r\n"
_REMEMBERED = b"access-control-max-age: 600\r\n"
_THEIRS = re.compile(rb"^access-control-[^\r\n]*\r\n", re.I | re.M)
_STRANGER = answers.refusal(403, "this origin is not among those of --cors-origins")


class Cors(msgspec.Struct, frozen=True):
    """The origins that are let in, such as ``https://app.example.com``; or one ``*``: all, without credentials."""

    origins: tuple[str, ...]

    def fields(self, request: RequestHead) -> bytes:
        """What is added to any answer, as lines.

        Where the origins are named, each answer says that it depends on the origin: a cache must not give one page's
        answer to another.
        """
        if ANY in self.origins:
            return b"access-control-allow-origin: *\r\n" + _EXPOSED if field(request, b"origin") else b""
        origin = field(request, b"origin")
        if origin is None or not self.lets_in(origin):
            return b"vary: origin\r\n"
        allowed = b"access-control-allow-origin: %b\r\naccess-control-allow-credentials: true\r\n" % origin
        return allowed + _EXPOSED + b"vary: origin\r\n"

    def refusal(self, request: RequestHead) -> Refusal | None:
        """Why a preflight is refused, if it is."""
        return None if self.lets_in(field(request, b"origin") or b"") else _STRANGER

    def permission(self, request: RequestHead) -> bytes:
        """What the answer to a preflight says beside ``fields``: every field that the page asks for may be sent."""
        wanted = field(request, b"access-control-request-headers") or b""
        names = wanted if len(wanted) <= _MOST and _NAMES.fullmatch(wanted) else _USUAL
        depends = b"vary: access-control-request-headers\r\n"
        return _METHODS + b"access-control-allow-headers: %b\r\n" % names + _REMEMBERED + depends

    def lets_in(self, origin: bytes) -> bool:
        """Whether a page from there may ask."""
        return ANY in self.origins or origin.decode("latin-1") in self.origins


def cors_of(origins: Sequence[str]) -> Cors | None:
    """For these origins; None for none. Raises ``UsageError`` for what a browser never sends as one."""
    for origin in origins:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            hint = "write it as the browser does: https://app.example.com, in lower case and without a path; or *"
            raise UsageError(f"--cors-origins: {origin!r} is no origin", hint=hint)
    if ANY in origins and len(origins) > 1:
        raise UsageError("--cors-origins: * is all origins, and names others beside it", hint="give one of the two")
    return Cors(tuple(origins)) if origins else None


def is_preflight(request: RequestHead) -> bool:
    """Whether a browser asks what a page may send."""
    asked = request.method == "OPTIONS" and field(request, b"origin") is not None
    return asked and field(request, b"access-control-request-method") is not None


def ours_only(fields: bytes) -> bytes:
    """The lines of an answer without what the backend says of origins: two answers to that are none, for a browser."""
    return _THEIRS.sub(b"", fields) if b"ccess-" in fields or b"CCESS-" in fields else fields


def field(request: RequestHead, name: bytes) -> bytes | None:
    """The first value of a field."""
    return next((value for key, value in request.fields if key == name), None)
