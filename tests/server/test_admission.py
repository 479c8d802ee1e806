"""A door with keys before a real Chroma: every endpoint, every role, every bound; and nothing of a key goes further."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import chromadb
import chromadb.errors
import pytest
from msgspec.structs import replace

from chromakeep.access.keys import Key, Keyring, mint
from chromakeep.access.rights import ENDPOINTS, Endpoint
from chromakeep.chroma.server import ChromaServer
from chromakeep.server import Door, Page, Refusal, credentials
from chromakeep.server.admission import Admission
from server.wires import OK, Backend, Scripted, Wire, post

DATABASES = {"acme": ["prod", "test"], "other": ["prod"]}
COLLECTIONS = ["docs-1", "docs-2", "secret"]
WORLD = {"tenant": "acme", "database": "prod", "collection": "docs-1"}
NOT_THERE = "11111111-1111-4111-8111-111111111111"


class Ring:
    """A keyring that tests change."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.tokens: dict[str, str] = {}
        self.ring = Keyring()

    def add(self, name: str, role: Any, **bounds: Any) -> str:
        self.keys[name], self.tokens[name] = mint(name, role, **bounds)
        self.ring = Keyring(self.keys.values())
        return self.tokens[name]


@pytest.fixture(scope="module")
def ring() -> Ring:
    ring = Ring()
    ring.add("operator", "admin")
    for role in ("reader", "writer"):
        ring.add(f"{role}-docs", role, tenant="acme", database="prod", collections=("docs-*",))
        ring.add(f"{role}-prod", role, tenant="acme", database="prod")
        ring.add(f"{role}-acme", role, tenant="acme")
    ring.add("admin-acme", "admin", tenant="acme")
    ring.add("admin-prod", "admin", tenant="acme", database="prod")
    return ring


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("admission") / "data", env=dict(os.environ)) as server:
        yield server


@pytest.fixture(scope="module")
def door(server: ChromaServer, ring: Ring) -> Iterator[Door]:
    guard = Admission(lambda: ring.ring, time.time)
    door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), guard=guard)
    door.start()
    yield door
    door.stop(1)


@pytest.fixture(scope="module")
def ids(server: ChromaServer) -> dict[str, str]:
    """``tenant/database/collection`` -> UUID, made without the door."""
    admin = chromadb.AdminClient(
        chromadb.Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host="127.0.0.1",
            chroma_server_http_port=server.options.port,
        )
    )
    made: dict[str, str] = {}
    for tenant, databases in DATABASES.items():
        admin.create_tenant(tenant)
        for database in databases:
            admin.create_database(database, tenant)
            client = chromadb.HttpClient("127.0.0.1", server.options.port, tenant=tenant, database=database)
            for name in COLLECTIONS:
                collection = client.create_collection(name, embedding_function=None)
                collection.add(ids=["a", "b"], embeddings=[[1.0, 2.0], [3.0, 4.0]])
                made[f"{tenant}/{database}/{name}"] = str(collection.id)
    return made


def call(
    door: Door, token: str | None, method: str, path: str, body: bytes = b"", **fields: str
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=30)
    headers = {"content-type": "application/json", **fields}
    if token:
        headers["authorization"] = f"Bearer {token}"
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, json.loads(content) if content else None, told
    finally:
        connection.close()


BODIES = {
    "collection.add": {"ids": ["x"], "embeddings": [[1.0, 2.0]]},
    "collection.upsert": {"ids": ["x"], "embeddings": [[1.0, 2.0]]},
    "collection.update": {"ids": ["a"], "embeddings": [[1.0, 2.0]]},
    "collection.delete": {"ids": ["nothing"]},
    "collection.get": {"limit": 1},
    "collection.query": {"query_embeddings": [[1.0, 2.0]]},
    "collection.search": {"searches": []},
    "collections.create": {"name": "docs-1", "get_or_create": True},
    "collection.modify": {"new_metadata": {"a": 1}},
    "collection.fork": {"new_name": "docs-9"},
    "collection.attach_function": {"name": "f", "function_id": "f", "output_collection": "docs-9", "params": {}},
}
# What an admission lets pass here and Chroma would do; kept from it, as the other tests need what is there.
DESTRUCTIVE = {"reset", "tenants.create", "tenant.update", "databases.create", "database.delete", "collection.drop"}


