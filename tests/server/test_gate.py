"""The gate: what is asked, when, and that nothing of a write's answer leaves before it has spoken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from chromakeep.events import Event
from chromakeep.server import Door, Page, Refusal
from server.wires import GET, OK, Backend, C, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]
STANDBY = Refusal(503, "ChromaError", "this is a standby", retry_after=1.2)
# Every place where a backend can be in the middle of its answer when the gate is asked, and what is to come.
ANSWERS = [
    (b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}", b""),
    (b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{", b"}"),
    (b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n", b"{}"),
    (b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{", b"}\r\n0\r\n\r\n"),
    (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", b""),
    (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b"x" * 200_000, b"x" * 100_000),
]


@pytest.mark.parametrize("first, second", ANSWERS)
def test_no_byte_of_a_writes_answer_leaves_before_it_is_acknowledged(
    first: bytes, second: bytes, backend: Backend, open_door: Open, knock: Knock
) -> None:
    """While the gate thinks, a second client is served over and over: bytes that could leave would have left."""
    gate = Scripted(holds="acknowledge")
    door = open_door(gate=gate)
    client, other = knock(door), knock(door)
    client.send(post())
    wire = backend.accept()
    wire.until()
    wire.exactly(2)
    assert not gate.acknowledged
    wire.send(first)
    assert gate.asked.wait(20)
    other.send(GET)
    reads = backend.accept()
    for n in range(30):
        reads.until()
        reads.send(OK)
        assert other.answer().body == b"ok"
        assert client.silent()
        if n == 15 and len(second) < 1000:
            wire.send(second)
        other.send(GET)
    gate.go.set()
    if len(second) >= 1000:
        wire.send(second)
    answer = client.answer()
    assert len(gate.acknowledged) == 1
    assert answer.status in (200, 201, 204, 500)
    assert answer.body in (b"{}", b"", b"x" * 300_000)


def test_no_byte_of_a_write_goes_on_before_it_is_admitted(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Its body is kept up to a bound meanwhile, and then the client is not read."""
    gate = Scripted(holds="admit")
    client = knock(open_door(gate=gate))
    client.send(post(b"x" * 30_000, more="a: B\r\n"))
    assert gate.asked.wait(20)
    assert backend.unasked()
    request = gate.admitted[0]
    assert (request.method, request.path, request.write, request.peer) == ("POST", f"{C}/add", True, "127.0.0.1")
    assert request.field(b"a") == b"B"
    gate.go.set()
    wire = backend.accept()
    wire.until()
    assert wire.exactly(30_000) == b"x" * 30_000
    wire.send(OK)
    assert client.answer().body == b"ok"
    assert gate.acknowledged == gate.admitted


def test_reads_do_not_ask(backend: Backend, open_door: Open, knock: Knock) -> None:
    gate = Scripted()
    client = knock(open_door(gate=gate))
    client.send(GET + post(path=f"{C}/query") + post(path=f"{C}/get?x") + b"HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n")
    wire = backend.accept()
    for method in ("GET", "POST", "POST", "HEAD"):
        head = wire.until()
        wire.exactly(2 if b"POST" in head else 0)
        wire.send(OK if method != "HEAD" else OK[:-2])
        assert client.answer(method).status == 200
    assert (gate.admitted, gate.acknowledged) == ([], [])


def test_a_write_refused_at_once(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Nothing reaches the backend; the client may go on over the same connection if its body had come."""
    client = knock(open_door(gate=Scripted(on_admit=lambda: STANDBY)))
    for _ in range(3):
        client.send(post(b"body"))
        answer = client.answer()
        assert (answer.status, answer.fields["retry-after"]) == (503, "2")
        assert json.loads(answer.body) == {"error": "ChromaError", "message": "this is a standby"}
        assert "connection" not in answer.fields
    client.send(b"DELETE /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
    assert client.answer().status == 503
    assert backend.unasked()
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.fields["connection"]) == (503, "close")


def test_a_refused_client_that_is_still_sending_reads_the_refusal(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    """As clients do that send everything before they read: what they send is taken and dropped."""
    client = knock(open_door(gate=Scripted(on_admit=lambda: STANDBY)))
    client.send(post(b"x" * 30_000_000))
    assert client.answer().status == 503
    assert backend.unasked()


def test_a_write_refused_after_it_was_done(backend: Backend, open_door: Open, knock: Knock) -> None:
    """The refusal comes in place of the answer, and the backend's connection is not used again."""
    client = knock(open_door(gate=Scripted(on_acknowledge=lambda: STANDBY)))
    client.send(post())
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 201 Created\r\ncontent-length: 6\r\n\r\nsecret")
    answer = client.answer()
    assert answer.status == 503
    assert b"secret" not in answer.body
    assert wire.gone()
    assert client.silent()


@pytest.mark.parametrize("question", ["on_admit", "on_acknowledge"])
@pytest.mark.parametrize("error", [ValueError("password"), asyncio.CancelledError(), OSError(5, "io"), TimeoutError()])
def test_a_gate_that_fails_answers_500(
    question: str, error: BaseException, backend: Backend, open_door: Open, knock: Knock
) -> None:
    """One line of JSON; no byte of the write's answer, no word of the failure; that goes to the observer."""

    def fail() -> Refusal | None:
        raise error

    events: list[Event] = []
    gate = Scripted()
    setattr(gate, question, fail)
    client = knock(open_door(gate=gate, observer=events.append))
    client.send(post())
    if question == "on_acknowledge":
        wire = backend.accept()
        wire.until()
        wire.send(b"HTTP/1.1 201 Created\r\ncontent-length: 6\r\n\r\nsecret")
        assert wire.gone()
    answer = client.answer()
    assert answer.status == 500
    assert json.loads(answer.body)["error"] == "InternalError"
    assert b"\n" not in answer.body
    assert b"secret" not in answer.body
    assert b"password" not in answer.body
    assert type(error).__name__ in str(events)
    assert client.silent()


@pytest.mark.parametrize("question", ["admit", "acknowledge"])
def test_the_gate_is_told_when_the_client_goes(question: str, backend: Backend, open_door: Open, knock: Knock) -> None:
    """Its question is cancelled, and the door goes on."""
    gate = Scripted(holds=question)
    door = open_door(gate=gate)
    client = knock(door)
    client.send(post())
    if question == "acknowledge":
        wire = backend.accept()
        wire.until()
        wire.send(OK)
    assert gate.asked.wait(20)
    client.reset()
    gate.holds = ""
    again = knock(door)
    again.send(post())
    wire = backend.accept()
    wire.until()
    wire.send(OK)
    assert again.answer().status == 200
    assert gate.cancelled == [question]


def test_a_backend_that_dies_while_the_gate_thinks(backend: Backend, open_door: Open, knock: Knock) -> None:
    """A whole answer is passed on; one that wants its end becomes 502, not a shorter one."""
    for body, status in ((b"ok", 200), (b"o", 502)):
        gate = Scripted(holds="acknowledge")
        door = open_door(gate=gate, pages={"/page": lambda: Page(b"page")})
        client = knock(door)
        client.send(post())
        wire = backend.accept()
        wire.until()
        wire.exactly(2)
        wire.send(OK[:-2] + body)
        wire.close()
        assert gate.asked.wait(20)
        other = knock(door)
        other.send(b"GET /page HTTP/1.1\r\nhost: h\r\n\r\n")
        assert other.answer().body == b"page"  # by now the door has seen the end
        gate.go.set()
        answer = client.answer()
        assert answer.status == status
        assert answer.body == b"ok" or status == 502
