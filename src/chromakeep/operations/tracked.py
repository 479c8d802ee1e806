"""Tracked: the collections that a transfer moves, what each is called at the target, and what the target had before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec.structs import replace

from chromakeep.errors import TargetNotEmpty, UsageError
from chromakeep.operations.compare import described
from chromakeep.records import Definition

TENANT = "default_tenant"
CONFLICTS = ("fail", "upsert", "replace")  # to skip would leave old values at the target, which nobody could verify

Key = str  # tenant, database and name at the source, with slashes between them


class Options(msgspec.Struct, frozen=True):
    """What is transferred and how: as ``copy.Plan`` has it."""

    collections: tuple[str, ...] | None = None
    rename: dict[str, str] = {}
    tenant: str | None = None
    database: str | None = None
    on_conflict: str = "fail"
    rate: float | None = None


class Tracked(msgspec.Struct):
    """One collection. ``id``: its id at the source. ``existed``: the target had one of that name before, to which
    others may have written: nothing of it is ever deleted. ``replaces``: one that the target had is still to be put
    aside. ``shape``: of its metadata and configuration. ``whole``: all its records were transferred once. ``intake``:
    where a process that was killed while it copied them had begun to write."""

    id: str
    tenant: str
    database: str
    name: str
    existed: bool = False
    replaces: bool = False
    shape: str = ""
    whole: bool = False
    records: int = 0
    intake: Any = None

    @property
    def place(self) -> tuple[str, str, str]:
        """Where it is at the target."""
        return self.tenant, self.database, self.name

    @property
    def begun(self) -> bool:
        """Whether anything of it may be at the target. Else what has its name there now is somebody else's, whatever
        was there when it was tracked: a new collection gets its name after its intake is noted."""
        return self.whole or self.intake is not None

    @property
    def shown(self) -> str:
        """Its name at the target."""
        return described(Definition(self.name, tenant=self.tenant, database=self.database))


def key_of(definition: Definition) -> Key:
    """Under what a collection of the source is tracked."""
    return "/".join(definition.place)


def shape_of(definition: Definition) -> str:
    """A word for what a collection is told to be, beside its records. A schema is not counted, for Chroma writes into
    it whenever a record has a new key."""
    told = [definition.space, definition.metadata or None, definition.configuration or None]
    return blake2b(msgspec.json.encode(told, order="sorted"), digest_size=8).hexdigest()


def chosen(definitions: Sequence[Definition], options: Options) -> dict[Key, tuple[Definition, Definition]]:
    """The collections of these that are to be transferred, each with what it becomes. A name of which there is none is
    passed over. Raises ``UsageError`` if two would become one, and for another tenant than Chroma's own where none is
    named: a server cannot be asked which ones it has."""
    found: dict[Key, tuple[Definition, Definition]] = {}
    taken: dict[tuple[str, str, str], Definition] = {}
    for each in definitions:
        if options.collections is not None and not any(
            name in (each.name, "/".join(each.place[1:]), "/".join(each.place)) for name in options.collections
        ):
            continue
        target = replace(
            each,
            name=options.rename.get(each.name, each.name),
            tenant=options.tenant or each.tenant,
            database=options.database or each.database,
        )
        if options.tenant is None and target.tenant != TENANT:
            raise UsageError(
                f"{described(each)} is of the tenant {target.tenant}",
                hint="say of which tenant it is to be: --tenant NAME, or TO as http://HOST:PORT/TENANT",
            )
        other = taken.setdefault(target.place, each)
        if other is not each:
            raise UsageError(
                f"{described(other)} and {described(each)} would both become {described(target)}",
                hint="transfer them one by one with --collections, or give --rename A=B",
            )
        found[key_of(each)] = each, target
    return found


def begin(
    definition: Definition,
    target: Definition,
    existing: Mapping[tuple[str, str, str], Definition],
    options: Options,
) -> Tracked:
    """Track a collection from now on, before anything of it is written. Raises ``TargetNotEmpty``."""
    there = existing.get(target.place)
    if there is not None and options.on_conflict == "fail":
        raise TargetNotEmpty(
            f"the target has a collection {described(target)} already",
            hint="say what is to become of it: --on-conflict upsert or replace; or give --rename",
        )
    if there is not None and options.on_conflict == "upsert" and unlike(definition, there):
        raise UsageError(
            f"{described(target)} has {there.dimension} dimensions, the source {definition.dimension}",
            hint="they cannot be in one collection; give --rename, or --on-conflict replace",
        )
    replaces = there is not None and options.on_conflict == "replace"
    return Tracked(
        definition.id,
        *target.place,
        existed=there is not None and not replaces,
        replaces=replaces,
        shape=shape_of(definition),
    )


def unlike(definition: Definition, there: Definition) -> bool:
    """Whether the records of the one cannot be in the other."""
    return None not in (definition.dimension, there.dimension) and definition.dimension != there.dimension
