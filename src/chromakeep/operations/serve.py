"""serve: a closed door in front of a Chroma that is somebody else's, or of an engine in this process."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from chromakeep.addresses import authority
from chromakeep.chroma.client import ChromaClient
from chromakeep.errors import ServerAnswered, ServerSilent
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.books import Books
from chromakeep.operations.duty import SERVING, SNAPSHOTS, Duty, Facing, Front, OpenDoor
from chromakeep.operations.entrance import Entrance
from chromakeep.operations.fronts import audit_of
from chromakeep.operations.key_places import opener
from chromakeep.operations.writes import Writes

if TYPE_CHECKING:
    from chromakeep.operations.issuer import OidcSettings
    from chromakeep.repository import Repository

EVERY = 2.0  # seconds between two looks whether it is there
PATIENCE = 10.0  # seconds for its heartbeat
BEAT = "nanosecond heartbeat"  # what is in it
SILENT = "the server behind does not answer; the log says why"


class Behind(Protocol):
    """What answers behind the door."""

    name: str  # as of "serving ... NAME"

    def start(self) -> None:
        """Before the door opens. Raises what keeps it from serving at all."""

    def front(self, front: Front) -> Front:
        """The front with it behind."""

    def trouble(self) -> str | None:
        """Why it does not answer at the moment; None: it does."""

    def stop(self) -> None:
        """After the door has closed, also where it did not start."""


class Elsewhere:
    """A Chroma at (host, port). ``secure``: it speaks TLS, and has a certificate of its name."""

    def __init__(self, backend: tuple[str, int], secure: bool) -> None:
        self._backend, self._secure = backend, secure
        self._client = ChromaClient(*backend, timeout=PATIENCE, secure=secure)
        self._authority = authority(*backend)
        self.name = f"what is at {self._authority}"

    def start(self) -> None:
        """See ``Behind``."""

    def front(self, front: Front) -> Front:
        """See ``Behind``."""
        return replace(front, backend=self._backend, authority=self._authority, secure=self._secure)

    def trouble(self) -> str | None:
        """See ``Behind``."""
        try:
            beat = self._client.heartbeat(timeout=PATIENCE)
        except ServerSilent as error:
            return error.message
        except ServerAnswered as error:
            return f"{self._authority} answers {error.status}: {error.message}"
        return None if isinstance(beat, dict) and BEAT in beat else f"{self._authority} answers, but as no Chroma does"

    def stop(self) -> None:
        """See ``Behind``."""


class ServeSettings(msgspec.Struct, frozen=True):
    """What is behind the door, and who may come in.

    The keys lie in the repository, or in ``data`` where there is none; ``open``: nobody needs one. ``writes``: where it
    is written down that writes are refused; None: it is forgotten at the end.
    """

    host: str
    port: int
    behind: Behind
    door: OpenDoor
    data: Path
    open_repository: Callable[[], Repository] | None = None
    open: bool = False
    oidc: OidcSettings | None = None
    facing: Facing = Facing()
    books: Books = Books()
    drain: float = 2.0
    writes: Path | None = None


class ServeResult(msgspec.Struct, frozen=True):
    """How long it was open, in seconds."""

    seconds: float


def serve(
    settings: ServeSettings, *, observer: Observer = ignore, stop: threading.Event, env: Mapping[str, str]
) -> ServeResult:
    """Serve until ``stop`` is set. ``/readyz`` says whether what is behind answers.

    Raises ``RefusedToServe`` where it would be open by accident, ``ServerFailed`` where it cannot listen, and what
    keeps the engine from its start.
    """
    started = time.monotonic()
    duty = Duty(SNAPSHOTS, None)
    duty.writes = Writes(settings.writes)
    if why := duty.writes.refusal():
        observer(Noted(f"{why.message}, since {duty.writes.said.since}", "warning"))
    duty.role, duty.trouble = SERVING, "the server behind was not asked yet"
    place = opener(settings.open_repository, settings.data, observer)
    entrance = Entrance(place, settings.host, env, accepted=settings.open, oidc=settings.oidc, observer=observer)
    duty.shut = entrance.shut
    front = Front(
        settings.host,
        settings.port,
        (settings.host, settings.port),
        duty,
        0.0,
        observer,
        facing=settings.facing,
        folder=Path(tempfile.mkdtemp(prefix="chromakeep-")) if settings.facing.self_signed else None,
        books=settings.books,
        audit=audit_of(settings.books, settings.open_repository, observer),
        keys=lambda: entrance.ring,
        foreign=entrance.foreign,
        closed=entrance.closed,
        local=entrance.local,
    )
    behind = settings.behind
    try:
        behind.start()
        door = settings.door(behind.front(front))
        try:
            entrance.start()
            door.start()
            where = f"{settings.facing.scheme}://{authority(settings.host, settings.port)}"
            observer(Noted(f"serving on {where} {behind.name}"))
            _watch(behind, duty, observer, stop)
        finally:
            door.stop(settings.drain)
            entrance.stop()
    finally:
        behind.stop()
        if front.folder:
            shutil.rmtree(front.folder, ignore_errors=True)
    return ServeResult(round(time.monotonic() - started, 3))


def _watch(behind: Behind, duty: Duty, observer: Observer, stop: threading.Event) -> None:
    told: str | None = ""  # nobody knows yet
    while not stop.is_set():
        why = behind.trouble()
        if why != told:
            observer(
                Noted(f"the server behind: {why}" if why else "the server behind answers", "warning" if why else "info")
            )
        told = why
        duty.trouble = SILENT if why else None  # on a page for anybody: the reason may name what is none of theirs
        stop.wait(EVERY)
