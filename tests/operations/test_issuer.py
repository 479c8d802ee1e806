"""Tokens of an OpenID Connect provider: which give a key and which do not. The provider is a real HTTP server."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from chromakeep.access.claims import key_of
from chromakeep.errors import NotNow, UsageError
from chromakeep.events import Event
from chromakeep.operations import issuer as module
from chromakeep.operations.issuer import Issuer, OidcSettings

RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


class Provider:
    """Tells its keys, and counts how often it was asked for them, and where they are."""

    def __init__(self) -> None:
        self.asked = self.visits = 0
        self.broken = False
        self.keys = [jwk("rsa", RSA, "RS256"), jwk("ec", EC, "ES256"), jwk("ed", ED, "EdDSA")]
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/.well-known/openid-configuration":
                    provider.visits += 1
                    told: Any = {"issuer": provider.issuer, "jwks_uri": f"{provider.issuer}/keys"}
                else:
                    provider.asked += 1
                    told = {"keys": provider.keys}
                body = b"nonsense" if provider.broken else json.dumps(told).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def jwk(kid: str, key: Any, algorithm: str) -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": kid, "use": "sig", "alg": algorithm}


@pytest.fixture
def provider() -> Iterator[Provider]:
    one = Provider()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def issuer(provider: Provider, told: list[Event], monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    monkeypatch.setattr(module, "AGAIN", 0.05)
    one = Issuer(OidcSettings(provider.issuer, "chroma"), told.append)
    one.start()
    yield one
    one.stop()


def token(provider: Provider, key: Any = RSA, kid: str = "rsa", algorithm: str = "RS256", **claims: Any) -> str:
    usual = {
        "iss": provider.issuer,
        "aud": "chroma",
        "sub": "auth0|1234",
        "exp": int(time.time()) + 600,
        "chromakeep_role": "writer",
        "chromakeep_tenant": "acme",
        "chromakeep_collections": ["docs-*"],
    }
    whole = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(whole, key, algorithm, headers={"kid": kid})


def test_a_token_is_a_key(provider: Provider, issuer: Issuer) -> None:
    """Of each kind of signature, with the rights that its claims say."""
    for key, kid, algorithm in ((RSA, "rsa", "RS256"), (EC, "ec", "ES256"), (ED, "ed", "EdDSA")):
        found = issuer.key(token(provider, key, kid, algorithm), time.time())
        assert found
        assert (found.name, found.role, found.tenant, found.database) == ("oidc.auth0-1234", "writer", "acme", None)
        assert found.collections == ("docs-*",)
    listed = issuer.key(token(provider, chromakeep_collections="a-*, b"), time.time())
    assert listed and listed.collections == ("a-*", "b")
    limits = {"chromakeep_rate": 5, "chromakeep_concurrency": "8", "chromakeep_body": 1000.0, "chromakeep_time": "2.5"}
    limited = issuer.key(token(provider, **limits), time.time())
    assert limited and (limited.rate, limited.concurrency, limited.body, limited.time) == (5.0, 8, 1000, 2.5)
    again = token(provider)
    assert issuer.key(again, time.time()) is issuer.key(again, time.time())


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://elsewhere.example.com"},
        {"aud": "another"},
        {"aud": None},
        {"iss": None},
        {"exp": None},
        {"exp": 1_000_000_000},
        {"nbf": 9_000_000_000},
        {"sub": None},
        {"chromakeep_role": None},
        {"chromakeep_role": "owner"},
        {"chromakeep_tenant": 5},
        {"chromakeep_tenant": ""},
        {"chromakeep_rate": "many"},
        {"chromakeep_rate": -1},
        {"chromakeep_concurrency": 1.5},
        {"chromakeep_body": True},
        {"chromakeep_time": "10s"},
        {"chromakeep_time": [10]},
        {"chromakeep_collections": {"a": 1}},
        {"chromakeep_collections": [1]},
        {"chromakeep_role": "admin", "chromakeep_collections": ["x"]},
    ],
)
def test_claims_that_give_nothing(provider: Provider, issuer: Issuer, claims: dict[str, Any]) -> None:
    assert issuer.key(token(provider, **claims), time.time()) is None


def test_signatures_that_are_none(provider: Provider, issuer: Issuer) -> None:
    """Another's key, another algorithm than the key's, the public key as a secret, none at all, a changed claim."""
    now = time.time()
    good = token(provider)
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "chromakeep_role": "admin"}).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"rsa"}').rstrip(b"=").decode()
    public = RSA.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    confused = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa"}').rstrip(b"=").decode()
    mac = hmac.digest(public, f"{confused}.{body}".encode(), "sha256")
    secret = f"{confused}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    for bad in (
        token(provider, OTHER),
        token(provider, RSA, "ec"),
        token(provider, RSA, "rsa", "RS512"),
        token(provider, EC, "rsa", "ES256"),
        secret,
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{head}.{forged}.{signature}",
        f"{head}.{body}.",
        "a.b.c",
        "..",
        f"{head}.{body}.{signature}"[:-4],
    ):
        assert issuer.key(bad, now) is None
    assert issuer.key(good, now)


def test_a_token_ends(provider: Provider, issuer: Issuer) -> None:
    """Also one that was believed before."""
    now = time.time()
    short = token(provider, exp=int(now) + 100)
    assert issuer.key(short, now)
    assert issuer.key(short, now + 100) is None or now + 100 < int(now) + 100 + module.LEEWAY
    assert issuer.key(short, now + 100 + module.LEEWAY + 1) is None


def test_clocks_may_differ_by_what_is_documented(provider: Provider, issuer: Issuer) -> None:
    """A token counts before its time, by so much and no more."""
    reference = (Path(__file__).parent.parent.parent / "docs" / "reference.md").read_text()
    assert f"Clocks may differ\nby {module.LEEWAY:g} seconds" in reference
    now = time.time()
    for claims in ({"nbf": now + module.LEEWAY - 1}, {"iat": now + module.LEEWAY - 1}):
        assert issuer.key(token(provider, **claims), now)
    for claims in ({"nbf": now + 10_000}, {"iat": now + 10_000}, {"exp": int(now) - 10_000}):
        assert issuer.key(token(provider, **claims), now) is None


def test_keys_that_change(provider: Provider, issuer: Issuer, told: list[Event]) -> None:
    """A new one is asked for when a token names it; one that cannot be read leaves those that were."""
    fresh = token(provider, OTHER, "new")
    provider.keys = [*provider.keys, jwk("new", OTHER, "RS256")]
    deadline = time.monotonic() + 20
    while issuer.key(fresh, time.time()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    provider.broken = True

    def until(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            issuer.key(token(provider, OTHER, "newer"), time.time())
            assert time.monotonic() < deadline
            time.sleep(0.01)

    until(lambda: told)
    assert "cannot be read" in str(told[0])
    asked, visits = provider.asked, provider.visits  # from here on no look began before it was broken
    until(lambda: provider.visits > visits + 1)
    assert provider.asked == asked
    assert issuer.key(token(provider), time.time())


def test_a_token_that_was_believed_ends_with_its_key(provider: Provider, issuer: Issuer) -> None:
    """As soon as the issuer's keys were read without that one, not when the token is looked at again some day."""
    old = token(provider)
    assert issuer.key(old, time.time())
    fresh = token(provider, OTHER, "new")
    provider.keys = [jwk("new", OTHER, "RS256")]
    deadline = time.monotonic() + 20
    while issuer.key(fresh, time.time()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert issuer.key(old, time.time()) is None


def test_before_its_keys_are_known_no_token_is_a_wrong_one(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is told that; and by that they are looked for again."""
    monkeypatch.setattr(module, "AGAIN", 0.05)
    provider.broken = True
    one = Issuer(OidcSettings(provider.issuer, "chroma"), lambda event: None)
    one.start()
    with pytest.raises(NotNow):
        one.key(token(provider), time.time())
    provider.broken = False
    found, deadline = None, time.monotonic() + 20
    while found is None and time.monotonic() < deadline:
        time.sleep(0.01)
        with suppress(NotNow):
            found = one.key(token(provider), time.time())
    one.stop()
    assert found and found.role == "writer"


def test_keys_are_read_again_after_any_failure(
    provider: Provider, issuer: Issuer, told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ours, or of a library over what it was sent: were the thread gone, a key that was withdrawn would count for
    ever."""
    read, failures = issuer._read, list[int]()

    def broken() -> dict[str, Any]:
        failures.append(1)
        if len(failures) == 1:
            raise RuntimeError("a fault")
        return read()

    monkeypatch.setattr(issuer, "_read", broken)
    provider.keys = [jwk("new", OTHER, "RS256")]
    deadline = time.monotonic() + 20
    while issuer.key(token(provider, OTHER, "new"), time.time()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "a fault" in str(told[0])
    assert issuer.key(token(provider), time.time()) is None  # withdrawn


def test_before_its_keys_were_read_nobody_knows_who_a_token_is(
    provider: Provider, told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An issuer that is away at the start is no client's fault, who would take a refusal as final. Later on an unknown
    key is one."""
    monkeypatch.setattr(module, "AGAIN", 0.05)
    provider.broken = True
    issuer = Issuer(OidcSettings(provider.issuer, "chroma"), told.append)
    issuer.start()
    try:
        with pytest.raises(NotNow, match="cannot be read yet"):
            issuer.key(token(provider), time.time())
        provider.broken = False
        deadline = time.monotonic() + 20
        found = None
        while found is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            with suppress(NotNow):
                found = issuer.key(token(provider), time.time())
        assert issuer.key(token(provider, OTHER, "other"), time.time()) is None
    finally:
        issuer.stop()


def test_an_issuer_must_be_asked_securely() -> None:
    for wrong in ("http://issuer.example.com", "issuer.example.com", "https://", "ftp://127.0.0.1", "https://h/?a=1"):
        with pytest.raises(UsageError):
            OidcSettings(wrong, "chroma")
    OidcSettings("https://issuer.example.com/realm", "chroma")


def test_a_subject_of_any_letters_is_a_name() -> None:
    claims = {"iss": "i", "sub": "é" * 200 + "\n", "exp": 2_000_000_000, "x_role": "reader"}
    found = key_of(claims, "x_")
    assert found and found.name.startswith("oidc.") and len(found.name) <= 64 and found.name.isascii()
    assert key_of({**claims, "exp": 1e300}, "x_") is None
