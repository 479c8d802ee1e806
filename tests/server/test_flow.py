"""Neither side is read faster than the other one takes, and nothing whole is kept: large bodies in little memory."""

from __future__ import annotations

import hashlib
import resource
import threading
from collections.abc import Callable
from contextlib import suppress

from chromakeep.server import Door, Page
from server.wires import GET, Backend, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]
KERNEL = 14_000_000  # bytes that two connections' socket buffers may hold, with room
PART = bytes(range(256)) * 4096  # 1 MiB


def push(wire: Wire, door: Door, knock: Knock, most: int = 200 << 20) -> int:
    """Send until nothing more is taken, though the door has had its turns; how many bytes were."""
    taken, refused = 0, 0
    witness = knock(door)
    wire.socket.setblocking(False)
    while refused < 50 and taken < most:
        try:
            taken += wire.socket.send(PART)
            refused = 0
        except BlockingIOError:
            refused += 1
            witness.send(b"GET /page HTTP/1.1\r\nhost: h\r\n\r\n")
            assert witness.answer().body == b"page"
    wire.socket.settimeout(20)
    return taken


PAGES = {"/page": lambda: Page(b"page")}


def test_a_backend_that_does_not_read_stops_the_client(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Of 200 MB only what socket buffers hold is taken; the rest comes through unharmed when the backend reads."""
    door = open_door(pages=PAGES)
    client = knock(door)
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 200000000\r\n\r\nx")
    wire = backend.accept()
    wire.until()
    taken = push(client, door, knock)
    assert taken < KERNEL
    reading = threading.Thread(target=lambda: wire.exactly(taken), daemon=True)
    reading.start()
    reading.join(20)
    assert not reading.is_alive()
    assert push(client, door, knock) > 0


def test_a_client_that_does_not_read_stops_the_backend(backend: Backend, open_door: Open, knock: Knock) -> None:
    door = open_door(pages=PAGES)
    client = knock(door)
    client.send(GET)
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n")
    taken = push(wire, door, knock)
    assert taken < KERNEL
    client.until()
    client.exactly(taken)
    assert push(wire, door, knock) > 0


def test_a_client_is_not_read_while_its_write_is_not_admitted(backend: Backend, open_door: Open, knock: Knock) -> None:
    gate = Scripted(holds="admit")
    door = open_door(gate=gate, pages=PAGES)
    client = knock(door)
    client.send(post(more="a: b\r\n").replace(b"length: 2", b"length: 200000000")[:-2])
    assert gate.asked.wait(20)
    assert push(client, door, knock) < KERNEL


def test_a_backend_is_not_read_while_its_answer_is_not_acknowledged(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    gate = Scripted(holds="acknowledge")
    door = open_door(gate=gate, pages=PAGES)
    client = knock(door)
    client.send(post())
    wire = backend.accept()
    wire.until()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n")
    assert gate.asked.wait(20)
    taken = push(wire, door, knock)
    assert taken < KERNEL
    assert client.silent()
    gate.go.set()
    client.until()
    client.exactly(taken)


def test_a_client_that_sends_ahead_is_not_read_beyond_a_bound(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Pipelined requests wait in the socket, not here."""
    door = open_door(pages=PAGES)
    client = knock(door)
    client.send(GET)
    backend.accept().until()
    assert push(client, door, knock) < KERNEL


def test_a_client_that_asks_for_pages_and_takes_none(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Answers of ours do not pile up either."""
    large = Page(b"x" * 200_000)
    door = open_door(pages={**PAGES, "/large": lambda: large})
    client = knock(door)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client.send(b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n" * 1000)  # 200 MB of answers
    witness = knock(door)
    for _ in range(100):
        witness.send(b"GET /page HTTP/1.1\r\nhost: h\r\n\r\n")
        assert witness.answer().body == b"page"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB
    for _ in range(1000):
        assert client.until().startswith(b"HTTP/1.1 200")
        client.exactly(200_000)


def test_large_bodies_pass_in_little_memory(backend: Backend, open_door: Open, knock: Knock) -> None:
    """300 MB up, counted, and 300 MB down, in chunks, at the same time; every byte the same."""
    client = knock(open_door())
    parts = 300
    digests: dict[str, str] = {}

    def backend_side() -> None:
        wire = backend.accept()
        wire.until()
        digest = hashlib.sha1()
        for _ in range(parts):
            digest.update(wire.exactly(len(PART)))
        digests["up"] = digest.hexdigest()
        wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(parts):
            wire.send(b"100000\r\n" + PART + b"\r\n")
        wire.send(b"0\r\n\r\n")

    other = threading.Thread(target=backend_side, daemon=True)
    other.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % (parts * len(PART)))
    expected = hashlib.sha1()
    for _ in range(parts):
        client.send(PART)
        expected.update(PART)
    client.until()
    digest = hashlib.sha1()
    received = 0
    while size := int(client.until(b"\r\n"), 16):
        digest.update(client.exactly(size))
        received += size
        client.exactly(2)
    assert received == parts * len(PART)
    digests["down"] = digest.hexdigest()
    assert digests == {"up": expected.hexdigest(), "down": expected.hexdigest()}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB
    with suppress(RuntimeError):
        other.join(20)
