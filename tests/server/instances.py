"""Three instances of plain sockets, for what balances over them."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from chromakeep.chroma.ports import free_port
from server.wires import Answer, C, Wire, post

CREATED = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}"
READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 7\r\n\r\nstandby"
UNSURE = b"HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 4\r\n\r\nlost"
BROKE = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\nodd!"
MISSING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone"


class Instance:
    """Answers every request with ``says``, or ends the connection where that is empty; counts them.

    It says that it is ready unless it refuses.
    """

    def __init__(self) -> None:
        self.says = CREATED
        self.asked: list[bytes] = []
        self.port = free_port()  # held also while nobody listens there
        self._listener: socket.socket | None = None
        self._wires: list[Wire] = []

    def rise(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
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
                if b"transfer-encoding" in fields:
                    wire.chunks()
                wire.exactly(int(fields.get(b"content-length", b"0")))
                if head.startswith(b"GET /readyz"):
                    wire.send(REFUSED if self.says == REFUSED else READY)
                    continue
                self.asked.append(head.partition(b"\r\n")[0])
                if not self.says:
                    wire.close()
                    return
                wire.send(self.says)


class Three:
    """Instances, and the two ports of what balances over them."""

    def __init__(self) -> None:
        self.instances = [Instance() for _ in range(3)]
        self.balanced = self.latest = 0

    def __enter__(self) -> Three:
        for one in self.instances:
            one.rise()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.instances:
            one.fall()

    @property
    def ports(self) -> list[int]:
        return [one.port for one in self.instances]

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


WRITES = {
    "POST": post(),
    "large": post(b"x" * 3_000_000),
    "chunked": f"POST {C}/add HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode(),
    "PUT": f"PUT {C} HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{{}}".encode(),
    "DELETE": f"DELETE {C} HTTP/1.1\r\nhost: h\r\n\r\n".encode(),
}
QUERY = post(path=f"{C}/query")
