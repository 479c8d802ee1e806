"""What happened, as values. An operation emits them; a face turns them into a bar, a line or JSON."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Event(msgspec.Struct, frozen=True):
    """Base of all events. Names of subclasses are part of the JSON contract (``--progress json``)."""


class PhaseStarted(Event, frozen=True):
    """A phase with a known or unknown (``None``) amount of work in bytes begins; it ends the one before it."""

    phase: str
    total_bytes: int | None = None


class Progressed(Event, frozen=True):
    """``done_bytes`` of the running phase are done, counted from the phase's start."""

    phase: str
    done_bytes: int


class RecordsMoved(Event, frozen=True):
    """``done`` records of a collection have gone through a phase; ``total``: of how many, as far as that is known."""

    phase: str
    collection: str
    done: int
    total: int | None = None


class Retried(Event, frozen=True):
    """A step failed in a way that may pass and is tried again after ``delay`` seconds."""

    what: str
    error: str
    attempt: int
    delay: float


class Noted(Event, frozen=True):
    """A fact worth one line: ``level`` is ``info`` or ``warning``."""

    message: str
    level: str = "info"


class ServerLine(Event, frozen=True):
    """A line that the supervised server wrote, as it wrote it (terminal colours included)."""

    line: str


Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer of those who do not watch."""