def request(endpoint: Endpoint, ids: dict[str, str], tenant: str, database: str, collection: str) -> tuple[str, bytes]:
    path = endpoint.path.format(
        tenant=tenant,
        database=database,
        collection=collection,
        id=ids[f"{tenant}/{database}/{collection}"],
        crn=f"{tenant}:{database}:{collection}",
        name="f",
    )
    body = BODIES.get(endpoint.route)
    if endpoint.route == "collections.create":
        body = {"name": collection, "get_or_create": True}
    return path, json.dumps(body).encode() if body else b""


def expected(key: str, endpoint: Endpoint, tenant: str, database: str, collection: str) -> bool:
    """Whether a key may: said once more, in the words of the documentation."""
    role, bound = key.split("-") if "-" in key else ("admin", "")
    if endpoint.action == "public" or endpoint.path.startswith(
        ("/api/v2/version", "/api/v2/pre", "/api/v2/health", "/api/v2/auth")
    ):
        return True
    if endpoint.action == "write" and role == "reader":
        return False
    if endpoint.action == "admin" and role != "admin":
        return False
    if not bound:
        return True
    if "{" not in endpoint.path or endpoint.route == "tenant.update" or tenant != "acme":
        return False
    if bound == "acme":
        return True
    if endpoint.route in ("databases.create", "database.delete"):
        return False  # what is above its database
    if "{database}" in endpoint.path and database != "prod":
        return False
    listed = endpoint.route in ("collections.list", "collections.count", "database")
    named = "{collection}" in endpoint.path or "{id}" in endpoint.path or endpoint.route == "collections.create"
    return bound == "prod" or listed or not named or collection.startswith("docs-")


PLACES = [
    ("acme", "prod", "docs-1"),
    ("acme", "prod", "secret"),
    ("acme", "test", "docs-1"),
    ("other", "prod", "docs-1"),
]


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.route != "collection.by_crn"], ids=lambda e: e.route)
def test_every_endpoint_with_every_key_in_every_place(
    door: Door, ring: Ring, ids: dict[str, str], endpoint: Endpoint
) -> None:
    """No key: 401. A right one that may not: 403. One that may: Chroma's own answer."""
    for place in PLACES:
        path, body = request(endpoint, ids, *place)
        status, told, _ = call(door, None, endpoint.method, path, body)
        if endpoint.action == "public":
            assert status == 200
        else:
            assert (status, told["error"]) == (401, "AuthError"), place
        for name, token in ring.tokens.items():
            allowed = expected(name, endpoint, *place)
            if allowed and endpoint.route in DESTRUCTIVE:
                continue
            status, told, _ = call(door, token, endpoint.method, path, body)
            assert (status == 403) != allowed, (name, place, status, told)
            assert status != 401


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if "{id}" in e.path], ids=lambda e: e.route)
def test_a_uuid_of_another_place_is_not_there(door: Door, ring: Ring, ids: dict[str, str], endpoint: Endpoint) -> None:
    """Chroma itself looks at the UUID only, and would answer."""
    body = json.dumps(BODIES.get(endpoint.route)).encode() if endpoint.route in BODIES else b""
    foreign = [ids["other/prod/docs-1"], ids["acme/test/docs-1"], ids["acme/test/docs-1"].upper(), NOT_THERE]
    for identity in foreign:
        path = endpoint.path.format(tenant="acme", database="prod", id=identity, name="f")
        for name in ("operator", "admin-acme", "writer-prod", "writer-docs", "reader-acme"):
            status, told, _ = call(door, ring.tokens[name], endpoint.method, path, body)
            if name.startswith("reader") and endpoint.action == "write":
                assert status == 403
            else:
                assert (status, told["error"]) == (404, "NotFoundError"), (name, told)


def test_names_in_bodies(door: Door, ring: Ring, ids: dict[str, str]) -> None:
    """A key with patterns makes and renames collections within them only."""
    token = ring.tokens["writer-docs"]
    where = "/api/v2/tenants/acme/databases/prod/collections"
    status, told, _ = call(door, token, "POST", where, b'{"name": "private"}')
    assert status == 403 and "private" in told["message"]
    status, made, _ = call(door, token, "POST", where, b'{"name": "docs-new"}')
    assert status == 200
    status, _, _ = call(door, token, "PUT", f"{where}/{made['id']}", b'{"new_name": "private"}')
    assert status == 403
    status, _, _ = call(door, token, "PUT", f"{where}/{made['id']}", b'{"new_name": "docs-newer"}')
    assert status == 200
    renamed, _, _ = call(door, ring.tokens["operator"], "PUT", f"{where}/{made['id']}", b'{"new_name": "private"}')
    assert renamed == 200
    status, _, _ = call(door, token, "POST", f"{where}/{made['id']}/get", b'{"limit": 1}')
    assert status == 403  # at once: the rename went through this door
    assert call(door, ring.tokens["operator"], "DELETE", f"{where}/private")[0] == 200


