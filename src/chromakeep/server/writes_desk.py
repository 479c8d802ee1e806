"""The desk at which writes are refused or allowed: ``/_keep/writes``.

``GET`` tells how it is, ``POST`` with ``{"allow": false, "reason": "..."}`` says how it is to be. It is answered when
no write is under way any more. Both need a key that may do everything; where there are no keys, a client on this
machine. The content type must be JSON, which a page in a browser cannot send to another origin unasked.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from chromakeep.errors import ChromakeepError, flat
from chromakeep.operations.writes import LONGEST, Said, Writes
from chromakeep.server.answers import refusal
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.guard import Account
from chromakeep.server.routes import is_write
from chromakeep.server.visit import Desk

PATH = "/_keep/writes"
PATIENCE = 20.0  # seconds to wait for writes that are under way
RETRY = 1.0
_LARGEST = 4096  # bytes of a body


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a ``POST``."""

    allow: bool
    reason: str = ""


_WANTED = msgspec.json.Decoder(Wanted)


class Warden(Protocol):
    """Who says whether a request may do everything."""

    def admin(self, request: Request, account: Account) -> Refusal | None:
        """Why it may not. Fills in whose it is."""


class Underway:
    """A ledger: how many writes have begun and are not over, those included that wait at the gate."""

    def __init__(self) -> None:
        self.writes = 0
        self._none = asyncio.Event()

    def begun(self, account: Account) -> None:
        """See ``Ledger``."""
        if _counts(account):
            self.writes += 1

    def ended(self, account: Account, now: float) -> None:
        """See ``Ledger``."""
        if _counts(account):
            self.writes -= 1
            if not self.writes:
                self._none.set()

    async def drained(self, patience: float) -> bool:
        """Wait until there is none; whether that came within so many seconds."""
        end = asyncio.get_running_loop().time() + patience
        while self.writes and (left := end - asyncio.get_running_loop().time()) > 0:
            self._none.clear()
            try:
                await asyncio.wait_for(self._none.wait(), left)
            except asyncio.TimeoutError:
                break
        return not self.writes


def _counts(account: Account) -> bool:
    path = account.target.partition("?")[0]
    return is_write(account.method, path) and not path.startswith("/_keep/")


class WritesDesk:
    """One for a door, before the ``other`` desk."""

    def __init__(self, writes: Writes, underway: Underway, warden: Warden, other: Desk) -> None:
        self._writes, self._underway, self._warden, self._other = writes, underway, warden, other

    def takes(self, path: str) -> bool:
        """See ``Desk``."""
        return path == PATH or self._other.takes(path)

    async def admit(self, request: Request, account: Account) -> Refusal | int:
        """See ``Desk``."""
        if request.path != PATH:
            return await self._other.admit(request, account)
        account.route = PATH
        if request.method not in ("GET", "HEAD", "POST"):
            return refusal(405, "GET or POST")
        if refused := self._warden.admin(request, account):
            return refused
        if request.method != "POST":
            return 0
        kind = (request.field(b"content-type") or b"").partition(b";")[0].strip().lower()
        return _LARGEST if kind == b"application/json" else refusal(415, "the content type must be application/json")

    async def answer(self, request: Request, body: bytearray) -> Page:
        """See ``Desk``."""
        if request.path != PATH:
            return await self._other.answer(request, body)
        if request.method != "POST":
            return self._page(self._writes.said)
        try:
            wanted = _WANTED.decode(body)
        except msgspec.MsgspecError as error:
            return _wrong(f"the body: {error}")
        if len(wanted.reason) > LONGEST or not wanted.reason.isprintable():
            return _wrong(f"a reason is one line of at most {LONGEST} characters")
        try:
            said = await asyncio.to_thread(self._writes.put, allow=wanted.allow, reason=wanted.reason)
        except ChromakeepError as error:
            told = {"error": "ChromaError", "message": error.message, "failure": flat(error)}
            return Page(msgspec.json.encode(told), status=500)
        if not wanted.allow and not await self._underway.drained(PATIENCE):
            return self._page(said, status=503)
        return self._page(said)

    def _page(self, said: Said, status: int = 200) -> Page:
        told = {"allow": said.allow, "reason": said.reason, "since": said.since, "under_way": self._underway.writes}
        if status != 200:
            told |= {"error": "ChromaError", "message": f"{self._underway.writes} writes are still under way"}
        return Page(msgspec.json.encode(told), status=status, retry_after=RETRY if status == 503 else None)


def _wrong(message: str) -> Page:
    return Page(msgspec.json.encode({"error": "InvalidArgumentError", "message": message}), status=400)
