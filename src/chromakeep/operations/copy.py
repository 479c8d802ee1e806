"""copy: collections from any place to any other, record by record, exactly; resumable, and verified if asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from chromakeep.chroma.naming import is_temporary
from chromakeep.errors import TargetNotEmpty, UsageError, VerificationFailed
from chromakeep.events import Noted, Observer, RecordsMoved, ignore
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.compare import Comparison, compare, described
from chromakeep.operations.pace import Pace
from chromakeep.operations.planning import Plan, admitted, paired
from chromakeep.operations.pump import Pump
from chromakeep.operations.sums import Sums, in_cosine
from chromakeep.records import Definition, Mark, Sink, Source


@runtime_checkable
class Remembers(Protocol):
    """A sink that knows what an earlier process has finished in it."""

    def finished(self, definition: Definition, mark: Mark, *, existed: bool) -> bool:
        """Whether that is there still; it is then part of what this sink publishes, or was published. ``mark``: of its
        intake. ``existed``: there was one of its name before, which may be what is there."""


class Estimate(msgspec.Struct, frozen=True):
    """On what the time that a dry run tells rests: ``read`` of its records were read, by which reading all takes
    ``reading`` seconds; the target is taken to write them in ``writing`` seconds (``Sink.speed``)."""

    read: int
    reading: float
    writing: float


class Copied(msgspec.Struct, frozen=True):
    """One collection: ``records`` were read from the source by this copy, the earlier runs of a resumed one included.

    ``exists``: the target had one of that name before.
    """

    name: str
    target: str
    records: int
    dimension: int | None
    exists: bool = False
    comparison: Comparison | None = None


class CopyResult(msgspec.Struct, frozen=True):
    """``verified``: None unless asked for; a difference is raised instead. ``as_of``: of a resumed one when its first
    run began: what was written to the source since is not all in it. ``estimate``: of a dry run (see there)."""

    collections: tuple[Copied, ...]
    records: int
    bytes: int
    seconds: float
    resumed: bool = False
    verified: bool | None = None
    dry_run: bool = False
    as_of: str | None = None
    estimate: Estimate | None = None


def copy(
    source: Source,
    sink: Sink,
    plan: Plan,
    *,
    read_back: Callable[[], Source] | None = None,
    checkpoint: Checkpoint | None = None,
    observer: Observer = ignore,
) -> CopyResult:
    """Copy the chosen collections from ``source`` to ``sink``, each with its definition and all its records.

    Vectors are copied as they are; an embedding function that a collection names is passed on as data and never built.
    Whatever stands in the way of any collection is found before the first one is begun. With a ``checkpoint``, a copy
    that was killed goes on behind what the target had accepted. With ``plan.verify`` everything is read back
    (``read_back``) and compared before it is published, where the target can do that; a difference raises.

    Raises ``UsageError``, ``TargetNotEmpty``, ``VerificationFailed``, and what source and sink raise.
    """
    started = time.monotonic()
    checkpoint = checkpoint or Checkpoint(None, {})
    pairs = paired(source, plan)
    resumed = checkpoint.begin(source.state())
    begun = {place for place in (d.place for d, _ in pairs) if checkpoint.part(place).intake is not None}
    existing = admitted(pairs, sink, plan, begun=begun)
    if checkpoint.given_up:
        observer(Noted("a copy that was begun with other options is given up; this one begins anew", "warning"))
    if resumed:
        observer(
            Noted(
                f"going on with the copy that was begun at {checkpoint.since}: what was written to the source since"
                " then is not all copied",
                "warning",
            )
        )
    done, moved, pace = [], 0, Pace(plan.rate)
    for definition, target in pairs:
        if plan.collections is None and is_temporary(definition.name):
            told = (
                "looks like what a copy that did not finish has left; it is copied, too: name others by --collections"
            )
            observer(Noted(f"{described(definition)} {told}", "warning"))
        exists = target.place in existing
        records, size = _one(source, sink, definition, target, exists, plan, pace, checkpoint, observer)
        exists = checkpoint.part(definition.place).existed
        moved += size
        done.append(Copied(described(definition), described(target), records, definition.dimension, exists))
    if plan.verify and read_back:
        done = _verify(source, read_back, pairs, done, plan, checkpoint, observer)
    sink.publish()
    checkpoint.remove()
    seconds = round(time.monotonic() - started, 3)
    records = sum(c.records for c in done)
    verified = True if plan.verify and read_back else None
    as_of = checkpoint.since if resumed else None
    return CopyResult(tuple(done), records, moved, seconds, resumed, verified, as_of=as_of)


def _one(
    source: Source,
    sink: Sink,
    definition: Definition,
    target: Definition,
    exists: bool,
    plan: Plan,
    pace: Pace,
    checkpoint: Checkpoint,
    observer: Observer,
) -> tuple[int, int]:
    part = checkpoint.part(definition.place)
    if part.done:
        if not isinstance(sink, Remembers) or sink.finished(target, part.intake, existed=part.existed):
            return part.records, 0
        observer(Noted(f"{described(target)} is not at the target any more: it is copied anew", "warning"))
        part = checkpoint.anew(definition.place)
    try:
        intake = sink.collection(target, conflict=plan.conflict, mark=part.intake)
    except UsageError as error:
        if part.intake is None or isinstance(error, TargetNotEmpty):
            raise
        observer(Noted(f"{error.message}: {described(target)} is copied anew", "warning"))
        part = checkpoint.anew(definition.place)
        intake = sink.collection(target, conflict=plan.conflict)
    if part.intake is None:
        part.intake, part.existed = intake.mark(), exists
        if checkpoint.state:
            checkpoint.save()  # so that what is there from now on is known to be ours
    size = 0
    told = part.records
    name = described(definition)

    def progress(records: int, some: int) -> None:
        nonlocal size, told
        size, told = size + some, told + records
        observer(RecordsMoved("copy", name, told, definition.count))

    observer(RecordsMoved("copy", name, told, definition.count))
    summed = plan.verify and (part.mark is None or part.sums)
    sums = Sums(cosine=in_cosine(definition, target), numbers=part.sums) if summed else None
    pump = Pump(intake, part, checkpoint, sums=sums, pace=pace, progress=progress)
    pump.run(source.batches(definition, after=part.mark, where=plan.where))
    intake.finish()
    part.done = True
    if checkpoint.state:
        checkpoint.save()
    return part.records, size


def _verify(
    source: Source,
    read_back: Callable[[], Source],
    pairs: Sequence[tuple[Definition, Definition]],
    done: Sequence[Copied],
    plan: Plan,
    checkpoint: Checkpoint,
    observer: Observer,
) -> list[Copied]:
    target = read_back()
    try:
        there = {each.place: each for each in target.definitions()}
        found = []
        for (definition, wanted), copied in zip(pairs, done, strict=True):
            other = there.get(wanted.place)
            if other is None:
                raise VerificationFailed(f"{copied.target} is not at the target after it was copied")
            among = copied.exists and plan.conflict in ("skip", "upsert")
            numbers = checkpoint.part(definition.place).sums
            known = Sums(cosine=in_cosine(definition, other), numbers=numbers) if numbers else None
            compared = compare(
                source,
                definition,
                target,
                other,
                where=plan.where,
                among=among,
                existing_wins=plan.conflict == "skip" and copied.exists,
                known=known,
                observer=observer,
            )
            if not compared.equal:
                raise VerificationFailed(compared.line(), hint="see all of it: chromakeep check FROM TO")
            found.append(replace(copied, comparison=compared))
        return found
    finally:
        target.close()
