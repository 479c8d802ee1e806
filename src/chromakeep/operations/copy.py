"""copy: collections from any place to any other, record by record, exactly; resumable, and verified if asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from chromakeep.chroma.naming import is_temporary
from chromakeep.conditions import Where
from chromakeep.errors import TargetNotEmpty, UsageError, VerificationFailed
from chromakeep.events import Noted, Observer, RecordsMoved, ignore
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.compare import Comparison, choose, compare, described
from chromakeep.operations.pace import Pace
from chromakeep.operations.pump import Pump
from chromakeep.operations.sums import Sums, in_cosine
from chromakeep.records import Definition, Mark, Sink, Source

RECORD_BYTES = 600  # of a record beside its vector, for an estimate: text of some lines and a few keys


@runtime_checkable
class Finds(Protocol):
    """A sink that has collections which ``definitions`` does not show."""

    def find(self, place: tuple[str, str, str]) -> Definition | None:
        """The collection of this tenant, database and name, if there is one."""


@runtime_checkable
class Remembers(Protocol):
    """A sink that knows what an earlier process has finished in it."""

    def finished(self, definition: Definition, mark: Mark, *, existed: bool) -> bool:
        """Whether that is there still; it is then part of what this sink publishes, or was published. ``mark``: of its
        intake. ``existed``: there was one of its name before, which may be what is there."""


class Plan(msgspec.Struct, frozen=True):
    """What is copied and how.

    ``collections``: names, or ``database/name``, or ``tenant/database/name``; all if None. ``rename``: by the name at
    the source. ``tenant`` and ``database``: where all of it goes, instead of where it was. ``conflict``: one of
    ``records.CONFLICTS``. ``rate``: records a second at most. ``within``: source and target are one place.
    """

    collections: tuple[str, ...] | None = None
    where: Where | None = None
    rename: Mapping[str, str] = msgspec.field(default_factory=dict)
    tenant: str | None = None
    database: str | None = None
    conflict: str = "fail"
    rate: float | None = None
    verify: bool = False
    within: bool = False


class Copied(msgspec.Struct, frozen=True):
    """One collection: ``records`` were read from the source by this copy, the earlier runs of a resumed one included.

    In a dry run they are what the source says it has. ``exists``: the target had one of that name before.
    """

    name: str
    target: str
    records: int
    dimension: int | None
    exists: bool = False
    comparison: Comparison | None = None


class CopyResult(msgspec.Struct, frozen=True):
    """``verified``: None unless asked for; a difference is raised instead. ``bytes``: in a dry run an estimate.
    ``as_of``: of a resumed one when its first run began: what was written to the source since is not all in it."""

    collections: tuple[Copied, ...]
    records: int
    bytes: int
    seconds: float
    resumed: bool = False
    verified: bool | None = None
    dry_run: bool = False
    as_of: str | None = None


def copy(
    source: Source,
    sink: Sink,
    plan: Plan,
    *,
    read_back: Callable[[], Source] | None = None,
    checkpoint: Checkpoint | None = None,
    dry_run: bool = False,
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
    pairs = _pairs(source, plan)
    resumed = checkpoint.begin(source.state())
    existing = {each.place: each for each in sink.definitions()}
    if isinstance(sink, Finds):  # a server cannot list its tenants
        for _, target in pairs:
            if target.place not in existing and (other := sink.find(target.place)):
                existing[target.place] = other
    ours = {place for place in (d.place for d, _ in pairs) if checkpoint.part(place).intake is not None}
    _refuse_conflicts(pairs, existing, ours, plan)
    if len(pairs) > 1 and not sink.several:
        raise UsageError(
            f"the target takes one collection, and {len(pairs)} are to be copied",
            hint="choose one by --collections NAME, or end the path with a slash: x.parquet/ takes any number",
        )
    if dry_run:
        found = [_planned(definition, target, existing) for definition, target in pairs]
        size = sum(_estimate(definition) for definition, _ in pairs)
        return CopyResult(tuple(found), sum(c.records for c in found), size, 0.0, resumed, dry_run=True)
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


def _pairs(source: Source, plan: Plan) -> list[tuple[Definition, Definition]]:
    """The chosen collections, each with what it becomes."""
    chosen = choose(source.definitions(), plan.collections)
    unknown = plan.rename.keys() - {definition.name for definition in chosen}
    if unknown:
        raise UsageError(f"--rename: there is no collection {min(unknown)!r} to copy")
    pairs = [
        (
            definition,
            replace(
                definition,
                name=plan.rename.get(definition.name, definition.name),
                tenant=plan.tenant or definition.tenant,
                database=plan.database or definition.database,
            ),
        )
        for definition in chosen
    ]
    places = [target.place for _, target in pairs]
    for definition, target in pairs if plan.within else ():
        if definition.place == target.place:
            raise UsageError(
                f"FROM and TO are one place: {described(definition)} would be copied onto itself",
                hint="give it another name (--rename A=B), another tenant or another database",
            )
    for place in places:
        if places.count(place) > 1:
            raise UsageError(
                f"two collections would become {'/'.join(place)}", hint="copy them one by one, or give --rename A=B"
            )
    return pairs


def _refuse_conflicts(
    pairs: Sequence[tuple[Definition, Definition]],
    existing: Mapping[tuple[str, str, str], Definition],
    ours: set[tuple[str, str, str]],
    plan: Plan,
) -> None:
    for definition, target in pairs:
        other = existing.get(target.place)
        if other is None or definition.place in ours or plan.conflict == "replace":
            continue
        if plan.conflict == "fail":
            raise TargetNotEmpty(
                f"the target has a collection {described(target)} already",
                hint="say what is to become of it: --on-conflict skip, upsert or replace; or give --rename",
            )
        if None not in (other.dimension, definition.dimension) and other.dimension != definition.dimension:
            raise UsageError(
                f"{described(target)} has {other.dimension} dimensions, the source {definition.dimension}",
                hint="they cannot be in one collection; give --rename, or --on-conflict replace",
            )


def _planned(definition: Definition, target: Definition, existing: Mapping[tuple[str, str, str], Definition]) -> Copied:
    return Copied(
        described(definition),
        described(target),
        definition.count or 0,
        definition.dimension,
        target.place in existing,
    )


def _estimate(definition: Definition) -> int:
    return (definition.count or 0) * (4 * (definition.dimension or 0) + RECORD_BYTES)


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
