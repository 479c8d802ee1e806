"""The guard: who decides whether a request is let in, and watches what its body holds. And what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from chromakeep.access.rights import Call
from chromakeep.server.gate import Page, Refusal
from chromakeep.server.request_head import RequestHead

if TYPE_CHECKING:
    from chromakeep.server.backend import Backend


UNREAD = "unread"  # the route of what was no request, or none that is taken: its own words are in no book


class Watch(Protocol):
    """Looks at a body on its way to the backend."""

    @property
    def records(self) -> int | None:
        """How many records the body names, once it has passed; None where that cannot be told."""

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        """What may be passed on now: all that was fed and not passed on yet, or all but an end that is not decided.

        Nothing is kept back of the ``last`` payload. Raises ``Malformed`` for a body that must not arrive whole.
        """


class Account:
    """What one request was: filled in while it passes, told when it is over."""

    __slots__ = ("begun", "collection", "context", "database", "elsewhere", "identity", "key", "method", "peer",
                 "received", "route", "sent", "span", "state", "status", "taken", "target", "tenant", "trace",
                 "unplaced", "until", "watch")  # fmt: skip

    def __init__(self, head: RequestHead, peer: str, begun: float) -> None:
        self.begun = begun  # by the loop's clock, in seconds
        self.method, self.target, self.peer = head.method, head.target, peer
        self.key = ""  # the name of the key it came with; "" where there was none, or a wrong one
        self.identity = ""  # the id of that key
        self.elsewhere = False  # it goes on to another door, whose guard is asked as well
        self.unplaced = False  # it was let pass for that reason, although nobody here knows the collection
        self.taken = False  # it counts against that key's allowance until it is over
        self.until = inf  # by the loop's clock: when that key's time for one request is over
        self.route = ""  # the template of its path, such as ``collection.query``; "" where it is none that is known
        self.tenant = self.database = self.collection = ""
        self.trace = b""  # ``traceparent`` as sent
        self.state = b""  # ``tracestate`` as sent, while its beginning is told
        self.context = b""  # lines of a head that take the place of both on the way to the backend
        self.span: Any = None  # of whoever traces it
        self.status = 0  # of the answer; 0: there was none
        self.received = self.sent = 0  # bytes of payload
        self.watch: Watch | None = None

    def describe(self, call: Call) -> None:
        """Fill in what its path tells."""
        self.route, self.tenant, self.database = call.route, call.tenant or "", call.database or ""
        self.collection = call.collection or call.id or ""


def unread(peer: str, now: float) -> Account:
    """Of what was refused before it was read as a request: who sent it, and nothing of what."""
    account = Account(RequestHead("-", "-", (), 0, True, False, False, b""), peer, now)
    account.route = UNREAD
    return account


Ruling = Refusal | Page | None  # None: pass
Looking = Callable[[], Awaitable[Ruling]]  # what the backend has to be asked for first


class Guard(Protocol):
    """Asked about every request but those for our own pages, in the door's thread and event loop."""

    def rule(self, head: RequestHead, account: Account) -> Ruling | Looking:
        """Before anything of it is answered or passed on. Fills in what it finds out of the account.

        A ``Page`` is answered in the backend's place. ``Looking`` is called where the backend may be asked, and its
        awaitable cancelled when the client goes away.
        """

    def attach(self, loop: asyncio.AbstractEventLoop, pool: Backend) -> None:
        """Before the first request: the door's loop, and its connections to the backend."""

    def settle(self, account: Account) -> None:
        """A request that it was asked about is over."""


class Plain:
    """The part of a guard that asks nobody and counts nothing."""

    def attach(self, loop: asyncio.AbstractEventLoop, pool: Backend) -> None:
        """See ``Guard``."""

    def settle(self, account: Account) -> None:
        """See ``Guard``."""


class Ledger(Protocol):
    """Told about every request, and what is answered as none (``unread``), in the door's thread: it must not block."""

    def begun(self, account: Account) -> None:
        """Its head has come; no more is known of it than that. May set ``context``."""

    def ended(self, account: Account, now: float) -> None:
        """It was answered, or given up (``status`` 0)."""
