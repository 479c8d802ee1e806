"""How exchanges end before their time over TLS: as without it, but that no half of a connection can be closed."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chromakeep.chroma.ports import free_port
from chromakeep.server import Door, Limits
from chromakeep.server import door as door_module
from chromakeep.server.guard import Account
from server.certificates import Authority
from server.wires import GET, OK, PATIENCE, Backend, Scripted, Wire, post

Open = Callable[[Limits], Door]
Knock = Callable[[Door], Wire]
BROKEN = (ConnectionResetError, BrokenPipeError, ssl.SSLError)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["uvloop", "asyncio"], autouse=True)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either event loop has TLS of its own."""
    if request.param == "asyncio":
        import asyncio

        monkeypatch.setattr(door_module, "new_loop", asyncio.new_event_loop)
    else:
        pytest.importorskip("uvloop")
    return str(request.param)


@pytest.fixture
def gate() -> Scripted:
    return Scripted()


@pytest.fixture
def open_tls(backend: Backend, authority: Authority, gate: Scripted) -> Iterator[Open]:
    made: list[Door] = []

    def make(limits: Limits) -> Door:
        made.append(Door("127.0.0.1", 0, backend.address, tls=authority.tls(), gate=gate, limits=limits))
        made[-1].start()
        return made[-1]

    yield make
    for door in made:
        door.stop(0)


@pytest.fixture
def knock(authority: Authority) -> Iterator[Knock]:
    made: list[Wire] = []
    context = ssl.create_default_context(cafile=str(authority.file))

    def make(door: Door, room: int = 0) -> Wire:
        plain = socket.socket()
        if room:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        plain.settimeout(PATIENCE)
        plain.connect(("127.0.0.1", door.port))
        made.append(Wire(context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


@pytest.mark.parametrize("line", [b"GET /x HTTP/1.1", b"GET /x HTTP/1.0"])
def test_a_broken_answer_looks_broken(line: bytes, backend: Backend, open_tls: Open, knock: Knock) -> None:
    """No close_notify, and a reset: nobody takes half for the whole."""
    client = knock(open_tls(Limits()))
    client.send(line + b"\r\nhost: h\r\n\r\n")
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    client.until()
    wire.send(b"4\r\nhalf\r\n")
    wire.close()
    with pytest.raises(BROKEN):
        client.rest()


def test_an_end_is_a_whole_end(backend: Backend, open_tls: Open, knock: Knock) -> None:
    """``connection: close``: all of a large answer, then close_notify, also to one of 1.0 that reads until the end."""
    body = b"x" * 3_000_000
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    backend.serve(head + b"2dc6c0\r\n" + body + b"\r\n0\r\n\r\n")
    client = knock(open_tls(Limits()))
    client.send(b"GET /x HTTP/1.0\r\n\r\n")
    first, _, came = client.rest().partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert came == body


def test_a_backend_that_dies_during_an_upload(backend: Backend, open_tls: Open, knock: Knock) -> None:
    """502, which the client can read although it still sends: what comes is discarded for a while."""
    client = knock(open_tls(Limits()))
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 1000)
    wire = backend.accept()
    wire.until()
    wire.close()
    client.send(b"x" * 2_000_000)
    answer = client.answer()
    assert (answer.status, answer.fields["connection"]) == (502, "close")
    client.send(b"x" * 500_000)


def test_a_client_that_is_refused_and_does_not_go_is_cut(backend: Backend, open_tls: Open, knock: Knock) -> None:
    """When the time for that is over."""
    client = knock(open_tls(Limits(linger=0.1)))
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999\r\n\r\nx")
    assert client.answer().status == 413
    with pytest.raises(BROKEN):
        client.rest()


@pytest.mark.parametrize("farewell", [True, False])
def test_a_client_that_goes_ends_its_upload(farewell: bool, backend: Backend, open_tls: Open, knock: Knock) -> None:
    """With or without close_notify: the backend sees a body that is broken off."""
    client = knock(open_tls(Limits()))
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nhalf")
    wire = backend.accept()
    wire.until()
    wire.exactly(4)
    if farewell:
        assert isinstance(client.socket, ssl.SSLSocket)
        with suppress(ssl.SSLError):  # asyncio of Python 3.10 does not say farewell
            client.socket.unwrap()
    client.close()
    assert wire.gone()


@pytest.mark.parametrize("farewell", [True, False])
def test_a_client_that_goes_ends_its_wait(farewell: bool, backend: Backend, open_tls: Open, knock: Knock) -> None:
    client = knock(open_tls(Limits()))
    client.send(post(b"{}", "/x/query"))
    wire = backend.accept()
    wire.until()
    if farewell:
        assert isinstance(client.socket, ssl.SSLSocket)
        with suppress(ssl.SSLError):  # asyncio of Python 3.10 does not say farewell
            client.socket.unwrap()
    client.close()
    assert wire.gone()


def test_a_client_that_goes_ends_its_download(backend: Backend, open_tls: Open, knock: Knock) -> None:
    client = knock(open_tls(Limits()))
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + b"x" * 100_000)
    client.until()
    client.close()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            wire.send(b"x" * 100_000)


