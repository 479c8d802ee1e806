"""What all connections of one door share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from chromakeep.events import Noted, Observer
from chromakeep.server.backend import Backend
from chromakeep.server.cors import Cors
from chromakeep.server.gate import Gate, Page, Refusal
from chromakeep.server.guard import Guard, Ledger
from chromakeep.server.limits import Limits
from chromakeep.server.relay import Relay
from chromakeep.server.request_head import RequestHead

if TYPE_CHECKING:
    from chromakeep.server.client_side import ClientSide
    from chromakeep.server.visit import Desk


class Service(msgspec.Struct):
    """Used in the thread of ``loop`` only."""

    loop: asyncio.AbstractEventLoop
    pool: Backend
    limits: Limits
    read: Callable[[bytes], RequestHead]  # a request's head; raises ``Malformed``
    gate: Gate | None
    reads: Callable[[], Refusal | None]
    pages: Mapping[str, Callable[[], Page]]
    observer: Observer
    desk: Desk | None = None
    guard: Guard | None = None
    ledger: Ledger | None = None
    cors: Cors | None = None
    relay: Relay | None = None
    clients: set[ClientSide] = msgspec.field(default_factory=set)
    closing: bool = False  # no connection is kept after the request it carries

    def warn(self, message: str) -> None:
        """One line for whoever watches."""
        self.observer(Noted(message, "warning"))
