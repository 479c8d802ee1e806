"""The log of a service: what its events are turned into, where it has a format or a file of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from chromakeep.cli import output
from chromakeep.cli.progress import CONTINUAL, level_of, line_of, message_of
from chromakeep.errors import UsageError
from chromakeep.events import Event, PhaseStarted

if TYPE_CHECKING:
    from chromakeep.cli.failures import Failure
    from chromakeep.cli.output import Reply
    from chromakeep.cli.settings import Settings
    from chromakeep.operations.outputs import Output

KEYS = ("log_format", "log_file", "log_size", "log_keep")
STREAMS = {"-": 1, None: 2}  # where a log that is no file goes
_SAID = {"message", "level", "line"}  # fields of events that have a place of their own


class Log:
    """An observer, of any thread. A line leaves at once, so a kill takes none; one that cannot be written is dropped.

    ``text`` is for people, a line with its time; else each line is a JSON object, in ASCII.
    """

    def __init__(self, to: Output, *, text: bool, stream: int | None = None) -> None:
        self.text, self.stream = text, stream
        self._to, self._lock, self._failed = to, threading.Lock(), False
        to.open()

    def __call__(self, event: Event) -> None:
        message = f"begun: {event.phase}" if isinstance(event, PhaseStarted) else message_of(event)
        if isinstance(event, CONTINUAL) or not message:
            return
        if not self.text:
            fields = msgspec.to_builtins(event)
            self._tell(level_of(event), type(event).__name__, message, fields)
        elif line := line_of(event, notes=True):
            self._say(line)

    def ended(self, reply: Reply) -> None:
        """The command is over; the fields are those of its answer."""
        if self.text:
            self._say(reply.text)
        else:
            self._tell(
                "info", "Ended", reply.text, {**msgspec.to_builtins(reply.data), "exit_status": reply.exit_status}
            )

    def failed(self, failure: Failure) -> None:
        """The command has failed, and is over."""
        if self.text:
            self._say(f"error: {failure.message}" + (f" (hint: {failure.hint})" if failure.hint else ""))
        else:
            fields = {"code": failure.code, "hint": failure.hint, "exit_status": failure.status}
            self._tell("error", "Failed", failure.message, fields)

    def close(self) -> None:
        """Nothing waits."""

    def _say(self, line: str) -> None:
        said = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {output.printable(line)}\n"
        self._write(said.encode(errors="backslashreplace"))

    def _tell(self, level: str, event: str, message: str, fields: Mapping[str, object]) -> None:
        from chromakeep.operations.outputs import utc

        told: dict[str, object] = {"time": utc(time.time()), "level": level, "event": event, "message": message}
        told |= {name: value for name, value in fields.items() if name not in _SAID | told.keys()}
        self._write(json.dumps(told, separators=(",", ":")).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        with self._lock:
            try:
                self._to.write(line)
                self._failed = False
            except OSError as error:
                if not self._failed and self.stream != STREAMS[None]:
                    why = error.strerror or str(error)
                    output.tell(f"warning: the log cannot be written: {why}; its lines are dropped")
                self._failed = True


def wanted(settings: Settings) -> Log | None:
    """The log that the settings ask for, opened. Raises ``UsageError``."""
    text, path = settings.text("log_format") == "text", settings.text("log_file")
    if text and path is None:
        return None  # as ever: on stderr, see ``progress``
    from chromakeep.operations.outputs import Rotated, Stream

    if path is None or path == "-":
        stream = STREAMS[path]
        return Log(Stream(stream), text=text, stream=stream)
    place, data, size = Path(path).absolute(), settings.text("data"), settings.number("log_size")
    if size < 1:
        raise UsageError("a log of 0 megabytes", hint="give --log-size 1 or more")
    if data and Path(data).absolute() in place.parents:
        # With the directory it would be replaced by a restore, and lie in a place that is Chroma's.
        raise UsageError(f"--log-file {path} is in the data directory", hint="put it beside that")
    for name in ("access_log", "audit_log"):
        if (other := settings.text(name)) and Path(other).resolve() == place.resolve():
            raise UsageError(f"--log-file {path} is the {name.replace('_', ' ')}, too", hint="give each its own file")
    return Log(Rotated(Path(path), size * 1_000_000, float("inf"), settings.number("log_keep")), text=text)
