"""The lease: which of several instances writes. One epoch a reign, ``lease/<epoch>``, taken by put-if-absent.

The holder puts its object anew every few seconds. An instance that watches it may take over when the holder has
released it, or when the object has not changed for a time *by the watcher's own clock*: clocks of two machines are
never compared. Taking too early does no harm beyond a change of holder: what makes it safe is that the taker ends the
log of all epochs before (``log.fence``), and the holder finds that out at its next put.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from pathlib import Path

import msgspec
from msgspec.structs import replace

from chromakeep.errors import CorruptObject, LeaseLost, ObjectExists, ObjectNotFound
from chromakeep.repository.log import Log
from chromakeep.repository.repository import Repository
from chromakeep.repository.sealed import seal, unseal
from chromakeep.repository.sessions import process_exists
from chromakeep.repository.snapshots import now, rfc3339

PREFIX = "lease/"


class Holder(msgspec.Struct, frozen=True):
    """Who holds an epoch. ``beat`` rises with each renewal; ``address`` is where it serves, for those who forward.

    ``world`` names the machine's boot and the namespace in which ``pid`` is a process: each container has its own.
    ``number`` is of a segment that it has put: the last one at its last beat. ``released``: it writes no more, and has
    ended its log.
    """

    epoch: int
    hostname: str
    pid: int
    started: str
    world: str = ""
    token: str = ""  # of one instance: tells two apart that are alike in all else
    beat: int = 0
    address: str | None = None
    number: int = 0
    released: bool = False

    @property
    def gone(self) -> bool:
        """Whether it is known that its process is no more: only where we would see it."""
        return bool(self.world) and self.world == world() and not process_exists(self.pid)


_DECODER = msgspec.json.Decoder(Holder)


def world() -> str:
    """Which process numbers ours is comparable with; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def name_of(epoch: int) -> str:
    """The name of an epoch's object."""
    return f"{PREFIX}{epoch:08d}"


def newest(repository: Repository) -> int:
    """The highest epoch that was ever taken, 0 if none."""
    found = [o.name.removeprefix(PREFIX) for o in repository.store.list(PREFIX)]
    return max((int(n) for n in found if n.isdigit()), default=0)


def holder(repository: Repository, epoch: int) -> Holder | None:
    """Who holds an epoch; None where that object is gone. Raises ``CorruptObject``."""
    try:
        return read_one(repository, name_of(epoch))
    except ObjectNotFound:
        return None


def belongs(repository: Repository, epoch: int, token: str) -> bool:
    """Whether an epoch is the instance's with this token, which may have had no answer when it took it."""
    try:
        found = holder(repository, epoch)
    except CorruptObject:
        return False
    return found is not None and found.token == token


def read_one(repository: Repository, name: str) -> Holder:
    """What one object says. Raises ``CorruptObject``, ``ObjectNotFound``."""
    payload = unseal("H", name, repository.store.get(name), repository.keys)
    try:
        return _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptObject(name, f"is no lease ({error})") from None


class Lease:
    """An epoch that is ours until somebody takes the next one."""

    def __init__(self, repository: Repository, mine: Holder, after: tuple[int, int] | None) -> None:
        self.repository, self.epoch = repository, mine.epoch
        self.after = after  # the last segment of all epochs before, on which this one builds; None where there is none
        self._mine = mine
        self._lock = threading.Lock()

    @property
    def address(self) -> str | None:
        """Where its holder says that it serves."""
        return self._mine.address

    @property
    def token(self) -> str:
        """Of its holder."""
        return self._mine.token

    @staticmethod
    def take(
        repository: Repository, *, address: str | None = None, over: int | None = None, token: str | None = None
    ) -> Lease:
        """Take the next epoch, or the one after ``over``, and end all before it.

        Raises ``LeaseLost`` when another instance was quicker. Who tries again after a ``StoreError`` gives the same
        ``token``: the epoch may be its own already.
        """
        brisk = repository.brisk
        epoch = (newest(brisk) if over is None else over) + 1
        who = (socket.gethostname(), os.getpid(), rfc3339(now()), world())
        mine = Holder(epoch, *who, token or secrets.token_hex(8), address=address)
        try:
            _put(brisk, mine, if_absent=True)
        except ObjectExists:
            if not belongs(brisk, epoch, mine.token):
                raise LeaseLost("another instance was quicker to take over") from None
        log, after = Log(brisk), None
        listed = log.survey()
        if max(listed, default=0) >= epoch:
            raise LeaseLost("another instance was quicker to take over")
        # Each number, in the log or not: its holder may be about to put its first segment, and whoever took over from
        # it may have come no further than to its own lease.
        for earlier in range(epoch - 1, 0, -1):
            last = log.fence(earlier, listed.get(earlier, ()))
            if last:
                after = earlier, last
                break  # it was begun, and whoever began it had ended those before
        return Lease(repository, mine, after)

    def renew(self, number: int = 0) -> None:
        """Show that this instance lives and has put the segment ``number``, and look whether another has taken over:
        then ``LeaseLost``."""
        brisk = self.repository.brisk
        latest = newest(brisk)
        if latest > self.epoch and not belongs(brisk, latest, self.token):
            raise LeaseLost(
                "another instance has taken over this repository", hint="this one must not acknowledge any more"
            )
        with self._lock:
            if not self._mine.released:
                self._beat(number, released=False)

    def release(self, number: int) -> None:
        """End the log of this epoch behind the segment ``number``: whoever waits may take over at once.

        Raises ``LeaseLost`` when somebody has; ``StoreError``.
        """
        Log(self.repository.brisk).finish(self.epoch, number + 1)
        with self._lock:
            self._beat(number, released=True)

    def _beat(self, number: int, *, released: bool) -> None:
        self._mine = replace(self._mine, beat=self._mine.beat + 1, number=number, released=released)
        _put(self.repository.brisk, self._mine, if_absent=False)


def _put(repository: Repository, mine: Holder, *, if_absent: bool) -> None:
    name = name_of(mine.epoch)
    repository.store.put(name, seal("H", name, msgspec.json.encode(mine), repository.keys), if_absent=if_absent)
