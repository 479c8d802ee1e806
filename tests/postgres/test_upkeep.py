"""Indexes come when a collection has grown to need them, one instance makes them, and a kill leaves nothing behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import psycopg
import pytest

from chromakeep.engine import Target, Written
from chromakeep.postgres import catalog, demand, packing, segments, upkeep, writing
from chromakeep.postgres.held import Held, Segment
from chromakeep.postgres.pool import Pool
from chromakeep.postgres.segments import Range, Standing
from chromakeep.postgres.upkeep import Seen, Upkeep
from postgres.grown import Grown
from postgres.instances import eventually


def _vectors(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)


def _standing(low: int, high: int, alive: float, built: float | None = None, index: str = "c1_h0") -> Standing:
    return Standing(Segment(low, high, index), alive if built is None else built, alive)


def test_the_plan() -> None:
    tail = segments.TAIL
    small, large = _standing(0, 10, tail), _standing(0, 10, 100 * tail)
    assert segments.plan([], tail - 1, 9) is None
    assert segments.plan([], tail, 9) == Range(0, 9, ())
    assert segments.plan([small], tail, 20) == Range(0, 20, (small.segment,))
    assert segments.plan([large], tail, 20) == Range(10, 20, ())
    second = _standing(10, 20, 1.5 * tail)
    assert segments.plan([large, second], tail, 30) == Range(10, 30, (second.segment,))
    assert segments.plan([large, second], 3, 30) is None
    assert segments.plan([large, second], 3, 30, at_rest=True) == Range(0, 30, (large.segment, second.segment))
    assert segments.plan([large, second], 0, 0, at_rest=True) == Range(0, 20, (large.segment, second.segment))
    assert segments.plan([large], segments.LOOSE, 30, at_rest=True) == Range(0, 30, (large.segment,))
    assert segments.plan([large], 3, 30, at_rest=True) is None
    dead = _standing(0, 10, tail, 3 * tail)
    assert segments.plan([dead], 3, 30) == Range(0, 10, (dead.segment,))
    lists = _standing(0, 10, tail, index="c1_i30_0")
    assert segments.plan([lists], 3, 30) == Range(0, 10, (lists.segment,))


def test_a_growing_collection_has_few_segments() -> None:
    """However large: their number grows with the logarithm, and a record is built into few indexes."""
    standing: list[Standing] = []
    built, most = 0.0, 0
    for step in range(1, 1000):
        wanted = segments.plan(standing, segments.TAIL, step * 10)
        assert wanted is not None
        kept = [one for one in standing if one.segment not in wanted.replaced]
        rows = segments.TAIL + sum(one.alive for one in standing if one.segment in wanted.replaced)
        standing = [*kept, _standing(wanted.low, wanted.high, rows)]
        built, most = built + rows, max(most, len(standing))
    assert sum(one.alive for one in standing) == 999 * segments.TAIL
    assert most <= 7 and built <= 9 * 999 * segments.TAIL


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "TAIL", 200)
    monkeypatch.setattr(segments, "SECONDARY", 300)


def _grow(grown: Grown, n: int, start: int = 0) -> None:
    grown.add(_vectors(n, start + 1), start, [{"n": number, "even": number % 2 == 0} for number in range(n)])


def _seen(grown: Grown, alive: int) -> Seen:
    return Seen(grown.target, alive, alive, alive)


def _tend(grown: Grown, alive: int, *, at_rest: bool = False) -> bool:
    with upkeep.working(grown.pool, grown.held) as connection:
        assert connection is not None
        return upkeep.tend(connection, grown.held, _seen(grown, alive), at_rest=at_rest)


def _indexes(grown: Grown) -> list[str]:
    found = grown.pool.run(
        lambda c: c.execute(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass", (grown.held.table,)
        ).fetchall(),
        write=False,
    )
    return [name.split(".")[1].strip('"') for (name,) in found]


def test_segments_follow_growth(pool: Pool, low: None) -> None:
    grown = Grown(pool)
    _grow(grown, 150)
    assert not _tend(grown, 150) and not grown.held.segments
    _grow(grown, 600, 150)
    assert _tend(grown, 750) and len(grown.held.segments) == 1
    assert not _tend(grown, 750)
    _grow(grown, 210, 750)
    assert _tend(grown, 960) and len(grown.held.segments) == 2
    first, second = grown.held.segments
    assert first.low == 0 and first.high == second.low
    assert _tend(grown, 960, at_rest=True) and len(grown.held.segments) == 1
    assert not _tend(grown, 960, at_rest=True)
    held = grown.held
    assert [name for name in _indexes(grown) if name.startswith(held.relation.split("_")[0] + "_h")] == [
        held.segments[0].index
    ]
    status = pool.run(lambda c: upkeep.indexing_status(c, grown.held), write=False)
    assert (status.total, status.indexed, status.progress) == (960, 960, 1.0)
    _grow(grown, 300, 960)
    status = pool.run(lambda c: upkeep.indexing_status(c, grown.held), write=False)
    assert (status.total, status.indexed) == (1260, 960)


def test_what_is_dead_is_built_again(pool: Pool, low: None) -> None:
    grown = Grown(pool)
    _grow(grown, 500)
    assert _tend(grown, 500)
    before = grown.held.segments
    grown.delete([f"r{n}" for n in range(300)])
    with upkeep.working(pool, grown.held) as connection:
        assert connection is not None
        assert upkeep.tend(connection, grown.held, Seen(grown.target, 800, 200, 300))
    after = grown.held.segments
    assert [(one.low, one.high) for one in after] == [(one.low, one.high) for one in before] and after != before


def test_statistics_of_before_build_nothing_again(pool: Pool, low: None) -> None:
    """By those a new segment has no records, as if all of it were dead: it would be built for ever."""
    grown = Grown(pool)
    _grow(grown, 300)
    assert _tend(grown, 300)
    _grow(grown, 900, 300)
    for built in (True, False):
        with upkeep.working(pool, grown.held) as connection:
            assert connection is not None
            assert upkeep.tend(connection, grown.held, Seen(grown.target, 1200, 1200, 0)) == built
    assert sum(segment.high > 0 for segment in grown.held.segments) <= 2


def test_a_batch_after_many_single_writes_is_not_taken_for_dead(pool: Pool, low: None) -> None:
    """It lies in a corner of the last range that statistics know, where the planner believes that hardly any are."""
    grown = Grown(pool)
    _grow(grown, 900)
    table = grown.held.table
    with upkeep.working(pool, grown.held) as connection:
        assert connection is not None
        connection.execute(
            f"UPDATE {table} t SET place = n.block * {segments.BLOCK} FROM"
            f" (SELECT key, nextval('chromakeep.blocks') AS block FROM {table}) n WHERE t.key = n.key"
        )
        connection.execute(f"ALTER TABLE {table} ALTER place SET STATISTICS 1")  # as if there were a hundred times more
        segments.build(connection, grown.held, Range(0, segments.new_high(connection), ()))
        _grow(grown, 210, 900)
        segments.build(connection, grown.held, Range(grown.held.segments[0].high, segments.new_high(connection), ()))
        upkeep.analyze(connection, grown.held)
        standing = segments.standings(connection, grown.held)
        assert [one.built for one in standing] == [900, 210]
        assert standing[1].alive == 210
        assert segments.plan(standing, 0, 0) is None  # else it would be built for ever


def test_filters_have_indexes(pool: Pool, low: None) -> None:
    grown = Grown(pool)
    _grow(grown, 400)
    grown.query(_vectors(1), 1, where={"n": {"$gt": 5}})
    _tend(grown, 400)
    names = _indexes(grown)
    assert f"{grown.held.relation}_metadata" in names and any("_n_" in name for name in names)
    with pool.autocommit() as connection:
        connection.execute("SET enable_seqscan = off")  # as PostgreSQL is set out of the box, few are read one by one
        plan = connection.execute(f"EXPLAIN SELECT 1 FROM {grown.held.table} r WHERE r.metadata @> '{{\"n\": 3}}'")
        assert "_metadata" in str(plan.fetchall())


def test_who_asks_makes_no_indexes_of_what_is_not_there(pool: Pool, low: None) -> None:
    """A key that no record has as a number, or that is too long for the catalog of PostgreSQL before 18."""
    grown, long = Grown(pool), "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    grown.add(_vectors(400), 0, [{"n": number, "text": "1", long: number} for number in range(400)])
    for key in ("text", "nowhere", long):
        grown.query(_vectors(1), 1, where={key: {"$gt": 5}})
    _tend(grown, 400)
    assert not [name for name in _indexes(grown) if "_n_" in name]


def test_one_collection_in_trouble_does_not_keep_the_others_waiting(
    pool: Pool, low: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [Grown(pool) for _ in range(2)]
    for grown in both:
        _grow(grown, 400)
        pool.run(lambda c, grown=grown: c.execute(f"ANALYZE {grown.held.table}"), write=True)
    usual, tended = upkeep.tend, []

    def tend(connection: object, held: Held, *seen: object, **how: object) -> bool:
        tended.append(held.id)
        if len(tended) == 1:
            raise psycopg.errors.DiskFull("of this one")
        return usual(connection, held, *seen, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(upkeep, "tend", tend)
    with pytest.raises(psycopg.errors.DiskFull):
        Upkeep(pool).look()
    assert {grown.target.id for grown in both} <= set(tended)


def test_the_thread_finds_what_has_grown(pool: Pool, low: None) -> None:
    grown = Grown(pool)
    _grow(grown, 500)
    two = [Upkeep(pool, every=0.05) for _ in range(2)]
    for one in two:
        one.start()
    try:
        eventually(
            lambda: (
                grown.held.segments
                and pool.run(lambda c: upkeep.indexing_status(c, grown.held), write=False).progress == 1
            ),
            "the server has counted, and there is an index",
            patience=200,  # for the collections of other tests have their turn, too
        )
        assert len(grown.held.segments) == 1
    finally:
        for one in two:
            one.stop()
            one.stop()
    assert sum(name == grown.held.segments[0].index for name in _indexes(grown)) == 1


def test_a_range_that_is_asked_for_later_gets_its_index(pool: Pool, low: None) -> None:
    """Nobody writes any more; it is asked for the first time."""
    grown, kept = Grown(pool), Upkeep(pool)
    _grow(grown, 500)
    pool.run(lambda c: c.execute("SELECT pg_stat_force_next_flush()"), write=True)

    def built() -> object:
        kept.look()
        return grown.held.segments

    eventually(built, "the server has counted", patience=200)
    kept.look()
    assert not [name for name in _indexes(grown) if "_n_" in name]
    grown.query(_vectors(1), 1, where={"n": {"$gt": 5}})
    kept.look()
    assert [name for name in _indexes(grown) if "_n_" in name]


def test_one_instance_at_a_time(pool: Pool) -> None:
    grown = Grown(pool)
    with upkeep.working(pool, grown.held) as first:
        assert first is not None
        with upkeep.working(pool, grown.held) as second:
            assert second is None
    with upkeep.working(pool, grown.held) as again:
        assert again is not None


def test_a_build_that_was_killed_is_swept_away(pool: Pool, low: None) -> None:
    grown = Grown(pool)
    _grow(grown, 500)
    held = grown.held
    with pool.autocommit() as connection:
        connection.execute(
            f"CREATE INDEX {held.relation.split('_')[0]}_hdead ON {held.table} USING hnsw"
            " ((embedding::vector(16)) vector_l2_ops) WHERE place > 0 AND place <= 5"
        )
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
            (f"chromakeep.{held.relation.split('_')[0]}_hdead",),
        )
    assert _tend(grown, 500)
    assert not [name for name in _indexes(grown) if name.endswith("hdead")]
    assert len(grown.held.segments) == 1


def test_a_filters_index_whose_build_was_killed_is_made_again(pool: Pool, low: None) -> None:
    """It has the name already, and no query uses it: without that it would stay so for ever."""
    grown = Grown(pool)
    _grow(grown, 500)
    assert _tend(grown, 500)
    relation = grown.held.relation
    broken = [f"{relation}_metadata", f"{relation}_document"]
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass"
    with pool.autocommit() as connection:
        for name in broken:
            connection.execute(
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (f"chromakeep.{name}",)
            )
        connection.execute(f"CREATE INDEX {relation}_metadata_ccnew ON {grown.held.table} (seq)")  # somebody's REINDEX
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
            (f"chromakeep.{relation}_metadata_ccnew",),
        )
        assert _tend(grown, 500)
        assert [connection.execute(valid, (f"chromakeep.{name}",)).fetchone() for name in broken] == [(True,)] * 2
    assert f"{relation}_metadata_ccnew" in _indexes(grown)


def test_who_commits_late_is_in_the_index(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has its places before it is committed: an index over these is built meanwhile, and has them after all."""
    monkeypatch.setattr(segments, "TAIL", 100)
    grown = Grown(pool, max_neighbors=100)  # all are neighbours of all: so the index finds each for certain
    _grow(grown, 150)
    held = grown.held
    late = _vectors(1, 77) * 50
    with pool.autocommit() as writer:
        writer.autocommit = False
        writing.add(writer, held, Written(["late"], late))
        built = threading.Thread(target=upkeep.settle, args=(pool, held))
        built.start()
        _wait_for_a_lock(pool)
        writer.commit()
        built.join(60)
        assert not built.is_alive()
    held = grown.held
    place = pool.run(lambda c: c.execute(f"SELECT place FROM {held.table} WHERE id = 'late'").fetchone(), write=False)
    assert place is not None and place[0] <= held.segments[-1].high
    assert grown.query(late, 1)[0].ids == ["late"]
    with pool.autocommit() as connection:  # and by the index alone
        connection.execute("SET enable_seqscan = off")
        segment = held.segments[0]
        found = connection.execute(
            f"SELECT id FROM {held.table} WHERE place > {segment.low} AND place <= {segment.high}"
            " ORDER BY embedding::vector(16) <-> %b::vector(16) LIMIT 1",
            (packing.Packed(b"\x00\x10\x00\x00" + late[0].astype(">f4").tobytes()),),
        ).fetchall()
    assert found == [("late",)]