def test_listings_show_what_the_key_may_touch(door: Door, ring: Ring, ids: dict[str, str]) -> None:
    where = "/api/v2/tenants/acme/databases/prod"

    def names(key: str, query: str = "") -> list[str]:
        status, rows, _ = call(door, ring.tokens[key], "GET", f"{where}/collections{query}")
        assert status == 200
        return [row["name"] for row in rows]

    assert sorted(names("reader-docs")) == ["docs-1", "docs-2"]
    assert sorted(names("reader-prod")) == ["docs-1", "docs-2", "secret"]
    assert names("reader-docs", "?limit=1") + names("reader-docs", "?limit=5&offset=1") == names("reader-docs")
    assert call(door, ring.tokens["reader-docs"], "GET", f"{where}/collections_count")[1] == 2
    assert call(door, ring.tokens["reader-prod"], "GET", f"{where}/collections_count")[1] == 3
    databases = call(door, ring.tokens["reader-prod"], "GET", "/api/v2/tenants/acme/databases")[1]
    assert [d["name"] for d in databases] == ["prod"]
    assert len(call(door, ring.tokens["reader-acme"], "GET", "/api/v2/tenants/acme/databases")[1]) == 2


def test_the_client_of_chroma_with_a_key(door: Door, ring: Ring, ids: dict[str, str]) -> None:
    """Its constructor, what it may and what it may not; and a wrong key, in all ways of sending one."""

    def client(**headers: str) -> Any:
        return chromadb.HttpClient("127.0.0.1", door.port, tenant="acme", database="prod", headers=headers)

    token = ring.tokens["writer-docs"]
    for headers in ({"x-chroma-token": token}, {"Authorization": f"Bearer {token}"}):
        mine = client(**headers)
        docs = mine.get_collection("docs-1", embedding_function=None)
        docs.upsert(ids=["new"], embeddings=[[5.0, 6.0]], metadatas=[{"a": 1}])
        assert docs.get(ids=["new"])["metadatas"] == [{"a": 1}]
        with pytest.raises(chromadb.errors.ChromaError, match="may not"):
            mine.get_collection("secret", embedding_function=None)
    settings = chromadb.Settings(
        chroma_client_auth_provider="chromadb.auth.basic_authn.BasicAuthClientProvider",
        chroma_client_auth_credentials=f"anybody:{token}",
    )
    basic = chromadb.HttpClient("127.0.0.1", door.port, tenant="acme", database="prod", settings=settings)
    assert basic.count_collections() == 2
    for headers in ({}, {"x-chroma-token": token[:-1] + ("A" if token[-1] != "A" else "B")}):
        with pytest.raises(Exception, match="key is needed"):
            client(**headers)
    identity = call(door, token, "GET", "/api/v2/auth/identity")[1]
    assert identity == {"user_id": "writer-docs", "tenant": "acme", "databases": ["prod"]}


def test_pages_that_name_what_others_have(ring: Ring, backend: Backend, open_door: Callable[..., Door]) -> None:
    """Metrics name all tenants' collections, and all keys: for a key without bounds, whatever its role."""
    pages = {"/metrics": lambda: Page(b'"all of them"'), "/_keep/status": lambda: Page(b'"none of them"')}
    door = open_door(guard=Admission(lambda: ring.ring, time.time, pages))
    token = ring.add("patterns", "reader", collections=("docs-*",))
    try:
        for name, may in (("reader-acme", 403), ("admin-acme", 403), ("reader-docs", 403), ("operator", 200)):
            assert call(door, ring.tokens[name], "GET", "/metrics")[0] == may, name
            assert call(door, ring.tokens[name], "GET", "/_keep/status")[0] == 200, name
        assert call(door, token, "GET", "/metrics")[0] == 403
        assert call(door, None, "GET", "/metrics")[0] == 401
        assert call(door, ring.add("scraper", "reader"), "GET", "/metrics")[0] == 200
    finally:
        for name in ("patterns", "scraper"):
            ring.keys.pop(name, None)
            ring.tokens.pop(name, None)
        ring.ring = Keyring(ring.keys.values())


