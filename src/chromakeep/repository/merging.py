"""Merging: many small objects of the log become few, and every change in them keeps its time.

Anybody may merge, several at once, beside whoever appends, reads or takes over. A merged object is put and read back
before anything that it holds is deleted, so every segment is at each moment in some object; after a death it may be in
two. Nothing is appended next to what is merged: the first segment of an epoch (which says on what it builds) and the
two highest numbers (the last segment, and the tombstone or the next to last) stay objects of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from chromakeep.errors import CorruptObject, ObjectNotFound
from chromakeep.repository.log import Log, Piece
from chromakeep.repository.repository import Repository

MOST = 1000  # segments in one object
LARGEST = 16 << 20  # bytes of plain payload in one object; a segment that is larger stays alone
LEAST = 100  # objects in a row that are worth a merge: a segment is then written anew five times at most
TRIES = 4
AT_ONCE = 64  # objects read together


def merge(
    repository: Repository,
    epoch: int,
    upto: int | None = None,
    *,
    least: int = LEAST,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Merge the segments of an epoch up to a number, where ``least`` small objects or more are in a row; returns how
    many objects there are less. ``stop`` is asked now and then.

    Raises ``CorruptObject`` for one that is damaged, when the others are merged; ``StoreError``.
    """
    log = Log(repository)
    before = len(log.pieces(epoch))
    for _ in range(TRIES):
        try:
            with ThreadPoolExecutor(8, thread_name_prefix="merge") as pool:
                _Merge(log, epoch, upto, least, pool, stop).run()
            break
        except ObjectNotFound:
            continue  # another one merges, or a prune has taken it away: look again
    return before - len(log.pieces(epoch))


class _Merge:
    """One pass over one listing."""

    def __init__(
        self,
        log: Log,
        epoch: int,
        upto: int | None,
        least: int,
        pool: ThreadPoolExecutor,
        stop: Callable[[], bool],
    ) -> None:
        self.log, self.least, self.pool, self.stop = log, least, pool, stop
        pieces = log.pieces(epoch)
        top = max((p.last for p in pieces), default=0)
        highest = top - 2 if upto is None else min(upto, top - 2)
        self.pieces = [p for p in pieces if p.first > 1 and p.last <= highest]
        self.damage: CorruptObject | None = None

    def run(self) -> None:
        for whole, parts in self._superseded():
            self._remove_parts(whole, parts)
        for run in self._runs():
            self._merge(run)
        if self.damage:
            raise self.damage

    # -- what others left ----------------------------------------------------------------------------------------

    def _superseded(self) -> list[tuple[Piece, list[Piece]]]:
        """Pieces that lie within another one, which stays: left by a death, or by two who merged at the same time."""
        found: dict[Piece, list[Piece]] = {}
        rest: list[Piece] = []
        widest: Piece | None = None
        for piece in sorted(self.pieces, key=lambda p: (p.first, -p.last)):
            if widest and piece.last <= widest.last:
                found.setdefault(widest, []).append(piece)
            else:
                widest = piece
                rest.append(piece)
        self.pieces = rest
        return list(found.items())

    def _remove_parts(self, whole: Piece, parts: list[Piece]) -> None:
        held = self._read(whole)
        for batch in _batches(parts):
            if held is None or self.stop():
                return
            gone = []
            for part, payloads in zip(batch, self.pool.map(self._read, batch), strict=True):
                at = part.first - whole.first
                if payloads == held[at : at + len(payloads or ())]:
                    gone.append(part)
                elif payloads is not None and self.damage is None:
                    self.damage = CorruptObject(whole.name, f"holds other segments than {part.name}")
            self._delete(gone)

    # -- merging -------------------------------------------------------------------------------------------------

    def _runs(self) -> list[list[Piece]]:
        """Small pieces that follow each other without a gap or an overlap, where there are enough of them."""
        runs: list[list[Piece]] = [[]]
        for piece in self.pieces:
            if runs[-1] and piece.first != runs[-1][-1].last + 1:
                runs.append([])
            if piece.last - piece.first + 1 >= MOST // 2 or piece.size >= LARGEST // 2:
                runs.append([])
            else:
                runs[-1].append(piece)
        return [run for run in runs if len(run) >= max(self.least, 2)]

    def _merge(self, run: list[Piece]) -> None:
        group: list[Piece] = []
        held: list[bytes] = []
        size = 0
        for batch in _batches(run):
            if self.stop():
                return
            for piece, payloads in zip(batch, self.pool.map(self._read, batch), strict=True):
                more = sum(map(len, payloads or ()))
                full = len(held) + len(payloads or ()) > MOST or size + more > LARGEST
                if not payloads or full:
                    self._publish(group, held)
                    group, held, size = [], [], 0
                if payloads:
                    group.append(piece)
                    held += payloads
                    size += more
                elif payloads is not None:
                    self.damage = self.damage or CorruptObject(piece.name, "ends the epoch, and there is more of it")
        self._publish(group, held)

    def _publish(self, group: list[Piece], payloads: list[bytes]) -> None:
        """Put what a group holds in one object, and only when that was read back delete the group."""
        if len(group) > 1:
            made = self.log.put_merged(group[0].epoch, group[0].first, payloads)
            self._delete([p for p in group if p.name != made.name])

    def _read(self, piece: Piece) -> list[bytes] | None:
        """None for a damaged one, which stays as it is; nothing for a tombstone. One that lies within a merged object
        was put by a taker that had slept behind its listing (``Log.fence``)."""
        try:
            return self.log.payloads(piece) or []
        except CorruptObject as error:
            self.damage = self.damage or error
            return None

    def _delete(self, pieces: list[Piece]) -> None:
        list(self.pool.map(self.log.repository.store.delete, [p.name for p in pieces]))


def _batches(pieces: list[Piece]) -> Iterator[list[Piece]]:
    for at in range(0, len(pieces), AT_ONCE):
        yield pieces[at : at + AT_ONCE]
