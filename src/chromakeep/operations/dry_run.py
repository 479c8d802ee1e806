"""A dry run: what a copy would bring, how much that is and how long it would take, and what would stand in its way.

The collections are read as the copy would read them: the first batches of each, or all of it where the source does not
know how many records that would be, or the target has something to say of every one. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from chromakeep.errors import UsageError
from chromakeep.events import Observer, RecordsMoved, ignore
from chromakeep.operations.compare import described
from chromakeep.operations.copy import Copied, CopyResult, Estimate
from chromakeep.operations.planning import NAMED, Plan, admitted, in_words, paired
from chromakeep.records import Definition, Sink, Source
from chromakeep.words import plural

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 4  # batches of a collection of which not all need be read


@runtime_checkable
class Examines(Protocol):
    """A sink that knows of a record whether it can be taken."""

    examines: bool
    """Whether it refuses any."""

    def refused(self, records: pa.RecordBatch) -> Sequence[str]:
        """A phrase for each record that it would refuse, with its id."""


class _Read(msgspec.Struct):
    """One collection: what is all of it, and ``seconds`` to read that; ``sample``: records that were read for it.
    ``refused``: so many of these are, and ``named`` are the first."""

    records: int = 0
    size: int = 0
    seconds: float = 0.0
    sample: int = 0
    refused: int = 0
    named: list[str] = msgspec.field(default_factory=list)


def dry_run(source: Source, sink: Sink, plan: Plan, *, observer: Observer = ignore) -> CopyResult:
    """What ``copy`` would do. ``bytes`` and ``seconds`` are estimates, and so is ``records`` of a collection that is
    written to.

    Raises what ``copy`` would raise before it writes; ``UsageError`` also for records that the target would refuse
    later on, where that is known of it.
    """
    pairs = paired(source, plan)
    existing = admitted(pairs, sink, plan)
    examined = sink if isinstance(sink, Examines) and sink.examines else None
    read = [_read(source, definition, plan, examined, observer) for definition, _ in pairs]
    if refused := sum(each.refused for each in read):
        named = in_words([name for each in read for name in each.named], refused)
        raise UsageError(
            f"{plural(refused, 'record')} would be refused: {named}",
            hint="leave them out with --where, or change them at the source",
        )
    records, size = sum(each.records for each in read), sum(each.size for each in read)
    reading = sum(each.seconds for each in read)
    writing = max(records / sink.speed.records, size / sink.speed.bytes)
    seconds = max(reading, writing, records / plan.rate if plan.rate else 0.0) + plan.verify * reading
    return CopyResult(
        tuple(
            Copied(described(one), described(other), each.records, one.dimension, other.place in existing)
            for (one, other), each in zip(pairs, read, strict=True)
        ),
        records,
        size,
        round(seconds, 3),
        dry_run=True,
        estimate=Estimate(sum(each.sample for each in read), round(reading, 3), round(writing, 3)),
    )


def _read(source: Source, definition: Definition, plan: Plan, examined: Examines | None, observer: Observer) -> _Read:
    """Read a collection as far as need be."""
    name = described(definition)
    whole = plan.where is not None or definition.count is None or examined is not None
    found = _Read()
    first, ready = 0, 0.0  # records of the first batch, and the time it took: whatever comes before it comes once
    began = time.monotonic()
    for number, (records, _) in enumerate(source.batches(definition, where=plan.where), 1):
        found.records += len(records)
        found.size += records.nbytes
        found.seconds = time.monotonic() - began
        if number == 1:
            first, ready = found.records, found.seconds
        if examined is not None:
            phrases = examined.refused(records)
            found.refused += len(phrases)
            found.named += [f"{name}: {each}" for each in phrases[: max(0, NAMED - len(found.named))]]
        found.sample = found.records
        if whole:
            observer(RecordsMoved("read", name, found.records, definition.count))
        elif number == SAMPLE:
            left = max(0, (definition.count or 0) - found.records)
            found.size += found.size * left // max(1, found.records)
            found.seconds += (found.seconds - ready) * left / max(1, found.records - first)
            found.records += left
            break
    return found
