"""The first so many records that satisfy a filter: the same ones, wherever they lie and however they are found."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chromakeep.engine import Wanted
from chromakeep.filters import Among, Compare, Every, Filter, Holds, Matches, Some
from chromakeep.postgres import clauses, reading
from chromakeep.postgres.beginnings import Beginning, Beginnings
from chromakeep.postgres.pool import Pool
from postgres.tables import Records, json

N = 2400
_numbers = itertools.count(1)
FILTERS: list[Filter] = [
    *(Compare("part", "$eq", f"p{part}") for part in (0, 1, 2, 3)),  # a half, a twelfth, about 1 %, one
    Compare("part", "$eq", "none"),
    Compare("part", "$ne", "p0"),
    Compare("i", "$lt", 30),  # at the beginning only
    Compare("i", "$gte", N - 30),  # at the end only
    Compare("i", "$gte", 0),
    Compare("i", "$gte", 300),  # behind the first ones, all
    Compare("late", "$eq", True),
    Among("part", ("p2", "p3")),
    Among("part", ("p0", "p1"), negated=True),
    Holds("list", 7),
    Holds("list", "x"),
    Matches("$contains", "of part p2"),
    Matches("$contains", "p"),
    Matches("$not_contains", "part p0"),
    Matches("$regex", "of part p[23]$"),
    Every((Compare("part", "$eq", "p1"), Compare("late", "$eq", True))),
    Some((Compare("part", "$eq", "p2"), Compare("i", "$lt", 3))),
]


class Model:
    """A collection, and what is in it in the order in which it was added."""

    def __init__(self, pool: Pool) -> None:
        self.records = Records(pool, f"first-{next(_numbers)}")
        self.rows: dict[str, tuple[dict[str, Any], str]] = {}
        self._random = random.Random(3)

    def add(self, numbers: range) -> None:
        rows = {f"id{i}": self._row(i) for i in numbers}
        self.records.add(
            list(rows), metadatas=[row[0] for row in rows.values()], documents=[r[1] for r in rows.values()]
        )
        self.rows |= {name: row for name, row in rows.items() if name not in self.rows}

    def upsert(self, numbers: range) -> None:
        """Other parts than they had; the place in the order stays."""
        rows = {f"id{i}": self._row(i) for i in numbers}
        self.records.upsert(
            list(rows), metadatas=[r[0] for r in rows.values()], documents=[r[1] for r in rows.values()]
        )
        self.rows |= rows

    def delete(self, ids: list[str]) -> None:
        self.records.delete(ids)
        for name in ids:
            self.rows.pop(name, None)

    def analyze(self) -> None:
        with self.records.pool.autocommit() as connection:
            connection.execute(f"ANALYZE {self.records.held.table}".encode())

    def _row(self, i: int) -> tuple[dict[str, Any], str]:
        draw = self._random.random()
        part = "p3" if i == 1999 else "p0" if draw < 0.5 else "p1" if draw < 0.58 else "p2" if draw < 0.59 else "p4"
        items: list[Any] = [7, i] if part == "p2" else [i]
        return {"part": part, "i": i, "late": i > 1500, "list": items}, f"record {i} of part {part}"

    def naive(self, where: Filter) -> list[str]:
        return [name for name, row in self.rows.items() if satisfied(where, *row)]

    def check(self, where: Filter, pages: list[tuple[int, int]]) -> None:
        expected = self.naive(where)
        for limit, offset in pages:
            assert self.records.ids(where, limit, offset) == expected[offset : offset + limit], (where, limit, offset)


def satisfied(where: Filter, metadata: dict[str, Any], document: str) -> bool:
    """As Chroma defines it, of what is in these records."""
    if isinstance(where, Every):
        return all(satisfied(part, metadata, document) for part in where.parts)
    if isinstance(where, Some):
        return any(satisfied(part, metadata, document) for part in where.parts)
    if isinstance(where, Matches):
        if where.operator == "$regex":
            return document.endswith(("part p2", "part p3"))
        return (where.pattern in document) is (where.operator == "$contains")
    if isinstance(where, Holds):
        return where.value in metadata[where.key]
    if isinstance(where, Among):
        return (metadata[where.key] in where.values) is not where.negated
    assert isinstance(where, Compare)
    value, other = metadata[where.key], where.value
    operators: dict[str, Callable[[Any, Any], bool]] = {
        "$eq": lambda a, b: a == b,
        "$ne": lambda a, b: a != b,
        "$lt": lambda a, b: a < b,
        "$gte": lambda a, b: a >= b,
    }
    return operators[where.operator](value, other)


@pytest.fixture(scope="module")
def model(pool: Pool) -> Model:
    """Batches of all sizes, with indexes and statistics; then deleted from, written again, and deleted from again,
    behind the back of the statistics."""
    made = Model(pool)
    start = 0
    for size in (1, 700, 3, 3, 900, 1, 1, 700, 91):
        made.add(range(start, start + size))
        start += size
    assert start == N
    made.records.make_indexes("i")
    return made


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the collection had some hundred thousand records."""
    monkeypatch.setattr(reading, "_PROBED", 16)
    monkeypatch.setattr(reading, "_WINDOW", 8)
    monkeypatch.setattr(reading, "_beginnings", Beginnings())


