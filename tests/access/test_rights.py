"""Every endpoint, every role, every bound of a key, what is its own and what is not. The table is written by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from chromakeep.access.keys import Key, Role, mint
from chromakeep.access.rights import (
    ENDPOINTS,
    NO_ROUTE,
    Call,
    call_of,
    covers_names,
    named_in_body,
    permits,
)

ID = "0e7c3c3e-8a53-4d5e-9a0e-6d1c3e1f5b11"
ROLES = get_args(Role)

# Route, method, path; the roles that may (r, w, a); the bounds with which they may. Bounds of a key: "." none, "t" its
# tenant, "d" a database of whatever tenant, "td" both, "c" also patterns of collections (which no admin has).
T = "/api/v2/tenants/{t}"
D = T + "/databases/{d}"
C = D + "/collections/" + ID
ALL = (".", "t", "d", "td", "c")
WHOLE_DATABASE = (".", "t", "d", "td")
WHOLE_TENANT = (".", "t")
OPERATOR = (".",)
TABLE = [
    ("heartbeat", "GET", "/api/v2", "rwa", ALL),
    ("heartbeat", "GET", "/api/v2/heartbeat", "rwa", ALL),
    ("healthcheck", "GET", "/api/v2/healthcheck", "rwa", ALL),
    ("version", "GET", "/api/v2/version", "rwa", ALL),
    ("pre-flight-checks", "GET", "/api/v2/pre-flight-checks", "rwa", ALL),
    ("reset", "POST", "/api/v2/reset", "a", OPERATOR),
    ("identity", "GET", "/api/v2/auth/identity", "rwa", ALL),
    ("tenants.create", "POST", "/api/v2/tenants", "a", OPERATOR),
    ("tenant", "GET", T, "rwa", ALL),
    ("tenant.update", "PATCH", T, "a", OPERATOR),
    ("databases.create", "POST", T + "/databases", "a", WHOLE_TENANT),
    ("databases.list", "GET", T + "/databases", "rwa", WHOLE_TENANT),
    ("database", "GET", D, "rwa", ALL),
    ("database.delete", "DELETE", D, "a", WHOLE_TENANT),
    ("collections.create", "POST", D + "/collections", "wa", ALL),
    ("collections.list", "GET", D + "/collections", "rwa", WHOLE_DATABASE),
    ("collections.count", "GET", D + "/collections_count", "rwa", WHOLE_DATABASE),
    ("collection", "GET", D + "/collections/{c}", "rwa", ALL),
    ("collection.by_id", "GET", D + "/collections/by-id/" + ID, "rwa", ALL),
    ("collection.by_crn", "GET", "/api/v2/collections/{t}:{d}:{c}", "rwa", ALL),
    ("collection.modify", "PUT", C, "wa", ALL),
    ("collection.drop", "DELETE", D + "/collections/{c}", "wa", ALL),
    ("collection.add", "POST", C + "/add", "wa", ALL),
    ("collection.update", "POST", C + "/update", "wa", ALL),
    ("collection.upsert", "POST", C + "/upsert", "wa", ALL),
    ("collection.delete", "POST", C + "/delete", "wa", ALL),
    ("collection.count", "GET", C + "/count", "rwa", ALL),
    ("collection.get", "POST", C + "/get", "rwa", ALL),
    ("collection.query", "POST", C + "/query", "rwa", ALL),
    ("collection.search", "POST", C + "/search", "rwa", ALL),
    ("collection.indexing_status", "GET", C + "/indexing_status", "rwa", ALL),
    ("collection.fork", "POST", C + "/fork", "wa", ALL),
    ("collection.fork_count", "GET", C + "/fork_count", "rwa", ALL),
    ("collection.attach_function", "POST", C + "/functions/attach", "wa", ALL),
    ("collection.function", "GET", C + "/functions/f", "rwa", ALL),
    ("collection.detach_function", "POST", C + "/attached_functions/f/detach", "wa", ALL),
    ("", "GET", "/docs/", "a", OPERATOR),
    ("", "GET", "/openapi.json", "a", OPERATOR),
    ("", "POST", C + "/conditional/commit", "a", OPERATOR),
    ("", "GET", "/api/v1/collections", "a", OPERATOR),
]
PLACES = {
    "own": ("acme", "prod", "docs-1"),
    "foreign tenant": ("other", "prod", "docs-1"),
    "foreign database": ("acme", "dev", "docs-1"),
    "foreign collection": ("acme", "prod", "laws"),
}
SEES = {"t": {"foreign tenant"}, "d": {"foreign database"}, "td": {"foreign tenant", "foreign database"}}
SEES["c"] = {*SEES["td"], "foreign collection"}  # what a bound keeps a key from


def bound(role: Role, bounds: str) -> Key:
    """A key of a role with these bounds."""
    return mint(
        "app",
        role,
        tenant="acme" if bounds in ("t", "td", "c") else None,
        database="prod" if bounds in ("d", "td", "c") else None,
        collections=("docs-*", "x") if bounds == "c" else (),
    )[0]


KEYS = {(role, bounds): bound(role, bounds) for role in ROLES for bounds in ALL if (role, bounds) != ("admin", "c")}


def names_of(path: str) -> set[str]:
    """What of a place the path names; an id names its collection, and so does the name in a body."""
    found = {word for word, mark in (("tenant", "{t}"), ("database", "{d}"), ("collection", "{c}")) if mark in path}
    return found | ({"collection"} if ID in path or path.endswith("/collections") else set())


@pytest.mark.parametrize(("route", "method", "path", "roles", "bounds"), TABLE, ids=[f"{r[1]} {r[2]}" for r in TABLE])
def test_each_key_may_what_the_table_says(
    route: str, method: str, path: str, roles: str, bounds: tuple[str, ...]
) -> None:
    """Each role with each bound, in its own place and in three foreign ones."""
    named = names_of(path) if route else set()
    for where, (tenant, database, collection) in PLACES.items():
        call = call_of(method, path.format(t=tenant, d=database, c=collection))
        assert call.route == route
        name = collection if "collection" in named else None
        for (role, given), key in KEYS.items():
            kept_out = {f"foreign {word}" for word in named} & SEES.get(given, set())
            may = role[0] in roles and given in bounds and where not in kept_out
            assert permits(key, call, name) == may, (role, given, where, call)


def test_the_table_holds_every_endpoint_and_every_role() -> None:
    known = [(route, method) for route, method, *_ in TABLE if route]
    assert sorted(known) == sorted((e.route, e.method) for e in ENDPOINTS)
    assert len(known) == len(ENDPOINTS) == 36  # 35, and the heartbeat's second path
    assert set(ROLES) == {"reader", "writer", "admin"}


def test_a_collection_whose_name_is_not_known_matches_no_pattern() -> None:
    """Nobody has looked the id up, or read the body: a key with patterns is not let through."""
    calls = [
        call_of(m, p.format(t="acme", d="prod", c="docs-1")) for _, m, p, *_ in TABLE if "collection" in names_of(p)
    ]
    unknown = [call for call in calls if call.route and call.collection is None]
    assert len(unknown) == 18
    assert not any(permits(KEYS[role, "c"], call, None) for call in unknown for role in ("reader", "writer"))


def test_a_name_in_the_path_is_not_outdone_by_another() -> None:
    call = call_of("GET", D.format(t="acme", d="prod") + "/collections/laws")
    assert not permits(bound("reader", "c"), call, "docs-1")
    call = call_of("GET", D.format(t="acme", d="prod") + "/collections/docs-1")
    assert not permits(bound("reader", "c"), call, "laws")


def test_patterns_know_upper_and_lower_case_and_nothing_but_whole_names() -> None:
    key = mint("app", "reader", collections=("docs-*", "a?", "[xy]z"))[0]
    for name, may in {
        "docs-": True, "docs-1": True, "Docs-1": False, "docs": False, "mydocs-1": False, "ab": True, "abc": False,
        "xz": True, "zz": False, "docs-1\n": True, "laws\ndocs-1": False, "": False,
    }.items():  # fmt: skip
        assert covers_names(key, name) == may, name
    assert not covers_names(key)
    assert not covers_names(key, None)
    assert not covers_names(key, "docs-1", "laws")
    assert covers_names(key, "docs-1", None, "ab")


def test_bodies_that_name_a_collection() -> None:
    found = {e.route: named_in_body(Call(e.route, e.action)) for e in ENDPOINTS}
    assert {route: member for route, member in found.items() if member} == {
        "collections.create": "name",
        "collection.modify": "new_name",
        "collection.fork": "new_name",
        "collection.attach_function": "output_collection",
    }
    assert named_in_body(NO_ROUTE) is None


def test_names_are_decoded_once_and_ids_are_made_alike() -> None:
    path = "/api/v2/tenants/a%20b%252F/databases/d%C3%A9/collections/%64ocs"
    assert call_of("GET", path) == Call("collection", "read", "a b%2F", "dé", "docs")
    base = "/api/v2/tenants/ten/databases/dat/collections/"
    for given in (ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"%7B{ID}%7D", f"urn:uuid:{ID}", "%30" + ID[1:]):
        assert call_of("GET", f"{base}{given}/count") == Call("collection.count", "read", "ten", "dat", None, ID)
    assert call_of("HEAD", f"{base}{ID}/count") == call_of("GET", f"{base}{ID}/count")
    assert call_of("GET", f"{base}by-id/{ID}").id == ID
    assert call_of("GET", f"{base}{ID}").collection == ID  # a name that looks like an id
    assert call_of("DELETE", f"{base}by-id") == Call("collection.drop", "write", "ten", "dat", "by-id")


HOSTILE = [
    "%2F", "a%2Fb", "a%2fb", "%5C", "a\\b", "..", ".", "%2E%2E", ".%2e", "%00", "a%0Ab", "%7F", "%C2%80", "%FF",
    "%C0%AF", "%ED%A0%80", "%", "%4", "%zz", "a%", "", " ", "a b", "é", "a#b", "a?b", "a\tb", "a\r", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("path", [D, D + "/collections/{c}", D + "/collections/by-id/" + ID, C + "/functions/{c}"])
def test_what_two_programs_could_read_differently_is_no_route(path: str) -> None:
    for part in HOSTILE:
        for t, d, c in ((part, "dat", "col"), ("ten", part, "col"), ("ten", "dat", part)):
            if part in (t, d) or "{c}" in path:
                assert call_of("GET", path.format(t=t, d=d, c=c)) == NO_ROUTE, (t, d, c)


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "*", "api/v2", "//api/v2", "/api//v2", "/api/v2/", "/API/v2", "/api/v%32", "/%61pi/v2/heartbeat",
        "/api/v2/heartbeat/", "/api/v2/heartbeat;x", "/api/v2/./heartbeat", "/api/v2/x/../heartbeat",
        "/api/v1/heartbeat",
        "http://host/api/v2", "/api/v2/tenants/", "/api/v2/tenants//databases", "/api/v2/tenants/ten/Databases",
        "/api/v2/tenants/ten/databases/dat/collections/not-an-id/count",
        "/api/v2/collections/a:b", "/api/v2/collections/a:b:c:d",
        "/api/v2/collections/a::c", f"/api/v2/tenants/ten/databases/dat/collections/{ID[:-1]}/count",
        f"/api/v2/tenants/ten/databases/dat/collections/0-{ID[:8]}{ID[9:]}/count",
        f"/api/v2/tenants/ten/databases/dat/collections/{ID}/%63ount",
        "/api/v2/tenants/ten/databases/dat/collections/by-id/count", "/api/v2/heartbeat" + "/x" * 5000,
    ],
)  # fmt: skip
def test_what_chroma_has_not_is_no_route(path: str) -> None:
    assert call_of("GET", path) == NO_ROUTE


def test_a_method_that_an_endpoint_has_not_is_no_route() -> None:
    mine = {(e.method, e.path) for e in ENDPOINTS}
    for e in ENDPOINTS:
        path = e.path.format(tenant="ten", database="dat", collection="col", id=ID, crn="ten:dat:col", name="f")
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "get", ""):
            same = {p for m, p in mine if m == method and p.count("/") == e.path.count("/")}
            if not same:
                assert call_of(method, path) == NO_ROUTE, (method, path)


def test_the_reference_has_the_table() -> None:
    """A row for each endpoint, with the least role, and what a key must cover."""
    reference = (Path(__file__).parent.parent.parent / "docs" / "reference.md").read_text()
    table = reference.split("| route | endpoint | least role | of a key that covers |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([^`]*)` \| `(\w+) ([^`]*)` \| (\w+) \| ([^|]*) \|$", table, re.M)
    least = {"public": "none", "read": "reader", "write": "writer", "admin": "admin"}
    short = {"/api/v2/tenants/{tenant}": "T", "T/databases/{database}": "D", "D/collections/{id}": "C"}

    def shortened(path: str) -> str:
        for long, letter in short.items():
            path = letter + path.removeprefix(long) if path == long or path.startswith(f"{long}/") else path
        return path

    wanted = [(e.route, e.method, shortened(e.path), least[e.action], e.covers) for e in ENDPOINTS]
    assert rows == wanted
