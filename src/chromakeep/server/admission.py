"""Admission: the guard of a door that has keys. Every request is checked for what its key may do where.

Closed by default: a path that is not known needs the operator's key, and a body that names a collection is read before
it is passed on. UUIDs are looked up: one of another tenant or database is not there (404), as Chroma itself would not
say. What a client sends of a key is not passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import quote

import msgspec

from chromakeep.access.keys import Key, Keyring
from chromakeep.access.rights import (
    METRICS,
    NO_ROUTE,
    STATUS,
    Call,
    call_of,
    covers_names,
    named_in_body,
    permits,
    reaches,
)
from chromakeep.errors import NotNow
from chromakeep.server import listings, shield
from chromakeep.server.allowance import Allowances
from chromakeep.server.answers import refusal
from chromakeep.server.asking import Unanswered, ask
from chromakeep.server.backend import Backend
from chromakeep.server.credentials import Lock, token_of
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.guard import Account, Looking, Ruling
from chromakeep.server.request_head import RequestHead
from chromakeep.server.watches import Named, Sized, together
from chromakeep.server.whereabouts import FRESH, Whereabouts

_UNKNOWN = Refusal(401, "AuthError", "a key is needed: none was sent, or none that is known")
_BODY = refusal(413, "this needs no key, and takes no body")  # which would be gathered for an engine
_COLLECTIONS = frozenset({"collections.list", "collections.count"})


class Admission:
    """One for a door. ``keys`` tells the present ring, ``wall`` the time of day; ``pages`` are for any key, but
    ``/metrics`` for those without bounds. ``foreign`` tells what a JSON Web Token gives the right to at that time, as a
    key, or raises ``NotNow``. ``shielded``: what is behind it is a Chroma, which must not be sent what ruins it."""

    def __init__(
        self,
        keys: Callable[[], Keyring],
        wall: Callable[[], float],
        pages: Mapping[str, Callable[[], Page]] = {},
        foreign: Callable[[str, float], Key | None] | None = None,
        *,
        shielded: bool = True,
    ) -> None:
        self._keys, self._wall, self._pages, self._foreign = keys, wall, pages, foreign
        self._shielded = shielded
        self._watch_for = shield.watch_for if shielded else shield.counter_for
        self._lock, self._allowances = Lock(), Allowances()
        self._pool: Backend
        self._places: Whereabouts
        self._loop: asyncio.AbstractEventLoop

    def attach(self, loop: asyncio.AbstractEventLoop, pool: Backend) -> None:
        """See ``Guard``."""
        self._loop, self._pool, self._places = loop, pool, Whereabouts(pool)

    def rule(self, head: RequestHead, account: Account) -> Ruling | Looking:
        """See ``Guard``. Nothing is waited for but a lookup of a UUID that was not looked up yet, and of listings."""
        path = head.target.partition("?")[0]
        call = call_of(head.method, path)
        account.describe(call)
        if head.method in ("GET", "HEAD") and (page := self._pages.get(path)):
            account.route = path
            return self._allowed(head.token, account, METRICS if path == "/metrics" else STATUS) or page()
        if self._shielded and (refused := shield.refuse_route(head.method, path)):
            return refused
        if call.action == "public":
            return _BODY if head.length != 0 else None
        key = self._who(head.token, account)
        if isinstance(key, Refusal):
            return key
        account.key, account.identity = key.name, key.id
        listing = _listing(key, call)
        if not listing and not reaches(key, call):
            return _forbidden(key)
        if key.collections and call.collection and not permits(key, call, None):
            return _forbidden(key)
        if key.body is not None and head.length is not None and head.length > key.body:
            return refusal(413, f"a body of more than {key.body} bytes, which is what this key may send")
        if (wait := self._allowances.take(key, self._loop.time())) is not None:
            return refusal(429, "this key asks too often", retry_after=wait)
        account.taken = True
        if key.time is not None:
            account.until = account.begun + key.time
        member = named_in_body(call)
        account.watch = together(
            Sized(key.body) if key.body is not None and head.length is None else None,
            Named(member, partial(covers_names, key)) if key.collections and member else None,
            self._watch_for(head.method, path, head),
        )
        if call.route == "identity":
            return _identity(key)
        if listing:
            return partial(self._listed, key, call, head.target.partition("?")[2])
        return self._placed(key, call, account) if call.id else None

    def settle(self, account: Account) -> None:
        """A request is over."""
        if account.taken:
            account.taken = False
            self._allowances.give_back(account.identity)

    def admin(self, request: Request, account: Account) -> Refusal | None:
        """Why it may not do everything, at every tenant."""
        return self._allowed(token_of(request.fields), account, NO_ROUTE)

    def _allowed(self, token: str | None, account: Account, call: Call) -> Refusal | None:
        key = self._who(token, account)
        if isinstance(key, Refusal):
            return key
        account.key, account.identity = key.name, key.id
        return None if permits(key, call, None) else _forbidden(key)

    def _who(self, token: str | None, account: Account) -> Key | Refusal:
        if token is None:
            return _UNKNOWN
        now = self._loop.time()
        ring = self._keys()
        # Who was in before is no guesser, and not to be locked out by one who comes through the same proxy.
        if (wait := self._lock.wait(account.peer, token, now)) and not ring.remembers(token):
            return refusal(429, "too many wrong keys from there", retry_after=wait)
        key = ring.find(token, self._wall())
        if key is None and self._foreign and token.count(".") == 2:
            try:
                key = self._foreign(token, self._wall())
            except NotNow as error:
                return refusal(error.http_status, error.message, retry_after=1.0)
        if key is None:
            self._lock.wrong(account.peer, token, now)
            return _UNKNOWN
        return key

    # -- collections by their UUID ------------------------------------------------------------------------------------

    def _placed(self, key: Key, call: Call, account: Account) -> Ruling | Looking:
        tenant, database, identity = call.tenant, call.database, call.id
        assert tenant is not None and database is not None and identity is not None
        now = self._loop.time()
        if call.route == "collection.modify":
            self._places.forget(tenant, database, identity)
        name = self._places.known(tenant, database, identity, now - FRESH if key.collections else 0.0)
        if name is not None:
            return self._named(key, call, name, account)

        async def look() -> Ruling:
            try:
                found = await self._places.find(tenant, database, identity, now)
            except Unanswered as error:
                if account.elsewhere:
                    return self._unplaced(account)
                return refusal(503, f"Chroma does not answer: {error}", retry_after=1.0)
            if found is None and account.elsewhere:
                return self._unplaced(account)
            if found is None:
                return refusal(404, f"Collection [{identity}] does not exist.")
            if call.route == "collection.modify":
                self._places.forget(tenant, database, identity)
            return self._named(key, call, found, account)

        return look

    @staticmethod
    def _unplaced(account: Account) -> None:
        """It may have been made a moment ago there, where it is looked up again."""
        account.unplaced = True

    @staticmethod
    def _named(key: Key, call: Call, name: str, account: Account) -> Ruling:
        account.collection = name
        return None if permits(key, call, name) else _forbidden(key)

    # -- listings -----------------------------------------------------------------------------------------------------

    async def _listed(self, key: Key, call: Call, query: str) -> Ruling:
        assert call.tenant is not None
        path = f"/api/v2/tenants/{quote(call.tenant, safe='')}/databases"
        if call.route != "databases.list":
            assert call.database is not None
            path += f"/{quote(call.database, safe='')}/collections"
        try:
            status, body = await ask(self._pool, path)
            if status != 200:
                return Page(body, status=status)
            if call.route == "databases.list":
                return listings.shown(body, query, lambda name: key.database in (None, name))
            show = listings.counted if call.route == "collections.count" else partial(listings.shown, query=query)
            return show(body, permitted=partial(covers_names, key))
        except (Unanswered, msgspec.MsgspecError) as error:
            return refusal(503, f"Chroma does not answer: {error}", retry_after=1.0)


def _listing(key: Key, call: Call) -> bool:
    """Whether it is a list of which this key sees a part."""
    if call.route == "databases.list":
        return key.database is not None and key.tenant in (None, call.tenant)
    return (
        call.route in _COLLECTIONS
        and bool(key.collections)
        and key.tenant in (None, call.tenant)
        and key.database in (None, call.database)
    )


def _forbidden(key: Key) -> Refusal:
    return Refusal(403, "AuthError", f"the key {key.name!r} ({key.role}) may not do that there")


def _identity(key: Key) -> Page:
    """What chromadb's clients ask first. ``*`` is any, which lets them keep what they were told."""
    told = {
        "user_id": key.name,
        "tenant": key.tenant or "*",
        "databases": [key.database or "*"],
    }
    return Page(msgspec.json.encode(told))
