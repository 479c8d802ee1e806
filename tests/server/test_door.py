"""A door's life: where it cannot listen, how it stops, and what the process may afford."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from chromakeep.errors import ServerFailed
from chromakeep.events import Event
from chromakeep.server import Door, Limits
from chromakeep.server.door import affordable
from server.wires import GET, OK, Backend, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_it_listens_and_says_where(host: str, backend: Backend, knock: Knock) -> None:
    backend.serve()
    door = Door(host, 0, backend.address)
    door.start()
    assert door.port
    client = knock(door)
    client.send(GET)
    assert client.answer().body == b"ok"
    assert door.serving
    door.stop(0)
    assert not door.serving
    with pytest.raises(ConnectionRefusedError):
        knock(door)


def test_where_it_cannot_listen(backend: Backend, open_door: Open) -> None:
    """One line that says why, and the port of the one that serves stays as it is."""
    taken = open_door()
    cases = {
        ("127.0.0.1", taken.port): "in use",
        ("192.0.2.1", 0): "cannot listen on 192.0.2.1",
        ("no.such.host.invalid", 0): "cannot listen on 'no.such.host.invalid'",
        ("x" * 300, 0): "cannot listen on",
        ("127.0.0.1", 70_000): "cannot listen on",
    }
    for (host, port), words in cases.items():
        with pytest.raises(ServerFailed, match=words) as failed:
            Door(host, port, backend.address).start()
        assert "\n" not in failed.value.message
    with pytest.raises(ServerFailed, match="in use"):
        Door("localhost", taken.port, backend.address).start()


def test_stop_closes_idle_connections_at_once_and_lets_requests_end(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    """With what is under way: an answer, and a write that the gate holds; neither connection is kept after it."""
    gate = Scripted(holds="acknowledge")
    door = open_door(gate=gate)
    idle, half, reading, writing = knock(door), knock(door), knock(door), knock(door)
    half.send(b"GET /x HT")
    reading.send(GET)
    first = backend.accept()
    first.until()
    writing.send(post())
    second = backend.accept()
    second.until()
    second.send(OK)
    assert gate.asked.wait(20)
    stopping = threading.Thread(target=door.stop, args=(60,))
    stopping.start()
    assert idle.gone()
    assert half.gone()
    with pytest.raises(ConnectionRefusedError):
        knock(door)
    first.send(OK)
    answer = reading.answer()
    assert (answer.body, answer.fields["connection"]) == (b"ok", "close")
    assert reading.rest() == b""
    gate.go.set()
    assert writing.answer().body == b"ok"
    assert writing.rest() == b""
    stopping.join(20)
    assert not stopping.is_alive()


def test_stop_cuts_what_does_not_end(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Visibly for the client and for the backend, and the gate's question is cancelled. Again it does nothing."""
    gate = Scripted(holds="acknowledge")
    door = open_door(gate=gate)
    reading, writing = knock(door), knock(door)
    reading.send(GET)
    first = backend.accept()
    first.until()
    first.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhalf")
    reading.until()
    writing.send(post())
    second = backend.accept()
    second.until()
    second.send(OK)
    assert gate.asked.wait(20)
    door.stop(0)
    with pytest.raises(ConnectionResetError):
        reading.rest()
    with pytest.raises(ConnectionResetError):
        writing.rest()
    assert first.gone()
    assert second.gone()
    assert gate.cancelled == ["acknowledge"]
    door.stop(0)


def test_a_door_that_was_never_opened_can_be_stopped(backend: Backend) -> None:
    Door("127.0.0.1", 0, backend.address).stop(1)


def test_doors_are_independent(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Two in one process; one goes, the other stays."""
    backend.serve()
    one, two = open_door(), open_door()
    client = knock(two)
    client.send(GET)
    assert client.answer().status == 200
    one.stop(5)
    client.send(GET)
    assert client.answer().status == 200


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch, backend: Backend, open_door: Open, knock: Knock) -> None:
    """asyncio's own loop serves as well."""
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    backend.serve()
    client = knock(open_door())
    client.send(GET * 3)
    assert [client.answer().body for _ in range(3)] == [b"ok"] * 3


@pytest.fixture
def files() -> Iterator[Callable[[int, int], None]]:
    """Sets how many files this process may open, and how many the fixture's user could let it; put back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.MonkeyPatch.context() as patch:

        def limit(now: int, most: int) -> None:
            """``most`` is only believed: one that was lowered could not be raised again."""
            resource.setrlimit(resource.RLIMIT_NOFILE, (now, hard))
            patch.setattr(resource, "getrlimit", lambda which: (now, most))

        yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_more_connections_than_files(files: Callable[[int, int], None]) -> None:
    """Each may need two, and the process needs some itself."""
    files(1024, 1024)
    assert affordable(Limits()).connections == 448
    assert affordable(Limits(connections=10)).connections == 10
    files(1024, resource.RLIM_INFINITY)
    assert affordable(Limits(connections=10)).connections == 10


def test_as_many_files_as_connections_need_where_the_process_may(
    backend: Backend, files: Callable[[int, int], None]
) -> None:
    """1024 is what most systems begin with; where it stays too few, that is told."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files(1000, hard)  # more than other tests may have left open in this process
    assert affordable(Limits(connections=600)).connections == 600
    told: list[Event] = []
    files(1000, 1000)
    door = Door("127.0.0.1", 0, backend.address, limits=Limits(connections=600), observer=told.append)
    door.start()
    door.stop(0)
    assert [str(event) for event in told if "436 clients" in str(event)] == [str(told[0])]


def test_it_speaks_ipv6(backend: Backend) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    backend.serve()
    door = Door("::1", 0, backend.address)
    door.start()
    client = Wire(socket.create_connection(("::1", door.port)))
    client.send(GET)
    assert client.answer().body == b"ok"
    client.close()
    door.stop(0)
