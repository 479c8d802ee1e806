"""Front: a door whose gate asks the run behind it, and the pages that tell how it stands."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from msgspec.structs import replace

from chromakeep.errors import ChromakeepError, LeaseLost, NotNow, UsageError
from chromakeep.events import Noted
from chromakeep.operations.duty import EXCHANGING, SNAPSHOTS, Duty, Facing, Front
from chromakeep.operations.elsewhere import Forwarding, door_at
from chromakeep.server.answers import refusal
from chromakeep.server.bookkeeping import METRICS, BookedDoor, Bookkeeping
from chromakeep.server.cors import cors_of
from chromakeep.server.door import Door
from chromakeep.server.gate import Page, Refusal, Request
from chromakeep.server.gatehouse import Gatehouse
from chromakeep.server.inside import Answering
from chromakeep.server.ledgers import several
from chromakeep.server.limits import Limits
from chromakeep.server.relay import Relay
from chromakeep.server.strangers import Strangers
from chromakeep.server.tls import Tls, context_of, fingerprint
from chromakeep.server.unlocked import Unlocked
from chromakeep.server.upstream import Remote
from chromakeep.server.visit import Closed, Desk
from chromakeep.server.writes_desk import Underway, WritesDesk

POLL = 0.02  # seconds between two questions while a write is held
PATIENCE = 30.0  # seconds for which an answer waits for the bucket
BEFORE_DELETING = 2.0  # seconds for which the deletion of a collection waits for what it held to be in the bucket
RETRY = 1.0  # seconds after which a client is told to try again
MOST_BODY = 40 << 20  # bytes that an engine here is sent, as Chroma takes them
LATER = 30.0  # where it was told to take no writes, which may never pass
DONE = 504  # of a write that was passed on: a proxy repeats 503 elsewhere, which promises that nothing was done


class DutyGate:
    """Writes pass while the duty allows, and are answered when it is done."""

    def __init__(self, duty: Duty, hold: float, also: Callable[[], ChromakeepError | None] = lambda: None) -> None:
        """``also`` tells why a write may not begin for another reason than the duty's."""
        self._duty, self._hold, self._also = duty, hold, also

    async def admit(self, request: Request) -> Refusal | None:
        """Hold the write for a while, or refuse it with 503 and Retry-After.

        What a collection held when it is deleted goes into the log first, so that one can go back to just before.
        """
        refused = await self._allowed(self._hold) or self._closed()
        deletes = request.method == "DELETE" or request.path.endswith("/reset")
        if deletes:
            await asyncio.to_thread(self._duty.sighting.deleting)  # which may write it down
        if refused is None and deletes and self._duty.durability != SNAPSHOTS:
            await self._shipped_soon()
        return refused

    async def acknowledge(self, request: Request) -> Refusal | None:
        """With ``sync``, wait until the log has it. No answer passes that another instance may have made void.

        Refuses with 504, never 503: the write is done here, and may be lost or not.
        """
        if self._duty.sync:
            try:
                await asyncio.wait_for(self._shipped(), PATIENCE)
            except asyncio.TimeoutError:
                return refusal(DONE, "the write is done here but not in the bucket yet: it may be lost")
            except ChromakeepError as error:
                return _undecided(error)
        elif request.path.endswith("/reset") and self._duty.durability != SNAPSHOTS:
            await self._shipped_soon()  # by then the purge is held again, before anything is written that it could take
        return await self._allowed(PATIENCE, done=True)

    async def _allowed(self, patience: float, *, done: bool = False) -> Refusal | None:
        end = asyncio.get_running_loop().time() + patience
        before = self._duty.elsewhere
        while (why := self._duty.refusal() or (None if done else self._also())) is not None:
            gone = done and self._duty.role == EXCHANGING  # with the directory that it was written to
            if gone or isinstance(why, LeaseLost) or asyncio.get_running_loop().time() > end:
                return _undecided(why) if done else _refused(why)
            if not done and self._duty.elsewhere not in (None, before):  # by now another one takes it
                return _refused(why)
            await asyncio.sleep(POLL)
        return None

    def _closed(self) -> Refusal | None:
        """Asked last, so that no write is admitted after it was said."""
        why = self._duty.writes.refusal()
        return refusal(503, why.message, retry_after=LATER) if why else None

    async def _shipped_soon(self) -> None:
        with suppress(asyncio.TimeoutError, ChromakeepError):  # a bucket that is away keeps nobody from deleting
            await asyncio.wait_for(self._shipped(), BEFORE_DELETING)

    async def _shipped(self) -> None:
        ticket: Future[None] | None
        while True:
            if ticket := self._duty.shipped():
                with suppress(NotNow):  # the log begins anew
                    return await asyncio.wrap_future(ticket)
            if (why := self._duty.refusal()) and (self._duty.role == EXCHANGING or not isinstance(why, NotNow)):
                raise why
            await asyncio.sleep(POLL)


