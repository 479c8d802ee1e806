"""A client's connection: its requests one after the other, answers in their order, and what its slowness may cost."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from math import inf
from typing import cast

from msgspec.structs import replace

from chromakeep.server import answers
from chromakeep.server.bodies import Body, body_of
from chromakeep.server.cors import Cors, is_preflight
from chromakeep.server.crowd import first_to_go
from chromakeep.server.exchange import Exchange
from chromakeep.server.fields import END, Malformed, whole_lines
from chromakeep.server.gate import Page, Refusal
from chromakeep.server.guard import Account, unread
from chromakeep.server.limits import BUFFER
from chromakeep.server.request_head import RequestHead, retraced
from chromakeep.server.service import Service
from chromakeep.server.visit import Visit

TOLD = 100  # connections above the limit that are told so; others are only closed
_TURNS = 20  # requests of one connection before the loop turns to others
_FAREWELL = 0.2  # seconds that an idle client over TLS has to close, too
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: end with RST


class ClientSide(asyncio.Protocol):
    """One connection. A pipelined request is not even parsed before the answer to the one before it has been taken."""

    __slots__ = (
        "_account", "_advancing", "_body", "_body_held", "_body_since", "_buffer", "_deadline", "_eof", "_exchange",
        "_expects", "_full", "_held_at", "_lingering", "_paused", "_received", "_room", "_searched", "_service",
        "_stalled", "extra", "peer", "since", "transport",
    )  # fmt: skip

    def __init__(self, service: Service) -> None:
        self._service = service
        self.transport: asyncio.Transport
        self.peer = ""
        self.since = 0.0  # when it began to wait for a request or, after the last answer, for its end
        self.extra = b""  # fields of ours, as lines, for whatever answers the running request
        self._buffer = bytearray()  # what has come and is not for now
        self._searched = 0  # of the buffer, for the end of a head
        self._exchange: Exchange | Visit | None = None
        self._account: Account | None = None  # of the running request, where somebody keeps a ledger
        self._body: Body | None = None  # of the running request, until it has been read to its end
        self._received = 0  # bytes of its payload
        self._body_since = 0.0
        self._body_held = False  # the backend takes no more of it for now
        self._held_at = 0.0
        self._expects = False  # the client waits for 100
        self._advancing = False
        self._paused = False  # the transport does not read
        self._full = False  # the client does not take what we send
        self._eof = False  # the client sends no more
        self._lingering = False  # answered for the last time: what still comes is discarded
        self._deadline = inf  # for what the client owes: a head, a body, the taking of an answer's rest
        self._room = max(BUFFER, service.limits.head_bytes)
        self._stalled = inf  # deadline for taking some of a waiting answer

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=2 * BUFFER)
        self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        service = self._service
        full = len(service.clients) >= service.limits.connections and not self._take_a_place()
        service.clients.add(self)
        self.since = service.loop.time()
        self._deadline = self.since + service.limits.head
        if len(service.clients) > service.limits.connections + TOLD:
            self.transport.abort()
        elif full:
            self._refuse(answers.FULL)

    def _take_a_place(self) -> bool:
        """That of a connection on which nothing is under way; best of one that has taken all its answers."""
        waiting = [one for one in self._service.clients if one._exchange is None]
        taken = [one for one in waiting if not one.transport.get_write_buffer_size()]
        leaving = first_to_go(taken or waiting)
        if leaving:
            leaving._lingering = True
            self._service.clients.discard(leaving)
            leaving.transport.abort()
        return leaving is not None

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        exchange = self._exchange
        if exchange and exchange.taking and not self._buffer:
            self._pass(exchange, data)
        else:
            self._buffer += data
            self._advance()
        self._balance()

    def eof_received(self) -> bool:
        """The client has closed its sending side; it may still read, if nothing that it sent is wanting."""
        self._eof = True
        exchange = self._exchange
        if exchange and not self._lingering:
            if exchange.taking:  # and what was there has been taken
                exchange.abort()
                return False
            # It may as well have closed everything: nobody can tell. So it has not all the time of the world.
            self._deadline = self._service.loop.time() + self._service.limits.half_closed
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._service.clients.discard(self)
        self._lingering = True
        exchange, self._exchange = self._exchange, None
        if exchange:
            exchange.abort()
        self._settle()

    def pause_writing(self) -> None:
        self._full = True
        self._stalled = self._service.loop.time() + self._service.limits.stall
        if self._exchange:
            self._exchange.pause_answer(True)

    def resume_writing(self) -> None:
        self._full, self._stalled = False, inf
        if self._exchange:
            self._exchange.pause_answer(False)
        elif not self._lingering:
            self._deadline = self._service.loop.time() + self._service.limits.idle
            self._go_on()

    # Requests

    def _advance(self) -> None:
        """Go on with what is in the buffer, as far as it goes."""
        if self._advancing:
            return
        self._advancing = True
        turns = 0
        try:
            while not self._lingering:
                turns += 1
                if turns > _TURNS:  # answers of ours need no waiting: others must have their turn between them
                    self._service.loop.call_soon(self._go_on)
                    break
                exchange = self._exchange
                if exchange is None:
                    if self._full or not self._next():
                        break
                elif exchange.taking and self._buffer:
                    data = bytes(self._buffer)
                    self._buffer.clear()
                    self._pass(exchange, data)
                else:
                    break
        finally:
            self._advancing = False

    def _go_on(self) -> None:
        if not self._lingering:
            self._advance()
            self._balance()

    def _next(self) -> bool:
        """Begin the next request, if its head has come."""
        limits = self._service.limits
        end = self._buffer.find(END, max(0, self._searched - 3))
        if end < 0:
            if self._eof:
                self.close()
            elif len(self._buffer) > limits.head_bytes:
                self._refuse(answers.refusal(431, f"a request's head has more than {limits.head_bytes} bytes"))
            elif self._buffer and not self._searched:
                self._deadline = self._service.loop.time() + limits.head
            if not whole_lines(self._buffer.removesuffix(b"\r")):
                self._refuse(answers.refusal(400, "a line that does not end in CRLF"))
            self._searched = len(self._buffer)
            return False
        head = bytes(self._buffer[: end + 4])
        del self._buffer[: end + 4]
        self._searched = 0
        try:
            if len(head) > limits.head_bytes:
                raise Malformed(f"a request's head has more than {limits.head_bytes} bytes", 431)
            request = self._service.read(head)
            if request.length is not None and request.length > limits.body_bytes:
                raise Malformed(f"a body of more than {limits.body_bytes} bytes", 413)
        except Malformed as error:
            self._refuse(answers.refusal(error.status, error.message))
            return False
        self._begin(request)
        return True

    def _begin(self, request: RequestHead) -> None:
        self._deadline = self._service.loop.time() + self._service.limits.half_closed if self._eof else inf
        self._body = None if request.length == 0 else body_of(request.length)
        self._received = 0
        self._expects = request.expects and self._body is not None
        account = Account(request, self.peer, self._service.loop.time())
        if self._service.ledger or self._service.guard:
            self._account = account
            if self._service.ledger:
                account.trace = b",".join([value for name, value in request.fields if name == b"traceparent"])
                if account.trace:
                    account.state = b",".join([value for name, value in request.fields if name == b"tracestate"])
                self._service.ledger.begun(account)
                account.state = b""
                if account.context:
                    request = replace(request, forward=retraced(request.forward, account.context))
                    account.context = b""
        path, desk = request.target.partition("?")[0], self._service.desk
        if cors := self._service.cors:
            self.extra = cors.fields(request)
            if is_preflight(request):  # a browser sends no key with it, and Chroma knows no such request
                self._answer_preflight(request, cors, account)
                return
        page = self._service.pages.get(path)
        if page and request.method in ("GET", "HEAD"):
            keep = request.keep and not self._service.closing and self.skip_body()
            account.route = path
            shown: Page | Refusal
            try:
                shown = page()
            except Exception as error:  # of a page: whatever it is, the client gets an answer and others their door
                self._service.warn(f"door: {request.target}: {type(error).__name__}: {error}")
                shown = answers.FAILED
            self.answer(shown, head_only=request.method == "HEAD", keep=keep)
            self.answered(keep=keep)
            return
        if desk and desk.takes(path):
            self._exchange = Visit(self._service, self, request, account, desk)
        else:
            self._exchange = Exchange(self._service, self, request, account)
        self._exchange.begin()

    def _answer_preflight(self, request: RequestHead, cors: Cors, account: Account) -> None:
        keep = request.keep and not self._service.closing and self.skip_body()
        account.route, refused = "preflight", cors.refusal(request)
        if refused:
            self.answer(refused, head_only=False, keep=keep)
        else:
            account.status = 204
            self.send(answers.nothing_bytes(close=not keep, extra=self.extra + cors.permission(request)))
        self.answered(keep=keep)

    # Bodies

    def body_wanted(self) -> None:
        """The exchange takes the body from now on."""
        self._body_since = self._service.loop.time()
        self._grant()
        if self._expects and not self._buffer:
            self.transport.write(answers.CONTINUE)
        self._expects = False
        if self._buffer and self._exchange:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._pass(self._exchange, data)
        if self._eof and self._exchange and self._exchange.taking:
            self._exchange.abort()
            self.close()
        self._balance()

    def body_unwanted(self) -> None:
        """The backend has begun to answer without it."""
        self._deadline = inf

    def _pass(self, exchange: Exchange | Visit, data: bytes) -> None:
        assert self._body
        limits = self._service.limits
        try:
            payload, rest = self._body.feed(data)
            self._received += len(payload)
            if self._received > limits.body_bytes:
                raise Malformed(f"a body of more than {limits.body_bytes} bytes", 413)
        except Malformed as error:
            self._give_up(exchange, error)
            return
        self._buffer += rest
        try:
            if self._body.done:
                self._body, self._deadline = None, inf
                exchange.send_body(payload, last=True)
            else:
                self._grant()
                exchange.send_body(payload, last=False)
        except Malformed as error:  # says who watches it
            self._give_up(exchange, error)

    def _give_up(self, exchange: Exchange | Visit, error: Malformed) -> None:
        """Refuse a body in the middle; nothing of the request can have its effect."""
        exchange.abort()
        self._exchange = None
        self._refuse(answers.refusal(error.status, error.message))

    def _settle(self) -> None:
        """The running request is over, whatever came of it."""
        account, self._account = self._account, None
        if account:
            account.received = self._received
            if self._service.guard:
                self._service.guard.settle(account)
            if self._service.ledger:
                self._service.ledger.ended(account, self._service.loop.time())

    def _grant(self) -> None:
        """Set the deadline for the rest of the body by what has come of it."""
        limits = self._service.limits
        self._deadline = self._body_since + limits.body + self._received / limits.body_rate

    def hold_body(self, held: bool) -> None:
        """The backend does not take more of the body, or does again. The time is not the client's fault."""
        if held == self._body_held:
            return
        now = self._service.loop.time()
        self._body_held = held
        if self._exchange and self._exchange.taking:
            if held:
                self._held_at, self._deadline = now, inf
            else:
                self._body_since += now - self._held_at
                self._grant()
        self._balance()

    def skip_body(self) -> bool:
        """Drop what has come of the body; whether that was all, so that the connection can be kept."""
        if self._body is None:
            return True
        try:
            _, rest = self._body.feed(bytes(self._buffer))
        except Malformed:
            return False
        self._buffer[:] = rest
        if self._body.done:
            self._body = None
        return self._body is None

    def _balance(self) -> None:
        """Read from the client only while there is room for what it sends."""
        paused = not self._lingering and (self._body_held or len(self._buffer) > self._room)
        if paused != self._paused and not self.transport.is_closing():
            self._paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # Answers

    def send(self, data: bytes) -> None:
        """Bytes of an answer."""
        self.transport.write(data)

    def answer(self, what: Page | Refusal, *, head_only: bool, keep: bool) -> None:
        """The whole of an answer that is ours, and takes the place of any other."""
        page = what if isinstance(what, Page) else answers.page_of(what)
        if self._account:
            self._account.status, self._account.sent = page.status, 0 if head_only else len(page.body)
        self.send(answers.page_bytes(page, head_only=head_only, close=not keep, extra=self.extra))

    def answered(self, *, keep: bool) -> None:
        """The answer of the running request has been sent."""
        self._exchange, self._body_held, self.extra = None, False, b""
        self._settle()
        if not keep or self._service.closing:
            self._last()
            return
        self._body = None
        self.since = self._service.loop.time()
        self._deadline = inf if self._full else self.since + self._service.limits.idle
        self._advance()
        self._balance()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is no request, or none that is taken; nothing can follow it."""
        if not self._lingering:
            ledger = self._service.ledger
            if ledger and self._account is None:
                self._account, self._received = unread(self.peer, self._service.loop.time()), 0
                ledger.begun(self._account)
            self.answer(refusal, head_only=False, keep=False)
            self._body = self._body or body_of(None)  # there may be more of it on its way
            self._last()
        self._settle()

    def _last(self) -> None:
        """Nothing will follow what has been sent. Close, but not before a client that still sends has read it."""
        self._lingering = True
        self.since = self._service.loop.time()
        clean = self._body is None and not self._buffer
        self._buffer.clear()
        if clean or self._eof:
            self.close()
            return
        self._deadline = self.since + self._service.limits.linger
        if self.transport.can_write_eof():  # TLS has no half of a connection: there ``connection: close`` must do
            self.transport.write_eof()
        self._balance()

    # The end

    def close(self) -> None:
        """Close when what has been sent is taken."""
        self._lingering = True
        self._deadline = self._service.loop.time() + self._service.limits.stall
        self.transport.close()

    def cut(self) -> None:
        """Close now, and so that the client cannot take what it has for a whole answer."""
        self._lingering = True
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def wind_up(self) -> None:
        """The door closes: end now if no request is under way."""
        if self._exchange is None and not self._lingering:
            self.close()
            if not self.transport.can_write_eof():  # over TLS a close waits for the client's, and nothing is under way
                self._service.loop.call_later(_FAREWELL, self._part, 0)

    def _part(self, free: int) -> None:
        """End a farewell that the client does not return, but not while it still takes an answer.

        Of what TLS has handed down, the transport beneath keeps what the kernel has no room for, and tells nobody. So
        there must be room twice, a turn of the loop apart: by then it is the kernel's.
        """
        if free == 2:
            self.transport.abort()
        elif self in self._service.clients:
            room = not self.transport.get_write_buffer_size() and _writable(self.transport.get_extra_info("socket"))
            self._service.loop.call_later(0.001 if room else _FAREWELL, self._part, free + 1 if room else 0)

    def expire(self, now: float) -> None:
        """End what has taken too long. Called every so often."""
        if now > self._stalled:
            self._abandon()
        elif now > self._deadline:
            exchange = self._exchange
            if self._lingering or self._eof or (exchange and exchange.started):
                self._abandon()
            elif exchange or self._buffer:
                late = Malformed("the request did not come in time", 408)
                if exchange:
                    self._give_up(exchange, late)
                else:
                    self._refuse(answers.refusal(late.status, late.message))
            else:
                self.close()

    def _abandon(self) -> None:
        if self._exchange:
            self._exchange.abort()
        self.cut()


def _writable(connection: socket.socket) -> bool:
    """Whether the kernel has room for more; one that is closed has."""
    if connection.fileno() < 0 or not hasattr(select, "poll"):  # not on Windows
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLOUT)
    return bool(poll.poll(0))
