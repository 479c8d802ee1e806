"""Replicate: snapshots and the log of a directory that another program serves, such as one that embeds Chroma."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from chromakeep.errors import ChromakeepError, LeaseLost, PartialFailure, RefusedToServe, RepositoryNotFound
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.beside import Beside, Process
from chromakeep.operations.keep import Keeping
from chromakeep.operations.reign import reign

if TYPE_CHECKING:
    from chromakeep.repository import Repository

LOOK = 0.5  # seconds between two looks whether the purge is held and the lease still ours


class Replicated(msgspec.Struct, frozen=True):
    """How it went until it was asked to stop: snapshots taken, the newest, and the last segment of the log."""

    snapshots: int
    snapshot: str | None
    epoch: int | None
    segment: int | None
    seconds: float


def replicate(
    data: Path,
    open_repository: Callable[[], Repository],
    create_repository: Callable[[], Repository] | None = None,
    *,
    every: float = 60.0,
    grace: float = 10.0,
    stage: Path | None = None,
    observer: Observer = ignore,
    stop: threading.Event,
) -> Replicated:
    """Keep ``data`` until ``stop`` is set, whoever writes to it: what is committed is in the log within a second.

    A directory that is not there yet is waited for; what takes its place (by a restore) is kept from then on. Nothing
    is written to it but Chroma's switch for the purge of its queue (``chroma.purge``), and rows that the newest
    snapshot has are deleted from the queue.

    Raises ``LeaseLost`` when another instance takes over, ``RefusedToServe`` for a directory that another one has
    overtaken or that is kept already, ``PartialFailure`` if at the end not all could be put in ``grace`` seconds.
    """
    started = time.monotonic()
    try:
        repository = open_repository()
    except RepositoryNotFound:
        if create_repository is None:
            raise
        repository = create_repository()
        observer(Noted("there was no repository at that address: created one", "warning"))
    with Beside(data) as beside:
        beside.take(grace, alone=False)
        beside.remember(keeper=Process.of(os.getpid()), verified=None)
        keeping = Keeping(beside, lambda: repository, every=every, stage=stage or beside.stage, observer=observer)
        try:
            if repository.config.conditional_put:
                keeping.lease = lease = reign(repository, stop=stop, observer=observer)
                if lease and lease.after and 0 < beside.state.epoch < lease.after[0]:
                    with suppress(ChromakeepError):
                        lease.release()  # nobody has to wait for this one
                    raise RefusedToServe(
                        f"another instance has written to the repository since {data} was replicated to it",
                        hint=f"stop the application, then: chromakeep restore REPO {data} --replace",
                    )
            keeping.hold()
            keeping.start()
            while not stop.wait(LOOK):
                if keeping.lost:
                    raise LeaseLost(
                        "another instance has taken over this repository", hint="restore from it, or stop it"
                    )
                keeping.recognise()
                keeping.hold()  # of a directory that has only now begun
                if keeping.newest_at is None and keeping.failure is None:
                    keeping.soon()
            if not keeping.finish(grace, threading.Event()):
                why = keeping.failure or "too slow"
                raise PartialFailure(f"stopped before all of {data} was in the repository: {why}")
            keeping.release()
        finally:
            keeping.end()
        epoch, segment = keeping.shipping.line if keeping.shipping else (None, None)
        seconds = round(time.monotonic() - started, 3)
        return Replicated(keeping.taken, keeping.newest, epoch, segment, seconds)