def _refused(error: ChromakeepError) -> Refusal:
    return refusal(error.http_status, error.message, retry_after=RETRY)


def _undecided(error: ChromakeepError) -> Refusal:
    return refusal(DONE, f"the write was done here and may be lost: {error.message}")


def check(facing: Facing) -> None:
    """Raises ``UsageError`` for files that cannot be used and origins that are none."""
    cors_of(facing.origins)
    if tls := _tls(facing):
        context_of(tls)


def _tls(facing: Facing) -> Tls | None:
    return Tls(facing.certificate, facing.key, facing.client_ca) if facing.certificate else None


def _remote(front: Front) -> Remote | None:
    if front.authority is None:
        return None
    return Remote(front.authority.encode(), ssl.create_default_context() if front.secure else None)


def _answering(front: Front) -> Answering | None:
    if front.engine is None:
        return None
    from chromakeep.server.api import answer

    return partial(answer, front.engine)


def trust(forwarding: Forwarding) -> ssl.SSLContext:
    """Whom the door of another instance is believed to be. Raises ``UsageError`` for a file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=forwarding.authority)
    except (OSError, ValueError) as error:  # ``SSLError`` is an OSError
        why = "no certificate of an authority in it" if isinstance(error, ssl.SSLError) else str(error.args[-1]).lower()
        raise UsageError(f"{forwarding.authority}: {why}", hint="it must be PEM") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _self_signed(front: Front) -> Tls:
    from chromakeep.server.self_signed import self_signed

    assert front.folder
    tls = replace(self_signed(front.folder / "tls"), client_ca=front.facing.client_ca)
    said = f"tls: a self-signed certificate, for tests: {tls.certificate}, SHA-256 {fingerprint(tls.certificate)}"
    front.observer(Noted(said, "warning"))
    return tls


def open_door(front: Front) -> BookedDoor:
    """The door of a run. ``/healthz``: this process lives; ``/readyz``: it serves; ``/readyz/reads``: it answers reads,
    as a standby does; ``/_keep/status``: how it stands; ``/metrics``: that and more for Prometheus; below
    ``/_keep/receive``: see ``ReceivingDesk``; ``/_keep/writes``: see ``WritesDesk``.

    Raises ``UsageError`` as ``check`` does; files of a certificate are read when the door starts.
    """
    duty = front.duty

    def status() -> Page:
        return Page(json.dumps(duty.status()).encode())

    def ready() -> Page:
        return Page(json.dumps(duty.status()).encode(), status=200 if duty.ready else 503)

    def readable() -> Page:
        return Page(json.dumps(duty.status()).encode(), status=200 if duty.readable else 503)

    def reads() -> Refusal | None:
        return _refused(why) if (why := duty.closed()) else None

    def beating() -> Page:  # Chroma 1.x answers 410 there, and old probes take that for death
        return Page(b'{"nanosecond heartbeat":%d}' % time.time_ns(), status=200 if duty.beating else 503)

    def healthy() -> Page:
        return Page(b'{"ok":true}')

    desk: Desk = Closed()
    if front.receiver:
        from chromakeep.server.receiving import ReceivingDesk  # few runs receive anything

        desk = ReceivingDesk(front.receiver, front.token)
    public: dict[str, Callable[[], Page]] = {
        "/healthz": healthy,
        "/readyz": ready,
        "/readyz/reads": readable,
        "/api/v1/heartbeat": beating,
    }
    books = Bookkeeping(front, public)
    underway = Underway()
    inner = {"/_keep/status": status, METRICS: books.metrics}  # names of collections and of keys among them
    shielded = front.engine is None  # an engine of ours is not ruined by what it is asked
    cors = cors_of(front.facing.origins)
    names = (door_at(front.forwarding.url).host,) if front.forwarding else ()
    strangers = Strangers(cors, names) if front.local else None
    guard = (
        Gatehouse(
            front.keys,
            closed=front.closed,
            pages=inner,
            foreign=front.foreign,
            strangers=strangers,
            shielded=shielded,
        )
        if front.keys
        else Unlocked(inner, strangers, shielded=shielded)
    )
    also = front.audit.refusal if front.audit else lambda: None
    door = Door(
        front.host,
        front.port,
        front.backend,
        gate=DutyGate(duty, front.hold, also),
        reads=reads,
        pages=public,
        desk=WritesDesk(duty.writes, underway, guard, desk),
        ledger=several(books.ledger, underway),
        guard=guard,
        tls=_self_signed(front) if front.facing.self_signed else _tls(front.facing),
        cors=cors,
        remote=_remote(front),
        answering=_answering(front),
        limits=Limits() if shielded else Limits(body_bytes=MOST_BODY),
        threads=front.threads,
        relay=Relay(lambda: duty.elsewhere, trust(front.forwarding), also, front.observer)
        if front.forwarding
        else None,
        observer=front.observer,
    )
    return BookedDoor(door, books)
