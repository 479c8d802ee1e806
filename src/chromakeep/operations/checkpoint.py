"""Checkpoint: how far a copy has come, in a file, so that a killed one goes on where it was.

What is written down is true of what the target has: a mark of the source is taken down when everything before it was
accepted, with the sums of the digest up to there. The file is replaced in one step, and removed when all is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from chromakeep.errors import UsageError
from chromakeep.operations.place import write_whole

VERSION = 1


class Part(msgspec.Struct, omit_defaults=True):
    """One collection: ``mark`` of the source, ``intake`` of the sink, ``sums`` of its digest up to there. ``existed``:
    the target had one of its name before."""

    mark: Any = None
    intake: Any = None
    records: int = 0
    sums: list[list[int]] = []
    done: bool = False
    existed: bool = False


class _Content(msgspec.Struct):
    version: int
    plan: str
    state: str
    parts: dict[str, Part]
    begun: str = ""


_DECODER = msgspec.json.Decoder(_Content)


class Checkpoint:
    """Of one copy. ``parts``: by the collection's tenant, database and name at the source. ``since``: when its first
    run began, empty before ``begin``."""

    def __init__(self, path: Path | None, plan: Mapping[str, Any]) -> None:
        """``path``: None where nothing is to be kept. ``plan``: what is copied, from where to where, and how; a file of
        another plan is given up (``given_up``), as going on with it would mix the two. Raises ``UsageError``."""
        self.path, self.plan = path, msgspec.json.encode(plan, order="sorted").decode()
        self.state = self.since = ""
        self.parts: dict[str, Part] = {}
        self.given_up = False
        if path is None or not path.exists():
            return
        try:
            found = _DECODER.decode(path.read_bytes())
        except (msgspec.MsgspecError, OSError) as error:
            raise UsageError(f"{path} is no checkpoint of a copy ({error})", hint="remove it to begin anew") from None
        self.given_up = found.version != VERSION or found.plan != self.plan
        if not self.given_up:
            self.state, self.parts, self.since = found.state, found.parts, found.begun

    def begin(self, state: str) -> bool:
        """Go on with what was written down, if the source is in that state still; else begin anew. True: it goes on."""
        goes_on = self.leads_on(state)
        if not goes_on:
            self.parts, self.since = {}, f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S}Z"
        self.state = state
        return goes_on

    def leads_on(self, state: str) -> bool:
        """Whether a copy from a source in that state goes on with what was written down."""
        return bool(state) and state == self.state and bool(self.parts)

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return self.path is not None and self.path.exists()

    def part(self, place: tuple[str, str, str]) -> Part:
        """What is known of a collection."""
        return self.parts.setdefault("/".join(place), Part())

    def anew(self, place: tuple[str, str, str]) -> Part:
        """Forget what is known of a collection."""
        self.parts.pop("/".join(place), None)
        return self.part(place)

    def save(self) -> None:
        """Write it down, durably."""
        if self.path is not None:
            write_whole(
                self.path, msgspec.json.encode(_Content(VERSION, self.plan, self.state, self.parts, self.since))
            )

    def remove(self) -> None:
        """All is done."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()
