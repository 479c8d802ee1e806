"""Unlocked: the guard of a door without keys. Whoever reaches it may do all, but break the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chromakeep.access.rights import call_of
from chromakeep.operations.openness import loopback
from chromakeep.server import shield
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.guard import Account, Plain, Ruling
from chromakeep.server.request_head import RequestHead
from chromakeep.server.strangers import Strangers

_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")


class Unlocked(Plain):
    """One for a door. ``pages`` are answered here; ``shielded``: see ``Admission``. ``strangers`` do not come in; None:
    it was said that all may."""

    def __init__(
        self,
        pages: Mapping[str, Callable[[], Page]] = {},
        strangers: Strangers | None = None,
        *,
        shielded: bool = True,
    ) -> None:
        self._pages, self._strangers, self._shielded = pages, strangers, shielded

    def admin(self, request: Request, account: Account) -> Refusal | None:
        """See ``Warden``: whoever is on this machine, and no proxy that speaks for others."""
        if self._strangers and (refused := self._strangers.refusal(request.fields)):
            return refused
        if loopback(request.peer) and not any(request.field(name) for name in _FORWARDED):
            return None
        return Refusal(403, "AuthError", "without keys that is for clients on this machine; make one of the role admin")

    def rule(self, head: RequestHead, account: Account) -> Ruling:
        """See ``Guard``."""
        path = head.target.partition("?")[0]
        if self._strangers and (refused := self._strangers.refusal(head.fields)):
            account.describe(call_of(head.method, path))
            return refused
        if head.method in ("GET", "HEAD") and (page := self._pages.get(path)):
            account.route = path
            return page()
        call = call_of(head.method, path)
        account.describe(call)
        if not self._shielded:
            account.watch = shield.counter_for(head.method, path, head)
            return None
        account.watch = shield.watch_for(head.method, path, head)
        return shield.refuse_route(head.method, path)
