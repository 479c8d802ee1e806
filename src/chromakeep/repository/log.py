"""The log: what changed between snapshots, in numbered write-once objects of one epoch after another.

An epoch is the reign of one writer (``lease``). Its segments are ``log/<epoch>/<number>``, numbered from 1 without a
gap. The first says on what the epoch builds: a snapshot, or the end of an earlier epoch. A tombstone under the next
number ends it: the store lets one of the two win, the writer or whoever takes over, so a writer that was frozen past
its time can never add to what its successor has already read. No clock decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from chromakeep.changes import Change
from chromakeep.errors import CorruptObject, LeaseLost, MissingObject, ObjectExists, ObjectNotFound
from chromakeep.repository.repository import Repository
from chromakeep.repository.sealed import seal, unseal
from chromakeep.repository.snapshots import instant

PREFIX = "log/"
ENDED, FENCED = b"ended", b"fenced"  # payloads of tombstones: by the writer itself, by its successor


class Segment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object. ``base`` (a snapshot's id) or ``after`` (epoch and number) is in the first of an epoch only, with the
    ``source`` it is of and the ``schema`` of its database."""

    changes: tuple[Change, ...]
    base: str | None = None
    after: tuple[int, int] | None = None
    source: str | None = None
    schema: str | None = None


_DECODER = msgspec.msgpack.Decoder(Segment)


def name_of(epoch: int, number: int) -> str:
    """The name of a segment."""
    return f"{PREFIX}{epoch:08d}/{number:010d}"


def parse_name(name: str) -> tuple[int, int] | None:
    """Epoch and number; None for the name of something else."""
    parts = name.removeprefix(PREFIX).split("/")
    if not name.startswith(PREFIX) or len(parts) != 2 or not all(p.isdigit() for p in parts):
        return None
    found = int(parts[0]), int(parts[1])
    return found if name == name_of(*found) else None


class Log:
    """The log of a repository, to be read by anybody."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def epochs(self) -> list[int]:
        """Epochs that have any object in the log, ascending."""
        found = {at[0] for o in self.repository.store.list(PREFIX) if (at := parse_name(o.name))}
        return sorted(found)

    def numbers(self, epoch: int) -> list[int]:
        """Numbers of an epoch's objects, tombstone included, ascending."""
        listed = self.repository.store.list(f"{PREFIX}{epoch:08d}/")
        return sorted(at[1] for o in listed if (at := parse_name(o.name)))

    def read(self, epoch: int, number: int) -> Segment | None:
        """A segment; None for a tombstone. Raises ``MissingObject``, ``CorruptObject``."""
        name = name_of(epoch, number)
        try:
            data = self.repository.store.get(name)
        except ObjectNotFound:
            raise MissingObject(name, hint="check the repository: chromakeep check REPO") from None
        payload = unseal("L", name, data, self.repository.keys)
        if payload in (ENDED, FENCED):
            return None
        try:
            return _DECODER.decode(payload)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptObject(name, f"is no segment of the log ({error})") from None

    def segments(self, epoch: int, after: int = 0) -> Iterator[tuple[int, Segment]]:
        """Segments of an epoch behind a number, as far as there are any. Raises ``MissingObject`` for a gap."""
        expected = after + 1
        for number in self.numbers(epoch):
            if number < expected:
                continue
            if number > expected:
                raise MissingObject(name_of(epoch, expected), hint="the log cannot be followed beyond it")
            found = self.read(epoch, number)
            if found is None:
                return
            yield number, found
            expected += 1

    def end(self, epoch: int) -> tuple[int, bool]:
        """The number of an epoch's last segment (0: it has none), and whether it is ended."""
        numbers = self.numbers(epoch)
        if not numbers:
            return 0, False
        ended = self.read(epoch, numbers[-1]) is None
        return numbers[-1] - ended, ended

    def last_time(self, epoch: int, number: int) -> datetime | None:
        """When the state was that a segment leads to; None where it cannot be told."""
        try:
            found = self.read(epoch, number)
        except MissingObject:
            return None
        return instant(found.changes[-1].time) if found and found.changes else None

    def append(self, epoch: int, number: int, segment: Segment) -> int:
        """Put the next segment; its size in bytes. Putting the very same again is no error.

        Raises ``LeaseLost`` when another object is there: this writer's epoch is over.
        """
        return self._put(name_of(epoch, number), msgspec.msgpack.encode(segment))

    def finish(self, epoch: int, number: int) -> None:
        """End one's own epoch: ``number`` is the next that would be put."""
        self._put(name_of(epoch, number), ENDED)

    def _put(self, name: str, payload: bytes) -> int:
        keys = self.repository.keys
        data = seal("L", name, payload, keys)
        try:
            self.repository.store.put(name, data, if_absent=True)
        except ObjectExists:
            # An answer that was lost on the way made the store's client ask again: then it is ours.
            if unseal("L", name, self.repository.store.get(name), keys) != payload:
                raise LeaseLost(
                    "another instance has taken over this repository", hint="this one must not acknowledge any more"
                ) from None
        return len(data)

    def fence(self, epoch: int) -> int:
        """See to it that nothing can be added to an epoch; returns the number of its last segment, 0 if it has none."""
        number, ended = self.end(epoch)
        while not ended:
            name = name_of(epoch, number + 1)
            try:
                self.repository.store.put(name, seal("L", name, FENCED, self.repository.keys), if_absent=True)
                ended = True
            except ObjectExists:
                if self.read(epoch, number + 1) is None:
                    ended = True
                else:
                    number += 1
        return number
