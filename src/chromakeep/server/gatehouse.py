"""Gatehouse: the guard of a door whose keys come and go: closed as soon as there is one, open only where it may be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from chromakeep.access.keys import Key, Keyring
from chromakeep.access.rights import call_of
from chromakeep.server.admission import Admission
from chromakeep.server.answers import refusal
from chromakeep.server.backend import Backend
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.guard import Account, Looking, Ruling
from chromakeep.server.request_head import RequestHead
from chromakeep.server.strangers import Strangers
from chromakeep.server.unlocked import Unlocked

_UNKNOWN = refusal(503, "the keys cannot be read yet", retry_after=1.0)


class Gatehouse:
    """``keys`` tells the ring of the moment, None while it is not known. ``closed``: without a key nobody comes in, be
    there one or not. ``pages``, ``foreign`` and ``shielded``: see ``Admission``,
    ``strangers``: see ``Unlocked``."""

    def __init__(
        self,
        keys: Callable[[], Keyring | None],
        *,
        closed: bool,
        pages: Mapping[str, Callable[[], Page]] = {},
        foreign: Callable[[str, float], Key | None] | None = None,
        strangers: Strangers | None = None,
        shielded: bool = True,
    ) -> None:
        self._keys, self._closed = keys, closed
        self._ring = Keyring()
        self._admission = Admission(lambda: self._ring, time.time, pages, foreign, shielded=shielded)
        self._unlocked = Unlocked(pages, strangers, shielded=shielded)

    def attach(self, loop: asyncio.AbstractEventLoop, pool: Backend) -> None:
        """See ``Guard``."""
        self._admission.attach(loop, pool)

    def rule(self, head: RequestHead, account: Account) -> Ruling | Looking:
        """See ``Guard``."""
        guard = self._present()
        if guard is None and call_of(head.method, head.target.partition("?")[0]).action == "public":
            guard = self._admission  # a platform that gets no heartbeat ends us
        return guard.rule(head, account) if guard else _UNKNOWN

    def admin(self, request: Request, account: Account) -> Refusal | None:
        """See ``Warden``."""
        guard = self._present()
        return guard.admin(request, account) if guard else _UNKNOWN

    def _present(self) -> Admission | Unlocked | None:
        """Who is asked now. While the keys are not known nobody comes in, whatever it listens to: there may be some."""
        ring = self._keys()
        if ring is None:
            return None
        if ring is not self._ring:
            ring.go_on_from(self._ring)
            self._ring = ring
        return self._admission if self._closed or ring.keys else self._unlocked

    def settle(self, account: Account) -> None:
        """See ``Guard``."""
        self._admission.settle(account)
