"""Writes: whether an instance takes any, as its operator has said; beside the data, so that a restart changes nothing.

Not its duty, which passes: writes stay refused until somebody allows them again.
"""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from chromakeep.errors import ChromakeepError, NotNow
from chromakeep.operations.place import write_whole

FILE = "writes.json"
LONGEST = 200  # characters of a reason
_MOST = 1 << 16  # bytes of a file that are believed


class Said(msgspec.Struct, frozen=True):
    """What was said last, and when (RFC 3339, UTC); ``since`` is empty where nothing ever was."""

    allow: bool = True
    reason: str = ""
    since: str = ""


_SAID = msgspec.json.Decoder(Said)


class Writes:
    """Asked from any thread. ``folder``: where it is written down; None: nowhere."""

    def __init__(self, folder: Path | None = None) -> None:
        """A file that cannot be read refuses writes: it was there for that."""
        self._path = folder / FILE if folder else None
        self._turn = threading.Lock()
        self.said = Said()
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                self.said = _SAID.decode(file.read(_MOST))
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError):
            self.said = Said(False, f"{self._path} cannot be read", _now())

    def refusal(self) -> ChromakeepError | None:
        """Why no write may begin."""
        said = self.said
        return None if said.allow else NotNow(f"writes are refused here: {said.reason or 'the operator said so'}")

    def put(self, *, allow: bool, reason: str = "") -> Said:
        """Refuse writes from now on, or allow them; durable when it returns. Saying the same twice changes nothing.

        Raises ``ChromakeepError`` if it cannot be written down: then writes are refused all the same, or not allowed.
        """
        with self._turn:
            said = Said(allow, reason if not allow else "", _now())
            if (said.allow, said.reason) == (self.said.allow, self.said.reason) and self.said.since:
                return self.said
            if not allow:
                self.said = said
            if self._path is not None:
                try:
                    write_whole(self._path, msgspec.json.encode(said))
                except OSError as error:
                    raise ChromakeepError(
                        f"{self._path}: {(error.strerror or str(error)).lower()}", hint="a restart would forget it"
                    ) from None
            self.said = said
            return said


def _now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
