"""Reception: takes TLS connections. Each gets the context of the moment, and what is not TLS is told so."""

from __future__ import annotations

import asyncio
import socket
import sys
from functools import partial
from typing import Any

import msgspec

from chromakeep.server import answers
from chromakeep.server.client_side import TOLD, ClientSide
from chromakeep.server.crowd import first_to_go
from chromakeep.server.service import Service
from chromakeep.server.tls import Certificates

_HANDSHAKE = b"\x16"  # the first byte of every TLS connection, and of no request
_AT_ONCE = 64  # connections that are accepted before others have their turn
_NO_ROOM = 1.0  # seconds of waiting when the process can open no more files
PLAIN = answers.refusal(400, "this port speaks TLS: write https:// (chromadb: ssl=True)")


class _Coming(msgspec.Struct, frozen=True):
    """A connection that has not come in yet: its address, since when, and who waits for it."""

    peer: str
    since: float
    task: asyncio.Task[None]


class Reception:
    """Used in the door's thread only.

    The event loops' own TLS servers have one context for good, do not say how many handshakes are under way, and end a
    plain request without a word. So connections are accepted here, and given to the loop when they have begun to speak.
    A handshake has ``limits.head`` seconds and counts as a connection; others go on beside it.
    """

    def __init__(self, service: Service, certificates: Certificates, sockets: list[socket.socket]) -> None:
        self._service, self._certificates = service, certificates
        self._waiting: set[socket.socket] = set()  # accepted, and not given to the loop yet
        self._coming: dict[asyncio.Task[None], _Coming] = {}
        self._listeners = sockets
        self._closed = False
        self._options: dict[str, Any] = {"ssl_handshake_timeout": service.limits.head}
        if sys.version_info >= (3, 11) or not isinstance(service.loop, asyncio.BaseEventLoop):
            # A close waits for what is not sent yet and for the client's own; ``ClientSide`` has this deadline too.
            self._options["ssl_shutdown_timeout"] = service.limits.stall
        for listener in sockets:
            self._listen(listener)

    async def close(self) -> None:
        """Take no more, and drop those that have not come in yet."""
        self._closed = True
        for listener in self._listeners:
            self._service.loop.remove_reader(listener.fileno())
        for task in self._coming:
            task.cancel()
        await asyncio.gather(*self._coming, return_exceptions=True)
        for connection in self._waiting:
            connection.close()

    def _listen(self, listener: socket.socket) -> None:
        if not self._closed:
            self._service.loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop, service = self._service.loop, self._service
        for _ in range(_AT_ONCE):
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                loop.remove_reader(listener.fileno())
                loop.call_later(_NO_ROOM, self._listen, listener)
                return
            if len(service.clients) + len(self._coming) > service.limits.connections + TOLD:
                leaving = first_to_go(self._coming.values())
                if leaving is None:
                    connection.close()
                    continue
                self._coming.pop(leaving.task)
                leaving.task.cancel()
            connection.setblocking(False)
            self._waiting.add(connection)
            task = loop.create_task(self._welcome(connection))
            self._coming[task] = _Coming(str(address[0]), loop.time(), task)
            task.add_done_callback(partial(self._came, connection))

    def _came(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._coming.pop(task, None)
        if connection in self._waiting:  # it was sent away before it spoke
            self._waiting.discard(connection)
            connection.close()

    async def _welcome(self, connection: socket.socket) -> None:
        loop, service = self._service.loop, self._service
        try:
            first = await asyncio.wait_for(self._first(connection), service.limits.head)
        except (OSError, asyncio.TimeoutError):
            first = b""
        self._waiting.discard(connection)
        if not first or self._closed:  # ``wait_for`` before 3.12 swallows a cancellation that comes with the byte
            connection.close()
            return
        try:
            if first == _HANDSHAKE:
                context = self._certificates.context
                await loop.connect_accepted_socket(
                    lambda: ClientSide(service), connection, ssl=context, **self._options
                )
            else:
                await loop.connect_accepted_socket(lambda: _Mistaken(service), connection)
        except (OSError, asyncio.TimeoutError) as error:  # SSLError is an OSError: the client's own affair
            error.with_traceback(None)  # its frames hold asyncio's future, that holds it: a circle with the connection

    async def _first(self, connection: socket.socket) -> bytes:
        """The first byte that comes, which stays unread; none at the end."""
        loop = self._service.loop
        while True:
            try:
                return connection.recv(1, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                come = asyncio.Event()
                loop.add_reader(connection.fileno(), come.set)
                try:
                    await come.wait()
                finally:
                    loop.remove_reader(connection.fileno())


class _Mistaken(ClientSide):
    """A client that speaks without TLS: whatever it asks, it hears that, and nothing it sends is passed on."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._refuse(PLAIN)
