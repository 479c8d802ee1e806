"""The shield: requests that are known to kill a Chroma or to make it useless are answered before they reach it.

All were seen on Chroma 1.5.9; tests/server/test_shield_chroma.py holds each against a server of its own. That server
takes a body for UTF-8 whatever ``content-encoding`` and ``charset`` say, and so do the watches.
"""

from __future__ import annotations

import re
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


def refuse_route(method: str, path: str) -> Refusal | None:
    """Why a route may not be asked: of ``tenant:database:collection`` Chroma closes the connection, without a word."""
    if method not in ("GET", "HEAD") or not (found := _CRN.fullmatch(path)):
        return None
    parts = unquote_to_bytes(found[1]).split(b":")
    return _NO_CRN if len(parts) == 3 and all(parts) else None  # other forms it refuses itself


def counter_for(method: str, path: str, head: RequestHead) -> Watch | None:
    """Who only counts records: of a server that nothing ruins."""
    return RecordsCount() if method == "POST" and head.length != 0 and _RECORDS.fullmatch(path) else None


def watch_for(method: str, path: str, head: RequestHead) -> Watch | None:
    """Who looks at the body on its way. ``path`` is the target without its query, not decoded."""
    if head.length == 0:
        return None
    if method == "POST":
        if _RECORDS.fullmatch(path):
            return RecordsWatch()
        if _FILTERED.fullmatch(path):
            return FilterWatch()
        return CollectionWatch("metadata", "configuration") if _CREATE.fullmatch(path) else None
    if method == "PUT" and _MODIFY.fullmatch(path):
        return CollectionWatch("new_metadata", "new_configuration")
    return None
