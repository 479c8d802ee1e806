"""What a real Chroma makes of a path: whatever it serves, the rights were asked for just that."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
from collections.abc import Iterator

import pytest

from chromakeep.access.rights import ENDPOINTS, NO_ROUTE, call_of
from chromakeep.chroma.server import ChromaServer

DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with ChromaServer(tmp_path_factory.mktemp("rights") / "data", env=dict(os.environ)) as server:
        yield server.options.port


@pytest.fixture(scope="module")
def identity(port: int) -> str:
    """Of the only collection there is, ``docs``."""
    answer = ask(port, "POST", f"{DATABASE}/collections", b'{"name": "docs"}')[1]
    return str(json.loads(answer)["id"])


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body; the path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (http.client.HTTPException, ConnectionError):
        return 0, b""
    finally:
        connection.close()


def test_all_that_chroma_says_it_has_is_in_the_table(port: int) -> None:
    """Its own OpenAPI description, and the routes that it has beside that."""
    described = json.loads(ask(port, "GET", "/openapi.json")[1])["paths"]

    def shape(path: str) -> str:
        return re.sub(r"\{[^}]*\}", "{}", path)

    theirs = {(m.upper(), shape(p)) for p, methods in described.items() for m in methods if p.startswith("/api/v2")}
    assert len(theirs) > 30
    assert theirs <= {(e.method, shape(e.path)) for e in ENDPOINTS}


def forms(text: str) -> list[str]:
    """One part of a path, written in ways that some program might take for the same."""
    every = "".join(f"%{b:02x}" for b in text.encode())
    found = [text, text.upper(), text.capitalize(), every, every.upper(), f"%{ord(text[0]):02X}{text[1:]}"]
    found += [f"{text}{end}" for end in ("/", "//", "/.", "/../" + text, ";x", "%00", "%20", ".", "?x=1", "%3Fx", "#x")]
    found += [f"{start}{text}" for start in ("/", "./", "../collections/", "%2e/", "%2F", "%20", "x/../")]
    return [*found, text.replace("o", "%6f"), f"%25{ord(text[0]):02x}{text[1:]}"]


def test_what_chroma_counts_was_asked_for_as_that_collection(port: int, identity: str) -> None:
    dashless = identity.replace("-", "")
    ids = [
        *forms(identity), dashless, dashless.upper(), f"{{{identity}}}", f"%7b{identity}%7D", f"urn:uuid:{identity}",
        f"URN:UUID:{identity}", f"uuid:{identity}", f"{{{dashless}}}", f"{dashless[:16]}-{dashless[16:]}",
        f"({identity})", f"urn:uuid:{dashless}", f"by-id/{identity}", "docs",
    ]  # fmt: skip
    served = 0
    for one, verb in itertools.product(ids, ("count", "%63ount", "Count", "count/")):
        path = f"{DATABASE}/collections/{one}/{verb}"
        status, body = ask(port, "GET", path)
        call = call_of("GET", path.partition("?")[0])
        if status == 200 and body.isdigit():
            served += 1
            assert (call.route, call.id) == ("collection.count", identity), path
        elif call.route == "collection.count":
            assert status in (200, 400), path  # what we take for an id is no name of something else
    assert served >= 7


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_chroma_shows_by_name_was_asked_for_by_that_name(port: int, identity: str, method: str) -> None:
    served = 0
    for folder in (f for f in forms("collections") if not set(f) & set("?#")):
        for one in [*forms("docs"), f"by-id/{identity}", f"by-id/{identity.upper()}"]:
            path = f"{DATABASE}/{folder}/{one}"
            status, body = ask(port, method, path)
            call = call_of(method, path.partition("?")[0])
            if status == 200 and (method == "HEAD" or body.startswith(b"{")):
                served += 1
                if "#" in path:  # at which Chroma cuts it off
                    assert call == NO_ROUTE, path
                else:
                    assert call.route in ("collection", "collection.by_id"), path
                    assert (call.collection, call.id) in (("docs", None), (None, identity)), path
    assert served >= 5


def test_tenant_and_database_are_the_ones_that_chroma_takes(port: int, identity: str) -> None:
    """A list of collections that holds ours was asked for in the tenant and database where it is."""
    served = 0
    for tenant, database in itertools.product(forms("default_tenant"), forms("default_database")):
        path = f"/api/v2/tenants/{tenant}/databases/{database}/collections"
        if "?" in path or "#" in path:
            continue
        status, body = ask(port, "GET", path)
        if status == 200 and identity.encode() in body:
            served += 1
            call = call_of("GET", path)
            assert (call.route, call.tenant, call.database) == (
                "collections.list",
                "default_tenant",
                "default_database",
            ), path
    assert served >= 9
