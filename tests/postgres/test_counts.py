"""Counts: about right, cheap, and never of what nobody sees."""

from __future__ import annotations

import numpy as np
import pytest

from chromakeep.engine import CollectionWanted
from chromakeep.postgres import arrivals, counts, segments
from chromakeep.postgres.catalog import drop_collection
from chromakeep.postgres.counts import Counted
from chromakeep.postgres.pool import Pool
from chromakeep.records import Definition
from postgres.grown import Grown
from postgres.instances import eventually


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "TAIL", 100)
    monkeypatch.setattr(counts, "EXACT", 150)


def of(pool: Pool, grown: Grown) -> Counted | None:
    name = grown.held.name
    return next((one for one in counts.counts(pool).largest if one.name == name), None)


def add(grown: Grown, n: int, start: int = 0) -> None:
    grown.add(np.random.default_rng(start).normal(size=(n, 8)), start)


def test_small_ones_are_counted_whatever_the_statistics_say(pool: Pool) -> None:
    """They may be lost: a crash takes them."""
    grown = Grown(pool)
    add(grown, 20)
    pool.run(lambda c: c.execute("SELECT pg_stat_reset()"), write=True)
    assert of(pool, grown) == Counted("default_tenant", "default_database", grown.held.name, 20, 0)
    empty = Grown(pool)
    assert of(pool, empty) == Counted("default_tenant", "default_database", empty.held.name, 0, 0)


def test_large_ones_are_told_from_statistics(pool: Pool, low: None) -> None:
    grown = Grown(pool)
    # An ANALYZE between a commit and the moment at which the server counts it would have it counted twice, for a while
    pool.run(lambda c: c.execute(f"ALTER TABLE {grown.held.table} SET (autovacuum_enabled = off)"), write=True)
    add(grown, 400)

    def records() -> int:
        found = of(pool, grown)
        return found.records if found else 0

    eventually(lambda: records() == 400, "the server has counted what was added")
    grown.delete([f"r{i}" for i in range(200)])
    eventually(lambda: records() == 200, "the server has counted what was deleted")
    with pool.autocommit() as connection:
        connection.execute(f"VACUUM ANALYZE {grown.held.table}")
    pool.run(lambda c: c.execute("SELECT pg_stat_reset()"), write=True)
    assert records() == 200  # as VACUUM found it


def test_what_waits_for_an_index(pool: Pool, low: None) -> None:
    """Until it has one; a tail that gets none waits for nothing, nor does what no index can hold."""
    grown = Grown(pool)

    def waiting() -> int:
        found = of(pool, grown)
        assert found
        return found.waiting

    add(grown, 99)
    assert waiting() == 0
    add(grown, 51, 99)
    assert waiting() == 150
    add(grown, 350, 150)
    with pool.autocommit() as connection:
        connection.execute(f"ANALYZE {grown.held.table}")
    assert waiting() == 500
    grown.settle()
    assert waiting() == 0
    add(grown, 120, 500)
    assert waiting() == 120
    wide = Grown(pool)
    wide.add(np.ones((120, 4001)))
    found = of(pool, wide)
    assert found and found.waiting == 0


def test_only_what_is_there(pool: Pool) -> None:
    """Not what a copy is writing, nor what is gone."""
    grown = Grown(pool)
    name, before = grown.held.name, counts.counts(pool)
    definition = Definition("arriving")
    pool.run(
        lambda c: arrivals.begin(c, "run", definition, CollectionWanted("arriving"), "vector"),
        write=True,
    )
    after = counts.counts(pool)
    assert after.collections == before.collections
    # By size they are in the order of what the server has counted, which may go on meanwhile
    assert sorted(after.largest, key=repr) == sorted(before.largest, key=repr)
    pool.run(lambda c: drop_collection(c, "default_tenant", "default_database", name), write=True)
    assert of_name(pool, name) is None
    assert counts.counts(pool).collections == before.collections - 1


def of_name(pool: Pool, name: str) -> Counted | None:
    return next((one for one in counts.counts(pool).largest if one.name == name), None)
