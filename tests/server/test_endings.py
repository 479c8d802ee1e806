"""How exchanges end before their time: clients, backends and doors that go away, and those that are too slow."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable

import pytest

from chromakeep.server import Door, Limits, Page
from chromakeep.server.upstream import Remote, Upstream
from server.wires import GET, OK, Backend, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]


def test_no_backend(backend: Backend, open_door: Open, knock: Knock) -> None:
    """503 in Chroma's words with a time to come back, for reads and writes, over a kept connection."""
    backend.close()
    client = knock(open_door(gate=Scripted()))
    for sent in (GET, post(b"x" * 1000), GET):
        client.send(sent)
        answer = client.answer()
        assert (answer.status, answer.fields["retry-after"], "connection" in answer.fields) == (503, "1", False)
        assert set(json.loads(answer.body)) == {"error", "message"}


def used(backend: Backend, client: Wire) -> Wire:
    """A backend's connection that has served one request and is kept."""
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(OK)
    assert client.answer().status == 200
    return wire


def test_a_stale_connection_is_tried_once_again_for_what_is_safe(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    """On a new connection, and when that ends without an answer too, the client hears 502."""
    client = knock(open_door())
    wire = used(backend, client)
    client.send(GET)
    wire.until()
    wire.close()
    second = backend.accept()
    second.until()
    second.send(OK)
    assert client.answer().body == b"ok"
    client.send(GET)
    second.until()
    second.reset()
    third = backend.accept()
    third.until()
    third.close()
    assert client.answer().status == 502
    assert backend.unasked()


@pytest.mark.parametrize(
    "sent",
    [post(), b"POST /x HTTP/1.1\r\nhost: h\r\n\r\n", b"GET /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nab"],
    ids=["write", "write without a body", "read with a body"],
)
def test_a_stale_connection_is_502_for_all_else(sent: bytes, backend: Backend, open_door: Open, knock: Knock) -> None:
    """A write is never sent twice."""
    client = knock(open_door())
    wire = used(backend, client)
    client.send(sent)
    wire.until()
    wire.close()
    assert client.answer().status == 502
    assert backend.unasked()


def test_part_of_an_answer_is_not_tried_again(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Nor is a first connection's failure: that is no race."""
    client = knock(open_door())
    wire = used(backend, client)
    client.send(GET)
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent")
    wire.close()
    assert client.answer().status == 502
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.close()
    assert client.answer().status == 502
    assert backend.unasked()


def test_an_idle_connection_that_the_backend_closed_is_not_used(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    """Nor one on which it spoke unasked: not even a write meets it."""
    client = knock(open_door())
    wire = used(backend, client)
    wire.close()
    other = used(backend, client)
    other.send(b"HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n")
    assert other.gone()
    client.send(post())
    last = backend.accept()
    last.until()
    last.send(OK)
    assert client.answer().body == b"ok"


@pytest.mark.parametrize(("remote", "kept"), [(Remote(b"chroma"), False), (None, True)])
def test_an_idle_connection_over_a_network_is_not_used_for_long(
    backend: Backend, open_door: Open, knock: Knock, monkeypatch: pytest.MonkeyPatch, remote: Remote | None, kept: bool
) -> None:
    """What lies between may have forgotten it without a word, and a request over it would wait for minutes. On this
    machine nothing forgets."""
    monkeypatch.setattr("chromakeep.server.upstream.FRESH", 0.0)
    client = knock(open_door(remote=remote))
    wire = used(backend, client)
    client.send(post())
    next_ = wire if kept else backend.accept()
    next_.until()
    next_.send(OK)
    assert client.answer().body == b"ok"


def test_bytes_after_an_answer_belong_to_nobody(backend: Backend, open_door: Open, knock: Knock) -> None:
    """They are not the answer to the next request."""
    client = knock(open_door())
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(OK + OK.replace(b"ok", b"NO"))
    assert client.answer().body == b"ok"
    assert wire.gone()
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(OK)
    assert client.answer().body == b"ok"


def test_informational_answers_have_an_end(backend: Backend, open_door: Open, knock: Knock) -> None:
    """A backend that sends nothing else would keep the door from all others."""
    client = knock(open_door())
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 101)
    assert client.answer().status == 502
    assert wire.gone()


BROKEN = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf!!0\r\n\r\n",
]


@pytest.mark.parametrize("part", BROKEN)
@pytest.mark.parametrize("line", [b"GET /x HTTP/1.1", b"GET /x HTTP/1.0"])
@pytest.mark.parametrize("end", [Wire.close, Wire.reset])
def test_a_broken_answer_looks_broken(
    part: bytes, line: bytes, end: Callable[[Wire], None], backend: Backend, open_door: Open, knock: Knock
) -> None:
    """A reset: even a client of 1.0, to whom an end is the end of the body, does not take half for the whole."""
    client = knock(open_door())
    client.send(line + b"\r\nhost: h\r\n\r\n")
    wire = backend.accept()
    wire.until()
    head, end_of_head, body = part.partition(b"\r\n\r\n")
    wire.send(head + end_of_head)
    client.until()
    wire.send(body)
    end(wire)
    with pytest.raises(ConnectionResetError):
        client.rest()


def test_a_backend_that_dies_during_an_upload(backend: Backend, open_door: Open, knock: Knock) -> None:
    """502, which the client can read although it still sends."""
    client = knock(open_door())
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1000)
    wire = backend.accept()
    wire.until()
    wire.close()
    client.send(b"x" * 500_000)
    assert client.answer().status == 502


