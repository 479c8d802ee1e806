"""Answers of our own, in Chroma's words: ``{"error": ..., "message": ...}``."""

from __future__ import annotations

import json
import math
from http import HTTPStatus

from chromakeep.server.gate import Page, Refusal

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NAMES = {
    400: "InvalidArgumentError",
    401: "AuthError",
    403: "AuthError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalError",
}


def refusal(status: int, message: str, *, retry_after: float | None = None) -> Refusal:
    """A refusal under the name that Chroma gives errors of this status."""
    return Refusal(status, _NAMES.get(status, "ChromaError"), message, retry_after)


BACKEND_DOWN = refusal(503, "Chroma is not running: it is starting, or starting again", retry_after=1.0)
BACKEND_BROKE = refusal(502, "Chroma ended the connection without an answer; a write may or may not have been done")
BACKEND_ODD = refusal(502, "Chroma's answer is not HTTP/1.1 as this door takes it; a write may have been done")
BACKEND_CUT = refusal(502, "Chroma ended in the middle of its answer; a write may or may not have been done")
HOLDER_AWAY = refusal(503, "the instance that takes the writes cannot be reached; nothing was done", retry_after=1.0)
HOLDER_BROKE = refusal(502, "the instance that takes the writes ended the connection; a write may have been done")
HOLDER_ODD = refusal(502, "what answers in place of the instance that takes the writes is no door; a write may be done")
FAILED = refusal(500, "the door failed over this request; its log says why")
FULL = refusal(503, "too many connections", retry_after=1.0)


def too_long(seconds: float, *, sent: bool) -> Refusal:
    """Of a request that took longer than its key may; ``sent``: the backend has all of it."""
    may = "a write may or may not have been done" if sent else "nothing was done"
    return refusal(504, f"longer than {seconds:g} s, which is what a request of this key may take; {may}")


def page_bytes(page: Page, *, head_only: bool, close: bool, extra: bytes = b"") -> bytes:
    """A page as an HTTP/1.1 answer."""
    more = _later(page.retry_after) + extra.decode("latin-1")
    return _answer(page.status, page.content_type, page.body, more, head_only=head_only, close=close)


def page_of(refused: Refusal) -> Page:
    """A refusal as a page."""
    body = json.dumps({"error": refused.error, "message": refused.message}).encode()
    return Page(body, status=refused.status, retry_after=refused.retry_after)


def nothing_bytes(*, close: bool, extra: bytes = b"") -> bytes:
    """An answer without a body."""
    return b"HTTP/1.1 204 No Content\r\n%b%b\r\n" % (extra, b"connection: close\r\n" if close else b"")


def later(seconds: float) -> bytes:
    """The field ``retry-after``, as a line."""
    return _later(seconds).encode()


def _later(seconds: float | None) -> str:
    """The field has whole seconds only."""
    return "" if seconds is None else f"retry-after: {max(0, math.ceil(seconds))}\r\n"


def _answer(status: int, content_type: str, body: bytes, more: str, *, head_only: bool, close: bool) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
        f"cache-control: no-store\r\n{more}{'connection: close' + chr(13) + chr(10) if close else ''}\r\n"
    )
    return head.encode("latin-1") + (b"" if head_only else body)
