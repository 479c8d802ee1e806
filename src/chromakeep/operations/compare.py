"""compare: two collections, wherever they are, record by record: by digest, and by id where the digests differ.

Nothing is sampled: every id, vector, document and metadata value of both is read. Chroma rounds some of what it is
given (``chroma.rounding``): a collection also equals another one when that rounding makes the one of the other, bit for
bit, and then it is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from chromakeep.conditions import Where
from chromakeep.digests import hashes
from chromakeep.errors import UsageError
from chromakeep.events import Observer, ignore
from chromakeep.operations.contrast import contrasts
from chromakeep.operations.sides import Side, Words, apart
from chromakeep.operations.sums import Sums, in_cosine
from chromakeep.records import Definition, Digest, Source
from chromakeep.sets import among

NAMED = 20  # ids that are named of each kind of difference


class Comparison(msgspec.Struct, frozen=True):
    """What differs: ids that only the first has, that only the second has, and whose records differ in anything; of
    each the count and the first few. ``rounded``: nothing does, but for what Chroma rounds. ``unlike``: in what the
    collections differ themselves, a phrase each; ``tuned``: in which settings of their indexes, which is no difference.
    """

    name: str
    other: str
    records: tuple[int, int]
    missing: int = 0
    extra: int = 0
    differing: int = 0
    missing_ids: tuple[str, ...] = ()
    extra_ids: tuple[str, ...] = ()
    differing_ids: tuple[str, ...] = ()
    rounded: bool = False
    digests: tuple[Digest, Digest] | None = None
    unlike: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.extra or self.differing or self.unlike)

    def line(self) -> str:
        """In one line, with the first ids."""
        if self.equal:
            tuned = f"; but {' and '.join(self.tuned[:5])}" if self.tuned else ""
            but = " (of some numbers Chroma has rounded the last bit, as it does)" if self.rounded else ""
            return f"{self.name} and {self.other} are equal: {self.records[0]:,} records{but}{tuned}"
        parts = list(self.unlike[:5])
        for count, ids, what in (
            (self.missing, self.missing_ids, "only in the first"),
            (self.extra, self.extra_ids, "only in the second"),
            (self.differing, self.differing_ids, "different"),
        ):
            if count:
                first = ", ".join(ids[:5]) + (", ..." if count > min(len(ids), 5) else "")
                parts.append(f"{count:,} {what} ({first})")
        return f"{self.name} and {self.other} differ: {'; '.join([*parts, *self.tuned[:5]])}"


class Comparisons(msgspec.Struct, frozen=True):
    """Of two places: what differs in the collections that both have, and which ones only one of them has."""

    comparisons: tuple[Comparison, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()
    pairs: tuple[tuple[Definition, Definition], ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return all(c.equal for c in self.comparisons) and not self.only_first and not self.only_second


def compare_places(
    a: Source,
    b: Source,
    *,
    collections: Sequence[str] | None = None,
    folder: Path | None = None,
    observer: Observer = ignore,
) -> Comparisons:
    """Compare all collections, or these, of two places, by their names; where both places have only one database, in
    whatever databases they are. Raises ``UsageError`` for a name that neither has."""
    one, two = list(a.definitions()), list(b.definitions())
    alone = all(len({d.place[:2] for d in some}) <= 1 for some in (one, two))
    left = {d.place[2:] if alone else d.place: d for d in one}
    right = {d.place[2:] if alone else d.place: d for d in two}
    if collections is not None:
        chosen = {d.place for d in choose([*one, *two], collections)}
        left = {place: d for place, d in left.items() if d.place in chosen}
        right = {place: d for place, d in right.items() if d.place in chosen}
    pairs = tuple((definition, right[place]) for place, definition in left.items() if place in right)
    return Comparisons(
        tuple(compare(a, mine, b, theirs, folder=folder, observer=observer) for mine, theirs in pairs),
        tuple(described(left[place]) for place in left if place not in right),
        tuple(described(right[place]) for place in right if place not in left),
        pairs,
    )


def choose(definitions: Sequence[Definition], wanted: Sequence[str] | None) -> list[Definition]:
    """The collections of these names (``name``, ``database/name`` or ``tenant/database/name``); all if ``wanted`` is
    None. Raises ``UsageError`` for one that is not there."""
    if wanted is None:
        return list(definitions)
    found: list[Definition] = []
    for name in wanted:
        some = [d for d in definitions if name in (d.name, "/".join(d.place[1:]), "/".join(d.place))]
        if not some:
            there = ", ".join(list(dict.fromkeys(map(described, definitions)))[:10]) or "none at all"
            raise UsageError(f"there is no collection {name!r}", hint=f"there is: {there}")
        found += [d for d in some if d not in found]
    return found


def described(definition: Definition) -> str:
    """The name, with tenant and database before it where they are not Chroma's defaults."""
    tenant, database, name = definition.place
    return name if (tenant, database) == ("default_tenant", "default_database") else f"{tenant}/{database}/{name}"