def test_a_key_that_ends(door: Door, ring: Ring) -> None:
    """Expired or taken from the ring: the next request is refused."""
    token = ring.add("short", "admin", expires="2001-01-01T00:00:00Z")
    assert call(door, token, "GET", "/api/v2/version")[0] == 401
    token = ring.add("gone", "admin")
    assert call(door, token, "GET", "/api/v2/version")[0] == 200
    del ring.keys["gone"], ring.tokens["gone"], ring.keys["short"], ring.tokens["short"]
    ring.ring = Keyring(ring.keys.values())
    assert call(door, token, "GET", "/api/v2/version")[0] == 401


def test_a_key_that_is_given_less(door: Door, ring: Ring, ids: dict[str, str]) -> None:
    """Its next request has the new rights: a file of keys edited by hand, another token of the same person."""
    where = "/api/v2/tenants/acme/databases/prod/collections"
    token = ring.add("less", "writer", tenant="acme", collections=("docs-*",))
    assert call(door, token, "POST", where, b'{"name": "docs-1", "get_or_create": true}')[0] == 200
    try:
        for less in ({"role": "reader"}, {"tenant": "other"}):
            ring.ring = Keyring([replace(ring.keys["less"], **less)])
            assert call(door, token, "POST", where, b'{"name": "docs-1", "get_or_create": true}')[0] == 403
    finally:
        del ring.keys["less"], ring.tokens["less"]
        ring.ring = Keyring(ring.keys.values())


def test_allowances(door: Door, ring: Ring) -> None:
    """So many at a time, so often, so large: 429 with when to come again, 413; others are not touched."""
    try:
        token = ring.add("slow", "admin", rate=0.005, body=1000)  # once in 200 s: the second comes sooner
        assert call(door, token, "GET", "/api/v2/version")[0] == 200
        status, told, fields = call(door, token, "GET", "/api/v2/version")
        assert (status, told["error"]) == (429, "RateLimitError")
        assert 100 <= int(fields["retry-after"]) <= 200
        assert call(door, ring.tokens["operator"], "GET", "/api/v2/version")[0] == 200
        token = ring.add("small", "admin", body=1000)
        assert call(door, token, "POST", "/api/v2/tenants", b" " * 1001)[0] == 413
    finally:
        for name in ("slow", "small"):
            ring.keys.pop(name, None)
            ring.tokens.pop(name, None)
        ring.ring = Keyring(ring.keys.values())


