"""Connections to the backend: kept and used again, one exchange at a time each."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from typing import cast

import msgspec

from chromakeep.server.answer_head import MOST, parse_answer
from chromakeep.server.backend import Carried
from chromakeep.server.bodies import LAST_CHUNK, Body, body_of, chunk
from chromakeep.server.fields import END, Malformed
from chromakeep.server.limits import BUFFER
from chromakeep.server.request_head import RequestHead

_KEPT = 64  # idle connections
# Seconds for which an idle connection to another program's machine is used again: its other end must not be closing it
# just then, and a network forgets an idle one without a word: what is sent over it then waits for minutes.
FRESH = 5.0
_INFORMATIONAL = 100  # answers before the answer


class Upstream(asyncio.Protocol):
    """One connection. Reads answers for the exchange it carries, and stops while that holds them back."""

    __slots__ = ("_body", "_buffer", "_chunked", "_informed", "_lead", "_paused", "_pool", "_searched", "exchange",
                 "full", "lost", "since", "spoke", "transport", "used")  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.exchange: Carried | None = None
        self.transport: asyncio.Transport
        self.used = False  # it has carried an exchange before the one it carries
        self.spoke = False  # a byte of this exchange's answer has come
        self.lost = False
        self.since = 0.0  # when it became idle, by the loop's clock
        self.full = False  # it takes no more of a request for now
        self._pool = pool
        self._buffer = bytearray()
        self._searched = self._informed = 0
        self._body: Body | None = None  # of the answer, once its head has come
        self._paused = False
        self._lead = b""  # head of the request while it waits for the first bytes of the body
        self._chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=BUFFER)

    def carry(self, exchange: Carried) -> None:
        """Give this connection, which is idle, to an exchange."""
        self.exchange, self.spoke, self._body, self._searched, self._informed = exchange, False, None, 0, 0

    def begin(self, head: RequestHead) -> None:
        """Send a request's head; of one without a body that is all there is."""
        if head.length == 0:
            self.transport.write(head.forward)
        else:
            self._lead = head.forward  # goes with the first bytes of the body: one packet, not two
            self._chunked = head.length is None

    def send(self, payload: bytes, *, last: bool) -> None:
        """Send some of the body."""
        if self._chunked:
            payload = (chunk(payload) if payload else b"") + (LAST_CHUNK if last else b"")
        if self._lead:
            payload = self._lead + payload
            self._lead = b""
        if payload:
            self.transport.write(payload)

    def give_back(self, reusable: bool) -> None:
        """The exchange is over: keep the connection for another one, or close it."""
        self.exchange = None
        if reusable and not (self.lost or self.full or self._buffer):
            self.used = True
            self.pause(False)
            self._pool.keep(self)
        else:
            self.transport.abort()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading the answer."""
        if paused != self._paused and not self.lost:
            self._paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # nobody asked
            self.transport.abort()
            return
        self.spoke = True
        if self._body is not None and not self._buffer and not exchange.holding:
            self._pass(exchange, self._body, data)
            return
        self._buffer += data
        self.go_on()
        if len(self._buffer) > BUFFER and exchange.holding:
            self.pause(True)

    def go_on(self) -> None:
        """Read what has come, as far as the exchange takes it. Called again by the exchange that held it back."""
        try:
            while (exchange := self.exchange) is not None and not exchange.holding:
                if self._body is None:
                    if not self._head(exchange):
                        break
                elif self._buffer or self._body.done:
                    data = bytes(self._buffer)
                    self._buffer.clear()
                    self._pass(exchange, self._body, data)
                else:
                    break
        except Malformed as error:
            assert exchange
            exchange.answer_malformed(error.message)
            return
        if exchange is not None and exchange is self.exchange:
            if self.lost and not exchange.holding:
                self.exchange = None
                exchange.upstream_lost(self)
            else:
                exchange.flush()

    def _head(self, exchange: Carried) -> bool:
        """Read one head, if it has come. The heads of informational answers are dropped."""
        end = self._buffer.find(END, max(0, self._searched - 3))
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched > MOST:
                raise Malformed("an endless head")
            return False
        answer = parse_answer(bytes(self._buffer[: end + 4]), exchange.method)
        del self._buffer[: end + 4]
        self._searched = 0
        if answer.status >= 200:
            self._body = body_of(answer.length)
            exchange.answer_begins(answer)
            return True
        self._informed += 1
        if self._informed > _INFORMATIONAL:
            raise Malformed("informational answers without end")
        return True

    def _pass(self, exchange: Carried, body: Body, data: bytes) -> None:
        try:
            payload, rest = body.feed(data)
        except Malformed as error:
            exchange.answer_malformed(error.message)
            return
        self._buffer += rest  # which nobody asked for: this connection is not used again
        exchange.answer_goes_on(payload, last=body.done)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._pool.forget(self)
        if error is not None and self.exchange is not None and not self.spoke:
            self._last_words()
        exchange = self.exchange
        if exchange is not None and not exchange.holding:  # else ``go_on`` finds out
            self.exchange = None
            exchange.upstream_lost(self)

    def _last_words(self) -> None:
        """Read what came before a send failed: a refusal of the body, as Chroma's 413, which the transport drops."""
        if self.transport.get_extra_info("sslcontext"):  # what could be read there is not for us to decipher
            return
        connection = self.transport.get_extra_info("socket")
        words = b""
        with suppress(OSError):
            while len(words) < BUFFER and (more := os.read(connection.fileno(), BUFFER)):
                words += more
        if words:
            self.data_received(words)

    def pause_writing(self) -> None:
        self.full = True
        if self.exchange:
            self.exchange.upstream_full(True)

    def resume_writing(self) -> None:
        self.full = False
        if self.exchange:
            self.exchange.upstream_full(False)


