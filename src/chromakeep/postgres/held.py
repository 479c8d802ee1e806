"""Held: a collection as those need it who read and write its records."""

from __future__ import annotations

import msgspec

UNINDEXABLE = 1 << 62  # added to the place of a vector that no index holds (zeros, under cosine): it lies behind all


class Segment(msgspec.Struct, frozen=True):
    """An index of vectors stands for the records with ``low < place <= high``. Its name says of what kind it is:
    ``c1_h2f84...`` a graph, ``c1_i316_2f84...`` one of 316 lists, which is made quickly and soon replaced."""

    low: int
    high: int
    index: str

    @property
    def lists(self) -> int:
        """0: a graph."""
        kind = self.index.split("_")[1]
        return int(kind[1:]) if kind.startswith("i") else 0


class Held(msgspec.Struct, frozen=True):
    """One row of ``chromakeep.collections``, with its segments. It may be a moment old.

    ``relation`` is a name that we made, safe in SQL. ``segments`` say what is quick to search, never what there is:
    whatever they are, an answer is right. ``dimension`` never changes once it is not None.
    """

    id: str
    tenant: str
    database: str
    name: str
    relation: str
    space: str  # l2, cosine, ip
    storage: str = "vector"  # or halfvec
    dimension: int | None = None
    ef_search: int = 100
    max_neighbors: int = 16
    ef_construction: int = 100
    segments: tuple[Segment, ...] = ()  # in the order of places, without gaps from the first on
    unindexed: frozenset[tuple[str, str]] = frozenset()  # (key, kind) without an index; a key "": all not named
    indexed: frozenset[tuple[str, str]] = frozenset()  # those that the schema names as having one
    keys: frozenset[tuple[str, str]] = frozenset()  # (key, kind) that records have had; of very many a part

    @property
    def table(self) -> str:
        """As it stands in SQL."""
        return f'chromakeep."{self.relation}"'

    def filterable(self, key: str, kind: str) -> bool:
        """Whether the schema lets one filter by values of this kind (string, int, float, bool) of this key."""
        named = (key, kind)
        return named not in self.unindexed and (("", kind) not in self.unindexed or named in self.indexed)
