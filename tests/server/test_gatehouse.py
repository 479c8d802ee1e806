"""Gatehouse: who comes in while it is not known whether there are keys, and once it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from chromakeep.access.keys import Key, Keyring, mint
from chromakeep.errors import NotNow
from chromakeep.server import Door, credentials
from chromakeep.server.cors import Cors
from chromakeep.server.gatehouse import Gatehouse
from chromakeep.server.strangers import Strangers
from server.wires import OK, Backend, Wire

ASK = b"GET /api/v2/version HTTP/1.1\r\nhost: h\r\n\r\n"


def comes_in(wire: Wire, behind: Wire) -> None:
    """What was sent reaches the backend, and is answered by it."""
    behind.until()
    behind.send(OK)
    assert wire.answer().status == 200


@pytest.mark.parametrize("closed", [True, False])
def test_keys_that_could_not_be_read_yet_let_nobody_in(
    closed: bool, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """On this machine's own address neither: a proxy may stand before it, and there may be keys."""
    rings: list[Keyring | None] = [None]
    wire = knock(open_door(guard=Gatehouse(lambda: rings[0], closed=closed)))
    wire.send(ASK)
    refused = wire.answer()
    assert refused.status == 503 and refused.fields["retry-after"] == "1"
    assert backend.unasked()
    wire.send(ASK.replace(b"version", b"heartbeat"))  # by which a platform tells whether to end it
    behind = backend.accept()
    comes_in(wire, behind)
    key, token = mint("a", "admin")
    rings[0] = Keyring([key])
    wire.send(ASK)
    assert wire.answer().status == 401
    wire.send(ASK[:-2] + f"x-chroma-token: {token}\r\n\r\n".encode())
    comes_in(wire, behind)


def test_without_any_key_it_is_open_where_it_may_be(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    wire = knock(open_door(guard=Gatehouse(Keyring, closed=False)))
    wire.send(ASK)
    comes_in(wire, backend.accept())


def test_a_token_whose_issuer_is_not_known_yet_is_not_wrong(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """However often it comes: it is let in as soon as it can be told."""
    known = list[Key]()

    def foreign(token: str, now: float) -> Key:
        if not known:
            raise NotNow("the issuer's keys cannot be read yet")
        return known[0]

    wire = knock(open_door(guard=Gatehouse(Keyring, closed=True, foreign=foreign)))
    ask = ASK[:-2] + b"authorization: Bearer a.b.c\r\n\r\n"
    for _ in range(20):
        wire.send(ask)
        assert wire.answer().status == 503
    known.append(mint("oidc.a", "reader")[0])
    wire.send(ask)
    comes_in(wire, backend.accept())


def test_who_was_in_is_not_locked_out_when_keys_are_read_anew(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one who guesses at that very key through the same proxy. A key that has ended lets nobody in."""
    monkeypatch.setattr(credentials, "_FIRST", 200.0)  # seconds: this test is over sooner
    key, token = mint("a", "reader")
    rings = [Keyring([key])]
    wire = knock(open_door(guard=Gatehouse(lambda: rings[0], closed=True)))

    def ask(shown: str) -> None:
        wire.send(ASK[:-2] + f"x-chroma-token: {shown}\r\n\r\n".encode())

    ask(token)
    behind = backend.accept()
    comes_in(wire, behind)
    for status in (*[401] * 5, 429):
        ask(token[:-4] + "AAAA")
        assert wire.answer().status == status
    rings[0] = Keyring([key, mint("b", "reader")[0]])
    ask(token)
    comes_in(wire, behind)
    rings[0] = Keyring([replace(key, revoked=key.created)])
    ask(token)
    assert wire.answer().status == 401


APP = "https://app.example.com"
STRANGERS = Strangers(Cors((APP,)), ["Keep-A.example.com"])


def asked(host: str, origin: str | None) -> bytes:
    more = f"origin: {origin}\r\n" if origin is not None else ""
    return f"POST /api/v2/reset HTTP/1.1\r\nhost: {host}\r\n{more}content-length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example.com", None),  # rebinding: the page's own name points here
        ("evil.example.com:8000", "http://evil.example.com:8000"),
        ("127.0.0.1.evil.example.com", None),
        ("localhost.evil.example.com.", None),
        ("localhost:8000", "http://evil.example.com"),  # a POST without a question before it
        ("127.0.0.1:8000", "http://localhost.evil.example.com"),
        ("127.0.0.1:8000", "https://6.6.6.6"),
        ("127.0.0.1:8000", "null"),  # a frame that hides where it is from
        ("127.0.0.1:8000", "http://[::1.evil"),
        ("127.0.0.1:8000", ""),
        ("[::1]:8000", "http://[2001:db8::1]:8000"),
    ],
)
def test_a_page_of_the_web_does_not_come_in_without_keys(
    host: str, origin: str | None, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """As it would through the browser of whoever sits at this machine."""
    wire = knock(open_door(guard=Gatehouse(Keyring, closed=False, strangers=STRANGERS)))
    wire.send(asked(host, origin))
    refused = wire.answer()
    assert refused.status == 403 and b"--open" in refused.body
    assert backend.unasked()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", None),
        ("127.0.0.1", None),
        ("[::1]:8000", None),
        ("10.0.0.7:8000", None),
        ("chroma:8000", None),
        ("chroma.localhost", None),
        ("host.docker.internal:8000", None),
        ("keep-a.example.com", None),
        ("localhost:8000", "http://localhost:3000"),
        ("localhost:8000", "http://127.0.0.1:3000"),
        ("localhost:8000", "http://[::1]:3000"),
        ("chroma:8000", "http://chroma:8000"),
        ("localhost:8000", APP),
        ("localhost:8000", "vscode-webview://1f0ffb"),
    ],
)
def test_programs_of_this_machine_and_pages_that_were_named_come_in_without_keys(
    host: str, origin: str | None, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    wire = knock(open_door(guard=Gatehouse(Keyring, closed=False, strangers=STRANGERS)))
    wire.send(asked(host, origin))
    comes_in(wire, backend.accept())


def test_with_a_key_any_name_is_one(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """No page has it."""
    key, token = mint("a", "admin")
    wire = knock(open_door(guard=Gatehouse(lambda: Keyring([key]), closed=False, strangers=STRANGERS)))
    more = f"x-chroma-token: {token}\r\ncontent-length"
    wire.send(asked("chroma.example.com", "http://other.example.com").replace(b"content-length", more.encode()))
    comes_in(wire, backend.accept())