class Remote(msgspec.Struct, frozen=True):
    """A backend that is no child of ours: what it calls itself, and how it is sure who it is."""

    authority: bytes
    tls: ssl.SSLContext | None = None


class Pool:
    """Connections to one backend. The one used last is used first, so that those no longer needed grow old."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backend: tuple[str, int],
        timeout: float,
        remote: Remote | None = None,
    ) -> None:
        self._loop, self._backend, self._timeout = loop, backend, timeout
        self._tls = remote.tls if remote else None
        self.authority = remote.authority if remote else None
        self._far = remote is not None
        self._idle: list[Upstream] = []
        self._closed = False

    def take(self) -> Upstream | None:
        """An idle connection, if there is one. The backend may be closing it at this moment."""
        while self._idle:
            upstream = self._idle.pop()
            if self._far and self._loop.time() - upstream.since >= FRESH:
                upstream.transport.abort()
            elif not upstream.transport.is_closing():
                return upstream
        return None

    async def open(self) -> Upstream:
        """A new connection. Raises ``OSError`` (``TimeoutError`` is one) when the backend is not there."""
        try:
            connected = self._loop.create_connection(lambda: Upstream(self), *self._backend, ssl=self._tls)
            _, upstream = await asyncio.wait_for(connected, self._timeout)
        except asyncio.TimeoutError:  # not an OSError before Python 3.11
            raise TimeoutError(f"no connection in {self._timeout:g} s") from None
        except OSError as error:
            # Its frames hold the loop's future, that holds it: a circle, with whoever asked and his client in it.
            raise error.with_traceback(None) from None
        if upstream.transport.is_closing():
            raise ConnectionResetError("the connection was taken and ended")
        return upstream

    def keep(self, upstream: Upstream) -> None:
        """Take an idle connection back."""
        if self._closed or len(self._idle) >= _KEPT:
            upstream.transport.close()
        else:
            upstream.since = self._loop.time()
            self._idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """It is closed."""
        if upstream in self._idle:
            self._idle.remove(upstream)

    def close(self) -> None:
        """Close idle connections, and those that come back."""
        self._closed = True
        for upstream in self._idle:
            upstream.transport.close()
        self._idle.clear()
