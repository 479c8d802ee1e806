"""Duty: what one instance owes its clients at the moment: whether it takes writes, and when it may acknowledge one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from chromakeep.errors import ChromakeepError, LeaseLost, NotNow
from chromakeep.events import Observer, ignore
from chromakeep.operations.books import Books
from chromakeep.operations.elsewhere import Elsewhere, Forwarding
from chromakeep.operations.keep import Keeping
from chromakeep.operations.ship import Shipping
from chromakeep.operations.sighting import Sighting
from chromakeep.operations.writes import Writes

if TYPE_CHECKING:
    from chromakeep.access.keys import Key, Keyring
    from chromakeep.engine import Engine
    from chromakeep.operations.audit import Audit
    from chromakeep.operations.gauges import Reading
    from chromakeep.operations.receive import Receiver
    from chromakeep.operations.standby import Standby

STARTING, WAITING, STANDBY, SERVING, STOPPING = "starting", "waiting", "standby", "serving", "stopping"
EXCHANGING = "exchanging"  # another directory takes the place of the one that was served
ASYNC, SYNC, SNAPSHOTS = "async", "sync", "snapshots"
STALE = 60.0  # seconds without news of the log after which a standby is not ready for reads
GIVEN_UP = 10.0  # seconds without a bucket after which writes are refused that could only wait for it


class Duty:
    """Asked from any thread; told by the run. ``durability`` as in ``RunSettings``."""

    def __init__(self, durability: str, keeping: Keeping | None) -> None:
        self.durability = durability
        self.standby: Standby | None = None  # of an instance that waits
        self.elsewhere: Elsewhere | None = None  # the door that takes the writes while this instance waits
        self.sighting = Sighting()
        self.writes = Writes()  # what the operator says of them
        self.trouble: str | None = None  # with a server that is not ours
        self.shut: Callable[[], str | None] = lambda: None  # why the door lets nobody in for now
        self._role = STARTING
        self._keeping = keeping

    @property
    def role(self) -> str:
        """What this instance does. One that waits is a standby from the moment that it can answer reads."""
        return STANDBY if self._role == WAITING and self.standby and self.standby.ready else self._role

    @role.setter
    def role(self, role: str) -> None:
        self._role = role

    @property
    def shipping(self) -> Shipping | None:
        """The log that is being written, None before it has begun."""
        return self._keeping.shipping if self._keeping else None

    @property
    def sync(self) -> bool:
        """Whether a write is acknowledged only when it is in the bucket."""
        return self.durability == SYNC

    def refusal(self) -> ChromakeepError | None:
        """Why no write may be taken now, nor one be acknowledged that was; ``LeaseLost`` will not pass, others may."""
        if self._keeping and self._keeping.lost:
            return LeaseLost("another instance writes to this store now")
        if self.role in (WAITING, STANDBY):
            return NotNow("another instance takes the writes; this one stands by")
        if self.role != SERVING:
            return NotNow(f"this instance is {self.role}")
        if self._keeping and self._keeping.lease and not self._keeping.lease.sure:
            return NotNow("this instance was frozen and does not know yet whether it still may write")
        if not (shipping := self.shipping):
            return None
        failing = shipping.standing.failing
        if self.sync and failing is not None and failing > GIVEN_UP:
            return NotNow(f"the repository cannot be reached (for {failing:.0f} s), and a write is kept there first")
        return None

    def closed(self) -> ChromakeepError | None:
        """Why no read may be passed on to the server now, although there may be one."""
        if self.role == WAITING:
            return NotNow("another instance serves; this one has not all of its data yet")
        return None

    def shipped(self) -> Future[None] | None:
        """Done when everything committed so far is in the bucket; None while the log has not begun."""
        return self.shipping.shipped() if self.shipping else None

    @property
    def ready(self) -> bool:
        """Whether this instance serves as it should, writes included, and has what it had."""
        return self._serves and self.shut() is None

    @property
    def readable(self) -> bool:
        """Whether it answers reads as it should: a standby with what was a moment ago, not before it lost its bucket.

        It answers them all the same, for where there is nobody else.
        """
        return self.beating and self.shut() is None

    @property
    def beating(self) -> bool:
        """The same, whoever is let in: a platform that gets no heartbeat ends us, which makes no key readable."""
        if self.role != STANDBY or self.standby is None:
            return self._serves
        behind = self.standby.behind
        return behind is not None and behind < STALE

    @property
    def _serves(self) -> bool:
        return self.role == SERVING and self.refusal() is None and not (self.sighting.gone or self.trouble)

    @property
    def snapshot_age(self) -> float | None:
        """Seconds since the newest snapshot; of one that an earlier run took by the time in its name."""
        keeping = self._keeping
        if not keeping or not keeping.newest or keeping.age is not None:
            return keeping.age if keeping else None
        with suppress(ValueError):
            taken = datetime.strptime(keeping.newest[:15], "%Y%m%dT%H%M%S")
            return round(max(0.0, time.time() - taken.replace(tzinfo=timezone.utc).timestamp()), 1)
        return None

    def status(self) -> dict[str, object]:
        """What there is to know, for a page: role, durability, how far the log is (``ship.Standing``) or a standby."""
        known: dict[str, object] = {"role": self.role, "durability": self.durability}
        if why := self.writes.refusal() or self.refusal():
            known["refuses_writes"] = why.message
        if shut := self.shut():
            known["lets_nobody_in"] = shut
        if gone := self.sighting.gone:
            known["missing"] = gone
        if self.trouble:
            known["trouble"] = self.trouble
        if self.standby and self._role == WAITING:
            known |= self.standby.status()
        if self._keeping:
            known |= {"snapshot": self._keeping.newest, "snapshot_age_seconds": self.snapshot_age}
        if shipping := self.shipping:
            standing = shipping.standing
            known |= {
                "epoch": standing.epoch,
                "segment": standing.number,
                "lag_seconds": round(standing.lag, 3),
                "failing_seconds": standing.failing and round(standing.failing, 3),
            }
        return known


class Facing(msgspec.Struct, frozen=True):
    """How a door faces its clients. Paths are of PEM files; without any of it they speak plain HTTP.

    ``self_signed``: with a certificate of its own making. ``origins``: of pages in browsers that may ask, or ``*``.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    self_signed: bool = False
    origins: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """Of its URL."""
        return "https" if self.certificate or self.self_signed else "http"


