"""Fronts: what the door of a run is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from chromakeep.chroma.command import ServerOptions
from chromakeep.events import Observer
from chromakeep.operations.beside import Beside
from chromakeep.operations.books import Books
from chromakeep.operations.changeover import Changeover
from chromakeep.operations.duty import Duty, Front
from chromakeep.operations.entrance import Entrance
from chromakeep.operations.gauges import Gauges
from chromakeep.operations.keep import Keeping
from chromakeep.operations.key_places import opener

if TYPE_CHECKING:
    from chromakeep.operations.audit import Audit
    from chromakeep.operations.receive import Receiver
    from chromakeep.operations.run_settings import RunSettings
    from chromakeep.repository import Repository


def front_of(
    settings: RunSettings,
    shown: ServerOptions,
    backend: ServerOptions,
    *,
    beside: Beside,
    duty: Duty,
    keeping: Keeping | None,
    changeover: Changeover,
    restarts: Callable[[], int],
    entrance: Entrance,
    observer: Observer,
) -> Front:
    """Of a run whose clients see ``shown``, and whose server is at ``backend``."""
    receiver: Receiver | None = None
    if settings.receive_token:
        from chromakeep.operations.receive import Receiver  # few runs receive anything

        receiver = Receiver(beside, duty, keeping, changeover, observer)
    return Front(
        shown.host,
        shown.port,
        (backend.host, backend.port),
        duty,
        settings.hold_writes,
        observer,
        facing=settings.facing,
        forwarding=settings.forwarding,
        folder=beside.root,
        receiver=receiver,
        token=settings.receive_token or "",
        books=settings.books,
        read=Gauges(beside, duty, keeping, restarts).read,
        audit=audit_of(settings.books, settings.open_repository, observer),
        keys=lambda: entrance.ring,
        foreign=entrance.foreign,
        closed=entrance.closed,
        local=entrance.local,
    )


def entrance_of(settings: RunSettings, host: str, env: Mapping[str, str], observer: Observer) -> Entrance:
    """Of a run whose clients see ``host``: its keys lie in its repository, or else in its directory."""
    place = opener(settings.open_repository, settings.data, observer)
    return Entrance(place, host, env, accepted=settings.open, oidc=settings.oidc, observer=observer)


def audit_of(books: Books, open_repository: Callable[[], Repository] | None, observer: Observer) -> Audit | None:
    """The audit log, where one is kept; with a repository a copy goes there."""
    if books.audit_log is None:
        return None
    from chromakeep.operations.audit import Audit  # few runs keep one

    return Audit(
        books.audit_log,
        books.audit_size,
        required=books.audit_required,
        open_repository=open_repository,
        observer=observer,
    )
