"""Chroma's HTTP API over an engine: bytes of a request in, bytes of an answer out; no sockets."""

from __future__ import annotations

import logging
from math import inf

from chromakeep.engine import Engine, Refused, within
from chromakeep.server.api.answers import TRACE, nothing, refused
from chromakeep.server.api.handlers import HANDLERS, STREAMED, WITH_JSON, Asked, sooner
from chromakeep.server.api.routing import V1, V1_ALLOWED, Unrouted, route, v1_allows
from chromakeep.server.gate import Page

__all__ = ["LARGEST", "answer"]
LARGEST = 40 << 20  # bytes of a body, as in Chroma
_log = logging.getLogger(__name__)
_V1_GONE = Refused(410, "The v1 API is deprecated. Please use /v2 apis", error="Unimplemented")
_NOT_JSON = Refused(415, "Expected request with `Content-Type: application/json`")
_TOO_LARGE = Refused(413, "Failed to buffer the request body: length limit exceeded")
_FAILED = Refused(500, "the engine failed over this request; its log says why")


def answer(
    engine: Engine, method: str, target: str, body: bytes, content_type: str | None = None, until: float = inf
) -> Page:
    """What Chroma would answer to a request, with ``engine`` behind it. Never raises.

    ``target``: as it was sent, with its query. ``content_type``: None where it was not sent, which is taken as JSON.
    ``until``: by ``time.monotonic``, when nobody waits for it any more.
    """
    path, _, query = target.partition("?")
    try:
        call = route(method, path)
        if call.route in WITH_JSON:
            if content_type is not None and not _is_json(content_type):
                return refused(_NOT_JSON)
            if len(body) > LARGEST:
                if call.route in STREAMED:
                    return Page(b"Payload too large", "", 413, fields=(TRACE,))
                return refused(_TOO_LARGE)
        asked = Asked(call, query, body)
        with within(until):
            try:
                return HANDLERS[call.route](engine, asked)
            except Refused as error:
                return refused(sooner(engine, asked, error))
    except Refused as error:
        return refused(error)
    except Unrouted as error:
        if error.status == 404 and V1.fullmatch(path):
            return refused(_V1_GONE) if v1_allows(method) else nothing(405, V1_ALLOWED)
        return nothing(error.status, error.allowed)
    except Exception:  # a fault of ours: the client gets an answer, and the log says which
        _log.exception("%s %s failed", method, path[:200])
        return refused(_FAILED)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
