"""An engine in the door's own process: whole bodies reach it, one thread each, and its answers leave as others do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from chromakeep.server import Door, Page, Refusal, inside
from chromakeep.server.api import answer
from chromakeep.server.limits import Limits
from server.wires import C, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]
FOUND = Page(b'{"found":1}')


class Told:
    """An answering that remembers what it was asked, and waits where it is told to."""

    def __init__(self, page: Page = FOUND) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.page = page
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, method: str, target: str, body: bytes, kind: str | None) -> Page:
        self.asked.append((method, target, body))
        self.begun.set()
        assert self.go.wait(20)
        if body == b"fail":
            raise RuntimeError("never, by its promise")
        return self.page


def test_whole_bodies_reach_it_however_they_were_framed(open_door: Open, knock: Knock) -> None:
    """In pieces, in chunks, or none; the requests of a connection one after the other."""
    told = Told()
    client = knock(open_door(answering=told))
    head = f"POST {C}/query HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    client.send(post(b"x" * 200_000) + head + b"3\r\nabc\r\n")
    assert client.answer("POST").body == b'{"found":1}'
    client.send(b"2\r\nde\r\n0\r\n\r\nGET /api/v2/version HTTP/1.1\r\nhost: h\r\n\r\n")
    answers = [client.answer("POST"), client.answer()]
    assert [one.body for one in answers] == [b'{"found":1}'] * 2
    assert told.asked == [
        ("POST", f"{C}/add", b"x" * 200_000),
        ("POST", f"{C}/query", b"abcde"),
        ("GET", "/api/v2/version", b""),
    ]


def test_its_status_and_fields_are_told(open_door: Open, knock: Knock) -> None:
    """Retry-After with whole seconds; HEAD has the length of what GET would have."""
    told = Told(Page(b'{"error":"ChromaError","message":"no"}', status=503, retry_after=0.3))
    client = knock(open_door(answering=told))
    client.send(b"HEAD /api/v2/version HTTP/1.1\r\nhost: h\r\n\r\n" + post())
    first, second = client.answer("HEAD"), client.answer("POST")
    assert first.status == second.status == 503
    assert first.fields["content-length"] == str(len(told.page.body)) == second.fields["content-length"]
    assert second.fields["retry-after"] == "1" and second.fields["content-type"] == "application/json"
    assert (first.body, second.body) == (b"", told.page.body)


def test_a_body_without_end_is_not_gathered(open_door: Open, knock: Knock) -> None:
    told = Told()
    client = knock(open_door(answering=told, limits=Limits(body_bytes=100_000)))
    client.send(f"POST {C}/add HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    client.send(b"186A1\r\n" + b"x" * 100_001 + b"\r\n")
    assert client.answer("POST").status == 413
    assert told.asked == []


def test_an_answer_is_held_until_it_is_acknowledged(open_door: Open, knock: Knock) -> None:
    gate = Scripted(holds="acknowledge")
    told = Told()
    client = knock(open_door(answering=told, gate=gate))
    client.send(post())
    assert gate.asked.wait(20) and told.asked
    assert client.silent()
    gate.go.set()
    assert client.answer("POST").body == told.page.body


def test_what_the_gate_refuses_never_reaches_it(open_door: Open, knock: Knock) -> None:
    told = Told()
    refused = Refusal(503, "ChromaError", "not now", retry_after=1.0)
    client = knock(open_door(answering=told, gate=Scripted(on_admit=lambda: refused)))
    client.send(post())
    assert client.answer("POST").status == 503
    assert told.asked == []


def test_a_client_that_goes_away_takes_nobody_with_it(open_door: Open, knock: Knock) -> None:
    """The thread ends its work, and others are served meanwhile and afterwards."""
    told = Told()
    told.go.clear()
    door = open_door(answering=told, threads=2)
    client = knock(door)
    client.send(post(b"slow"))
    assert told.begun.wait(20)
    client.socket.close()
    told.go.set()
    other = knock(door)
    for _ in range(3):
        other.send(post(b"next"))
        assert other.answer("POST").status == 200
    assert told.asked[0][2] == b"slow"


def test_what_waits_too_long_for_its_turn_is_not_done(
    open_door: Open, knock: Knock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After; its connection is good for the next one."""
    told = Told()
    told.go.clear()
    door = open_door(answering=told, threads=1)
    first, second = knock(door), knock(door)
    first.send(post(b"slow"))
    assert told.begun.wait(20)
    with monkeypatch.context() as hasty:  # for this one only: others have all the time that a thread may need
        hasty.setattr(inside, "PATIENCE", 0.1)
        second.send(post(b"late"))
        refused = second.answer("POST")
    assert (refused.status, refused.fields["retry-after"]) == (503, "1")
    told.go.set()
    assert first.answer("POST").status == 200
    second.send(post(b"next"))
    assert second.answer("POST").status == 200
    assert [body for _, _, body in told.asked] == [b"slow", b"next"]


@pytest.mark.parametrize("target", ["", "/heartbeat?x", "/version", "/pre-flight-checks", "/auth/identity"])
def test_what_asks_no_engine_waits_for_no_thread(open_door: Open, knock: Knock, target: str) -> None:
    """While all threads wait for a lock a probe of liveness must not end the instance."""
    told = Told()
    told.go.clear()
    door = open_door(
        answering=lambda method, *rest: told(method, *rest) if method == "POST" else answer(None, method, *rest),
        threads=1,
    )
    slow, probe = knock(door), knock(door)
    slow.send(post(b"slow"))
    assert told.begun.wait(20)
    for method in ("GET", "HEAD"):
        probe.send(f"{method} /api/v2{target} HTTP/1.1\r\nhost: h\r\n\r\n".encode())
        assert probe.answer(method).status == 200
    told.go.set()
    assert slow.answer("POST").status == 200


def test_a_failure_of_ours_is_an_answer(open_door: Open, knock: Knock) -> None:
    """By its promise it never raises; should it, the client is told that a write may have been done."""
    client = knock(open_door(answering=Told()))
    client.send(post(b"fail"))
    assert client.answer("POST").status == 502