def _wait_for_a_lock(pool: Pool) -> None:
    """Until some build waits for a writer."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'virtualxid'"
    eventually(lambda: pool.run(lambda c: c.execute(waiting).fetchone(), write=False) != (0,), "something waits")


def test_a_collection_that_goes_meanwhile(pool: Pool, low: None) -> None:
    grown = Grown(pool)
    _grow(grown, 500)
    kept = Upkeep(pool)
    seen = _seen(grown, 500)
    held = grown.held
    pool.run(lambda c: catalog.drop_collection(c, "default_tenant", "default_database", held.name), write=True)
    assert kept._tend(seen, at_rest=False) is None
    assert kept._tend(Seen(Target("default_tenant", "default_database", held.id), 1, 1, 1), at_rest=False) is None


def test_changes_do_not_touch_the_index(pool: Pool, low: None) -> None:
    """A record that is changed in any way lies behind the segments from then on."""
    grown = Grown(pool)
    _grow(grown, 500)
    _tend(grown, 500)
    pool.run(
        lambda c: writing.update(c, catalog.held(c, grown.target), Written(["r3"], metadatas=[{"n": -1}])), write=True
    )
    held = grown.held
    place = pool.run(lambda c: c.execute(f"SELECT place FROM {held.table} WHERE id = 'r3'").fetchone(), write=False)
    assert place is not None and place[0] > held.segments[-1].high


def test_who_waits_for_upkeep_does_not_hold_its_build_up(pool: Pool, low: None) -> None:
    """CREATE INDEX CONCURRENTLY waits for each statement that is older, so nobody waits for a lock in a statement."""
    grown = Grown(pool)
    _grow(grown, 300)
    held, settled = grown.held, list[tuple[Segment, ...]]()
    with upkeep.working(pool, held) as connection:
        assert connection is not None
        bulk = threading.Thread(target=lambda: settled.append(upkeep.settle(pool, held)))
        bulk.start()
        _wait_for_two(pool, "SELECT pg%advisory_lock(%")  # by both, and the second does not get it
        segments.build(connection, held, Range(0, segments.new_high(connection), ()))
    bulk.join(60)
    assert len(settled) == 1 and len(settled[0]) == 1
    assert settled[0][0].index in _indexes(grown)


def test_a_collection_that_is_dropped_during_a_build_is_no_trouble(pool: Pool, low: None) -> None:
    """The drop ends the build, as it should; there is nothing to tell of it."""
    grown = Grown(pool)
    _grow(grown, 300)
    seen, name, built = _seen(grown, 300), grown.held.name, list[bool | None]()
    with pool.autocommit() as old, old.transaction():
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT FROM chromakeep.version")  # a build waits for whoever may look at what is older than it
        building = threading.Thread(target=lambda: built.append(Upkeep(pool)._tend(seen, at_rest=False)))
        building.start()
        _wait_for_a_lock(pool)
        pool.run(lambda c: catalog.drop_collection(c, "default_tenant", "default_database", name), write=True)
        building.join(60)
    assert built == [None]


def _wait_for_two(pool: Pool, statement: str) -> None:
    """Until two sessions of this database are at such a statement, or have asked nothing since."""
    sql = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s"
    deadline = time.monotonic() + 60
    while len(pool.run(lambda c: c.execute(sql, (statement,)).fetchall(), write=False)) < 2:
        assert time.monotonic() < deadline, statement
        time.sleep(0.01)


def test_collections_that_are_gone_leave_room_for_the_demand_of_others(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand, "_ranged", {})
    monkeypatch.setattr(demand, "COLLECTIONS", 1)
    first, second = Grown(pool), Grown(pool)
    for grown in (first, second):
        grown.add(_vectors(3), metadatas=[{"n": 1}] * 3)
        grown.query(_vectors(1), 1, where={"n": {"$gt": 5}})
    assert demand.ranged(first.held.relation) == ["n"] and demand.ranged(second.held.relation) == []
    for shown in pool.run(lambda c: catalog.collections(c, "default_tenant", "default_database", None, 0), write=False):
        pool.run(
            lambda c, name=shown.name: catalog.drop_collection(c, "default_tenant", "default_database", name),
            write=True,
        )
    third = Grown(pool)
    Upkeep(pool).look()
    third.add(_vectors(3), metadatas=[{"n": 1}] * 3)
    third.query(_vectors(1), 1, where={"n": {"$gt": 5}})
    assert demand.ranged(third.held.relation) == ["n"]
