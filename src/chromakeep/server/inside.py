"""Inside: an engine in this process as the backend of a door. Bodies are gathered, then a thread answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from math import inf

from chromakeep.access.rights import call_of
from chromakeep.server import answers
from chromakeep.server.answer_head import AnswerHead
from chromakeep.server.backend import Carried
from chromakeep.server.gate import Page
from chromakeep.server.request_head import RequestHead
from chromakeep.waiting import Waiting

PATIENCE = 10.0  # seconds for which a request waits for its turn
# Routes whose answer asks no engine: whoever probes them waits for no thread while all of these wait for a lock
AT_ONCE = frozenset({"heartbeat", "version", "pre-flight-checks", "identity"})
_BUSY = answers.refusal(503, "too many requests at a time; nothing was done", retry_after=1.0)

Answering = Callable[[str, str, bytes, "str | None"], Page]
"""Method, target, body and content type of a request; in one of several threads, within its ``Waiting``, or, of a
route that is answered ``AT_ONCE``, in the door's. Never raises."""


class Inside:
    """See ``Backend``. ``threads`` requests are worked on at a time, others wait for their turn, not for ever. A body
    has at most ``most`` bytes."""

    authority: bytes | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, answering: Answering, threads: int, most: int) -> None:
        self.loop, self.answering, self.most = loop, answering, most
        self.executor = ThreadPoolExecutor(threads, "engine")

    def take(self) -> Inward | None:
        """See ``Backend``."""
        return Inward(self)

    async def open(self) -> Inward:
        """See ``Backend``."""
        return Inward(self)

    def close(self) -> None:
        """What is being worked on goes on to its end; nobody waits for it here."""
        self.executor.shutdown(wait=False, cancel_futures=True)


class Inward:
    """See ``Line``: one request to the engine."""

    __slots__ = ("_answer", "_body", "_exchange", "_future", "_head", "_inside", "_timer", "_waiting", "lost",
                 "spoke", "used")  # fmt: skip

    def __init__(self, inside: Inside) -> None:
        self.used = self.spoke = self.lost = False
        self._inside = inside
        self._exchange: Carried | None = None
        self._head: RequestHead | None = None
        self._body = bytearray()
        self._answer: Page | None = None
        self._future: Future[Page] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = Waiting()

    def carry(self, exchange: Carried) -> None:
        """See ``Line``."""
        self._exchange = exchange

    def begin(self, head: RequestHead) -> None:
        """See ``Line``."""
        self._head = head
        if head.length == 0:
            self._ask()

    def send(self, payload: bytes, *, last: bool) -> None:
        """See ``Line``. One that is too long is answered before its end."""
        if self._answer is not None:
            return
        self._body += payload
        if len(self._body) > self._inside.most:
            self._body.clear()
            refused = answers.refusal(413, f"a body of more than {self._inside.most} bytes")
            self._inside.loop.call_soon(self._answered, answers.page_of(refused))
        elif last:
            self._ask()

    def _ask(self) -> None:
        assert self._head
        body, self._body = bytes(self._body), bytearray()
        kind = next((value.decode("latin-1") for name, value in self._head.fields if name == b"content-type"), None)
        until = self._exchange.until if self._exchange else inf
        # The loop's clock may begin elsewhere
        self._waiting = Waiting(until - self._inside.loop.time() + time.monotonic())
        work = partial(self._inside.answering, self._head.method, self._head.target, body, kind)
        if call_of(self._head.method, self._head.target.partition("?")[0]).route in AT_ONCE:
            self._inside.loop.call_soon(self._answered, work())
            return
        try:
            future = self._future = self._inside.executor.submit(self._work, work)
        except RuntimeError:  # the door closes
            self._inside.loop.call_soon(self._lose)
            return
        loop = self._inside.loop
        self._timer = loop.call_later(PATIENCE, self._late)
        future.add_done_callback(lambda done: _told(loop, partial(self._done, done)))

    def _work(self, work: Callable[[], Page]) -> Page:
        with self._waiting.for_it():
            return work()

    def _late(self) -> None:
        """Answer what has not had its turn yet: it will have none."""
        if self._future is not None and self._future.cancel():
            self._answered(answers.page_of(_BUSY))

    def _done(self, done: Future[Page]) -> None:
        self._let_go()
        if self._answer is not None:  # it was too late
            return
        try:
            answer = done.result()
        except BaseException:  # never, by its promise
            self._lose()
        else:
            self._answered(answer)

    def _answered(self, answer: Page) -> None:
        exchange = self._exchange
        if exchange is None or self._answer is not None:
            return
        self._answer, self.spoke = answer, True
        length = len(answer.body)
        fields = b"content-type: %b\r\n" % answer.content_type.encode("latin-1") if answer.content_type else b""
        if answer.retry_after is not None:
            fields += answers.later(answer.retry_after)
        for name, value in answer.fields:
            fields += f"{name}: {value}\r\n".encode("latin-1")
        bodiless = exchange.method == "HEAD"
        reason = HTTPStatus(answer.status).phrase.encode()
        head = AnswerHead(
            answer.status,
            reason,
            fields + b"content-length: %d\r\n" % length,
            0 if bodiless else length,
            bodiless,
            True,
        )
        exchange.answer_begins(head)
        if not exchange.holding:
            self.go_on()

    def go_on(self) -> None:
        """See ``Line``."""
        exchange, answer = self._exchange, self._answer
        if exchange is not None and answer is not None:
            exchange.answer_goes_on(b"" if exchange.method == "HEAD" else answer.body, last=True)

    def _lose(self) -> None:
        exchange, self._exchange = self._exchange, None
        self.lost = True
        if exchange is not None:
            exchange.upstream_lost(self)

    def pause(self, paused: bool) -> None:
        """The answer is given away in one piece."""

    def give_back(self, reusable: bool) -> None:
        """A thread that writes for it ends its work; what it says is dropped. One that reads is told that nobody waits.
        What has not begun does not begin."""
        self._exchange = None
        if self._future is not None and not self._future.cancel():
            self._waiting.leave()
        self._let_go()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._future = None


def _told(loop: asyncio.AbstractEventLoop, step: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the door has closed
        loop.call_soon_threadsafe(step)
