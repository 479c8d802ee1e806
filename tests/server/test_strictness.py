"""What is no request, or two to two readers, is answered here: nothing of it reaches the backend."""

from __future__ import annotations

import json
from collections.abc import Callable

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromakeep.server import Door, Limits
from chromakeep.server.answer_head import parse_answer
from chromakeep.server.credentials import CARRIERS
from chromakeep.server.fields import Malformed
from chromakeep.server.request_head import parse_request, reader
from server.wires import GET, OK, Backend, Wire

H = b"host: h\r\n"
SMUGGLED = {
    "length and coding": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"),
    "coding and length": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n"),
    "two lengths": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: 5\r\ncontent-length: 6\r\n\r\n"),
    "a length twice": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: 5\r\ncontent-length: 5\r\n\r\n"),
    "a list of lengths": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: 5, 5\r\n\r\n"),
    "signed length": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: +5\r\n\r\n"),
    "negative length": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: -5\r\n\r\n"),
    "hexadecimal length": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: 0x5\r\n\r\n"),
    "empty length": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length:\r\n\r\n"),
    "length with a gap": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: 1 0\r\n\r\n"),
    "length over 64 bits": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: 99999999999999999999999\r\n\r\n"),
    "length after NUL": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length: \x005\r\n\r\n"),
    "coding twice": (
        400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
    ),
    "coding with a list": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: gzip, chunked\r\n\r\n"),
    "chunked twice in a list": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked, chunked\r\n\r\n"),
    "chunked first": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked, gzip\r\n\r\n"),
    "identity": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: identity\r\n\r\n"),
    "almost chunked": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: xchunked\r\n\r\n"),
    "chunked with a parameter": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked;a=b\r\n\r\n"),
    "chunked after VT": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: \x0bchunked\r\n\r\n"),
    "empty coding": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding:\r\n\r\n"),
    "chunked in 1.0": (400, b"POST / HTTP/1.0\r\n" + H + b"transfer-encoding: chunked\r\n\r\n"),
    "space before colon": (400, b"POST / HTTP/1.1\r\n" + H + b"content-length : 5\r\n\r\n"),
    "tab before colon": (400, b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding\t: chunked\r\n\r\n"),
    "space before name": (400, b"GET / HTTP/1.1\r\n host: h\r\n\r\n"),
    "folded": (400, b"GET / HTTP/1.1\r\n" + H + b"a: b\r\n c\r\n\r\n"),
    "folded by a tab": (400, b"GET / HTTP/1.1\r\n" + H + b"transfer-encoding:\r\n\tchunked\r\n\r\n"),
    "bare LF in a field": (400, b"GET / HTTP/1.1\r\n" + H + b"a: b\ncontent-length: 5\r\n\r\n"),
    "bare CR in a field": (400, b"GET / HTTP/1.1\r\n" + H + b"a: b\rcontent-length: 5\r\n\r\n"),
    "bare LF everywhere": (400, b"GET / HTTP/1.1\nhost: h\n\n"),
    "bare CR everywhere": (400, b"GET / HTTP/1.1\rhost: h\r\r"),
    "bare LF before the end": (400, b"GET / HTTP/1.1\r\n" + H + b"\n\r\n\r\n"),
    "bare LF after the line": (400, b"GET / HTTP/1.1\nhost: h\r\n\r\n"),
    "NUL in a value": (400, b"GET / HTTP/1.1\r\n" + H + b"a: \x00\r\n\r\n"),
    "NUL in a name": (400, b"GET / HTTP/1.1\r\n" + H + b"a\x00b: c\r\n\r\n"),
    "NUL in the target": (400, b"GET /\x00 HTTP/1.1\r\n" + H + b"\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\n" + H + b"nothing\r\n\r\n"),
    "no name": (400, b"GET / HTTP/1.1\r\n" + H + b": b\r\n\r\n"),
    "odd name": (400, b"GET / HTTP/1.1\r\n" + H + b"a(b): c\r\n\r\n"),
    "a name beyond ASCII": (400, b"GET / HTTP/1.1\r\n" + H + b"\xe4: c\r\n\r\n"),
    "DEL": (400, b"GET / HTTP/1.1\r\n" + H + b"a: \x7f\r\n\r\n"),
    "absolute target": (400, b"GET http://other/ HTTP/1.1\r\n" + H + b"\r\n"),
    "authority target": (400, b"GET h:80 HTTP/1.1\r\n" + H + b"\r\n"),
    "CONNECT": (501, b"CONNECT h:80 HTTP/1.1\r\n" + H + b"\r\n"),
    "TRACE": (501, b"TRACE / HTTP/1.1\r\n" + H + b"\r\n"),
    "star": (400, b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\n" + H + b"\r\n"),
    "target beyond ASCII": (400, b"GET /\xc3\xa4 HTTP/1.1\r\n" + H + b"\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\n" + H + b"\r\n"),
    "a tab in the line": (400, b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n"),
    "space after the line": (400, b"GET / HTTP/1.1 \r\n" + H + b"\r\n"),
    "lower-case method": (400, b"get / HTTP/1.1\r\n" + H + b"\r\n"),
    "an empty line before": (400, b"\r\nGET / HTTP/1.1\r\n" + H + b"\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2": (505, b"GET / HTTP/2.0\r\n" + H + b"\r\n"),
    "the preface of HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\n" + H + b"\r\n"),
    "http/1.1": (400, b"GET / http/1.1\r\n" + H + b"\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\na: b\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\n" + H + H + b"\r\n"),
    "empty host": (400, b"GET / HTTP/1.1\r\nhost:\r\n\r\n"),
    "host with a path": (400, b"GET / HTTP/1.1\r\nhost: h/x\r\n\r\n"),
    "host with a user": (400, b"GET / HTTP/1.1\r\nhost: u@h\r\n\r\n"),
    "host with a comma": (400, b"GET / HTTP/1.1\r\nhost: h, i\r\n\r\n"),
    "host with a long port": (400, b"GET / HTTP/1.1\r\nhost: h:123456\r\n\r\n"),
    "websocket": (501, b"GET / HTTP/1.1\r\n" + H + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    "another expectation": (417, b"POST / HTTP/1.1\r\n" + H + b"content-length: 1\r\nexpect: a-pony\r\n\r\n"),
    "many fields": (431, b"GET / HTTP/1.1\r\n" + H + b"a: b\r\n" * 100 + b"\r\n"),
    "a long head": (431, b"GET / HTTP/1.1\r\n" + H + b"a: " + b"b" * (32 << 10) + b"\r\n\r\n"),
    "a long head without an end": (431, b"GET / HTTP/1.1\r\n" + H + b"a: " + b"b" * (33 << 10)),
    "a body too long": (413, b"POST / HTTP/1.1\r\n" + H + b"content-length: 1073741825\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", SMUGGLED)
def test_no_reader_is_given_two_meanings(
    name: str, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """One refusal in Chroma's words, then the end; the backend is not even connected to, a second request not read."""
    status, sent = SMUGGLED[name]
    client = knock(open_door())
    client.send(sent + (GET if b"\r\n\r\n" in sent else b""))
    answer = client.answer()
    assert answer.status == status
    assert set(json.loads(answer.body)) == {"error", "message"}
    assert answer.fields["connection"] == "close"
    assert client.rest() == b""
    assert backend.unasked()


CHUNKS = {
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space before": b" 3\r\nabc\r\n0\r\n\r\n",
    "space after": b"3 \r\nabc\r\n0\r\n\r\n",
    "bare LF after size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF after data": b"3\r\nabc\n0\r\n\r\n",
    "bare CR after data": b"3\r\nabc\r0\r\n\r\n",
    "data longer": b"3\r\nabcd\r\n0\r\n\r\n",
    "extension": b"3;a=b\r\nabc\r\n0\r\n\r\n",
    "huge size": b"fffffffffffffffff\r\nabc",
    "wraps 64 bits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "bad trailer": b"3\r\nabc\r\n0\r\nx y\r\n\r\n",
    "bare LF in trailers": b"3\r\nabc\r\n0\r\na: b\n\r\n",
    "bare LF at the end": b"3\r\nabc\r\n0\r\n\n",
    "endless trailers": b"3\r\nabc\r\n0\r\n" + b"a: b\r\n" * 2000,
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_are_read_to_the_letter(
    name: str, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """What is no chunk ends the request with 400; the backend sees a body that was broken off."""
    client = knock(open_door())
    client.send(b"POST /x HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS[name] + GET)
    wire = backend.accept()
    assert client.answer().status == 400
    assert client.rest() == b""
    try:
        seen = wire.rest()
    except ConnectionResetError:
        seen = b""
    assert b"\r\n0\r\n\r\n" not in seen
    assert b"GET" not in seen


def test_a_chunked_body_over_the_limit_ends_with_413(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    client = knock(open_door(limits=Limits(body_bytes=10)))
    client.send(b"POST /x HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\n\r\n" + b"6\r\nabcdef\r\n" * 2)
    assert client.answer().status == 413
    assert backend.accept().gone()


def test_fields_of_the_hop_end_here(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """Both ways, and those that Connection names; a client's claims of where it comes from do not pass either."""
    client = knock(open_door())
    client.send(
        b"POST /x?y=1 HTTP/1.1\r\nHost: h:8000\r\nConnection: keep-alive, X-Mine, content-length, host\r\nX-Mine: 1\r\n"
        b"Keep-Alive: 5\r\nProxy-Authorization: x\r\nTE: trailers\r\nTrailer: a\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABk\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n"
        b"X-Chroma-Token:  secret \r\nContent-Length: 2\r\n\r\nhi"
    )
    wire = backend.accept()
    assert wire.until() == (
        b"POST /x?y=1 HTTP/1.1\r\nhost: h:8000\r\nx-chroma-token: secret\r\ncontent-length: 2\r\n\r\n"
    )
    assert wire.exactly(2) == b"hi"
    wire.send(
        b"HTTP/1.1 200 Fine\r\nconnection: x-theirs, keep-alive\r\nX-Theirs: 1\r\nkeep-alive: timeout=5\r\n"
        b"Content-Type: a/b\r\ncontent-length: 0\r\nproxy-authenticate: x\r\nupgrade: h2c\r\n\r\n"
    )
    assert client.until() == b"HTTP/1.1 200 Fine\r\nContent-Type: a/b\r\ncontent-length: 0\r\n\r\n"
    client.send(GET)
    assert wire.until().startswith(b"GET /x HTTP/1.1\r\n")


ODD_ANSWERS = {
    "length and coding": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "gzip": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\ncontent-length: 0\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 0\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
}


@pytest.mark.parametrize("name", ODD_ANSWERS)
def test_an_answer_that_is_not_one_is_502(
    name: str, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """And its connection is not used again. An answer without a length could not be told from one cut off."""
    client = knock(open_door())
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(ODD_ANSWERS[name])
    assert client.answer().status == 502
    assert wire.gone()
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(OK)
    assert client.answer().body == b"ok"


def test_heads_that_are_fine() -> None:
    """What real clients send is not refused: IPv6 hosts, obs-text in values, empty values, 1.0 without a host."""
    limits = Limits()
    assert parse_request(b"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", limits).keep
    assert parse_request(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe4\xf6\r\nY:\r\n\r\n", limits).fields[1][1] == b"\xe4\xf6"
    old = parse_request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", limits)
    assert not old.keep
    assert old.forward == b"GET / HTTP/1.1\r\nhost: chroma\r\n\r\n"
    assert parse_request(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", limits).length is None


def test_an_answers_length_is_not_dropped_as_a_field_of_the_hop() -> None:
    head = b"HTTP/1.1 200 OK\r\nconnection: content-length\r\ncontent-length: 3\r\n\r\n"
    assert parse_answer(head, "GET").fields == b"content-length: 3\r\n"
    with pytest.raises(Malformed):
        parse_answer(b"HTTP/1.1 999 x\r\n\r\n", "GET")


_PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 204",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"a",
        b"X-Y",
        b"content-length",
        b"3",
        b"",
        b"content-length: 3\r\n",
        b"connection: close\r\n",
        b"transfer-encoding: chunked\r\n",
        b"\x00",
        b"\x7f",
        b"\xe4",
        b"(",
    ]
)


@given(st.lists(_PIECES, max_size=14).map(b"".join))
def test_no_answer_is_read_that_llhttp_would_read_otherwise(fields: bytes) -> None:
    """What the one expression lets pass has the same fields for llhttp."""
    head = b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\n"
    head = head[: head.index(b"\r\n\r\n") + 4]
    try:
        answer = parse_answer(head, "HEAD")
    except Malformed:
        return
    seen: list[tuple[bytes, bytes]] = []

    class Seen:
        def on_header(self, name: bytes, value: bytes) -> None:
            seen.append((name, value.strip(b" \t")))

    httptools.HttpResponseParser(Seen()).feed_data(head)
    passed = [line.partition(b":") for line in answer.fields.split(b"\r\n")[:-1]]
    assert [(name, value.strip(b" \t")) for name, _, value in passed] == [
        field for field in seen if field[0].lower() not in (b"connection", b"transfer-encoding")
    ]


def test_a_head_that_comes_again_is_not_read_again() -> None:
    """But a long one is, and one that was refused: nobody fills the memory with what he sends once."""
    read = reader(Limits(), CARRIERS)
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Chroma-Token: one\r\n\r\n"
    assert read(head) is read(bytes(bytearray(head)))
    assert read(head).token == "one" and b"one" not in read(head).forward
    assert read(head.replace(b"one", b"two")).token == "two"
    long = head.replace(b"Host: a", b"Host: a\r\nX: " + b"x" * 3000)
    assert read(long) == read(long) and read(long) is not read(long)
    for _ in range(2):
        with pytest.raises(Malformed):
            read(b"GET / HTTP/1.1\r\n\r\n")
