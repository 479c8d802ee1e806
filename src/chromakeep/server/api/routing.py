"""Routing: which of Chroma's endpoints a request asks for, as its router tells them apart.

What ``access.rights`` takes for a route is one here. What that takes for none may be a route all the same, with names
that nothing has; then the answer is what Chroma gives for such names.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from chromakeep.access.rights import ENDPOINTS, NO_ROUTE, Call, Endpoint, call_of
from chromakeep.engine import Refused

V1 = re.compile(r"/api/v1/.+")
_METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
_PARTS = [(endpoint, endpoint.path.split("/")) for endpoint in ENDPOINTS]
_POST_FIRST = "/api/v2/tenants/{tenant}/databases/{database}/collections"
_AS_SENT = {"tenant": "tenant", "database": "database", "collection": "collection_id", "id": "collection_id"}


class Unrouted(Exception):
    """No such route (404), or not with this method (405, and those that it has)."""

    def __init__(self, status: int, allowed: str = "") -> None:
        super().__init__(status)
        self.status, self.allowed = status, allowed


def route(method: str, path: str) -> Call:
    """The call that a request makes; its ``id`` is None where a path has an id that is none. Raises ``Unrouted``, and
    ``Refused`` of names that are no UTF-8."""
    call = call_of(method, path)
    if call is not NO_ROUTE:
        return call
    parts = path.split("/")
    fitting = [(endpoint, own) for endpoint, own in _PARTS if _fit(own, parts)]
    if not fitting:
        raise Unrouted(404)
    by_id = [pair for pair in fitting if "by-id" in pair[1]]
    fitting = by_id or fitting
    asked = "GET" if method == "HEAD" else method
    for endpoint, own in fitting:
        if endpoint.method == asked:
            return _call(endpoint, own, parts)
    raise Unrouted(405, _allowed([endpoint for endpoint, _ in fitting]))


def v1_allows(method: str) -> bool:
    """Whether Chroma says of a method that the first version of the API is gone."""
    return method in _METHODS


V1_ALLOWED = ",".join(_METHODS)


def _fit(own: list[str], parts: list[str]) -> bool:
    """A name may be empty, but not at the end."""
    if len(own) != len(parts) or not parts[-1]:
        return False
    return all(mine.startswith("{") or mine == part for mine, part in zip(own, parts, strict=True))


def _call(endpoint: Endpoint, own: list[str], parts: list[str]) -> Call:
    found: dict[str, str] = {}
    for mine, part in zip(own, parts, strict=True):
        if mine.startswith("{"):
            name = mine[1:-1]
            try:
                found[name] = unquote_to_bytes(part).decode()
            except UnicodeDecodeError:
                raise Refused(400, f"Invalid URL: Invalid UTF-8 in `{_AS_SENT.get(name, name)}`") from None
    collection = found.get("crn") or found.get("collection")
    plain = [part if mine == "{id}" or not mine.startswith("{") else "x" for mine, part in zip(own, parts, strict=True)]
    identity = call_of(endpoint.method, "/".join(plain)).id
    return Call(endpoint.route, endpoint.action, found.get("tenant"), found.get("database"), collection, identity)


def _allowed(endpoints: list[Endpoint]) -> str:
    methods = [endpoint.method for endpoint in endpoints]
    if endpoints[0].path == _POST_FIRST:
        methods = ["POST", "GET"]
    order = {"POST": 1, "PATCH": 1, "PUT": 2, "DELETE": 3}
    if endpoints[0].path != _POST_FIRST:
        methods.sort(key=lambda method: order.get(method, 0))
    return ",".join("GET,HEAD" if method == "GET" else method for method in methods)
