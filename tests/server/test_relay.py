"""Writes that go on to another door: every byte of them, with their key, once, and never where a client points."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from chromakeep.access.keys import Keyring, mint
from chromakeep.chroma.ports import free_port
from chromakeep.errors import NotNow, UsageError
from chromakeep.events import ignore
from chromakeep.operations.elsewhere import Elsewhere, Forwarding, door_at
from chromakeep.server import Door, Refusal, Request
from chromakeep.server.admission import Admission
from chromakeep.server.front import trust
from chromakeep.server.guard import Account
from chromakeep.server.limits import BUFFER
from chromakeep.server.relay import Relay
from chromakeep.server.tracing import Tracing
from server.certificates import Authority
from server.wires import OK, Backend, C, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]


class Standing:
    """A gate that takes no write here."""

    async def admit(self, request: Request) -> Refusal | None:
        return Refusal(503, "ChromaError", "this one stands by", 1.0)

    async def acknowledge(self, request: Request) -> Refusal | None:
        raise AssertionError("it was not admitted")


class Where:
    """The lease, for a test."""

    def __init__(self) -> None:
        self.at: Elsewhere | None = None
        self.why: NotNow | None = None

    def relay(self, context: ssl.SSLContext | None = None) -> Relay:
        return Relay(lambda: self.at, context or ssl.create_default_context(), lambda: self.why, ignore)


@pytest.fixture
def holder() -> Iterator[Backend]:
    """What listens where the lease points to."""
    one = Backend()
    yield one
    one.close()


@pytest.fixture
def where(holder: Backend) -> Where:
    one = Where()
    one.at = door_at(f"http://127.0.0.1:{holder.address[1]}", 7)
    return one


def test_a_write_goes_on_whole_and_a_read_does_not(
    backend: Backend, holder: Backend, where: Where, open_door: Open, knock: Knock
) -> None:
    """Byte for byte what the client sent, the key too, marked, under the name of the other; its answer comes back."""
    door = open_door(gate=Standing(), relay=where.relay())
    assert where.at
    client = knock(door)
    more = "authorization: Bearer abc\r\nX-Chroma-Token: abc\r\nx-forwarded-for: 1.2.3.4\r\ntraceparent: 00-1\r\n"
    client.send(post(b'{"ids":["a"]}', more=more))
    there = holder.accept()
    lines = there.until().decode().split("\r\n")
    assert lines[0] == f"POST {C}/add HTTP/1.1"
    assert sorted(lines[1:-2]) == [
        "authorization: Bearer abc",
        "chromakeep-forwarded: 1",
        "content-length: 13",
        f"host: {where.at.authority.decode()}",
        "traceparent: 00-1",
        "x-chroma-token: abc",
    ]
    assert there.exactly(13) == b'{"ids":["a"]}'
    there.send(b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\nx-of: theirs\r\n\r\ntrue")
    answer = client.answer()
    assert (answer.status, answer.body, answer.fields["x-of"]) == (201, b"true", "theirs")
    backend.serve(OK)
    client.send(post(b"{}", path=f"{C}/get"))
    assert client.answer().body == b"ok"
    client.send(post(more="connection: x-secret\r\nx-secret: 1\r\n"))  # over the same connection as the first
    assert b"x-secret" not in there.until()


def test_the_span_of_this_door_is_the_parent_of_the_other_ones(
    holder: Backend, where: Where, open_door: Open, knock: Knock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is of Chroma's: the client's own context does not go on beside it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    tracing, spans = Tracing(), list[str]()

    class Kept:
        def begun(self, account: Account) -> None:
            tracing.begun(account)
            spans.append(format(account.span.get_span_context().span_id, "016x"))

        def ended(self, account: Account, now: float) -> None:
            tracing.ended(account, now)

    client = knock(open_door(gate=Standing(), relay=where.relay(), ledger=Kept()))
    trace, state = "0af7651916cd43dd8448eb211c80319c", "vendor=1"
    more = f"traceparent: 00-{trace}-b7ad6b7169203331-01\r\ntracestate: {state}\r\nauthorization: Bearer a\r\n"
    client.send(post(more=more))
    there = holder.accept()
    lines = there.until().decode().split("\r\n")
    assert sorted(line for line in lines if line.startswith("trace")) == [
        f"traceparent: 00-{trace}-{spans[0]}-01",
        f"tracestate: {state}",
    ]
    assert {"chromakeep-forwarded: 1", "authorization: Bearer a"} <= set(lines)
    there.send(b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\ntrue")
    assert client.answer().status == 201
    client.send(post())  # of a trace that begins here
    sent = there.until().decode()
    assert f"-{spans[1]}-0" in sent
    there.send(b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\ntrue")
    assert client.answer().status == 201
    tracing.close()


def test_a_large_body_streams(holder: Backend, where: Where, open_door: Open, knock: Knock) -> None:
    """What has come of it is there before the rest is sent; no end of it is lost."""
    door = open_door(gate=Standing(), relay=where.relay())
    client = knock(door)
    client.send(f"POST {C}/add HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    client.send(b"3\r\nabc\r\n")
    there = holder.accept()
    assert b"transfer-encoding: chunked" in there.until()
    assert there.exactly(8) == b"3\r\nabc\r\n"  # and the rest was not sent yet
    size = 64 * BUFFER
    rest = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
    threading.Thread(target=client.send, args=(rest,), daemon=True).start()
    assert there.chunks() == b"x" * size
    there.send(OK)
    assert client.answer().status == 200


@pytest.mark.parametrize("mark", ["chromakeep-forwarded: 1", "ChromaKeep-Forwarded: 0"])
def test_no_circle(where: Where, open_door: Open, knock: Knock, mark: str) -> None:
    """Two that take each other for the holder: one step, then 503. Whoever marks a write himself gets that at once."""
    other = Where()
    one, two = open_door(gate=Standing(), relay=other.relay()), open_door(gate=Standing(), relay=where.relay())
    other.at, where.at = door_at(f"http://127.0.0.1:{two.port}"), door_at(f"http://127.0.0.1:{one.port}")
    client = knock(one)
    for request in (post(), post(more=f"{mark}\r\n")):
        client.send(request)
        answer = client.answer()
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")


def test_the_mark_does_not_reach_chroma(backend: Backend, open_door: Open, knock: Knock) -> None:
    client = knock(open_door())
    client.send(post(more="chromakeep-forwarded: 1\r\n"))
    assert b"forwarded" not in backend.accept().until()


def test_what_cannot_go_on_is_refused_as_before(where: Where, holder: Backend, open_door: Open, knock: Knock) -> None:
    """No holder known, none that listens, an audit log that cannot be written: 503 of the gate, nothing was sent."""
    door = open_door(gate=Standing(), relay=where.relay())
    where.why = NotNow("the audit log is full")
    for at in (where.at, None, door_at(f"http://127.0.0.1:{free_port()}")):
        where.at = at
        client = knock(door)
        client.send(post())
        answer = client.answer()
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")
        assert b"this one stands by" in answer.body
        where.why = None
    assert holder.unasked()


def test_what_is_held_goes_to_whoever_takes_writes_then(
    where: Where, holder: Backend, backend: Backend, open_door: Open, knock: Knock
) -> None:
    """Nobody listens where the lease points to; while the gate holds the write, another one takes over, or this one
    does: then its own gate acknowledges. A third reign whose holder is away, too, is asked and then refused."""
    nobody = door_at(f"http://127.0.0.1:{free_port()}", 1)
    there = where.at

    def move(at: Elsewhere | None, refused: Refusal | None) -> Callable[[], Refusal | None]:
        def moved() -> Refusal | None:
            where.at = at
            return refused

        return moved

    refused = Refusal(503, "ChromaError", "this one stands by", 1.0)
    gate = Scripted()
    door = open_door(gate=gate, relay=where.relay())
    for then, taking in ((move(there, refused), holder), (move(None, None), backend)):
        where.at, gate.on_admit = nobody, then
        client = knock(door)
        client.send(post())
        wire = taking.accept()
        assert (b"chromakeep-forwarded" in wire.until()) == (taking is holder)
        wire.send(OK)
        assert client.answer().status == 200
    assert len(gate.admitted) == 2
    assert len(gate.acknowledged) == 1
    where.at, gate.on_admit = None, move(there, refused)  # while nobody takes writes, so far as is known
    client = knock(door)
    client.send(post())
    wire = holder.accept()
    assert b"chromakeep-forwarded" in wire.until()
    wire.send(OK)
    assert client.answer().status == 200
    where.at = nobody
    gate.on_admit = move(replace(nobody, epoch=2), refused)
    client = knock(door)
    client.send(post())
    assert client.answer().status == 503
    assert holder.unasked()


def test_an_answer_that_does_not_come_is_not_503(where: Where, holder: Backend, open_door: Open, knock: Knock) -> None:
    """Cut before the answer, or an answer that is none: 502, for it may have been done; a kept connection as well."""
    door = open_door(gate=Standing(), relay=where.relay())
    client = knock(door)
    for words in (b"", b"HTTP/1.1 201 Created\r\ncontent-le", b"SMTP ready\r\n\r\n"):
        client.send(post())
        there = holder.accept()
        there.until()
        there.send(words)
        there.close()
        answer = client.answer()
        assert answer.status == 502
        assert b"may " in answer.body
    client.send(post())
    there = holder.accept()
    there.until()
    there.send(OK)
    assert client.answer().status == 200
    client.send(post())
    there.until()  # the same connection
    there.reset()
    assert client.answer().status == 502


def test_a_connection_that_was_idle_for_long_is_not_used(
    where: Where, holder: Backend, open_door: Open, knock: Knock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side, or what lies between, may be closing it just then."""
    door = open_door(gate=Standing(), relay=where.relay())
    client = knock(door)
    for fresh in (60.0, 0.0):
        monkeypatch.setattr("chromakeep.server.upstream.FRESH", fresh)
        client.send(post())
        there = holder.accept()
        there.until()
        there.send(OK)
        assert client.answer().status == 200
    assert holder.unasked()


