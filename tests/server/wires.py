"""A client and a backend that are plain sockets: the tests say and see every byte."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from chromakeep.server import Refusal, Request

PATIENCE = 20.0
C = "/api/v2/tenants/t/databases/d/collections/c"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"


def post(body: bytes = b"{}", path: str = f"{C}/add", more: str = "") -> bytes:
    """A write with a counted body."""
    return f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


@dataclass
class Answer:
    """What came, parsed by code that is not the door's."""

    status: int
    fields: dict[str, str]
    body: bytes


class Wire:
    """One end of a connection. Every wait ends with an error after ``PATIENCE`` seconds."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(PATIENCE)
        self._had = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, end: bytes = b"\r\n\r\n") -> bytes:
        """Bytes up to and with ``end``."""
        while end not in self._had:
            more = self.socket.recv(1 << 16)
            if not more:
                raise EOFError(self._had)
            self._had += more
        head, found, self._had = self._had.partition(end)
        return head + found

    def exactly(self, count: int) -> bytes:
        """So many bytes."""
        parts, need = [self._had], count - len(self._had)
        while need > 0:
            more = self.socket.recv(1 << 18)
            if not more:
                raise EOFError(b"".join(parts)[:200])
            parts.append(more)
            need -= len(more)
        all_of_it = b"".join(parts)
        self._had = all_of_it[count:]
        return all_of_it[:count]

    def chunks(self) -> bytes:
        """A chunked body."""
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        assert self.exactly(2) == b"\r\n"
        return body

    def answer(self, method: str = "GET") -> Answer:
        """One whole answer."""
        lines = self.until().decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:-2])
        status = int(lines[0].split(" ")[1])
        if method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif "transfer-encoding" in fields:
            body = self.chunks()
        else:
            body = self.exactly(int(fields["content-length"]))
        return Answer(status, fields, body)

    def rest(self) -> bytes:
        """All that comes before the end. Raises ``ConnectionResetError`` for an end by reset."""
        while more := self.socket.recv(1 << 18):
            self._had += more
        had, self._had = self._had, b""
        return had

    def silent(self) -> bool:
        """Whether no byte has come that was not read."""
        if self._had:
            return False
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)

    def gone(self) -> bool:
        """Wait until the other end has closed or reset, reading what still comes."""
        with suppress(ConnectionResetError, BrokenPipeError):
            self.rest()
        return True

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """End with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Backend:
    """A listening socket in Chroma's place; who accepts and answers is the test."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.settimeout(PATIENCE)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._wires: list[Wire] = []

    def accept(self) -> Wire:
        """The next connection of the door's."""
        wire = Wire(self._listener.accept()[0])
        self._wires.append(wire)
        return wire

    def unasked(self) -> bool:
        """Whether the door has not connected since the last accept."""
        self._listener.setblocking(False)
        try:
            self._wires.append(Wire(self._listener.accept()[0]))
        except BlockingIOError:
            return True
        finally:
            self._listener.settimeout(PATIENCE)
        return False

    def serve(self, answer: bytes = OK) -> None:
        """From now on answer every request without a body, on all connections, in a thread."""

        def one(wire: Wire) -> None:
            with suppress(EOFError, OSError):
                while True:
                    wire.until()
                    wire.send(answer)

        def accepting() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=one, args=(self.accept(),), daemon=True).start()

        threading.Thread(target=accepting, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for wire in self._wires:
            wire.close()


@dataclass
class Scripted:
    """A gate that records its questions and waits for the test's word."""

    admitted: list[Request] = field(default_factory=list)
    acknowledged: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    on_admit: Callable[[], Refusal | None] = lambda: None
    on_acknowledge: Callable[[], Refusal | None] = lambda: None
    go: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    holds: str = ""  # the question that waits for ``go``

    async def admit(self, request: Request) -> Refusal | None:
        self.admitted.append(request)
        await self._wait("admit")
        return self.on_admit()

    async def acknowledge(self, request: Request) -> Refusal | None:
        self.acknowledged.append(request)
        await self._wait("acknowledge")
        return self.on_acknowledge()

    async def _wait(self, question: str) -> None:
        if question != self.holds:
            return
        self.asked.set()
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled.append(question)
            raise
