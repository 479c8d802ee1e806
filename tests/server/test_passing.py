"""What passes: bodies both ways, kept connections, pipelines, answers without bodies, 100-continue, pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chromakeep.events import Event
from chromakeep.server import Door, Page
from server.wires import GET, OK, Backend, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]
HEAD = b"HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n"


def test_both_sides_are_kept_and_used_again(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Requests of two clients after one another go over one connection to the backend."""
    door = open_door()
    one, two = knock(door), knock(door)
    one.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(OK)
    assert one.answer().body == b"ok"
    for client in (two, one, two):
        client.send(GET)
        assert wire.until().startswith(b"GET /x")
        wire.send(OK)
        assert client.answer().body == b"ok"
    assert backend.unasked()


def test_requests_at_the_same_time_have_connections_of_their_own(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    """The one that is answered first is not the one that was asked first."""
    door = open_door()
    one, two = knock(door), knock(door)
    one.send(GET)
    first = backend.accept()
    two.send(GET)
    second = backend.accept()
    for wire, client, body in ((second, two, b"22"), (first, one, b"11")):
        wire.until()
        wire.send(OK.replace(b"ok", body))
        assert client.answer().body == body


def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    """The backend sees the second request only after it answered the first."""
    client = knock(open_door())
    client.send(post(b"one", "/1") + b"GET /2 HTTP/1.1\r\nhost: h\r\n\r\n" + post(b"three", "/3") + HEAD)
    wire = backend.accept()
    for line, body in ((b"POST /1 ", b"one"), (b"GET /2 ", b""), (b"POST /3 ", b"three"), (b"HEAD /x ", b"")):
        assert wire.until().startswith(line)
        assert wire.exactly(len(body)) == body
        assert wire.silent()
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" + (line[-3:] if line[:4] != b"HEAD" else b""))
    assert [client.answer().body for _ in range(3)] == [b"/1 ", b"/2 ", b"/3 "]
    assert client.answer("HEAD").fields["content-length"] == "3"
    assert backend.unasked()


def test_very_many_pipelined_requests(backend: Backend, open_door: Open, knock: Knock) -> None:
    """More than is kept at once; all are answered, and pages among them in their places."""
    backend.serve()
    client = knock(open_door(pages={"/page": lambda: Page(b"page")}))
    sent = b"".join(b"GET /page HTTP/1.1\r\nhost: h\r\n\r\n" if n % 3 == 0 else GET for n in range(3000))
    client.send(sent)
    assert [client.answer().body for _ in range(3000)] == [b"page" if n % 3 == 0 else b"ok" for n in range(3000)]


@pytest.mark.parametrize("status", [204, 304])
def test_answers_that_have_no_body(status: int, backend: Backend, open_door: Open, knock: Knock) -> None:
    """Whatever length they name; and the connections go on."""
    client = knock(open_door())
    client.send(GET + HEAD + GET)
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 %d No\r\n%s\r\n" % (status, b"content-length: 5\r\n" if status == 304 else b""))
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    wire.until()
    wire.send(OK)
    assert client.answer().status == status
    assert client.answer("HEAD").fields["content-length"] == "1000"
    assert client.answer().body == b"ok"
    assert backend.unasked()


def test_a_chunked_answer_to_head_has_no_body(backend: Backend, open_door: Open, knock: Knock) -> None:
    client = knock(open_door())
    client.send(HEAD + GET)
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    wire.until()
    wire.send(OK)
    assert client.answer("HEAD").status == 200
    assert client.answer().body == b"ok"


def test_chunks_both_ways(backend: Backend, open_door: Open, knock: Knock) -> None:
    """A body of unknown length streams as it comes: each part is there before the next is sent; trailers end here."""
    client = knock(open_door())
    client.send(b"PUT /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
    wire = backend.accept()
    client.send(b"3\r\nabc\r\n")
    assert wire.until().endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert wire.exactly(8) == b"3\r\nabc\r\n"
    client.send(b"00A\r\n0123")
    assert wire.exactly(9) == b"4\r\n0123\r\n"
    client.send(b"456789\r\n0\r\nx-trailer: 1\r\n\r\n")
    assert wire.exactly(16) == b"6\r\n456789\r\n0\r\n\r\n"
    wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    assert client.until().endswith(b"\r\ntransfer-encoding: chunked\r\n\r\n")
    wire.send(b"2\r\nhe\r\n")
    assert client.exactly(7) == b"2\r\nhe\r\n"
    wire.send(b"3\r\nllo\r\n0\r\nx: y\r\n\r\n")
    assert client.chunks() == b"llo"
    client.send(GET)
    assert wire.until().startswith(b"GET")


def test_a_client_of_1_0(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Is answered without chunks, and the end of the connection is the end of the answer."""
    client = knock(open_door())
    client.send(b"GET /x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    wire = backend.accept()
    assert wire.until().startswith(b"GET /x HTTP/1.1\r\n")
    wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert client.rest() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabcde"


def test_a_client_that_wants_the_end_gets_it(backend: Backend, open_door: Open, knock: Knock) -> None:
    backend.serve()
    client = knock(open_door())
    client.send(b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    assert client.answer().fields["connection"] == "close"
    assert client.rest() == b""


def test_bytes_after_the_last_request_do_not_cost_its_answer(backend: Backend, open_door: Open, knock: Knock) -> None:
    """A reset for bytes that nobody read would take the answer away from a client that still sends."""
    backend.serve(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000)
    client = knock(open_door())
    client.send(b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n" + b"y" * 3_000_000)
    assert len(client.answer().body) == 100_000


def test_a_backend_that_wants_the_end_gets_it_and_the_client_stays(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    client = knock(open_door())
    for _ in range(2):
        client.send(GET)
        wire = backend.accept()
        wire.until()
        wire.send(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        answer = client.answer()
        assert (answer.body, "connection" in answer.fields) == (b"ok", False)
        assert wire.gone()


def test_continue_is_said_when_the_backend_is_there(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Before the body; the backend does not see the expectation, and its own 1xx answers end here."""
    client = knock(open_door())
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\nexpect: 100-Continue\r\n\r\n")
    assert client.until() == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire = backend.accept()
    client.send(b"body")
    assert b"expect" not in wire.until()
    assert wire.exactly(4) == b"body"
    wire.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK)
    assert client.answer().body == b"ok"


def test_no_continue_for_a_body_that_is_there(backend: Backend, open_door: Open, knock: Knock) -> None:
    client = knock(open_door())
    client.send(post(b"body", more="expect: 100-continue\r\n"))
    wire = backend.accept()
    wire.until()
    assert wire.exactly(4) == b"body"
    wire.send(OK)
    assert client.answer().status == 200


def test_no_continue_without_a_backend(backend: Backend, open_door: Open, knock: Knock) -> None:
    """The client keeps its body; the connection ends, for nobody could tell whether the body still comes."""
    backend.close()
    client = knock(open_door())
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.fields["connection"]) == (503, "close")


def test_an_answer_before_the_end_of_the_request(backend: Backend, open_door: Open, knock: Knock) -> None:
    """It is passed on, no more of the body is, and both connections end, the client's after what it still sends."""
    client = knock(open_door())
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2000000\r\n\r\nbegin")
    wire = backend.accept()
    wire.until()
    wire.exactly(5)
    wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
    answer = client.answer()
    assert (answer.status, answer.body, answer.fields["connection"]) == (413, b"big", "close")
    assert wire.gone()
    client.send(b"x" * 1_999_995)
    client.half_close()
    assert client.rest() == b""


def test_pages(backend: Backend, open_door: Open, knock: Knock) -> None:
    """GET and HEAD of exactly their path, whatever the query; other methods and paths go to the backend."""
    events: list[Event] = []

    def broken() -> Page:
        raise ValueError("no page")

    ready, text = Page(b"{}", status=503), Page(b"t", "text/plain")
    door = open_door(pages={"/readyz": lambda: ready, "/text": lambda: text, "/broken": broken}, observer=events.append)
    client = knock(door)
    client.send(b"GET /readyz?verbose HTTP/1.1\r\nhost: h\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.body, answer.fields["content-type"]) == (503, b"{}", "application/json")
    client.send(b"HEAD /text HTTP/1.1\r\nhost: h\r\n\r\n")
    answer = client.answer("HEAD")
    assert (answer.fields["content-type"], answer.fields["content-length"]) == ("text/plain", "1")
    client.send(b"GET /text HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc")
    assert client.answer().body == b"t"
    client.send(b"GET /broken HTTP/1.1\r\nhost: h\r\n\r\n")
    assert client.answer().status == 500
    assert "no page" in str(events)
    assert backend.unasked()
    for line in (b"POST /readyz", b"GET /readyz/", b"GET //readyz", b"GET /%72eadyz"):
        client.send(line + b" HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
        if line.startswith(b"POST"):
            wire = backend.accept()
        assert wire.until().startswith(line)
        wire.send(OK)
        assert client.answer().body == b"ok"


def test_a_page_ends_the_connection_of_a_body_that_has_not_come(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    client = knock(open_door(pages={"/page": lambda: Page(b"page")}))
    client.send(b"GET /page HTTP/1.1\r\nhost: h\r\ncontent-length: 30\r\n\r\n")
    assert client.answer().fields["connection"] == "close"
    client.send(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n")
    client.half_close()
    assert client.rest() == b""
    assert backend.unasked()