def test_what_waits_for_a_frozen_holder_ends_with_its_reign(
    where: Where, holder: Backend, open_door: Open, knock: Knock
) -> None:
    """It accepts and says nothing; another one takes over, and from then on writes go there."""
    door = open_door(gate=Standing(), relay=where.relay())
    client, idle = knock(door), knock(door)
    client.send(post())
    holder.accept().until()
    assert client.silent()
    after = Backend()
    where.at = door_at(f"http://127.0.0.1:{after.address[1]}", 8)
    assert client.answer().status == 502
    for wire in (client, idle):
        wire.send(post())
    for _ in range(2):
        there = after.accept()
        there.until()
        there.send(OK)
    assert client.answer().status == idle.answer().status == 200
    after.close()


def test_both_doors_ask_for_the_key(where: Where, holder: Backend, backend: Backend, open_door: Open) -> None:
    """Without one, or without the right to it: nothing goes on. What is let in goes on with it. A collection that is
    not known here yet may be one made a moment ago there; if it cannot go there after all it is not done here."""
    (operator, may), (reading, may_not) = mint("operator", "admin"), mint("reader", "reader")
    ring = Keyring([operator, reading])
    guard = Admission(lambda: ring, time.time)
    door = open_door(gate=Standing(), relay=where.relay(), guard=guard)
    backend.serve(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}")

    def knocked(token: str) -> Wire:
        wire = Wire(socket.create_connection(("127.0.0.1", door.port)))
        path = C.rpartition("/")[0] + "/0e7c3c3e-8a53-4d5e-9a0e-6d1c3e1f5b11/add"
        wire.send(post(path=path, more=f"x-chroma-token: {token}\r\n" if token else ""))
        return wire

    for token, status in (("", 401), ("ck_wrong", 401), (may_not, 403)):
        wire = knocked(token)
        assert wire.answer().status == status
        wire.close()
    assert holder.unasked()
    wire = knocked(may)
    there = holder.accept()
    assert f"x-chroma-token: {may}".encode() in there.until()
    there.send(OK)
    assert wire.answer().status == 200
    wire.close()
    where.at = door_at(f"http://127.0.0.1:{free_port()}")
    wire = knocked(may)
    answer = wire.answer()
    assert (answer.status, b"cannot be reached" in answer.body) == (503, True)
    wire.close()


