"""One request and its answer: gate, backend, body one way, answer the other way.

Of a write with a gate: ``admit`` is asked before a connection to the backend is taken; when the head of the answer has
come it is held back, and with it all that follows, until ``acknowledge`` has said yes. A write that another instance
takes goes on to that one's door instead (``relay``), whose gate is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from msgspec.structs import replace

from chromakeep.server import answers
from chromakeep.server.answer_head import AnswerHead, relayed
from chromakeep.server.backend import Backend, Line
from chromakeep.server.bodies import LAST_CHUNK, chunk
from chromakeep.server.cors import ours_only
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.guard import Account, Looking, Ruling
from chromakeep.server.request_head import RequestHead, forwarded
from chromakeep.server.routes import is_safe, is_write
from chromakeep.server.service import Service

if TYPE_CHECKING:
    from chromakeep.server.client_side import ClientSide


class Exchange:
    """Begins with ``begin`` and ends with one call of ``ClientSide.answered``, or by ``abort``."""

    __slots__ = (
        "_account", "_answer", "_client", "_close", "_gate", "_head", "_out", "_relay", "_request",
        "_retried", "_sent_all", "_service", "_task", "_timer", "_upstream",
        "holding", "method", "over", "started", "taking",
    )  # fmt: skip

    def __init__(self, service: Service, client: ClientSide, head: RequestHead, account: Account) -> None:
        self._account = account
        self.method = head.method
        self.taking = False  # the backend may be sent (more of) the body
        self.holding = False  # the answer is held back until the gate has spoken
        self.started = False  # bytes of the answer have been given to the client
        self.over = False
        self._service, self._client, self._head = service, client, head
        write = service.gate is not None and is_write(head.method, head.target.partition("?")[0])
        self._gate = service.gate if write else None
        self._request = Request(head.method, head.target, True, head.fields, client.peer) if write else None
        self._relay: Backend | None = None  # connections to the instance that takes this write
        self._upstream: Line | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # of a key whose requests have an end
        self._out = b""  # head of the answer while it waits for the first bytes of its body
        self._answer: AnswerHead | None = None
        self._close = not head.keep
        self._sent_all = head.length == 0
        self._retried = False

    # From the client to the backend

    def begin(self) -> None:
        """Ask the guard, then the gate, or go on."""
        guard = self._service.guard
        if self._gate:
            self._find_holder()
        try:
            ruling = guard.rule(self._head, self._account) if guard else None
        except Exception as error:  # a fault of ours lets nobody in
            self._service.warn(f"door: the guard failed: {type(error).__name__}: {error}")
            ruling = answers.FAILED
        if self._account.until < inf:
            self._timer = self._service.loop.call_at(self._account.until, self._late)
        if ruling is None or isinstance(ruling, Refusal | Page):
            self._ruled(ruling)
        else:
            self._run(partial(self._look, ruling))

    async def _look(self, looking: Looking) -> None:
        """Not before this instance is one to be asked: what it has not yet would seem not to be there."""
        refused = (None if self._relay else await self._hold()) if self._gate else self._service.reads()
        self._ruled(refused or await looking())

    def _ruled(self, ruling: Ruling) -> None:
        if self.over:  # ``wait_for`` before 3.12 swallows a cancellation that comes with what it waited for
            return
        if ruling is not None:
            self._refuse(ruling)
        elif self._relay:
            self._connect()
        elif self._gate:
            self._run(self._admit)
        elif refusal := self._service.reads():
            self._refuse(refusal)
        else:
            self._connect()

    def _connect(self) -> None:
        upstream = None if self._retried else (self._relay or self._service.pool).take()
        if upstream:
            self._use(upstream)
        else:
            self._run(self._dial)

    async def _dial(self) -> None:
        try:
            upstream = await (self._relay or self._service.pool).open()
        except OSError:
            await self._not_there()
            return
        if self.over:  # the cancellation came too late to stop the dialling
            upstream.give_back(False)
        else:
            self._use(upstream)

    async def _not_there(self) -> None:
        """Nothing was sent yet. What would have gone elsewhere is held as long as the gate holds a write, and goes to
        whoever takes writes then: this instance may be that."""
        if self._relay is None:
            self._refuse(answers.BACKEND_DOWN)
        elif self._account.unplaced:  # our own guard has not seen all of it
            self._refuse(answers.HOLDER_AWAY)
        else:
            await self._admit(away=self._relay)

    def _use(self, upstream: Line) -> None:
        self._upstream = upstream
        upstream.carry(self)
        relayed = self._relay and self._relay.authority
        upstream.begin(replace(self._head, forward=forwarded(self._head, relayed)) if relayed else self._head)
        if not self._sent_all:
            self.taking = True
            self._client.body_wanted()

    def send_body(self, payload: bytes, *, last: bool) -> None:
        """Pass part of the body on. Only while ``taking``."""
        assert self._upstream
        if self._account.watch:
            payload = self._account.watch.feed(payload, last=last)
        if last:
            self._sent_all, self.taking = True, False
        self._upstream.send(payload, last=last)

    def upstream_full(self, full: bool) -> None:
        """The backend does not keep up, or does again."""
        self._client.hold_body(full)

    # From the backend to the client

    def answer_begins(self, answer: AnswerHead) -> None:
        """The head of the answer has come."""
        self._answer, self._account.status = answer, answer.status
        self._close = self._close or not self._sent_all
        if self.taking:  # a backend that answers before the body has ended wants no more of it
            self.taking = False
            self._client.body_unwanted()
        if self._gate and not self._relay:
            self.holding = True
            self._run(self._acknowledge)
        else:
            self._release()

    def _release(self) -> None:
        assert self._answer
        self._close = self._close or self._service.closing
        framed = self._head.modern and self._answer.length is None
        if self._service.cors:
            self._answer.fields = ours_only(self._answer.fields)
        self._out = relayed(self._answer, chunked=framed, close=self._close, extra=self._client.extra)

    def answer_goes_on(self, payload: bytes, *, last: bool) -> None:
        """Part of the answer's body has come."""
        assert self._answer and self._upstream
        self._account.sent += len(payload)
        if self._answer.length is None and self._head.modern:
            payload = (chunk(payload) if payload else b"") + (LAST_CHUNK if last else b"")
        if self._out:
            payload = self._out + payload
            self._out = b""
        if self._upstream.lost and not last:
            self._out = payload  # it died while the gate thought: nothing need leave of what will not be whole
        elif payload:
            self.started = True
            self._client.send(payload)
        if last and not self.over:
            upstream, self._upstream = self._upstream, None
            upstream.give_back(self._answer.reusable and self._sent_all)
            self._end(keep=not self._close)

    def flush(self) -> None:
        """No more has come for now."""
        if self._out:
            self.started = True
            self._client.send(self._out)
            self._out = b""

    def pause_answer(self, paused: bool) -> None:
        """The client does not keep up, or does again."""
        if self._upstream and not self.holding:
            self._upstream.pause(paused)

    def upstream_lost(self, upstream: Line) -> None:
        """The backend ended the connection before the end of the answer."""
        self._upstream = None
        stale = upstream.used and not upstream.spoke and not self._retried
        if stale and is_safe(self.method) and self._head.length == 0:
            self._retried = True  # it was closing the idle connection when we took it
            self._connect()
        elif self._relay:
            self._fail(answers.HOLDER_BROKE)
        elif upstream.spoke:
            self._fail(answers.BACKEND_CUT)
        else:
            self._fail(answers.BACKEND_BROKE)

    def answer_malformed(self, why: str) -> None:
        """The backend's answer cannot be passed on (any further)."""
        whose = "the answer of the instance that takes the writes" if self._relay else "Chroma's answer"
        self._service.warn(f"door: {whose} to {self.method} is not HTTP as it should be: {why}")
        self._fail(answers.HOLDER_ODD if self._relay else answers.BACKEND_ODD)

    # The gate

    async def _admit(self, away: Backend | None = None) -> None:
        refused = await self._hold(away)
        if self.over:
            return
        if refused:
            self._refuse(refused)
        else:
            self._connect()

    async def _hold(self, away: Backend | None = None) -> Refusal | None:
        """Why the write may neither begin here nor, by now, at another instance than the one that is ``away``."""
        assert self._gate and self._request
        if away and self._find_holder(away):
            return None
        refused = await self._ask(self._gate.admit, self._request)
        return refused and (None if self._find_holder(away) else refused)

    def _find_holder(self, away: Backend | None = None) -> bool:
        """Whether the write goes on to another instance, from now on."""
        pool = self._service.relay.pool(self._head) if self._service.relay else None
        self._relay = pool if pool is not away else None
        self._account.elsewhere = self._relay is not None
        return self._account.elsewhere

    async def _acknowledge(self) -> None:
        assert self._gate and self._request
        refusal = await self._ask(self._gate.acknowledge, self._request)
        if self.over:
            return
        if refusal:
            self._refuse(refusal)
            return
        assert self._upstream
        self.holding = False
        self._release()
        self._upstream.pause(False)
        self._upstream.go_on()

    async def _ask(self, question: Callable[[Request], Awaitable[Refusal | None]], request: Request) -> Refusal | None:
        try:
            return await question(request)
        except (Exception, asyncio.CancelledError) as error:
            if self.over:
                raise
            self._service.warn(f"door: the gate failed: {type(error).__name__}: {error}")
            return answers.FAILED

    def _run(self, step: Callable[[], Awaitable[None]]) -> None:
        async def guarded() -> None:
            try:
                await step()
            except Exception as error:  # a fault of ours ends this exchange, not the door
                if not self.over:
                    self._service.warn(f"door: {type(error).__name__}: {error}")
                    self._fail(answers.FAILED)

        self._task = self._service.loop.create_task(guarded())

    # The end

    @property
    def until(self) -> float:
        """When nobody waits for it any more, by the loop's clock."""
        return self._account.until

    def _late(self) -> None:
        """Its key's time for it is over. Who works on it ends that where he can."""
        took, sent = self._account.until - self._account.begun, self._upstream is not None and self._sent_all
        task, self._task = self._task, None
        if task:
            task.cancel()
        self._fail(answers.too_long(took, sent=sent))

    def _fail(self, refusal: Refusal) -> None:
        if self.started:
            self.abort()
            self._client.cut()
        else:
            self._refuse(refusal)

    def _refuse(self, what: Refusal | Page) -> None:
        """Answer in the backend's place."""
        self._out = b""
        self._drop_upstream()
        self.holding = self.taking = False
        keep = not self._close and not self._service.closing and self._client.skip_body()
        self.started = True
        self._client.answer(what, head_only=self.method == "HEAD", keep=keep)
        self._end(keep=keep)

    def abort(self) -> None:
        """The client went away or is sent away: stop everything, say nothing."""
        self.over, self.taking = True, False
        task, self._task = (
            self._task,
            None,
        )  # its error keeps frames that keep this: a circle with the client in it
        if task:
            task.cancel()
        self._clear_timer()
        self._drop_upstream()

    def _clear_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream:
            upstream.give_back(False)

    def _end(self, *, keep: bool) -> None:
        self.over, self.taking = True, False
        self._clear_timer()
        self._client.answered(keep=keep)
