"""Reception: takes TLS connections. Each gets the context of the moment, and what is not TLS is told so."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from typing import Any

from chromakeep.server import answers
from chromakeep.server.client_side import TOLD, ClientSide
from chromakeep.server.service import Service
from chromakeep.server.tls import Certificates

_HANDSHAKE = b"\x16"  # the first byte of every TLS connection, and of no request
_NO_ROOM = 1.0  # seconds of waiting when the process can open no more files
PLAIN = answers.refusal(400, "this port speaks TLS: write https:// (chromadb: ssl=True)")


class Reception:
    """Used in the door's thread only.

    The event loops' own TLS servers have one context for good, do not say how many handshakes are under way, and end a
    plain request without a word. So connections are accepted here, and given to the loop when they have begun to speak.
    A handshake has ``limits.head`` seconds and counts as a connection; others go on beside it.
    """

    def __init__(self, service: Service, certificates: Certificates, sockets: list[socket.socket]) -> None:
        self._service, self._certificates = service, certificates
        self._welcomed: set[asyncio.Task[None]] = set()
        self._doors = [service.loop.create_task(self._accept(one)) for one in sockets]
        self._options: dict[str, Any] = {"ssl_handshake_timeout": service.limits.head}
        if sys.version_info >= (3, 11) or not isinstance(service.loop, asyncio.BaseEventLoop):
            # A close waits for what is not sent yet and for the client's own; ``ClientSide`` has this deadline too.
            self._options["ssl_shutdown_timeout"] = service.limits.stall

    def close(self) -> None:
        """Take no more, and drop those that have not come in yet."""
        for task in (*self._doors, *self._welcomed):
            task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        loop, service = self._service.loop, self._service
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(_NO_ROOM)
                continue
            connection.setblocking(False)
            if len(service.clients) + len(self._welcomed) > service.limits.connections + TOLD:
                connection.close()
                continue
            task = loop.create_task(self._welcome(connection))
            self._welcomed.add(task)
            task.add_done_callback(self._welcomed.discard)
            await asyncio.sleep(0)  # those that are there have their turn between two new ones

    async def _welcome(self, connection: socket.socket) -> None:
        service = self._service
        try:
            first = await asyncio.wait_for(self._first(connection), service.limits.head)
        except (OSError, asyncio.TimeoutError):
            first = b""
        except BaseException:
            connection.close()
            raise
        if not first:
            connection.close()
            return
        with suppress(OSError, asyncio.TimeoutError):  # SSLError is an OSError: the client's own affair
            if first == _HANDSHAKE:
                context = self._certificates.context
                await service.loop.connect_accepted_socket(
                    lambda: ClientSide(service), connection, ssl=context, **self._options
                )
            else:
                await service.loop.connect_accepted_socket(lambda: _Mistaken(service), connection)

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
