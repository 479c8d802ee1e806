"""catch up: one round that brings a target up to a source which went on changing, collection by collection.

A collection that is new at the source is copied, one that was made anew in another shape is copied anew, one that is
gone is removed if it is there because of this transfer; all others are reconciled. Whatever was at the target before is
never deleted. A round that was killed is simply made again.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import astuple, replace

from chromakeep.errors import SourceError, UsageError
from chromakeep.events import Observer, ignore
from chromakeep.operations.compare import described
from chromakeep.operations.pace import Pace
from chromakeep.operations.reconcile import Drops, Reconciled, fill, reconcile
from chromakeep.operations.tracked import Key, Options, Tracked, begin, chosen, shape_of, unlike
from chromakeep.records import Definition, Intake, Sink, Source


class Round(msgspec.Struct):
    """What one round did: ``read`` records of the source, ``upserted`` and ``deleted`` at the target, collections that
    were ``created`` (made anew ones included) and ``dropped`` there, and what a person should know, one line each."""

    read: int = 0
    upserted: int = 0
    deleted: int = 0
    created: int = 0
    dropped: int = 0
    told: list[str] = msgspec.field(default_factory=list)

    @property
    def quiet(self) -> bool:
        """Whether nothing was changed at the target."""
        return not (self.upserted or self.deleted or self.created or self.dropped)


def catch_up(
    a: Source,
    sink: Sink,
    b: Source,
    options: Options,
    tracked: dict[Key, Tracked],
    save: Callable[[], None],
    *,
    only: Container[Key] | None = None,
    allow_empty: bool = False,
    folder: Path | None = None,
    observer: Observer = ignore,
) -> Round:
    """One round. ``only``: leave all collections as they are but these, and those that are gone. ``tracked`` is brought
    up to date, and ``save`` called before anything that it must tell a later process. ``b`` reads what ``sink`` writes.

    Raises ``SourceError`` if the source has none of the tracked collections any more, unless ``allow_empty``: a server
    that was started on a wrong directory shows just that. ``TargetNotEmpty`` if a new collection has the name of
    one that the target had, ``UsageError``, and what source and sink raise.
    """
    done, pace = Round(), Pace(options.rate)
    pairs = chosen(a.definitions(), options)
    if tracked and not tracked.keys() & pairs.keys() and not allow_empty:
        raise SourceError(
            f"the source has none of the {len(tracked)} collections that were transferred",
            hint="is it the right place? if they were really all deleted: chromakeep transfer follow --allow-empty",
        )
    there = {each.place: each for each in sink.definitions()}
    for key in [key for key in tracked if key not in pairs]:
        if _gone(sink, key, tracked[key], there, done):
            del tracked[key]
            save()
    for key, (definition, target) in pairs.items():
        if only is not None and key not in only:
            continue
        if key not in tracked or not tracked[key].begun:
            tracked[key] = begin(definition, target, there, options)
            save()
        known = tracked[key]
        before = astuple(known)
        found = _one(a, definition, target, sink, b, there.get(target.place), known, pace, done, save, folder, observer)
        known.id, known.whole, known.replaces, known.records = definition.id, True, False, found.records
        if found.moved:
            sink.publish()
        if astuple(known) != before:
            save()
        done.read += found.records
        done.upserted += found.upserted
        done.deleted += found.deleted
        if found.left:
            why = "it was there before" if known.existed else "it cannot delete any"
            done.told.append(f"{found.left:,} records of {known.shown} are only at the target and stay: {why}")
    return done


def _one(
    a: Source,
    definition: Definition,
    target: Definition,
    sink: Sink,
    b: Source,
    there: Definition | None,
    known: Tracked,
    pace: Pace,
    done: Round,
    save: Callable[[], None],
    folder: Path | None,
    observer: Observer,
) -> Reconciled:
    shape = shape_of(definition)
    anew = known.shape != shape or (there is not None and unlike(definition, there))
    if there is not None and known.existed and anew:
        if unlike(definition, there):
            raise UsageError(
                f"{described(definition)} has {definition.dimension} dimensions now, {known.shown} {there.dimension}",
                hint="the target had it before, so it is left alone; give it another name there, and begin anew",
            )
        done.told.append(f"{described(definition)} has other metadata or another configuration now; {known.shown} not")
    if (known.id, known.shape) != (definition.id, shape):
        known.intake = None  # what was begun was another one
    same = partial(
        reconcile,
        target=target,
        delete=not known.existed,
        pace=pace,
        folder=folder,
        observer=observer,
    )
    resumed = known.intake is not None
    if there is not None and (known.existed or not (anew or known.replaces or resumed)):
        return same(a, definition, sink, b, there)
    if there is not None and anew and known.whole and not resumed and isinstance(sink, Drops):
        sink.drop(there)
        there = None
    intake = _intake(sink, target, known, "upsert" if there is None else "replace")  # what is replaced is kept
    if known.intake is None:
        known.id, known.shape, known.replaces, known.intake = definition.id, shape, there is not None, intake.mark()
        save()
    count = fill(
        intake,
        a.batches(definition),
        name=described(definition),
        pace=pace,
        total=definition.count,
        observer=observer,
    )
    sink.publish()  # before it is written down as whole: from then on what stands there is taken for ours
    known.intake = None
    done.created += 1
    if resumed:  # what the killed process wrote may be gone from the source
        there = next(each for each in sink.definitions() if each.place == target.place)
        rest = same(a, definition, sink, b, there)
        return replace(rest, upserted=rest.upserted + count)
    return Reconciled(count, count, 0, 0)


def _intake(sink: Sink, target: Definition, known: Tracked, conflict: str) -> Intake:
    """Go on with what a killed process has begun, as far as that is still there."""
    if known.intake is not None:
        with suppress(UsageError):
            return sink.collection(target, conflict=conflict, mark=known.intake)
        known.intake = None
    return sink.collection(target, conflict=conflict)


def _gone(sink: Sink, key: Key, known: Tracked, there: dict[tuple[str, str, str], Definition], done: Round) -> bool:
    """Deal with a collection that the source does not have any more; whether there is nothing left of it to follow."""
    found = there.get(known.place)
    if found is None:
        return True
    if known.existed:
        done.told.append(f"{key} is not at the source any more; {known.shown} was at the target before, and stays")
        return True
    if not isinstance(sink, Drops):
        done.told.append(f"{key} is not at the source any more; delete {known.shown} at the target, which we cannot")
        return False
    sink.drop(found)
    del there[known.place]
    done.dropped += 1
    return True