def test_a_client_that_goes_leaves_the_gate(backend: Backend, open_tls: Open, knock: Knock, gate: Scripted) -> None:
    gate.holds = "admit"
    client = knock(open_tls(Limits()))
    client.send(post())
    assert gate.asked.wait(PATIENCE)
    client.close()
    witness = knock(open_tls(Limits()))
    gate.holds = ""
    witness.send(GET)
    wire = backend.accept()
    assert wire.until().startswith(b"GET")  # and not the write
    wire.send(OK)
    assert witness.answer().status == 200


def test_a_client_that_does_not_take_its_answer_is_cut(backend: Backend, open_tls: Open, knock: Knock) -> None:
    """And the backend is not read faster than the client reads."""
    client = knock(open_tls(Limits(stall=0.1)))
    client.send(GET)
    wire = backend.accept()
    wire.until()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            wire.send(b"x" * 1_000_000)
    with pytest.raises(BROKEN):
        client.rest()


def test_an_upload_is_not_read_faster_than_the_backend_takes_it(backend: Backend, open_tls: Open, knock: Knock) -> None:
    """The client has to wait (the kernel's buffers hold some 10 MB each), and nothing is lost of what it could send."""
    client = knock(open_tls(Limits()))
    size, sent, piece = 400_000_000, 0, bytes(range(256)) * 256
    client.socket.settimeout(0.3)
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size)
    with pytest.raises(TimeoutError):
        while sent < size:
            sent += client.socket.send(piece[sent % len(piece) :])
    assert sent < size // 2
    wire = backend.accept()
    wire.until()
    came = wire.exactly(sent)
    assert came == (piece * (sent // len(piece) + 1))[:sent]


SLOW = {
    "nothing": (b"", Limits(head=3.0)),  # the handshake has as long
    "a head": (b"GET /x HT", Limits(head=3.0, linger=0.1)),
    "a body": (b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf", Limits(body=0.1, linger=0.1)),
    "another request": (GET, Limits(idle=0.1)),
}


@pytest.mark.parametrize("owed", SLOW)
def test_what_a_client_owes_is_not_waited_for_forever(
    owed: str, backend: Backend, open_tls: Open, knock: Knock
) -> None:
    """408 for half a request, and no word to a client that has asked for nothing."""
    sent, limits = SLOW[owed]
    if sent.startswith(GET):
        backend.serve()
    client = knock(open_tls(limits))
    if sent:
        client.send(sent)
    if owed != "nothing":
        assert client.answer().status == (200 if sent.startswith(GET) else 408)
    try:
        assert client.rest() == b""
    except BROKEN:
        assert "a " in owed  # refused, and cut since it did not go


def test_a_door_that_stops_ends_what_is_idle_and_finishes_what_is_not(
    backend: Backend, open_tls: Open, knock: Knock
) -> None:
    """An idle client that does not answer the farewell keeps nobody; one that waits for its answer gets it."""
    door = open_tls(Limits())
    idle, busy = knock(door), knock(door)
    for one in (idle, busy):
        one.send(GET)
        wire = backend.accept() if one is idle else wire  # noqa: F821
        wire.until()
        wire.send(OK)
        assert one.answer().status == 200
    busy.send(GET)
    wire.until()
    stopping = threading.Thread(target=door.stop, args=(PATIENCE,))
    stopping.start()
    assert idle.rest() == b""
    wire.send(OK)
    answer = busy.answer()
    assert (answer.status, answer.fields["connection"]) == (200, "close")
    assert busy.rest() == b""
    busy.close()
    stopping.join(PATIENCE / 2)
    assert not stopping.is_alive()


@pytest.mark.parametrize("size", [50_000, 150_000])
def test_a_door_that_stops_cuts_no_answer_that_is_being_taken(
    size: int, backend: Backend, authority: Authority, knock: Callable[..., Wire]
) -> None:
    """By a slow client, when the door has got rid of all of it: into buffers that are not the kernel's yet."""
    ended = threading.Event()

    class Kept:
        def begun(self, account: Account) -> None:
            """Of no interest."""

        def ended(self, account: Account, now: float) -> None:
            ended.set()

    door = Door("127.0.0.1", 0, backend.address, tls=authority.tls(), ledger=Kept())
    door.start()
    for listener in door._sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # which its connections inherit
    client = knock(door, 4096)
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
    assert ended.wait(PATIENCE)
    stopping = threading.Thread(target=door.stop, args=(PATIENCE,))
    stopping.start()
    time.sleep(0.5)  # longer than an idle client has for its farewell
    assert len(client.answer().body) == size
    stopping.join(PATIENCE / 2)
    assert not stopping.is_alive()


def test_a_door_that_stops_does_not_wait_for_hellos(open_tls: Open) -> None:
    """A connection that has not said anything yet, and one in its handshake, are closed."""
    door, made = open_tls(Limits()), list[Wire]()
    for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
        wire = Wire(socket.create_connection(("127.0.0.1", door.port), PATIENCE))
        wire.send(sent)
        made.append(wire)
    door.stop(PATIENCE)
    assert not door.serving
    assert all(wire.gone() for wire in made)
    for wire in made:
        wire.close()


def test_the_files_of_a_door_are_read_before_it_listens(backend: Backend, authority: Authority, tmp_path: Path) -> None:
    """A failed start leaves no socket behind."""
    tls = authority.tls("gone")
    tls.certificate.unlink()
    port = free_port()
    door = Door("127.0.0.1", port, backend.address, tls=tls)
    with pytest.raises(Exception, match="no such file"):
        door.start()
    socket.create_server(("127.0.0.1", port)).close()
