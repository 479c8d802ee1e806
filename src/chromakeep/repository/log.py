"""The log: what changed between snapshots, in numbered write-once objects of one epoch after another.

An epoch is the reign of one writer (``lease``). Its segments are ``log/<epoch>/<number>``, numbered from 1 without a
gap. The first says on what the epoch builds: a snapshot, or the end of an earlier epoch. A tombstone under the next
number ends it: the store lets one of the two win, the writer or whoever takes over, so a writer that was frozen past
its time can never add to what its successor has already read. No clock decides.

Segments that nobody appends to any more are merged: ``log/<epoch>/<first>-<last>`` holds them all (``merging``). The
first, the last and the tombstone stay objects of their own, so what is said above needs no merged ones. A merge puts
before it deletes, so a reader that finds an object gone finds what it held in another one: it lists again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import msgspec

from chromakeep.changes import Change
from chromakeep.errors import CorruptObject, LeaseLost, MissingObject, ObjectExists, ObjectNotFound
from chromakeep.repository.repository import Repository
from chromakeep.repository.sealed import seal, unseal
from chromakeep.repository.snapshots import instant

PREFIX = "log/"
ENDED, FENCED = b"ended", b"fenced"  # payloads of tombstones: by the writer itself, by its successor
AHEAD = 8  # pieces read at once
TRIES = 4  # listings that show a gap, before it is one: a listing is not of one moment


class Segment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object. ``base`` (a snapshot's id) or ``after`` (epoch and number) is in the first of an epoch only, with the
    ``source`` it is of and the ``schema`` of its database."""

    changes: tuple[Change, ...]
    base: str | None = None
    after: tuple[int, int] | None = None
    source: str | None = None
    schema: str | None = None


class Piece(NamedTuple):
    """An object of the log: the segments ``first`` to ``last`` of an epoch, or one segment, or a tombstone.

    ``size`` in bytes as stored; ``modified`` by the store's clock.
    """

    epoch: int
    first: int
    last: int
    name: str
    size: int = 0
    modified: float = 0.0

    @property
    def single(self) -> bool:
        """Whether it is a segment or a tombstone, not a merged object."""
        return self.name == name_of(self.epoch, self.first)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.first <= number <= self.last


_DECODER = msgspec.msgpack.Decoder(Segment)
_MERGED = msgspec.msgpack.Decoder(list[bytes])


def name_of(epoch: int, number: int) -> str:
    """The name of a segment."""
    return f"{PREFIX}{epoch:08d}/{number:010d}"


def merged_name(epoch: int, first: int, last: int) -> str:
    """The name of a merged object."""
    return f"{name_of(epoch, first)}-{last:010d}"


def parse_name(name: str) -> tuple[int, int] | None:
    """Epoch and number of a segment or tombstone; None for the name of something else."""
    found = parse_piece(name)
    return (found.epoch, found.first) if found and found.single else None


def parse_piece(name: str, size: int = 0, modified: float = 0.0) -> Piece | None:
    """The piece of the log that an object is by its name; None for the name of something else."""
    epoch, _, numbers = name.removeprefix(PREFIX).partition("/")
    first, _, last = numbers.partition("-")
    if not (name.startswith(PREFIX) and epoch.isdigit() and first.isdigit() and (last or first).isdigit()):
        return None
    found = Piece(int(epoch), int(first), int(last or first), name, size, modified)
    if name == name_of(found.epoch, found.first):
        return found
    merged = found.first < found.last and name == merged_name(found.epoch, found.first, found.last)
    return found if merged else None


def covering(pieces: Iterable[Piece], number: int) -> Piece | None:
    """Of the pieces that hold a number the one that goes farthest."""
    return max((p for p in pieces if number in p), key=lambda p: p.last, default=None)


def chain(pieces: Iterable[Piece], number: int, stop: int | None = None) -> list[Piece]:
    """The fewest pieces that hold the numbers from ``number`` up to ``stop``, or as far as there is no gap."""
    found: list[Piece] = []
    best: Piece | None = None
    ordered = deque(sorted(pieces, key=lambda p: p.first))
    while stop is None or number <= stop:
        while ordered and ordered[0].first <= number:
            piece = ordered.popleft()
            best = piece if best is None or piece.last > best.last else best
        if best is None or best.last < number:
            break
        found.append(best)
        number = best.last + 1
    return found


