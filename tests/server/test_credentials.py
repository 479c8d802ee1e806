"""Credentials: what the clients of Chroma send, and what a guesser meets."""

from __future__ import annotations

import base64

import pytest

from chromakeep.server.credentials import Lock, token_of

T = "ck_0123456789abcdef_secret"
OTHER = "ck_fedcba9876543210_secret"


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer " + T.encode()),
        (b"authorization", b"bearer   " + T.encode()),
        (b"authorization", basic(f"user:{T}")),
        (b"authorization", basic(f"{T}:")),
        (b"authorization", basic(T)),
        (b"x-chroma-token", T.encode()),
        (b"x-chroma-token", b"Bearer " + T.encode()),
    ],
)
def test_what_clients_send(name: bytes, value: bytes) -> None:
    assert token_of([(b"host", b"x"), (name, value)]) == T


def test_no_token_and_no_such_thing() -> None:
    """Nothing sent is None, and what cannot be a token is one that is wrong."""
    assert token_of([(b"host", b"x")]) is None
    for value in (b"Digest " + T.encode(), T.encode(), b"Basic ***", b"Basic", b"Bearer", b"Bearer \xff", b"x" * 9000):
        assert token_of([(b"authorization", value)]) == ""


def test_two_that_differ_are_none() -> None:
    same = [(b"authorization", b"Bearer " + T.encode()), (b"x-chroma-token", T.encode())]
    assert token_of(same) == T
    assert token_of([*same, (b"x-chroma-token", OTHER.encode())]) == ""


def test_guessing_takes_longer_and_longer() -> None:
    """Five are free; then each wait is twice the one before, up to minutes; an hour without one forgets."""
    lock, now, waits = Lock(), 0.0, []
    for _ in range(20):
        assert lock.wait("peer", T, now) == 0
        lock.wrong("peer", T, now)
        waits.append(lock.wait("peer", T, now))
        now += waits[-1]
    assert waits[:7] == [0, 0, 0, 0, 1, 2, 4]
    assert waits[-1] == 300
    lock.wrong("peer", T, now + 3601)
    assert lock.wait("peer", T, now + 3601) == 0


def test_only_who_guesses_waits() -> None:
    """Others, and the same address with another key, do not: it may be a proxy."""
    lock = Lock()
    for _ in range(10):
        lock.wrong("peer", T, 0)
    assert lock.wait("peer", T, 0) > 0
    assert lock.wait("peer", T[:20] + "another guess", 0) > 0
    assert lock.wait("peer", OTHER, 0) == lock.wait("other", T, 0) == lock.wait("peer", "guess", 0) == 0


def test_a_token_of_an_issuer_waits_alone() -> None:
    """One that has expired, sent again and again, keeps nobody out who comes through the same proxy."""
    lock, body = Lock(), "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVjIn0.eyJpc3MiOiJodHRwczovL2lzc3VlciJ9"
    for _ in range(10):
        lock.wrong("proxy", f"{body}.{'a' * 86}", 0)
    assert lock.wait("proxy", f"{body}.{'a' * 86}", 0) > 0
    assert lock.wait("proxy", f"{body}.{'b' * 86}", 0) == lock.wait("proxy", "guess", 0) == 0


def test_a_guesser_of_many_names_is_bounded_in_memory() -> None:
    lock = Lock()
    for n in range(20_000):
        lock.wrong(f"peer{n}", "", 0)
    assert len(lock._wrong) == 10_000
