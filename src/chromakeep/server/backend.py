"""The backend: who answers what the door passes on, over lines that carry one exchange at a time.

A Chroma over HTTP (``upstream.Pool``), or an engine in this process (``inside.Inside``).
"""

from __future__ import annotations

from typing import Protocol

from chromakeep.server.answer_head import AnswerHead
from chromakeep.server.request_head import RequestHead


class Carried(Protocol):
    """Whose answer a line reads: an ``Exchange``, or a question of the door's own."""

    @property
    def method(self) -> str: ...

    @property
    def holding(self) -> bool:
        """The answer is not taken for now."""

    @property
    def until(self) -> float:
        """When nobody waits for the answer any more, by the loop's clock; ``inf``: that cannot be said."""

    def answer_begins(self, answer: AnswerHead) -> None: ...

    def answer_goes_on(self, payload: bytes, *, last: bool) -> None: ...

    def flush(self) -> None: ...

    def upstream_full(self, full: bool) -> None: ...

    def upstream_lost(self, line: Line) -> None: ...

    def answer_malformed(self, why: str) -> None: ...


class Line(Protocol):
    """Carries one exchange at a time. Used in the door's thread only."""

    @property
    def used(self) -> bool:
        """It has carried an exchange before the one it carries."""

    @property
    def spoke(self) -> bool:
        """A byte of this exchange's answer has come."""

    @property
    def lost(self) -> bool:
        """The other end is gone."""

    def carry(self, exchange: Carried) -> None:
        """Give this line, which is idle, to an exchange."""

    def begin(self, head: RequestHead) -> None:
        """Send a request's head; of one without a body that is all there is."""

    def send(self, payload: bytes, *, last: bool) -> None:
        """Send some of the body."""

    def pause(self, paused: bool) -> None:
        """Stop or go on reading the answer."""

    def go_on(self) -> None:
        """The exchange takes the answer that it held back."""

    def give_back(self, reusable: bool) -> None:
        """The exchange is over: keep the line for another one, or end what goes on there."""


class Backend(Protocol):
    """Lines to whoever answers. ``authority`` is what it calls itself, where that is not what its clients call it."""

    @property
    def authority(self) -> bytes | None: ...

    def take(self) -> Line | None:
        """An idle line, if there is one. Its other end may be closing it at this moment."""

    async def open(self) -> Line:
        """A new line. Raises ``OSError`` when the backend is not there."""

    def close(self) -> None:
        """End idle lines, and those that come back."""
