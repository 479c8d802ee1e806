"""Gatehouse: who comes in while it is not known whether there are keys, and once it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from chromakeep.access.keys import Key, Keyring, mint
from chromakeep.errors import NotNow
from chromakeep.server import Door
from chromakeep.server.gatehouse import Gatehouse
from server.wires import OK, Backend, Wire

ASK = b"GET /api/v2/version HTTP/1.1\r\nhost: h\r\n\r\n"


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
    behind.until()
    behind.send(OK)
    assert wire.answer().status == 200
    key, token = mint("a", "admin")
    rings[0] = Keyring([key])
    wire.send(ASK)
    assert wire.answer().status == 401
    wire.send(ASK[:-2] + f"x-chroma-token: {token}\r\n\r\n".encode())
    behind.until()
    behind.send(OK)
    assert wire.answer().status == 200


def test_without_any_key_it_is_open_where_it_may_be(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    wire = knock(open_door(guard=Gatehouse(Keyring, closed=False)))
    wire.send(ASK)
    behind = backend.accept()
    behind.until()
    behind.send(OK)
    assert wire.answer().status == 200


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
    behind = backend.accept()
    behind.until()
    behind.send(OK)
    assert wire.answer().status == 200


def test_who_was_in_is_not_locked_out_when_keys_are_read_anew(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """By one who guesses at that very key through the same proxy. A key that has ended lets nobody in."""
    key, token = mint("a", "reader")
    rings = [Keyring([key])]
    wire = knock(open_door(guard=Gatehouse(lambda: rings[0], closed=True)))

    def ask(shown: str) -> None:
        wire.send(ASK[:-2] + f"x-chroma-token: {shown}\r\n\r\n".encode())

    ask(token)
    behind = backend.accept()
    behind.until()
    behind.send(OK)
    assert wire.answer().status == 200
    for status in (*[401] * 5, 429):
        ask(token[:-4] + "AAAA")
        assert wire.answer().status == status
    rings[0] = Keyring([key, mint("b", "reader")[0]])
    ask(token)
    behind.until()
    behind.send(OK)
    assert wire.answer().status == 200
    rings[0] = Keyring([replace(key, revoked=key.created)])
    ask(token)
    assert wire.answer().status == 401
