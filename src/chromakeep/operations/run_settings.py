"""What a run is told, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from chromakeep.operations.books import Books
from chromakeep.operations.duty import ASYNC, Facing, OpenDoor
from chromakeep.operations.elsewhere import Forwarding

if TYPE_CHECKING:
    from chromakeep.operations.issuer import OidcSettings
    from chromakeep.repository import Repository


class RunSettings(msgspec.Struct, frozen=True):
    """What to run. Times in seconds; ``arguments`` are those after ``--`` (see ``chroma.command.parse_options``).

    ``durability``: ``async`` (what is committed goes into the log within a fraction of a second), ``sync`` (a write is
    acknowledged only then) or ``snapshots``. ``door`` opens the port and passes requests on to the server, which then
    listens on loopback; None: the server has the port itself. ``facing`` is for the door; with ``forwarding`` it passes
    writes on while another instance takes them.
    ``open_repository`` None means there is none; ``create_repository`` makes one where ``open_repository`` finds none.
    ``receive_token``, where there is a door, lets whoever knows it put another directory in place (``send``).
    ``open``: other machines may reach it, and nobody needs a key; ``oidc``: tokens of that issuer are keys. ``books``,
    where there is a door: which are kept of what passes it. ``stage`` None keeps the working copy beside the data. More
    than ``deaths`` deaths of the server within ``window`` seconds end the run.
    """

    data: Path
    open_repository: Callable[[], Repository] | None = None
    create_repository: Callable[[], Repository] | None = None
    every: float = 60.0
    durability: str = ASYNC
    door: OpenDoor | None = None
    facing: Facing = Facing()
    forwarding: Forwarding | None = None
    receive_token: str | None = None
    hold_writes: float = 0.0
    grace: float = 10.0
    ephemeral: bool = False
    open: bool = False
    oidc: OidcSettings | None = None
    arguments: tuple[str, ...] = ()
    program: str | None = None
    stage: Path | None = None
    books: Books = Books()
    probe_every: float = 5.0
    hung_after: float = 60.0
    deaths: int = 5
    window: float = 600.0

    def __repr__(self) -> str:
        return f"RunSettings({str(self.data)!r})"  # no secret in a log


class RunResult(msgspec.Struct, frozen=True):
    """How a run that was asked to stop went. ``outcome`` is that of the boot; ``snapshot`` the newest one's id."""

    outcome: str
    snapshots: int
    snapshot: str | None
    restarts: int
    seconds: float
