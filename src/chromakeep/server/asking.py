"""Asking: a small request of the door's own to the backend, over the connections of its pool."""

from __future__ import annotations

import asyncio
from math import inf

from chromakeep.server.answer_head import AnswerHead
from chromakeep.server.backend import Backend, Line
from chromakeep.server.request_head import RequestHead

MOST = 64 << 20  # bytes of an answer
PATIENCE = 30.0  # seconds for it


class Unanswered(Exception):
    """There was no whole answer, or one that is too long."""


async def ask(pool: Backend, target: str, *, most: int = MOST) -> tuple[int, bytes]:
    """GET ``target``: status and body. Raises ``Unanswered``. A connection that had just been closed is tried anew."""
    for fresh in (False, True):
        asked = _Asked(most)
        upstream = None if fresh else pool.take()
        try:
            upstream = upstream or await pool.open()
        except OSError as error:
            raise Unanswered("it is not there") from error
        stale = upstream.used
        upstream.carry(asked)
        asked.upstream = upstream
        upstream.begin(_asked_for(target, pool.authority or b"chroma"))
        try:
            return await asyncio.wait_for(asked.answer, PATIENCE)
        except asyncio.TimeoutError:
            raise Unanswered(f"nothing in {PATIENCE:g} s") from None
        except Unanswered:
            if not stale or asked.status or fresh:
                raise
        finally:
            asked.drop()
    raise AssertionError("unreachable")


def _asked_for(target: str, authority: bytes) -> RequestHead:
    forward = b"GET %s HTTP/1.1\r\nhost: %s\r\n\r\n" % (target.encode("ascii"), authority)
    return RequestHead("GET", target, (), 0, True, True, False, forward)


class _Asked:
    """Used by ``Line`` as an ``Exchange`` is."""

    method = "GET"
    holding = False
    until = inf

    def __init__(self, most: int) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self.upstream: Line | None = None
        self.status = 0
        self._most = most
        self._reusable = False
        self._body = bytearray()

    def answer_begins(self, answer: AnswerHead) -> None:
        """The head has come."""
        self.status, self._reusable = answer.status, answer.reusable

    def answer_goes_on(self, payload: bytes, *, last: bool) -> None:
        """Some of the body."""
        self._body += payload
        if len(self._body) > self._most:
            self._fail(f"more than {self._most} bytes")
        elif last and not self.answer.done():
            upstream, self.upstream = self.upstream, None
            if upstream:
                upstream.give_back(self._reusable)
            self.answer.set_result((self.status, bytes(self._body)))

    def flush(self) -> None:
        """Nothing is kept back here."""

    def upstream_full(self, full: bool) -> None:
        """There is no body to send."""

    def upstream_lost(self, upstream: Line) -> None:
        """It ended before its answer did."""
        self.upstream = None
        self._fail("it ended the connection")

    def answer_malformed(self, why: str) -> None:
        """Not HTTP."""
        self._fail(why)

    def _fail(self, why: str) -> None:
        self.drop()
        if not self.answer.done():
            self.answer.set_exception(Unanswered(why))

    def drop(self) -> None:
        """Close the connection, unless it went back to the pool."""
        upstream, self.upstream = self.upstream, None
        if upstream:
            upstream.give_back(False)