class Log:
    """The log of a repository, to be read by anybody."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    # -- what there is -------------------------------------------------------------------------------------------

    def survey(self) -> dict[int, list[Piece]]:
        """All pieces by their epoch, from one listing; epochs and numbers ascending."""
        found: dict[int, list[Piece]] = {}
        for piece in self._list(PREFIX):
            found.setdefault(piece.epoch, []).append(piece)
        return found

    def pieces(self, epoch: int) -> list[Piece]:
        """The pieces of one epoch, by their first number."""
        return list(self._list(f"{PREFIX}{epoch:08d}/"))

    def _list(self, prefix: str) -> Iterator[Piece]:
        for info in self.repository.store.list(prefix):
            if piece := parse_piece(info.name, info.size, info.modified):
                yield piece

    def epochs(self) -> list[int]:
        """Epochs that have any object in the log, ascending."""
        return sorted(self.survey())

    def numbers(self, epoch: int) -> list[int]:
        """Numbers that an epoch has, in objects of their own or merged, tombstone included, ascending."""
        return sorted({n for piece in self.pieces(epoch) for n in range(piece.first, piece.last + 1)})

    def end(self, epoch: int) -> tuple[int, bool]:
        """The number of an epoch's last segment (0: it has none), and whether it is ended."""
        return self.end_of(self.pieces(epoch))

    def end_of(self, pieces: Iterable[Piece]) -> tuple[int, bool]:
        """The same of an epoch that was listed."""
        top = max(pieces, key=lambda p: (p.last, p.single), default=None)
        if top is None:
            return 0, False
        ended = top.single and self.read(top.epoch, top.last) is None
        return top.last - ended, ended

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, epoch: int, number: int, *, merged: bool = True) -> Segment | None:
        """A segment; None for a tombstone. Raises ``MissingObject``, ``CorruptObject``.

        Not ``merged``: only if it is an object by itself, for who asks again and again for what is not there yet.
        """
        name = name_of(epoch, number)
        try:
            payloads = self.payloads(Piece(epoch, number, number, name))
        except ObjectNotFound:
            found = next(self.segments(epoch, number - 1, number), None) if merged else None
            if found is None:
                raise MissingObject(name, hint="check the repository: chromakeep check REPO") from None
            return found[1]
        return decode(name, payloads[0]) if payloads else None

    def segments(self, epoch: int, after: int = 0, stop: int | None = None) -> Iterator[tuple[int, Segment]]:
        """Segments of an epoch behind a number, up to ``stop`` or as far as there are any; each once, in their order,
        whoever merges meanwhile. Raises ``MissingObject`` for a gap, ``CorruptObject``."""
        expected, tries = after + 1, 0
        while stop is None or expected <= stop:
            pieces = self.pieces(epoch)
            try:
                for piece, payloads in self._ahead(chain(pieces, expected, stop)):
                    if payloads is None:
                        return
                    for number in range(expected, piece.last + 1 if stop is None else min(piece.last, stop) + 1):
                        yield number, decode(piece.name, payloads[number - piece.first])
                    expected, tries = piece.last + 1, 0
                if all(p.last < expected for p in pieces):
                    return
                if stop is None or expected <= stop:
                    raise ObjectNotFound(name_of(epoch, expected))
            except ObjectNotFound as error:
                tries += 1
                if tries == TRIES:
                    raise MissingObject(error.name, hint="the log cannot be followed beyond it") from None

    def _ahead(self, run: list[Piece]) -> Iterator[tuple[Piece, list[bytes] | None]]:
        """The payloads of pieces, in order. Of a long run ``AHEAD`` are read at once: a segment is small, so that what
        takes time in a bucket is asking for it."""
        if len(run) <= AHEAD:
            for piece in run:
                yield piece, self.payloads(piece)
            return
        with ThreadPoolExecutor(AHEAD, "log") as pool:
            waiting: deque[tuple[Piece, Future[list[bytes] | None]]] = deque()
            try:
                for piece in run:
                    waiting.append((piece, pool.submit(self.payloads, piece)))
                    if len(waiting) == AHEAD:
                        first, found = waiting.popleft()
                        yield first, found.result()
                for first, found in waiting:
                    yield first, found.result()
            finally:
                for _, found in waiting:
                    found.cancel()

    def payloads(self, piece: Piece) -> list[bytes] | None:
        """The encoded segments of a piece, in their order; None for a tombstone. Raises ``ObjectNotFound``,
        ``CorruptObject``."""
        data, keys = self.repository.store.get(piece.name), self.repository.keys
        if piece.single:
            payload = unseal("L", piece.name, data, keys)
            return None if payload in (ENDED, FENCED) else [payload]
        try:
            found = _MERGED.decode(unseal("M", piece.name, data, keys))
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptObject(piece.name, f"holds no merged segments ({error})") from None
        if len(found) != piece.last - piece.first + 1:
            raise CorruptObject(piece.name, f"holds {len(found)} segments")
        return found

    # -- writing -------------------------------------------------------------------------------------------------

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

    def put_merged(self, epoch: int, first: int, payloads: list[bytes]) -> Piece:
        """Put encoded segments in one object, or find that it is there; return it when it was read back and holds just
        these. Raises ``CorruptObject`` where it does not."""
        last = first + len(payloads) - 1
        piece = Piece(epoch, first, last, merged_name(epoch, first, last))
        with suppress(ObjectExists):  # by another one who merges, or by one that died: what counts is what it holds
            self.repository.put_sealed("M", piece.name, msgspec.msgpack.encode(payloads))
        if self.payloads(piece) != payloads:
            raise CorruptObject(piece.name, "holds other segments than there are")
        return piece

    def fence(self, epoch: int, pieces: Iterable[Piece]) -> int:
        """See to it that nothing can be added to an epoch; returns the number of its last segment, 0 if it has none.

        ``pieces``: of it, as they were listed at any time before, so that of an ended one one object is read.
        """
        number, ended = self.end_of(pieces)
        store = self.repository.store
        while not ended:
            name, free = name_of(epoch, number + 1), True
            try:
                store.put(name, seal("L", name, FENCED, self.repository.keys), if_absent=True)
            except ObjectExists:
                free = False
            # Whatever is there now: a name may be free, or a tombstone stand there, because its segment had been merged
            # with later ones since the listing. Only what is the highest ends an epoch.
            last, ended = self.end(epoch)
            if free and last > number:
                store.delete(name)
            number = last
        return number


def decode(name: str, payload: bytes) -> Segment:
    """A segment; ``name`` is of the object that holds it. Raises ``CorruptObject``."""
    try:
        return _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptObject(name, f"is no segment of the log ({error})") from None
