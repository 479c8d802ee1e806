"""The shield: requests that are known to kill a Chroma or to make it useless are answered before they reach it.

All were seen on Chroma 1.5.9; tests/server/test_shield_chroma.py holds each against a server of its own. That server
takes a body for UTF-8 whatever ``content-encoding`` and ``charset`` say, and so do the watches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from urllib.parse import unquote_to_bytes

from chromakeep.server.answers import refusal
from chromakeep.server.collection_watch import CollectionWatch
from chromakeep.server.filter_watch import FilterWatch
from chromakeep.server.gate import Refusal
from chromakeep.server.guard import Watch
from chromakeep.server.records_watch import RecordsCount, RecordsWatch
from chromakeep.server.request_head import RequestHead

# Undecoded, as Chroma's router reads them: "%61dd" is no add there.
_COLLECTIONS = r"/api/v2/tenants/[^/]+/databases/[^/]+/collections"
_RECORDS = re.compile(_COLLECTIONS + r"/[^/]+/(?:add|upsert|update)")
_FILTERED = re.compile(_COLLECTIONS + r"/[^/]+/(?:get|query|delete)")
_CREATE = re.compile(_COLLECTIONS)
_MODIFY = re.compile(_COLLECTIONS + r"/[^/]+")
_CRN = re.compile(r"/api/v2/collections/([^/]+)")
_NO_CRN = refusal(501, "Getting a collection by its CRN is unsupported for local chroma")


_SHORT, _REMEMBERED = 400, 4096  # characters of a path that is remembered, and how many of those


def refuse_route(method: str, path: str) -> Refusal | None:
    """Why a route may not be asked: of ``tenant:database:collection`` Chroma closes the connection, without a word."""
    return _asked(method, path)[0]


def counter_for(method: str, path: str, head: RequestHead) -> Watch | None:
    """Who only counts records: of a server that nothing ruins."""
    return RecordsCount() if head.length != 0 and _asked(method, path)[1] is RecordsWatch else None


def watch_for(method: str, path: str, head: RequestHead) -> Watch | None:
    """Who looks at the body on its way. ``path`` is the target without its query, not decoded."""
    maker = _asked(method, path)[1]
    return maker() if maker and head.length != 0 else None


def _asked(method: str, path: str) -> tuple[Refusal | None, Callable[[], Watch] | None]:
    """Why it is refused, and what makes the watch of its body."""
    return _remembered(method, path) if len(path) <= _SHORT else _found_out(method, path)


def _found_out(method: str, path: str) -> tuple[Refusal | None, Callable[[], Watch] | None]:
    if method in ("GET", "HEAD") and (found := _CRN.fullmatch(path)):
        parts = unquote_to_bytes(found[1]).split(b":")
        return (_NO_CRN if len(parts) == 3 and all(parts) else None), None  # other forms it refuses itself
    if method == "POST":
        if _RECORDS.fullmatch(path):
            return None, RecordsWatch
        if _FILTERED.fullmatch(path):
            return None, FilterWatch
        if _CREATE.fullmatch(path):
            return None, partial(CollectionWatch, "metadata", "configuration")
    if method == "PUT" and _MODIFY.fullmatch(path):
        return None, partial(CollectionWatch, "new_metadata", "new_configuration")
    return None, None


_remembered = lru_cache(_REMEMBERED)(_found_out)  # the same few paths come again and again
