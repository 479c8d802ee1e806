"""Progress: events to a bar on a terminal, to JSON lines, or to nothing; warnings always reach stderr."""

from __future__ import annotations

import re
import sys
import threading
import time
from typing import Any

from chromakeep.cli import output
from chromakeep.events import Event, Noted, PhaseStarted, Progressed, RecordsMoved, Retried, ServerLine

INTERVAL = 0.2  # seconds between two JSON lines of the same phase's progress
CONTINUAL = (Progressed, RecordsMoved)  # of which one in a while is enough
REFRESH = 0.1  # seconds between two drawings of the bar


class Lines:
    """No progress, only what a person must know: warnings, retries and, when asked, every note."""

    def __init__(self, *, notes: bool = False, times: bool = False) -> None:
        self._notes, self._times = notes, times

    def __call__(self, event: Event) -> None:
        if line := line_of(event, notes=self._notes):
            self.say(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}" if self._times else line)

    def say(self, line: str) -> None:
        output.tell(output.printable(line))

    def close(self) -> None:
        """Nothing is open."""


class JsonLines:
    """One JSON object a line on stderr: ``event`` (the class's name), ``time`` (seconds), and the event's fields."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Event | None = None
        self._printed = 0.0

    def __call__(self, event: Event) -> None:
        with self._lock:
            if not isinstance(event, CONTINUAL):
                self._flush()
                self._print(event)
            elif _subject(self._held) not in (None, _subject(event)):
                self._flush()
                self._held = event
            elif time.monotonic() - self._printed >= INTERVAL:
                self._print(event)
                self._held = None
            else:
                self._held = event

    def close(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        """Print the progress that was held back, so that a phase ends with its true count."""
        if self._held is not None:
            self._print(self._held)
            self._held = None

    def _print(self, event: Event) -> None:
        import msgspec

        fields = msgspec.to_builtins(event)
        line = {"event": type(event).__name__, "time": round(time.time(), 3), **fields}
        output.tell(msgspec.json.encode(line).decode())
        if isinstance(event, CONTINUAL):
            self._printed = time.monotonic()


def _subject(event: Event | None) -> object:
    """What a continual event tells of: the last one of each is never left out."""
    return (event.phase, event.collection) if isinstance(event, RecordsMoved) else getattr(event, "phase", None)


class Bar(Lines):
    """A bar with bytes or records, rate and time left on a terminal; notes and warnings are printed above it."""

    def __init__(self) -> None:
        super().__init__(notes=True)
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._moving: object = None  # of which collection the records are
        self._refreshed = 0.0

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, PhaseStarted):
                self._start(event.phase, event.total_bytes)
            elif isinstance(event, RecordsMoved):
                if self._moving != _subject(event):
                    self._start(f"{event.phase} {event.collection}", event.total, records=True)
                    self._moving = _subject(event)
                self._bar.update(self._task, completed=event.done)
                self._refresh()
            elif isinstance(event, Progressed):
                if self._bar is not None:
                    self._bar.update(self._task, completed=event.done_bytes)
                    self._refresh()
            else:
                super().__call__(event)

    def _start(self, phase: str, total: int | None, *, records: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Rate

        if self._bar is not None and (records or self._moving):  # another kind of columns
            self.close()
        self._moving = None
        if self._bar is None:
            text, bar, left = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
            counted: tuple[Any, ...] = (TextColumn("{task.fields[count]}"),) if records else (DownloadColumn(), Rate())
            # No thread that refreshes it: backup and restore fork, where they are alone in their process.
            self._bar = Progress(
                text, bar, *counted, left, console=Console(stderr=True), transient=True, auto_refresh=False
            )
            self._bar.start()
        elif self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(output.printable(phase), total=total, count="")
        self._refresh(now=True)

    def _refresh(self, *, now: bool = False) -> None:
        if self._bar is not None and (now or time.monotonic() - self._refreshed > REFRESH):
            if self._moving:
                task = self._bar.tasks[0]
                of = f" of {task.total:,.0f}" if task.total else ""
                speed = f", {task.speed:,.0f}/s" if task.speed else ""
                self._bar.update(self._task, count=f"{task.completed:,.0f}{of} records{speed}")
            self._bar.refresh()
            self._refreshed = time.monotonic()

    def say(self, line: str) -> None:
        if self._bar is None:
            super().say(line)
        else:
            self._bar.console.print(output.printable(line), markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def choose(mode: str, *, service: bool = False) -> Lines | JsonLines | Bar:
    """The observer for ``--progress MODE``. A ``service`` (``run``) tells every note, with its time."""
    if mode == "json":
        return JsonLines()
    if service:
        return Lines(notes=True, times=True)
    if mode == "bar" or (mode == "auto" and sys.stderr.isatty()):
        return Bar()
    return Lines()


def line_of(event: Event, *, notes: bool) -> str | None:
    """What a person is told of it, if anything."""
    if isinstance(event, ServerLine):
        said = bare(event)
        return f"chroma | {said}" if said else None
    if isinstance(event, Noted) and event.level == "info":
        return event.message if notes else None
    said = message_of(event)
    return f"{level_of(event)}: {said}" if said else None


def message_of(event: Event) -> str:
    """The event in a sentence; "" for one that only a bar shows."""
    if isinstance(event, Retried):
        return f"{event.what}: {event.error}; attempt {event.attempt}, again in {event.delay:.1f} s"
    if isinstance(event, ServerLine):
        return bare(event)
    return event.message if isinstance(event, Noted) else ""


def level_of(event: Event) -> str:
    """``info`` or ``warning``."""
    return event.level if isinstance(event, Noted) else "warning" if isinstance(event, Retried) else "info"


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def bare(event: ServerLine) -> str:
    """The line without colours and the space at its end."""
    return _COLOUR.sub("", event.line).rstrip()
