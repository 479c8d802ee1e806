"""The shipped nginx configuration before instances of plain sockets: reads find an answer, no write is made twice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from server.wires import Answer, C, Wire, post
from servers.nginx import nginx

CREATED = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 7\r\n\r\nstandby"
UNSURE = b"HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 4\r\n\r\nlost"
BROKE = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\nodd!"
MISSING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone"


class Instance:
    """Answers every request with ``says``, or ends the connection where that is empty; counts them."""

    def __init__(self) -> None:
        self.says = CREATED
        self.asked: list[bytes] = []
        self.port = 0
        self._listener: socket.socket | None = None
        self._wires: list[Wire] = []

    def rise(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def fall(self) -> None:
        """Nobody listens there any more."""
        if self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts, so that the port is free
            self._listener.close()
        for wire in self._wires:
            with suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)  # at once, also while a thread reads
            wire.close()
        self._listener, self._wires = None, []

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                wire = Wire(listener.accept()[0])
                self._wires.append(wire)
                threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        with suppress(OSError, EOFError, ValueError):
            while True:
                head = wire.until()
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                wire.exactly(int(fields.get(b"content-length", b"0")))
                self.asked.append(head.partition(b"\r\n")[0])
                if not self.says:
                    wire.close()
                    return
                wire.send(self.says)


class Three:
    """Instances, and nginx before them."""

    def __init__(self) -> None:
        self.instances = [Instance() for _ in range(3)]
        self.balanced = self.latest = 0

    def say(self, *answers: bytes | None) -> None:
        """What each one says from now on; None: it cannot be connected to."""
        for one, answer in zip(self.instances, answers, strict=True):
            one.fall()
            one.says = answer or b""
            one.asked.clear()
            if answer is not None:
                one.rise()

    def ask(self, request: bytes, port: int = 0) -> Answer:
        wire = Wire(socket.create_connection(("127.0.0.1", port or self.balanced)))
        wire.send(request)
        answer = wire.answer()
        wire.close()
        return answer

    @property
    def asked(self) -> int:
        """Requests that reached any of them."""
        return sum(len(one.asked) for one in self.instances)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    made = Three()
    for one in made.instances:
        one.rise()
    with nginx(tmp_path / "nginx", [one.port for one in made.instances]) as (made.balanced, made.latest):
        yield made
    for one in made.instances:
        one.fall()


WRITES = {
    "POST": post(),
    "large": post(b"x" * 3_000_000),
    "chunked": f"POST {C}/add HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode(),
    "PUT": f"PUT {C} HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{{}}".encode(),
    "DELETE": f"DELETE {C} HTTP/1.1\r\nhost: h\r\n\r\n".encode(),
}
QUERY = post(path=f"{C}/query")


@pytest.mark.parametrize("request_", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("others", [REFUSED, None], ids=["that refuse", "that are gone"])
def test_a_write_finds_the_one_that_takes_it(three: Three, request_: bytes, others: bytes | None) -> None:
    """Through others; once."""
    three.say(others, CREATED, others)
    for _ in range(5):
        assert three.ask(request_).status == 201
    assert len(three.instances[1].asked) == 5


@pytest.mark.parametrize("request_", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("end", [b"", UNSURE, BROKE], ids=["cut", "504", "502"])
def test_a_write_that_may_have_been_done_is_not_made_again(three: Three, request_: bytes, end: bytes) -> None:
    three.say(end, end, end)
    answer = three.ask(request_)
    assert answer.status == (504 if end == UNSURE else 502)
    assert "retry-after" not in answer.fields
    assert three.asked == 1


def test_a_write_that_nobody_takes(three: Three) -> None:
    """503 says that it may be made again; not one byte of it is anywhere."""
    three.say(None, None, None)
    for _ in range(4):
        answer = three.ask(WRITES["POST"])
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    three.say(REFUSED, None, REFUSED)
    answer = three.ask(WRITES["POST"])
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")


def test_a_refusal_then_a_cut(three: Three) -> None:
    """What was not done at one and may have been done at the next one is not tried at the third."""
    three.say(REFUSED, b"", REFUSED)
    answers = [three.ask(WRITES["POST"]).status for _ in range(3)]
    assert len(three.instances[1].asked) == answers.count(502) >= 1


@pytest.mark.parametrize(
    "bad", [None, b"", REFUSED, UNSURE, BROKE, MISSING], ids=["gone", "cut", "503", "504", "502", "404"]
)
def test_a_read_finds_one_that_answers(three: Three, bad: bytes | None) -> None:
    three.say(bad, CREATED, bad)
    for request in (QUERY, f"GET {C} HTTP/1.1\r\nhost: h\r\n\r\n".encode()) * 3:
        assert three.ask(request).status == 201


def test_reads_are_balanced_but_not_those_of_the_latest(three: Three) -> None:
    three.say(CREATED, CREATED, CREATED)
    for _ in range(9):
        assert three.ask(QUERY).status == 201
    assert [len(one.asked) for one in three.instances] == [3, 3, 3]
    three.say(REFUSED, REFUSED, CREATED)
    for _ in range(9):
        assert three.ask(QUERY, three.latest).status == 201
    assert len(three.instances[2].asked) == 9


def test_what_is_not_for_clients(three: Three) -> None:
    three.say(CREATED, CREATED, CREATED)
    for path in ("/_keep/receive", "/_keep/status", "/readyz", "/metrics", "/api/../_keep/status", "//_keep/status"):
        assert three.ask(f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode()).status == 404
    assert three.asked == 0
