"""Rights: what a request would do, told from its method and path alone, and which keys may.

A path is split as Chroma's router does it: at the slashes it was sent with, fixed parts compared before decoding. What
two programs could read differently is no route.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote_to_bytes

import msgspec

from chromakeep.access.keys import Key

Action = Literal["public", "read", "write", "admin"]

# What a key must cover. ``ALL_OF_...`` is for what shows or changes what lies outside of narrower bounds.
ANYTHING = "anything"  # every key does
SERVER = "server"  # no bounds
TENANT = "tenant"
ALL_OF_TENANT = "all of the tenant"  # no database
DATABASE = "database"
ALL_OF_DATABASE = "all of the database"  # no patterns
COLLECTION = "collection"


class Call(msgspec.Struct, frozen=True):
    """What a request is. Names are decoded; ``id`` is a collection's UUID in lower case with dashes.

    Chroma ignores the tenant and database of a path that names a collection by ``id``: whoever lets such a call pass
    must know that this collection is theirs.
    """

    route: str  # such as ``collection.query``; "" for a path that is none of Chroma's, or could be read in two ways
    action: Action
    tenant: str | None = None
    database: str | None = None
    collection: str | None = None
    id: str | None = None


class Endpoint(msgspec.Struct, frozen=True):
    """One of Chroma's endpoints. ``names`` is the member of its JSON body that names a (further) collection."""

    method: str
    path: str
    route: str
    action: Action
    covers: str
    names: str | None = None


NO_ROUTE = Call("", "admin")
METRICS = Call("", "read")  # a page of our own that names collections and keys of all tenants
STATUS = Call("version", "read")  # one that names nothing
_T = "/api/v2/tenants/{tenant}"
_D = _T + "/databases/{database}"
_C = _D + "/collections/{id}"

ENDPOINTS = (
    Endpoint("GET", "/api/v2", "heartbeat", "public", ANYTHING),
    Endpoint("GET", "/api/v2/heartbeat", "heartbeat", "public", ANYTHING),
    Endpoint("GET", "/api/v2/healthcheck", "healthcheck", "read", ANYTHING),
    Endpoint("GET", "/api/v2/version", "version", "read", ANYTHING),
    Endpoint("GET", "/api/v2/pre-flight-checks", "pre-flight-checks", "read", ANYTHING),
    Endpoint("GET", "/api/v2/auth/identity", "identity", "read", ANYTHING),
    Endpoint("POST", "/api/v2/reset", "reset", "admin", SERVER),
    Endpoint("POST", "/api/v2/tenants", "tenants.create", "admin", SERVER),
    Endpoint("GET", _T, "tenant", "read", TENANT),
    Endpoint("PATCH", _T, "tenant.update", "admin", SERVER),
    Endpoint("POST", _T + "/databases", "databases.create", "admin", ALL_OF_TENANT),
    Endpoint("GET", _T + "/databases", "databases.list", "read", ALL_OF_TENANT),
    Endpoint("GET", _D, "database", "read", DATABASE),
    Endpoint("DELETE", _D, "database.delete", "admin", ALL_OF_TENANT),
    Endpoint("POST", _D + "/collections", "collections.create", "write", COLLECTION, "name"),
    Endpoint("GET", _D + "/collections", "collections.list", "read", ALL_OF_DATABASE),
    Endpoint("GET", _D + "/collections_count", "collections.count", "read", ALL_OF_DATABASE),
    Endpoint("GET", _D + "/collections/{collection}", "collection", "read", COLLECTION),
    Endpoint("GET", _D + "/collections/by-id/{id}", "collection.by_id", "read", COLLECTION),
    Endpoint("GET", "/api/v2/collections/{crn}", "collection.by_crn", "read", COLLECTION),
    Endpoint("PUT", _C, "collection.modify", "write", COLLECTION, "new_name"),
    Endpoint("DELETE", _D + "/collections/{collection}", "collection.drop", "write", COLLECTION),
    Endpoint("POST", _C + "/add", "collection.add", "write", COLLECTION),
    Endpoint("POST", _C + "/update", "collection.update", "write", COLLECTION),
    Endpoint("POST", _C + "/upsert", "collection.upsert", "write", COLLECTION),
    Endpoint("POST", _C + "/delete", "collection.delete", "write", COLLECTION),
    Endpoint("GET", _C + "/count", "collection.count", "read", COLLECTION),
    Endpoint("POST", _C + "/get", "collection.get", "read", COLLECTION),
    Endpoint("POST", _C + "/query", "collection.query", "read", COLLECTION),
    Endpoint("POST", _C + "/search", "collection.search", "read", COLLECTION),
    Endpoint("GET", _C + "/indexing_status", "collection.indexing_status", "read", COLLECTION),
    Endpoint("POST", _C + "/fork", "collection.fork", "write", COLLECTION, "new_name"),
    Endpoint("GET", _C + "/fork_count", "collection.fork_count", "read", COLLECTION),
    Endpoint(
        "POST", _C + "/functions/attach", "collection.attach_function", "write", COLLECTION, "output_collection"
    ),
    Endpoint("GET", _C + "/functions/{name}", "collection.function", "read", COLLECTION),
    Endpoint(
        "POST", _C + "/attached_functions/{name}/detach", "collection.detach_function", "write", COLLECTION
    ),
)  # fmt: skip

