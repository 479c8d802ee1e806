"""The desk that directories are sent to: who may send one, and the receiver's answers as HTTP.

=========================================== =======================================================
``GET /_keep/receive``                      how it stands
``POST /_keep/receive``                     a manifest: which chunks are missing; ``?take_over=true``: it
                                            takes the place of another sender's
``GET /_keep/receive/ID``                   how this transfer stands
``PUT /_keep/receive/ID/NUMBER``            a chunk, or with ``content-range`` a part of one
``POST /_keep/receive/ID/finish``           what it must hold: put it in place
``POST /_keep/receive/rollback``            what to swap back
=========================================== =======================================================

Each needs ``authorization: Bearer TOKEN``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from chromakeep.errors import ChromakeepError, VerificationFailed, flat
from chromakeep.operations import incoming, manifest
from chromakeep.operations.receive import Receiver
from chromakeep.server.answers import refusal
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.guard import Account
from chromakeep.server.visit import NOWHERE, RECEIVE

THREADS = 4  # requests that are worked on; so many chunks are in memory twice
RETRY = 1.0  # seconds after which a sender is told to try again
SLOWEST = 5.0  # seconds that a wrong token waits for its answer
FORGET = 60.0  # seconds without one after which the next waits as the first one did
QUEUE = 20  # of those at a time, one after the other; more are turned away at once
_CHUNK = re.compile(r"/([0-9a-f]{32})/([0-9]{1,9})", re.ASCII)
_TRANSFER = re.compile(r"/([0-9a-f]{32})(/finish)?", re.ASCII)
_RANGE = re.compile(rb"bytes ([0-9]{1,9})-[0-9]{1,9}/([0-9]{1,9})")


class ReceivingDesk:
    """One for a door, used in its event loop. The token is not empty."""

    def __init__(self, receiver: Receiver, token: str) -> None:
        assert token
        self._receiver = receiver
        self._token = hashlib.sha256(token.encode()).digest()
        self._pool = ThreadPoolExecutor(THREADS, "receive")
        self._turn = asyncio.Lock()
        self._wrong, self._waiting, self._last = 0, 0, 0.0

    def takes(self, path: str) -> bool:
        """Whatever begins so: nothing of it reaches Chroma."""
        return path.startswith(RECEIVE)

    async def admit(self, request: Request, account: Account) -> Refusal | int:
        """Who has no right to send is told before a byte of a body is read."""
        given = request.field(b"authorization") or b""
        word, _, token = given.partition(b" ")
        right = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._token)
        if not right or word.lower() != b"bearer":
            return await self._wrong_token()
        if request.method == "PUT":
            return incoming.LARGEST
        return manifest.LARGEST if request.method == "POST" else 0

    async def _wrong_token(self) -> Refusal:
        """One after the other, each later than the one before it: guessing takes for ever, on however many lines."""
        if self._waiting >= QUEUE:
            return refusal(429, "too many wrong tokens", retry_after=SLOWEST)
        self._waiting += 1
        try:
            async with self._turn:
                now = asyncio.get_running_loop().time()
                self._wrong = 0 if now - self._last > FORGET else self._wrong + 1
                await asyncio.sleep(min(0.1 * 2.0 ** min(self._wrong, 10), SLOWEST))
                self._last = asyncio.get_running_loop().time()
        finally:
            self._waiting -= 1
        return refusal(401, "a wrong token, or none")

    async def answer(self, request: Request, body: bytearray) -> Page:
        """In a thread: what is written is made durable."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._answered, request, body)

    def _answered(self, request: Request, body: bytearray) -> Page:
        try:
            work = self._work(request, bytes(body))
            if work is None:
                return Page(json.dumps({"error": NOWHERE.error, "message": NOWHERE.message}).encode(), status=404)
            return Page(msgspec.json.encode(work()))
        except ChromakeepError as error:
            status = 422 if isinstance(error, VerificationFailed) else error.http_status
            told = {"error": "ChromaError", "message": error.message, "failure": flat(error)}
            return Page(msgspec.json.encode(told), status=status, retry_after=RETRY if status == 503 else None)

    def _work(self, request: Request, body: bytes) -> Callable[[], object] | None:
        receiver, method, rest = self._receiver, request.method, request.path.removeprefix(RECEIVE)
        if rest == "":
            over = request.target.endswith("?take_over=true")
            known: dict[str, Callable[[], object]] = {
                "GET": receiver.status,
                "POST": lambda: receiver.offer(body, over),
            }
            return known.get(method)
        if rest == "/rollback":
            return (lambda: receiver.rollback(body)) if method == "POST" else None
        if method == "PUT" and (chunk := _CHUNK.fullmatch(rest)):
            told = _RANGE.fullmatch(request.field(b"content-range") or b"")
            part = (int(told[1]), int(told[2])) if told else None
            return lambda: {"have": receiver.put(chunk[1], int(chunk[2]), body, part)}
        if found := _TRANSFER.fullmatch(rest):
            if method == "GET" and not found[2]:
                return lambda: receiver.status(found[1])
            if method == "POST" and found[2]:
                return lambda: receiver.finish(found[1], body)
        return None
