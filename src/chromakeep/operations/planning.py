"""What a copy is to do, and what stands in its way, of all its collections before the first one is begun."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from chromakeep.conditions import Where
from chromakeep.errors import TargetNotEmpty, UsageError
from chromakeep.operations.compare import choose, described
from chromakeep.records import Definition, Sink, Source

NAMED = 20  # things in the way that are named, of however many

Place = tuple[str, str, str]
Pairs = Sequence[tuple[Definition, Definition]]


@runtime_checkable
class Finds(Protocol):
    """A sink that has collections which ``definitions`` does not show."""

    def find(self, place: Place) -> Definition | None:
        """The collection of this tenant, database and name, if there is one."""


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


def paired(source: Source, plan: Plan) -> list[tuple[Definition, Definition]]:
    """The chosen collections, each with what it becomes. Raises ``UsageError``."""
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
    for definition, target in pairs if plan.within else ():
        if definition.place == target.place:
            raise UsageError(
                f"FROM and TO are one place: {described(definition)} would be copied onto itself",
                hint="give it another name (--rename A=B), another tenant or another database",
            )
    for place, count in Counter(target.place for _, target in pairs).items():
        if count > 1:
            raise UsageError(
                f"two collections would become {'/'.join(place)}", hint="copy them one by one, or give --rename A=B"
            )
    return pairs


def admitted(pairs: Pairs, sink: Sink, plan: Plan, *, begun: Collection[Place] = ()) -> Mapping[Place, Definition]:
    """What the target has already, by place, when nothing stands in the way of any of these. ``begun``: places at the
    source of those that an earlier process has begun, so that what is there is theirs.

    Raises what stands in the way, all of it in one ``UsageError``, and what the sink raises.
    """
    existing = {each.place: each for each in sink.definitions()}
    if isinstance(sink, Finds):  # a server cannot list its tenants
        for _, target in pairs:
            if target.place not in existing and (other := sink.find(target.place)):
                existing[target.place] = other
    found: list[UsageError] = []
    if len(pairs) > 1 and not sink.several:
        found.append(
            UsageError(
                f"the target takes one collection, and {len(pairs)} are to be copied",
                hint="choose one by --collections NAME, or end the path with a slash: x.parquet/ takes any number",
            )
        )
    for definition, target in pairs:
        if definition.place in begun:
            continue
        try:
            _must_go_together(definition, target, existing.get(target.place), plan)
            sink.check(target, conflict=plan.conflict)
        except UsageError as error:
            found.append(error)
    if found:
        raise _together(found)
    return existing


def in_words(things: Sequence[str], count: int | None = None) -> str:
    """In one line, the first of many; ``count``: how many there are, where these are only the first."""
    count = len(things) if count is None else count
    return "; ".join([*things[:NAMED], *([f"and {count - NAMED:,} more"] if count > NAMED else [])])


def _must_go_together(definition: Definition, target: Definition, other: Definition | None, plan: Plan) -> None:
    if other is None or plan.conflict == "replace":
        return
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


def _together(errors: Sequence[UsageError]) -> UsageError:
    """One that says all."""
    if len(errors) == 1:
        return errors[0]
    messages = list(dict.fromkeys(error.message for error in errors))
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    kind = TargetNotEmpty if all(isinstance(error, TargetNotEmpty) for error in errors) else UsageError
    return kind(in_words(messages), hint="; ".join(hints) or None)
