"""Pump: the records of one collection from a source to a sink, with bounded memory, in parallel, and never past a mark.

One thread reads ahead into a short queue; as many write as the sink takes, at the pace that is set. The source waits
while the queue is full, so memory does not grow with the collection. A mark is taken down when everything before it was
accepted by the sink.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING

from chromakeep.operations.checkpoint import Checkpoint, Part
from chromakeep.operations.pace import Pace
from chromakeep.operations.sums import Numbers, Sums
from chromakeep.records import Intake, Mark

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD = 4  # batches in the queue, beside those that are being written
SAVE = 2.0  # seconds between two checkpoints; for a sink that has to make a part durable for one, more
DURABLE = 15.0
LEAVE = 2.0  # seconds that a signal waits for a write that is under way: a target may be silent
_WAIT = 0.1

Batches = Iterator[tuple["pa.RecordBatch", Mark]]


class Pump:
    """One collection. ``part`` is brought up to date as it runs."""

    def __init__(
        self,
        intake: Intake,
        part: Part,
        checkpoint: Checkpoint,
        *,
        sums: Sums | None = None,
        pace: Pace | None = None,
        progress: Callable[[int, int], None] = lambda records, size: None,
    ) -> None:
        """``sums``: add what passes to these, and to ``part``. ``pace``: how fast, together with whoever has the same
        one; None: as fast as can be."""
        self.intake, self.part, self.checkpoint = intake, part, checkpoint
        self.progress, self.sums, self.pace = progress, sums, pace or Pace(None)
        self._queue: Queue[tuple[int, pa.RecordBatch] | None] = Queue(AHEAD)
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._over = False  # whoever writes still is waited for by nobody
        self._pending: deque[_Step] = deque()  # batches that were read, in their order
        self._settled = 0  # batches before the first of these
        self._saved = time.monotonic()

    def run(self, batches: Batches) -> None:
        """Until the source has no more. Raises what the source or the sink raises; then ``part`` tells of what was
        accepted up to there, and is saved. Of what went well in two seconds nothing is saved: who finishes the intake
        does that next, and makes it durable."""
        writers = [threading.Thread(target=self._write, daemon=True) for _ in range(self.intake.limits.writers)]
        for writer in writers:
            writer.start()
        failed: BaseException | None = None
        try:
            try:
                self._read(batches)
            except Exception as error:  # of the source: what it gave before is written
                failed = error
            self._end(writers)
        except BaseException as error:  # a signal: what is not under way yet is left
            self._error = self._error or error
            self._end(writers, time.monotonic() + LEAVE)
        with self._lock:
            self._settle()
            failed = self._error or failed
            late = failed or time.monotonic() - self._saved > SAVE
            alone = not any(writer.is_alive() for writer in writers)  # else an intake cannot be asked for its mark
            self._over = True
            if late and alone and (self._error is None or self.part.records):
                try:
                    self._save()
                except Exception:  # of an intake that has failed: what is told is why
                    if failed is None:
                        raise
        if failed:
            raise failed

    def _end(self, writers: list[threading.Thread], until: float | None = None) -> None:
        """Nothing comes any more: wait for those who write."""
        self._offer(None)
        for writer in writers:
            writer.join(None if until is None else max(0.0, until - time.monotonic()))

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, batches: Batches) -> None:
        for number, (batch, mark) in enumerate(batches):
            if self.sums:
                self.sums.add(batch)
            step = _Step(mark, len(batch), self.sums.numbers() if self.sums else [])
            with self._lock:
                self._pending.append(step)
            if not self._offer((number, batch)):
                return

    def _offer(self, item: tuple[int, pa.RecordBatch] | None) -> bool:
        while self._error is None or item is None:
            try:
                self._queue.put(item, timeout=_WAIT)
                return True
            except Full:
                if self._error is not None:
                    self._drain()
        return False

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            pass

    # -- writing --------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue
            number, batch = item
            most = min(self.intake.limits.records, self.pace.portion)
            try:
                for at in range(0, len(batch), most):
                    some = batch.slice(at, most)
                    if not self.pace.wait(len(some), lambda: self._error is not None):
                        break
                    self.intake.write(some)
                    self._tell(some)
                else:
                    self._accepted(number)
            except BaseException as error:
                self._error = self._error or error
        self._queue.put(None)  # for the next one: there may be more writers than room in the queue

    def _tell(self, some: pa.RecordBatch) -> None:
        with self._lock:
            if not self._over:
                self.progress(len(some), some.nbytes)

    def _accepted(self, number: int) -> None:
        with self._lock:
            if self._over:  # another copy may go on from the checkpoint by now
                return
            self._pending[number - self._settled].accepted = True
            self._settle()
            pause = DURABLE if self.intake.limits.writers == 1 else SAVE
            if time.monotonic() - self._saved > pause:
                self._save()

    def _settle(self) -> None:
        """Take down how far everything is accepted."""
        while self._pending and self._pending[0].accepted:
            step = self._pending.popleft()
            self._settled += 1
            self.part.mark, self.part.sums = step.mark, step.sums
            self.part.records += step.records

    def _save(self) -> None:
        if self.checkpoint.path is not None and self.checkpoint.state:
            self.part.intake = self.intake.mark()
            self.checkpoint.save()
        self._saved = time.monotonic()


class _Step:
    """A batch under way."""

    __slots__ = ("accepted", "mark", "records", "sums")

    def __init__(self, mark: Mark, records: int, sums: Numbers) -> None:
        self.mark, self.records, self.sums, self.accepted = mark, records, sums, False
