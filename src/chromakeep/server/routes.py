"""Which requests may change something: everything but what is known not to."""

from __future__ import annotations

import re

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# Undecoded: Chroma's router splits the path as sent, too, so that "%67et" is another route to both.
_READING_POST = re.compile(
    r"/api/v2/tenants/[^/?#]+/databases/[^/?#]+/collections/[^/?#]+/(?:get|query|search|count)", re.ASCII
)


def is_safe(method: str) -> bool:
    """Whether HTTP promises that a second try of the request does no harm and the first one did none."""
    return method in _SAFE


def is_write(method: str, path: str) -> bool:
    """Whether a request counts as a write. A route or method not known to read does."""
    return not (method in _SAFE or (method == "POST" and _READING_POST.fullmatch(path)))