def compare(
    a: Source,
    definition: Definition,
    b: Source,
    other: Definition,
    *,
    where: Where | None = None,
    among: bool = False,
    existing_wins: bool = False,
    known: Sums | None = None,
    folder: Path | None = None,
    observer: Observer = ignore,
) -> Comparison:
    """Compare a collection at ``a`` with one at ``b``. ``where`` chooses among the records of both.

    ``among``: ``b`` may have more than ``a``, and is what it was. ``existing_wins``: the values of an id that both have
    are not compared. ``known``: the sums of what ``a`` has, where they were taken before. ``folder``: for the lists of
    hashes of long collections. Constant memory.
    """
    names = described(definition), described(other)
    one = Side(a, definition, names[0], where, observer)
    two = Side(b, other, names[1], None if among else where, observer)
    cosine = in_cosine(definition, other)
    unlike, tuned = ((), ()) if among else contrasts(definition, other)
    if not among:
        first, second = known or summed(one, cosine), summed(two, cosine)
        if first.equals(second):
            digests = first.digest(), second.digest()
            return Comparison(
                *names,
                (first.count, second.count),
                rounded=digests[0] != digests[1],
                digests=digests,
                unlike=unlike,
                tuned=tuned,
            )
    found = _by_id(one, two, names, among=among, existing_wins=existing_wins, cosine=cosine, folder=folder)
    return replace(found, unlike=unlike, tuned=tuned)


def summed(side: Side, cosine: bool) -> Sums:
    """The sums of all its records."""
    sums = Sums(cosine=cosine)
    for some in side.read("verify"):
        sums.add(some)
    return sums


def _by_id(
    one: Side,
    two: Side,
    names: tuple[str, str],
    *,
    among: bool,
    existing_wins: bool,
    cosine: bool,
    folder: Path | None,
) -> Comparison:
    """Which ids differ, from a list of hashes of each record on both sides, compared range by range."""
    left, right = (side.hashes("compare by id", cosine=cosine, folder=folder) for side in (one, two))
    kinds: tuple[list[Words], list[Words], list[Words]] = ([], [], [])
    for found in apart(left, right):
        kinds[0].append(found.missing)
        if not among:
            kinds[1].append(found.extra)
        if not existing_wins:
            kinds[2].append(found.differing)
    missing, extra, differing = (np.concatenate([np.zeros(0, np.uint64), *some]) for some in kinds)
    return Comparison(
        *names,
        (len(left), len(right)),
        len(missing),
        len(extra),
        len(differing),
        _named(one, missing),
        _named(two, extra),
        _named(one, differing),
        rounded=not (among or len(missing) or len(extra) or len(differing)),  # for their digests are not equal
    )


def _named(side: Side, wanted: Words) -> tuple[str, ...]:
    """The first ids with these hashes, sorted."""
    wanted = np.sort(wanted)[:NAMED]
    found: set[str] = set()
    if not len(wanted):
        return ()
    for some, _ in side.source.batches(side.definition, where=side.where):
        ids = some.column("id").to_pylist()
        lanes = hashes([id_.encode() for id_ in ids])[:, 0]
        found |= {ids[i] for i in np.flatnonzero(among(lanes, wanted)).tolist()}
        if len(found) >= len(wanted):
            break
    return tuple(sorted(found))
