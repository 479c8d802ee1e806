"""What happened, as values. An operation emits them; a face turns them into a bar, a line or JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. Names of subclasses are part of the JSON contract (``--progress json``)."""


@dataclass(frozen=True, slots=True)
class PhaseStarted(Event):
    """A phase with a known or unknown (``None``) amount of work in bytes begins; it ends the one before it."""

    phase: str
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """``done_bytes`` of the running phase are done, counted from the phase's start."""

    phase: str
    done_bytes: int


@dataclass(frozen=True, slots=True)
class RecordsMoved(Event):
    """``done`` records of a collection have gone through a phase; ``total``: of how many, as far as that is known."""

    phase: str
    collection: str
    done: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """A step failed in a way that may pass and is tried again after ``delay`` seconds."""

    what: str
    error: str
    attempt: int
    delay: float


@dataclass(frozen=True, slots=True)
class Noted(Event):
    """A fact worth one line: ``level`` is ``info`` or ``warning``."""

    message: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class ServerLine(Event):
    """A line that the supervised server wrote, as it wrote it (terminal colours included)."""

    line: str


Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer of those who do not watch."""