_MAY: dict[str, frozenset[str]] = {
    "reader": frozenset({"public", "read"}),
    "writer": frozenset({"public", "read", "write"}),
    "admin": frozenset({"public", "read", "write", "admin"}),
}
_BY_ROUTE = {endpoint.route: endpoint for endpoint in ENDPOINTS}
_SHORT = 400  # characters of a path that is remembered
_SENT = re.compile(r"/[!-\"$->@-~]*")  # visible ASCII; without # and ?, at which a server cuts the path
_ESCAPES = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})+")
_PLAIN = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f/\\]")
_HEX = "[0-9a-fA-F]"
_DASHED = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
# As Rust's Uuid reads them. Python's is more lenient: dashes anywhere.
_UUID = re.compile(rf"(?:urn:uuid:)?({_DASHED})|\{{({_DASHED})\}}|({_HEX}{{32}})", re.ASCII)

_Fixed = tuple[int, ...]  # places of the fixed parts of a path
_Routes = dict[
    tuple[str, int], list[tuple[_Fixed, dict[tuple[str, ...], tuple[Endpoint, tuple[tuple[int, str], ...]]]]]
]


def _routes() -> _Routes:
    """By method and number of parts: places of fixed parts -> these parts -> endpoint, and where its names stand.

    Of two that fit, the one whose fixed parts come first: ``by-id`` is never a collection.
    """
    found: _Routes = {}
    for endpoint in ENDPOINTS:
        parts = endpoint.path.split("/")
        fixed = tuple(i for i, part in enumerate(parts) if not part.startswith("{"))
        free = tuple((i, part[1:-1]) for i, part in enumerate(parts) if part.startswith("{"))
        groups = found.setdefault((endpoint.method, len(parts)), [])
        table = next((table for places, table in groups if places == fixed), None)
        if table is None:
            table = {}
            groups.append((fixed, table))
        table[tuple(parts[i] for i in fixed)] = (endpoint, free)
    for groups in found.values():
        groups.sort(key=lambda group: group[0])
    return found


_ROUTES = _routes()


def call_of(method: str, path: str) -> Call:
    """What a request would do. ``path`` is as sent: not decoded, without its query.

    A part that is not UTF-8, that decodes to a slash, a control character or a dot segment, or an id that is no UUID:
    ``NO_ROUTE``, as for whatever Chroma does not have. HEAD is GET to Chroma.
    """
    return _remembered(method, path) if len(path) <= _SHORT else _call_of(method, path)


def _call_of(method: str, path: str) -> Call:
    if not _SENT.fullmatch(path):
        return NO_ROUTE
    parts = path.split("/")
    for places, table in _ROUTES.get(("GET" if method == "HEAD" else method, len(parts)), ()):
        if match := table.get(tuple(parts[i] for i in places)):
            return _call(match[0], {name: _decoded(parts[i]) for i, name in match[1]})
    return NO_ROUTE


_remembered = lru_cache(4096)(_call_of)  # the same few paths come again and again


def _call(endpoint: Endpoint, found: dict[str, str | None]) -> Call:
    if None in found.values():
        return NO_ROUTE
    identity, crn = found.get("id"), found.get("crn")
    if crn is not None:
        named = crn.split(":")
        if len(named) != 3 or not all(named):
            return NO_ROUTE
        return Call(endpoint.route, endpoint.action, *named)
    if identity is not None:
        given = _UUID.fullmatch(identity)
        if not given:
            return NO_ROUTE
        digits = (given[1] or given[2] or given[3]).replace("-", "").lower()
        identity = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    return Call(
        endpoint.route, endpoint.action, found.get("tenant"), found.get("database"), found.get("collection"), identity
    )


def _decoded(part: str) -> str | None:
    """One part of a path; None for one that could be understood in two ways."""
    if _PLAIN.fullmatch(part):
        return part
    if not _ESCAPES.fullmatch(part):
        return None
    try:
        text = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        return None
    return None if text in (".", "..") or _CONTROL.search(text) else text


def permits(key: Key, call: Call, name: str | None) -> bool:
    """Whether ``key`` gives the right to ``call``. ``name`` is the name of the collection that the path has not told:
    looked up by ``call.id``, or read in the body (``named_in_body``); None where it is not known.

    Unknown names match no pattern. A key's bounds hold for the tenant and database *of the path*: see ``Call``.
    """
    if not reaches(key, call):
        return False
    endpoint = _BY_ROUTE.get(call.route)
    return endpoint is None or endpoint.covers != COLLECTION or covers_names(key, call.collection, name)


def reaches(key: Key, call: Call) -> bool:
    """As ``permits``, of some collection: which one it is about may not be known yet."""
    if call.action == "public":
        return True
    if call.action not in _MAY[key.role]:
        return False
    endpoint = _BY_ROUTE.get(call.route)
    covers = endpoint.covers if endpoint else SERVER
    if covers == ANYTHING:
        return True
    if covers == SERVER:
        return key.tenant is None and key.database is None and not key.collections
    if key.tenant not in (None, call.tenant):
        return False
    if covers in (TENANT, ALL_OF_TENANT):
        return covers == TENANT or key.database is None
    return key.database in (None, call.database) and not (covers == ALL_OF_DATABASE and key.collections)


def covers_names(key: Key, *names: str | None) -> bool:
    """Whether the key's patterns allow every one of these collections' names, and at least one is known."""
    if not key.collections:
        return True
    known = [name for name in names if name is not None]
    return bool(known) and all(any(fnmatchcase(name, pattern) for pattern in key.collections) for name in known)


def named_in_body(call: Call) -> str | None:
    """The member of the call's JSON body that names a collection to be made or renamed to, or None.

    For a key with patterns it must match too: ask ``covers_names``. Of ``collections.create`` it is always there, of
    ``collection.modify`` perhaps.
    """
    endpoint = _BY_ROUTE.get(call.route)
    return endpoint.names if endpoint else None
