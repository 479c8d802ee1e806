"""Relay: the way of a write from the door of an instance that stands by to the door of the one that takes writes.

Where that is, the lease says, and nobody else: nothing that a client sends has a part in it. Both doors ask for the
client's key. A write that was forwarded is not forwarded again, so none goes in a circle, whatever leases say.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from chromakeep.errors import ChromakeepError
from chromakeep.events import Noted, Observer
from chromakeep.operations.elsewhere import Elsewhere
from chromakeep.server.request_head import FORWARDED, RequestHead
from chromakeep.server.upstream import Pool, Remote, Upstream


class Relay:
    """One for a door, in its thread. ``elsewhere`` tells where writes are taken now; ``also`` why none may
    begin.

    Connections of one reign end with it: what they carry may wait for an instance that is frozen.
    """

    def __init__(
        self,
        elsewhere: Callable[[], Elsewhere | None],
        context: ssl.SSLContext,
        also: Callable[[], ChromakeepError | None],
        observer: Observer,
    ) -> None:
        self._elsewhere, self._context, self._also, self._observer = elsewhere, context, also, observer
        self._at: Elsewhere | None = None
        self._pool: _Doors | None = None
        self._loop: asyncio.AbstractEventLoop
        self._timeout: float

    def attach(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        """Before the first request; ``timeout`` in seconds is for a connection."""
        self._loop, self._timeout = loop, timeout

    def pool(self, head: RequestHead) -> Pool | None:
        """Connections for this write; None where it is not to be forwarded."""
        self.look()
        if self._pool is None or self._also() or any(name == FORWARDED for name, _ in head.fields):
            return None
        return self._pool

    def look(self) -> None:
        """End what belongs to a reign that is over. Called every so often."""
        at = self._elsewhere()
        if at == self._at:
            return
        if self._pool:
            self._pool.end()
        self._at, self._pool = at, None
        if at:
            remote = Remote(at.authority, self._context if at.secure else None)
            self._pool = _Doors(self._loop, (at.host, at.port), self._timeout, remote)
            self._observer(Noted(f"writes go on to {at}"))

    def close(self) -> None:
        """The door closes."""
        if self._pool:
            self._pool.end()


class _Doors(Pool):
    """Connections to one door, which end with its reign."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, backend: tuple[str, int], timeout: float, remote: Remote
    ) -> None:
        super().__init__(loop, backend, timeout, remote)
        self._all: set[Upstream] = set()
        self._over = False

    async def open(self) -> Upstream:
        """See ``Pool``."""
        if self._over:
            raise ConnectionError("that reign is over")
        upstream = await super().open()
        if self._over:
            upstream.transport.abort()
            raise ConnectionError("that reign is over")
        self._all.add(upstream)
        return upstream

    def forget(self, upstream: Upstream) -> None:
        """See ``Pool``."""
        self._all.discard(upstream)
        super().forget(upstream)

    def end(self) -> None:
        """Close all of them, what they carry too: nobody will know what became of that."""
        self._over = True
        self.close()
        for upstream in list(self._all):
            upstream.transport.abort()
