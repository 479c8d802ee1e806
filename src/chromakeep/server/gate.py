"""The gate: who decides whether a write may pass and when its answer may leave. Also pages of our own."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Request(msgspec.Struct, frozen=True):
    """A request whose head has been read and found well-formed; its body may not have arrived."""

    method: str
    target: str  # as sent: path and query, visible ASCII beginning with "/"
    write: bool  # may change something; see ``chromakeep.server.routes``
    fields: tuple[tuple[bytes, bytes], ...]  # (lower-case name, value) in the order sent: the client's word for it
    peer: str  # address of the other end of the connection, which may be a proxy

    @property
    def path(self) -> str:
        """The target without its query, not decoded."""
        return self.target.partition("?")[0]

    def field(self, name: bytes) -> bytes | None:
        """The first value of a field, None when it was not sent."""
        return next((value for key, value in self.fields if key == name), None)


class Refusal(msgspec.Struct, frozen=True):
    """An answer of ours in place of the server's. ``retry_after`` in seconds."""

    status: int
    error: str  # the name chromadb's client makes its exception from
    message: str
    retry_after: float | None = None


class Page(msgspec.Struct, frozen=True):
    """An answer of ours: a small one that is never cached, or that of an engine here. ``content_type`` "": no body.
    ``fields``: further ones of an engine's answer, in lower case."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    retry_after: float | None = None
    fields: tuple[tuple[str, str], ...] = ()


class Gate(Protocol):
    """Asked about every write, in the thread and event loop of the door: it must not block.

    Either question may be left unanswered: it is cancelled when the client goes away or the door stops. An exception
    counts as a refusal with 500. One admitted write may never come to ``acknowledge`` (the client or the backend went
    away) although the backend did it: who is not answered does not know, over HTTP as ever.
    """

    async def admit(self, request: Request) -> Refusal | None:
        """Before anything of the write goes to the backend. May wait; the client's body is not read meanwhile."""

    async def acknowledge(self, request: Request) -> Refusal | None:
        """After the backend began to answer the write, whatever it says; nothing of that has been sent to the client.

        Nothing is until this returns None. A refusal is sent instead, and the backend's answer dropped. Its status is
        not 503: that promises that the write was not done, and what balances over doors repeats it at another one.
        """
