"""Sessions: how writers and a prune stay out of each other's way with nothing but put-if-absent.

A writer first puts ``sessions/<id>``, and at the end creates ``snapshots/<id>``. Whoever wants it out of the way
creates a tombstone under that very name: the store lets one of the two win, so a writer that was frozen for a week
can wake up and find that it cannot commit, and can never commit what a prune has deleted meanwhile. No clock decides.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import msgspec

from chromakeep.errors import ObjectExists, ObjectNotFound, RepositoryBusy, VerificationFailed
from chromakeep.repository.repository import Repository
from chromakeep.repository.sealed import unseal
from chromakeep.repository.snapshots import TOMBSTONE, Snapshot, encode, now, rfc3339

LONGEST = 7 * 86400.0  # seconds; tombstones are kept longer
LONGEST_UNFENCED = 12 * 3600.0  # where put-if-absent does not hold, time is all that keeps a prune from a writer


class SessionInfo(msgspec.Struct, frozen=True):
    """The object ``sessions/<id>``: who is at work."""

    id: str
    kind: str
    hostname: str
    pid: int
    started: str


_DECODER = msgspec.json.Decoder(SessionInfo)
_mine: set[str] = set()  # sessions of this process


class Session:
    """One writer at work. ``start`` announces it; ``commit`` or ``abandon`` ends it."""

    def __init__(self, repository: Repository, info: SessionInfo) -> None:
        self.repository, self.info, self.id = repository, info, info.id
        self._began, self._started = time.monotonic(), time.time()

    @staticmethod
    def start(repository: Repository, kind: str = "backup") -> Session:
        """Announce a session. Everything that is read from the repository afterwards is protected by it.

        Its name comes after that of each snapshot and session there is, whatever the clocks of their writers said.
        """
        names = [o.name for o in repository.store.list("sessions/")] + repository.snapshot_names()[-1:]
        moment = max([now(), *map(after, names)])
        identity = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z-{secrets.token_hex(8)}"
        info = SessionInfo(identity, kind, socket.gethostname(), os.getpid(), rfc3339(moment))
        _mine.add(identity)
        repository.put_sealed("N", f"sessions/{identity}", msgspec.json.encode(info))
        return Session(repository, info)

    def commit(self, snapshot: Snapshot) -> int:
        """Create the snapshot: the one commit point. Raises ``RepositoryBusy`` if it was fenced, or is too old."""
        name = f"snapshots/{self.id}"
        self.confirm()
        try:
            size = self.repository.put_sealed("S", name, encode(snapshot))
        except ObjectExists:
            raise RepositoryBusy(
                "this backup took so long that a prune or unlock declared it dead; nothing was committed",
                hint="run it again; what it uploaded is used if it is still there",
            ) from None
        self.end()
        return size

    def confirm(self) -> None:
        """Raise ``RepositoryBusy`` if others need not count with this session any more, for it began long ago."""
        longest = LONGEST if self.repository.config.conditional_put else LONGEST_UNFENCED
        # While a machine sleeps only one of its clocks goes on, and that one can be set.
        if max(time.monotonic() - self._began, time.time() - self._started) > longest:
            raise RepositoryBusy(f"this {self.info.kind} took too long to end safely", hint="run it again")

    def end(self) -> None:
        """Withdraw the announcement. For a session that committed, or whose packs may be taken away by any prune."""
        self.repository.store.delete(f"sessions/{self.id}")


def after(name: str) -> datetime:
    """The first moment that a later snapshot or session may be named by."""
    with suppress(ValueError, OverflowError):
        stamp = name.rpartition("/")[2].partition("Z-")[0]
        return datetime.strptime(f"{stamp}000+0000", "%Y%m%dT%H%M%S%f%z") + timedelta(milliseconds=1)
    return datetime.fromtimestamp(0, timezone.utc)  # no name of ours


def open_sessions(repository: Repository) -> dict[str, SessionInfo | None]:
    """Sessions announced and neither committed nor fenced. One that cannot be read maps to None."""
    announced = [o.name for o in repository.store.list("sessions/")]
    ended = {n.split("/", 1)[1] for n in repository.snapshot_names()}
    found: dict[str, SessionInfo | None] = {}
    for name in announced:
        identity = name.split("/", 1)[1]
        if identity in ended:
            continue
        try:
            payload = unseal("N", name, repository.store.get(name), repository.keys)
            found[identity] = _DECODER.decode(payload)
        except ObjectNotFound:
            continue
        except (msgspec.MsgspecError, ValueError, VerificationFailed):
            found[identity] = None
    return found


def is_dead(info: SessionInfo | None) -> bool:
    """Whether the writer is known to be gone: it ran on this host, and its process does not exist any more."""
    if info is None or info.hostname != socket.gethostname():
        return False
    if info.pid == os.getpid():
        return info.id not in _mine  # a container started anew: same host name, same process number
    return not process_exists(info.pid)


def process_exists(pid: int) -> bool:
    """Whether this host has such a process; True where that cannot be told without sending it a real signal."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def fence(repository: Repository, identity: str) -> bool:
    """Put a tombstone where the session would commit. True: it can never commit. False: it has committed."""
    name = f"snapshots/{identity}"
    try:
        repository.put_sealed("S", name, TOMBSTONE)
    except ObjectExists:
        return repository.snapshot(name) is None
    return True