def test_a_client_that_goes_ends_its_upload(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Closed or reset: the backend sees a body that is broken off, not one that waits for ever."""
    for end in (Wire.close, Wire.reset):
        client = knock(open_door())
        client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nhalf")
        wire = backend.accept()
        wire.until()
        wire.exactly(4)
        end(client)
        assert wire.gone()


def test_a_client_that_goes_ends_its_wait(backend: Backend, open_door: Open, knock: Knock) -> None:
    client = knock(open_door())
    client.send(post(b"{}", "/x/query"))
    wire = backend.accept()
    wire.until()
    client.reset()
    assert wire.gone()


def test_a_client_that_goes_ends_its_download(backend: Backend, open_door: Open, knock: Knock) -> None:
    client = knock(open_door())
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + b"x" * 100_000)
    client.until()
    client.close()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            wire.send(b"x" * 100_000)


def test_a_client_that_has_closed_its_sending_side_is_answered(backend: Backend, open_door: Open, knock: Knock) -> None:
    """All it asked for, then the connection ends."""
    client = knock(open_door())
    client.send(post() + GET + GET[:9])
    client.half_close()
    wire = backend.accept()
    wire.until()
    wire.exactly(2)
    wire.send(OK)
    wire.until()
    wire.send(OK)
    assert [client.answer().body, client.answer().body] == [b"ok", b"ok"]
    assert client.rest() == b""


def test_such_a_client_is_not_waited_for_forever(backend: Backend, open_door: Open, knock: Knock) -> None:
    """It may have gone altogether: then the backend's work is for nobody."""
    client = knock(open_door(limits=Limits(half_closed=0.1)))
    client.send(post(b"{}", "/x/query"))
    wire = backend.accept()
    wire.until()
    client.close()
    assert wire.gone()


SLOW = {
    "nothing": (b"", Limits(head=0.1)),
    "a head": (b"GET /x HT", Limits(head=0.1)),
    "a second head": (GET + b"GET /x HT", Limits(head=0.1)),
    "a body": (b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf", Limits(body=0.1)),
    "a slow body": (b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 900\r\n\r\n" + b"x" * 800, Limits(body=0.1)),
    "another request": (GET, Limits(idle=0.1)),
}


@pytest.mark.parametrize("owed", SLOW)
def test_what_a_client_owes_is_not_waited_for_forever(
    owed: str, backend: Backend, open_door: Open, knock: Knock, deadlines: threading.Event
) -> None:
    """408 for half a request, and no word to a client that has asked for nothing."""
    sent, limits = SLOW[owed]
    if sent.startswith(GET):
        backend.serve()
    door = open_door(limits=limits, pages={"/page": lambda: Page(b"page")})
    client, witness = knock(door), knock(door)
    client.send(sent)
    if sent.startswith(GET):
        assert client.answer().status == 200
    witness.send(b"GET /page HTTP/1.1\r\nhost: h\r\n\r\n")
    assert witness.answer().body == b"page"  # by now what was sent has come
    deadlines.set()
    if owed not in ("nothing", "another request"):
        assert client.answer().status == 408
    assert client.rest() == b""


def test_a_client_that_does_not_take_its_answer_is_cut(backend: Backend, open_door: Open, knock: Knock) -> None:
    client = knock(open_door(limits=Limits(stall=0.1)))
    client.send(GET)
    wire = backend.accept()
    wire.until()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            wire.send(b"x" * 1_000_000)
    with pytest.raises(ConnectionResetError):
        client.rest()


def test_a_backend_may_take_its_time(
    backend: Backend, open_door: Open, knock: Knock, deadlines: threading.Event
) -> None:
    """No limit is on the backend's thinking: chromadb's clients have none, and a batch may take minutes."""
    short = Limits(head=0.1, idle=0.1, body=0.1, stall=0.1, linger=0.1)
    door = open_door(limits=short)
    client, witness = knock(door), knock(door)
    client.send(post())
    wire = backend.accept()
    wire.until()
    wire.exactly(2)
    deadlines.set()
    for _ in range(2):
        assert witness.gone()
        witness = knock(door)
    wire.send(OK)
    assert client.answer().body == b"ok"


def test_connections_are_counted(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Of requests under way; one too many is told so. When one of them is done there is room again."""
    door = open_door(limits=Limits(connections=2))
    one, two = knock(door), knock(door)
    behind = []
    for wire in (one, two):
        wire.send(GET)
        behind.append(backend.accept())
        behind[-1].until()
    answer = knock(door).answer()
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    behind[0].send(OK)
    assert one.answer().body == b"ok"
    three = knock(door)
    three.send(GET)
    behind[0].until()
    behind[0].send(OK)
    assert three.answer().status == 200
    behind[1].send(OK)
    assert two.answer().status == 200


def alive(wire: Wire) -> bool:
    """Whether the next request on it is answered."""
    try:
        wire.send(GET)
        return wire.answer().status == 200
    except (OSError, EOFError):
        return False


def test_who_only_keeps_a_place_gives_way(backend: Backend, open_door: Open, knock: Knock) -> None:
    """The oldest: one that never asked, half a head, one that asked before, one that was refused and still sends."""
    backend.serve()
    door = open_door(limits=Limits(connections=4))
    never, half, before, refused = (knock(door) for _ in range(4))
    half.send(GET[:9])
    assert alive(before)  # and all have come: so it is later, by the door's clock
    time.sleep(0.02)
    assert alive(before)
    time.sleep(0.02)
    refused.send(b"nonsense\r\n\r\n")
    assert refused.answer().status == 400
    time.sleep(0.02)
    new = [knock(door) for _ in range(2)]
    assert alive(new[0]) and alive(new[1]) and never.gone() and half.gone()
    for oldest in (before, refused):
        new.append(knock(door))
        assert alive(new[-1]) and oldest.gone()
    assert all(alive(wire) for wire in new)


def test_one_address_keeps_no_other_out(backend: Backend, open_door: Open, knock: Knock) -> None:
    """However many connections it opens: those of others stay, older ones too."""
    backend.serve()
    door = open_door(limits=Limits(connections=20))
    other = Wire(socket.create_connection(("127.0.0.1", door.port), source_address=("127.0.0.2", 0)))
    assert alive(other)
    many = [knock(door) for _ in range(150)]
    assert alive(many[-1])  # by now all have come
    assert sum(alive(wire) for wire in many) == 19
    assert alive(other)
    other.close()


def test_a_backend_that_takes_a_connection_and_dies(
    open_door: Callable[..., Door], knock: Callable[[Door], Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a byte was sent: nothing was done, and the next request finds another connection."""
    connected = Upstream.connection_made
    dying = iter([True])

    def made(upstream: Upstream, transport: asyncio.BaseTransport) -> None:
        connected(upstream, transport)
        if next(dying, False):
            upstream.transport.abort()

    monkeypatch.setattr(Upstream, "connection_made", made)
    client = knock(open_door())
    client.send(GET)
    answer = client.answer()
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