@pytest.mark.parametrize("known", [True, False])
def test_over_tls_the_other_one_has_to_be_who_it_is(
    where: Where, open_door: Open, knock: Knock, backend: Backend, tmp_path: Path, known: bool
) -> None:
    """Its certificate is one of the given authority, or nothing is sent: 503."""
    authority = Authority(tmp_path)
    trusted = authority if known else Authority(tmp_path, "another")
    backend.serve()
    taking = open_door(tls=authority.tls())
    where.at = door_at(f"https://localhost:{taking.port}")
    door = open_door(gate=Standing(), relay=where.relay(trust(Forwarding("", trusted.file))))
    client = knock(door)
    client.send(post(b"x" * 100_000))
    assert client.answer().status == (200 if known else 503)
    assert known or backend.unasked()


def test_what_a_lease_may_say() -> None:
    """A door's URL and nothing more."""
    for good, host, port in (
        ("http://a:8000", "a", 8000),
        ("https://keep.example.com/", "keep.example.com", 443),
        ("http://[fd00::1]:80", "fd00::1", 80),
    ):
        at = door_at(good, 3)
        assert (at.host, at.port, at.epoch, at.secure) == (host, port, 3, good.startswith("https"))
    bad = [
        "",
        "a:8000",
        "ftp://a",
        "http://",
        "http://a:0",
        "http://a:65536",
        "http://u:p@a",
        "http://a/b",
        "http://a?b",
    ]
    for url in [*bad, "http://a\r\nx: y", "http://a b", "http://-a", "http://" + "a" * 400, "http://ä"]:
        with pytest.raises(UsageError):
            door_at(url)
    with pytest.raises(UsageError, match="no certificate"):
        trust(Forwarding("", Path(__file__)))
