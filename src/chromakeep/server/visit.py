"""Visit: one request that is answered here and not passed on: its body is gathered, then a desk answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from chromakeep.server import answers
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.guard import Account
from chromakeep.server.request_head import RequestHead
from chromakeep.server.service import Service

if TYPE_CHECKING:
    from chromakeep.server.client_side import ClientSide


RECEIVE = "/_keep/receive"
NOWHERE = answers.refusal(404, "there is nothing here")


class Desk(Protocol):
    """Answers requests below one path, in the door's thread and event loop: it must not block."""

    def takes(self, path: str) -> bool:
        """Whether requests to this path are its own."""

    async def admit(self, request: Request, account: Account) -> Refusal | int:
        """Before anything of a body is read: so many bytes of it are taken. May wait, and fill in the account."""

    async def answer(self, request: Request, body: bytearray) -> Page:
        """The answer. Cancelled when the client goes away."""


class Closed:
    """The desk of a run that receives nothing: all that is below its path is 404, and nothing of it is passed on."""

    def takes(self, path: str) -> bool:
        """See ``Desk``."""
        return path.startswith(RECEIVE)

    async def admit(self, request: Request, account: Account) -> Refusal | int:
        """Nothing is."""
        return NOWHERE

    async def answer(self, request: Request, body: bytearray) -> Page:
        """Never asked."""
        raise NotImplementedError


class Visit:
    """Used as an ``Exchange`` is: it begins with ``begin`` and ends with ``ClientSide.answered``, or by ``abort``."""

    __slots__ = ("_account", "_body", "_client", "_desk", "_head", "_limit", "_request", "_service", "_task", "_whole",
                 "over", "started", "taking")  # fmt: skip

    def __init__(self, service: Service, client: ClientSide, head: RequestHead, account: Account, desk: Desk) -> None:
        self._account = account
        self.taking = False  # of the body
        self.started = False  # bytes of the answer have been given to the client
        self.over = False
        self._service, self._client, self._head, self._desk = service, client, head, desk
        self._request = Request(head.method, head.target, True, head.fields, client.peer)
        self._body = bytearray()
        self._limit = 0
        self._whole: asyncio.Future[None] = service.loop.create_future()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Ask the desk."""
        self._task = self._service.loop.create_task(self._live())

    async def _live(self) -> None:
        try:
            admitted = await self._desk.admit(self._request, self._account)
            if isinstance(admitted, int):
                self._limit = admitted
                if self._head.length is not None and self._head.length > admitted:
                    admitted = answers.refusal(413, f"a body of more than {admitted} bytes")
            if isinstance(admitted, Refusal):
                self._send(admitted)
                return
            if self._head.length != 0:
                self.taking = True
                self._client.body_wanted()
                await self._whole
                if len(self._body) > self._limit:
                    self._send(answers.refusal(413, f"a body of more than {self._limit} bytes"))
                    return
            body, self._body = self._body, bytearray()
            self._send(await self._desk.answer(self._request, body))
        except Exception as error:  # a fault of ours ends this visit, not the door
            if not self.over:
                self._service.warn(f"door: {self._request.path}: {type(error).__name__}: {error}")
                self._send(answers.FAILED)

    def _send(self, what: Page | Refusal) -> None:
        if self.over:
            return
        self.taking = False
        keep = self._head.keep and not self._service.closing and self._client.skip_body()
        self.started = self.over = True
        self._client.answer(what, head_only=self._head.method == "HEAD", keep=keep)
        self._client.answered(keep=keep)

    def send_body(self, payload: bytes, *, last: bool) -> None:
        """Part of the body has come. Only while ``taking``."""
        self._body += payload
        if last or len(self._body) > self._limit:
            self.taking = False
            if not self._whole.done():
                self._whole.set_result(None)

    def pause_answer(self, paused: bool) -> None:
        """The answer is small, and given away in one piece."""

    def abort(self) -> None:
        """The client went away or is sent away."""
        self.over, self.taking = True, False
        task, self._task = (
            self._task,
            None,
        )  # its error keeps frames that keep this: a circle with the client in it
        if task:
            task.cancel()
