"""reconcile: make a collection in one place equal to that in another, by writing only the records that differ.

Both are read whole, a hash of each record is kept, and what differs is read again and written. Memory stays the same
for any number of records, and a call that was killed is simply made again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma.spool import Spool
from chromakeep.digests import hashes
from chromakeep.events import Observer, RecordsMoved, ignore
from chromakeep.operations.checkpoint import Checkpoint, Part
from chromakeep.operations.compare import described
from chromakeep.operations.pace import Pace
from chromakeep.operations.pump import Pump
from chromakeep.operations.sides import Side, Words, apart
from chromakeep.operations.sums import in_cosine
from chromakeep.records import Definition, Intake, Mark, Sink, Source

if TYPE_CHECKING:
    import pyarrow as pa

TOGETHER = 2048  # records that are gathered before they are written, and ids before they are deleted

T = TypeVar("T")


@runtime_checkable
class Deletes(Protocol):
    """A sink from whose collections records can be taken away. None of its collections is being written meanwhile."""

    def delete(self, definition: Definition, ids: Sequence[str]) -> None:
        """Delete these records, of which there are any number; ``definition`` is the sink's own. When it returns they
        are gone. Ids that are not there change nothing, so twice is once."""


@runtime_checkable
class Drops(Protocol):
    """A sink that can take a whole collection away."""

    def drop(self, definition: Definition) -> None:
        """Delete a collection with its records; ``definition`` is the sink's own. One that is gone already changes
        nothing, so twice is once."""


class Reconciled(msgspec.Struct, frozen=True):
    """``records``: of the collection at the source. ``upserted`` were written, ``deleted`` taken away; ``left`` are
    only at the target and stay there."""

    records: int
    upserted: int
    deleted: int
    left: int

    @property
    def moved(self) -> int:
        """Records in which the target was changed."""
        return self.upserted + self.deleted


def reconcile(
    a: Source,
    definition: Definition,
    sink: Sink,
    b: Source,
    there: Definition,
    *,
    target: Definition | None = None,
    delete: bool = True,
    pace: Pace | None = None,
    folder: Path | None = None,
    observer: Observer = ignore,
) -> Reconciled:
    """Make the collection ``there``, read through ``b`` and written through ``sink``, equal to ``definition`` at ``a``.

    Records that are missing or different are upserted, ids that ``a`` does not have are deleted, unless ``delete`` is
    False or the sink cannot (``Deletes``). Nothing at ``a`` is changed. ``target``: as what the collection is written,
    ``there`` if None. ``pace``: how fast. ``folder``: for lists of long collections. While somebody
    writes to ``a`` the result is some state between; the next call brings the rest.

    Whoever calls publishes the sink. Raises what source and sink raise; then some of the records are written.
    """
    name = described(definition)
    mine, theirs = Side(a, definition, name, None, observer), Side(b, there, described(there), None, observer)
    cosine = in_cosine(definition, there)
    left, right = (side.hashes("look", cosine=cosine, folder=folder) for side in (mine, theirs))
    wanted, extra = Spool(np.uint64, folder), Spool(np.uint64, folder)
    for found in apart(left, right):  # range by range and sorted in each: the lists are ascending as a whole
        wanted.add(np.sort(np.concatenate([found.missing, found.differing])))
        extra.add(found.extra)
    upserted = deleted = 0
    if len(wanted):
        chosen = _Chosen(wanted)
        some = _gathered(chosen.of(records) for records, _ in a.batches(definition))
        intake = sink.collection(target or there, conflict="upsert")
        upserted = fill(intake, some, name=name, pace=pace, observer=observer)
    if len(extra) and delete and isinstance(sink, Deletes):
        deleted = _delete(sink, b, there, _Chosen(extra), folder)
    return Reconciled(len(left), upserted, deleted, len(extra) - deleted)


def fill(
    intake: Intake,
    batches: Iterator[tuple[pa.RecordBatch, Mark]],
    *,
    name: str,
    pace: Pace | None = None,
    total: int | None = None,
    observer: Observer = ignore,
) -> int:
    """Write these records to a collection and finish it; how many there were."""
    done = 0

    def progress(records: int, size: int) -> None:
        nonlocal done
        done += records
        observer(RecordsMoved("catch up", name, done, total))

    part = Part()
    Pump(intake, part, Checkpoint(None, {}), pace=pace, progress=progress).run(batches)
    intake.finish()
    return part.records


class _Chosen:
    """Records of which the words are in an ascending list."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._words: Words = spool.whole()

    def mask(self, records: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which records of a batch these are."""
        words = hashes([id_.encode() for id_ in records.column("id").to_pylist()])[:, 0]
        at = np.minimum(np.searchsorted(self._words, words), len(self._words) - 1)
        found: NDArray[np.bool_] = self._words[at] == words
        self._spool.let_go()
        return found

    def of(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """These records of a batch."""
        import pyarrow as pa

        return records.filter(pa.array(self.mask(records), pa.bool_()))


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, Mark]]:
    """The same records in batches that are worth a request."""
    import pyarrow as pa

    kept: list[pa.RecordBatch] = []

    def together() -> pa.RecordBatch:
        (whole,) = pa.Table.from_batches(kept).combine_chunks().to_batches()
        kept.clear()
        return whole

    for some in batches:
        if len(some):
            kept.append(some)
        if sum(map(len, kept)) >= TOGETHER:
            yield together(), None
    if kept:
        yield together(), None


def _delete(sink: Deletes, b: Source, there: Definition, chosen: _Chosen, folder: Path | None) -> int:
    """Delete the chosen records; how many there were. They are listed first: nothing is deleted under a reader."""
    deleted = 0
    with tempfile.TemporaryFile("w+", dir=folder, encoding="ascii") as listed:
        for records, _ in b.batches(there):
            if ids := chosen.of(records).column("id").to_pylist():
                listed.write(json.dumps(ids) + "\n")
        listed.seek(0)
        pending: list[str] = []
        for line in listed:
            pending += json.loads(line)
            while len(pending) >= TOGETHER:
                sink.delete(there, pending[:TOGETHER])
                deleted += TOGETHER
                del pending[:TOGETHER]
        if pending:
            sink.delete(there, pending)
            deleted += len(pending)
    return deleted