def test_guessing_is_answered_later_and_later(
    server: ChromaServer, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in the end not looked at for a while, right or wrong; other keys are. Who was in before stays so: behind one
    proxy, a guesser locks nobody out."""
    monkeypatch.setattr(credentials, "_FIRST", 200.0)  # seconds: this test is over sooner
    ring.ring = Keyring(ring.keys.values())  # which no token was shown to
    door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), guard=Admission(lambda: ring.ring, time.time))
    door.start()
    try:
        wrong = ring.tokens["reader-acme"][:20] + "x" * 43
        found = [call(door, wrong, "GET", "/api/v2/version") for _ in range(7)]
        assert [status for status, _, _ in found[:5]] == [401] * 5
        assert found[-1][0] == 429 and int(found[-1][2]["retry-after"]) >= 100
        assert call(door, ring.tokens["reader-acme"], "GET", "/api/v2/version")[0] == 429
        for _ in range(2):
            assert call(door, ring.tokens["reader-prod"], "GET", "/api/v2/version")[0] == 200
            for _ in range(7):
                call(door, ring.tokens["reader-prod"][:20] + "x" * 43, "GET", "/api/v2/version")
    finally:
        door.stop(1)


def test_a_key_is_not_passed_on(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """Chroma has no use for it, and its log is not ours."""
    key, token = mint("a", "admin")
    door = open_door(guard=Admission(lambda: Keyring([key]), time.time))
    wire = knock(door)
    wire.send(f"GET /api/v2/version HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\nx-a: 1\r\n\r\n".encode())
    behind = backend.accept()
    head = behind.until()
    assert b"x-a: 1" in head and b"authorization" not in head and token.encode() not in head
    behind.send(OK)
    assert wire.until().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("framing", ["content-length: 1000000", "transfer-encoding: chunked"])
def test_who_has_no_key_has_no_body_gathered(
    framing: str, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """A heartbeat needs no key and has no body: 40 MB of each of 1,000 strangers would be kept for an engine."""
    asked: list[bytes] = []

    def answering(method: str, target: str, body: bytes, kind: str | None) -> Page:
        asked.append(body)
        return Page(b"{}")

    door = open_door(guard=Admission(lambda: Keyring([mint("a", "admin")[0]]), time.time), answering=answering)
    wire = knock(door)
    wire.send(f"GET /api/v2/heartbeat HTTP/1.1\r\nhost: h\r\n{framing}\r\n\r\n".encode())
    assert wire.answer().status == 413
    wire = knock(door)
    wire.send(b"GET /api/v2/heartbeat HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
    assert wire.answer().status == 200 and asked == [b""]


def test_an_allowance_comes_back_however_a_request_ends(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """Answered, given up by the client, or broken by the backend: one at a time is never none at all."""
    key, token = mint("a", "admin", concurrency=1)
    door = open_door(guard=Admission(lambda: Keyring([key]), time.time))
    ask = f"GET /api/v2/version HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\n\r\n".encode()
    first, other = knock(door), knock(door)
    first.send(ask)
    behind = backend.accept()
    behind.until()
    assert answer(other, ask) == 429
    first.reset()

    def serve() -> None:
        with suppress(OSError):  # it is closed at the end
            while True:
                wire = backend.accept()
                with suppress(OSError, EOFError):
                    wire.until()
                wire.close()

    threading.Thread(target=serve, daemon=True).start()
    deadline = time.monotonic() + 20
    for _ in range(2):  # the second after an answer that the backend broke off
        while (found := answer(other, ask)) == 429:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert found == 502


def answer(wire: Wire, ask: bytes) -> int:
    wire.send(ask)
    head = wire.until()
    wire.exactly(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
    return int(head[9:12])


def test_a_guard_that_fails_lets_nobody_in(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """And the connection goes on."""

    def broken() -> Keyring:
        raise RuntimeError("boom")

    told: list[str] = []
    door = open_door(guard=Admission(broken, time.time), observer=lambda event: told.append(str(event)))
    wire = knock(door)
    ask = b"GET /api/v2/version HTTP/1.1\r\nhost: h\r\nx-chroma-token: x\r\n\r\n"
    assert [answer(wire, ask) for _ in range(2)] == [500, 500]
    assert "boom" in told[0] and backend.unasked()


@pytest.mark.parametrize("write", [True, False])
def test_nothing_is_looked_up_where_it_may_not_be_yet(
    write: bool, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """An instance that has not all of the data yet says so of a UUID and of a list, and not that nothing is there."""
    key, token = mint("a", "writer", collections=("docs-*",))
    gate = Scripted(on_admit=lambda: Refusal(503, "ChromaError", "not yet", 1.0))
    options = {"gate": gate} if write else {"reads": lambda: Refusal(503, "ChromaError", "not yet", 1.0)}
    door = open_door(guard=Admission(lambda: Keyring([key]), time.time), **options)
    wire = knock(door)
    where = "/api/v2/tenants/t/databases/d/collections"
    more = f"x-chroma-token: {token}\r\n"
    listing = f"GET {where} HTTP/1.1\r\nhost: h\r\n{more}\r\n".encode()
    reading = [post(path=f"{where}/{NOT_THERE}/get", more=more), listing]
    for ask in [post(path=f"{where}/{NOT_THERE}/add", more=more)] if write else reading:
        wire.send(ask)
        answer = wire.answer()
        assert (answer.status, b"not yet" in answer.body) == (503, True)
    assert backend.unasked()


def test_a_write_that_is_held_is_looked_up_afterwards(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """So a takeover that it waits for has what the one before has made; and it is asked once more, just before."""
    key, token = mint("a", "writer")
    gate = Scripted(holds="admit")
    door = open_door(guard=Admission(lambda: Keyring([key]), time.time), gate=gate)
    wire = knock(door)
    path = f"/api/v2/tenants/t/databases/d/collections/{NOT_THERE}/add"
    wire.send(post(path=path, more=f"x-chroma-token: {token}\r\n"))
    assert gate.asked.wait(20) and backend.unasked()
    gate.go.set()
    behind = backend.accept()
    assert b"/by-id/" in behind.until()
    behind.send(b'HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{"id":"1","name":"docs"}')
    assert b"/add" in behind.until()
    behind.send(OK)
    assert wire.answer().status == 200