class Front(msgspec.Struct, frozen=True):
    """What a door needs to know: where to listen, what is behind it, and whom to ask.

    ``hold`` is for how many seconds a write that is refused for now is held before it is answered. ``receiver`` takes
    directories from whoever knows the ``token``; without one nobody may send any. ``folder`` is where it may keep what
    it makes for itself. ``books`` says which are kept of the requests; ``audit`` is the log for them, ``read`` gives
    the numbers of the run. ``keys`` are those of the moment, ``foreign`` tells
    what a token of others gives (see ``Entrance``); ``closed``: nobody comes in without
    one, be there one or not; ``local``: without any, only programs of this machine are to come in.
    ``forwarding``: writes go on to the instance that takes them.
    ``authority`` is the name of a server that is not ours, which is ``secure`` over TLS.
    ``engine`` answers in the place of a server: it is asked by so many ``threads`` at a time.
    """

    host: str
    port: int
    backend: tuple[str, int]
    duty: Duty
    hold: float
    observer: Observer = ignore
    facing: Facing = Facing()
    folder: Path | None = None
    receiver: Receiver | None = None
    token: str = ""
    books: Books = Books()
    read: Callable[[], Reading] | None = None
    audit: Audit | None = None
    keys: Callable[[], Keyring | None] | None = None
    foreign: Callable[[str, float], Key | None] | None = None
    closed: bool = False
    local: bool = False
    forwarding: Forwarding | None = None
    authority: str | None = None
    secure: bool = False
    engine: Engine | None = None
    threads: int = 8

    def __repr__(self) -> str:
        return f"Front({self.host}:{self.port})"  # no secret in a log


class Doorway(Protocol):
    """A listening door (``chromakeep.server.Door``)."""

    def start(self) -> None: ...

    def stop(self, drain: float) -> None: ...


OpenDoor = Callable[[Front], Doorway]