pages = st.lists(st.tuples(st.integers(0, 64), st.sampled_from([0, 0, 1, 5, 30, 64])), min_size=1, max_size=4)
writes = st.lists(
    st.tuples(
        st.sampled_from(["delete", "add", "upsert", "analyze", "first"]), st.integers(0, N - 1), st.integers(1, 90)
    ),
    max_size=3,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(wheres=st.lists(st.sampled_from(FILTERS), min_size=1, max_size=6), pages=pages, writes=writes)
def test_any_page_is_what_a_walk_through_all_gives(
    model: Model, few: None, wheres: list[Filter], pages: list[tuple[int, int]], writes: list[tuple[str, int, int]]
) -> None:
    for what, start, n in writes:
        numbers = range(start, min(N, start + n))
        if what == "delete":
            model.delete([f"id{i}" for i in numbers])
        elif what == "first":  # those of which the statistics say that there the table begins
            model.delete(list(model.rows)[:n])
        elif what == "analyze":
            model.analyze()
        else:
            getattr(model, what)(numbers)
    for where in wheres:
        model.check(where, pages)


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_first_ones(model: Model, few: None, where: Filter) -> None:
    model.check(where, [(1, 0), (10, 0), (3, 7), (10, 54), (64, 0), (0, 3), (0, 0)])


def test_first_ones_of_records_with_all_their_members(model: Model, few: None) -> None:
    where = Compare("part", "$eq", "p1")
    found = model.records.get(None, where, 12, 2, Wanted(documents=True, metadatas=True, embeddings=True))
    names = model.naive(where)[2:14]
    assert found.ids == names and found.embeddings is not None and found.embeddings.shape == (len(names), 2)
    assert found.metadatas is not None and found.documents is not None
    assert [json(metadata) for metadata in found.metadatas] == [model.rows[name][0] for name in names]
    assert found.documents == [model.rows[name][1] for name in names]


@pytest.mark.parametrize("way", ["behind all", "before all", "unknown"])
def test_statistics_never_decide_what_is_found(model: Model, few: None, way: str, monkeypatch: Any) -> None:
    bound = {"behind all": (1 << 63) - 1, "before all": -1, "unknown": None}[way]
    monkeypatch.setattr(Beginning, "bound", lambda self, records: bound)
    for where in FILTERS:
        model.check(where, [(1, 0), (10, 3)])


@pytest.fixture(scope="module")
def wide(pool: Pool) -> Records:
    """Few records on a page, and 1 % of each kind."""
    made = Records(pool, "first-wide")
    rows = range(6000)
    made.add(
        [f"id{i}" for i in rows],
        [[i % 7] * 384 for i in rows],
        metadatas=[{"part": i * 7919 % 100} for i in rows],
        documents=[f"of part <{i * 7919 % 100}>" for i in rows],
    )
    made.make_indexes()
    return made


@pytest.mark.parametrize(
    "where",
    [Compare("part", "$eq", 7), Compare("part", "$eq", -1), Among("part", (1, 2)), Matches("$contains", "part <7>")],
    ids=str,
)
def test_both_indexes_are_asked(wide: Records, where: Filter) -> None:
    """Of all that the index of the filter finds only the first ones are visited, be the filter thought rare or not."""
    held = wide.held
    beginning = wide.do(Beginnings().of, held)
    assert beginning.total == 6000
    bound = beginning.bound(300)
    assert bound is not None
    condition, values = clauses.clause(where, held, trgm=wide.trgm)
    query = f"EXPLAIN {reading.first(held, 'r.id', condition, bound)}".encode()
    plan = "\n".join(row[0] for row in wide.do(lambda c: c.execute(query, [*values, 5, 0]).fetchall()))
    assert "BitmapAnd" in plan and "_seq" in plan, plan


def test_a_beginning() -> None:
    known = Beginning(1000.0, tuple(range(0, 1010, 10)))
    assert [known.bound(n) for n in (0, 1, 10, 11, 249)] == [0, 10, 10, 20, 250]
    assert known.bound(250) is None
    for nothing in (Beginning(0.0, ()), Beginning(0.0, (1, 2)), Beginning(-1.0, (1, 2))):
        assert nothing.bound(0) is nothing.bound(1) is None
