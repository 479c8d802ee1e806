"""Whatever indexes stand, a query finds what is nearest, at the distances that Chroma tells."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest

from chromakeep.engine import Refused, Wanted
from chromakeep.filters import read_where
from chromakeep.postgres import catalog, nearest, segments
from chromakeep.postgres.pool import Pool
from postgres.grown import Grown, exact

SPACES = ("l2", "cosine", "ip")
DIMENSION = 24
# Of a graph in which each record may have twice as many neighbours none is left out: up to 200 records all are
# neighbours of all, and what is found is exact. With fewer a record may, rarely, be one that no way leads to.
WHOLE = {"max_neighbors": 100}


@pytest.fixture(scope="module")
def pool(database_url: str) -> Iterator[Pool]:
    """For which indexes are used however few records there are."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for way in ("seqscan", "sort"):
            connection.execute(f"ALTER DATABASE {urlsplit(database_url).path[1:]} SET enable_{way} = off".encode())
    opened = Pool(database_url, patience=120)
    yield opened
    opened.close()


def _vectors(n: int, seed: int = 1, dimension: int = DIMENSION) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def _same(grown: Grown, vectors: np.ndarray, queries: np.ndarray, space: str, k: int) -> None:
    for query, found in zip(queries, grown.query(queries, k), strict=True):
        distances = exact(vectors, query, space)
        numbers = [int(name[1:]) for name in found.ids]
        assert found.scores is not None
        np.testing.assert_allclose(found.scores, distances[numbers], rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(np.sort(distances)[:k], found.scores, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("space", SPACES)
def test_small_collections_are_searched_exactly(pool: Pool, space: str) -> None:
    grown, vectors = Grown(pool, space), _vectors(300)
    grown.add(vectors)
    _same(grown, vectors, _vectors(5, 2), space, 10)
    assert [len(found.ids) for found in grown.query(_vectors(2, 3), 1000)] == [300, 300]


@pytest.mark.parametrize("space", SPACES)
def test_segments_and_the_tail_make_one_answer(pool: Pool, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "TAIL", 100)
    grown, vectors = Grown(pool, space, **WHOLE), _vectors(400)
    grown.add(vectors[:200])
    grown.settle()
    grown.add(vectors[200:350], 200)
    with pool.autocommit() as connection:
        held = grown.held
        segments.build(connection, held, segments.Range(held.segments[-1].high, segments.new_high(connection), ()))
    grown.add(vectors[350:], 350)
    assert len(grown.held.segments) == 2
    _same(grown, vectors, _vectors(10, 2), space, 10)
    _same(grown, vectors, _vectors(2, 4), space, 180)  # more than one of the two has


def test_the_indexes_are_used(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each branch by the partial index of its segment, the tail by the index of places."""
    monkeypatch.setattr(segments, "TAIL", 100)
    grown = Grown(pool)
    grown.add(_vectors(3000))
    grown.settle()
    held = grown.held
    sql, _ = nearest.statement(held, nearest.measure(held), 10, nearest.Scope(), Wanted(distances=True))
    vector = nearest._packed(_vectors(1)[0], held)
    with pool.autocommit() as connection:
        connection.execute("SET enable_seqscan = on; SET enable_sort = on")
        connection.execute("SET random_page_cost = 1.1")  # so few are else read one by one, where 4 is the default
        plan = "\n".join(row[0] for row in connection.execute("EXPLAIN " + sql, (vector,)))
    assert f"Index Scan using {held.segments[0].index}" in plan
    assert f"{held.relation}_place" in plan
    assert "Seq Scan" not in plan


def test_changed_and_deleted_records(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an index still has of them is no answer, and the new vector is found where it is now."""
    monkeypatch.setattr(segments, "TAIL", 100)
    grown, vectors = Grown(pool, **WHOLE), _vectors(200)
    grown.add(vectors)
    grown.settle()
    query = vectors[7:8]
    near = grown.query(query, 40)[0].ids
    grown.delete(near[:20])
    grown.update([near[30]], query)
    found = grown.query(query, 10)[0]
    assert found.ids == [near[30], *near[20:29]]
    assert found.scores is not None and found.scores[0] == 0


def test_updates_lose_no_record(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do in Chroma, whose index each of them rewires."""
    monkeypatch.setattr(segments, "TAIL", 10)
    grown, vectors, chance = Grown(pool), _vectors(30), np.random.default_rng(5)
    grown.add(vectors)
    grown.settle()
    assert grown.held.segments
    for turn in range(20):
        changed = chance.choice(30, 8, replace=False)
        vectors[changed] = _vectors(8, 100 + turn)
        grown.update([f"r{n}" for n in changed], vectors[changed])
        assert [found.ids for found in grown.query(vectors, 1)] == [[f"r{n}"] for n in range(30)]


@pytest.mark.parametrize("indexed", [False, True])
def test_zeros_under_cosine(pool: Pool, indexed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They, and what is hardly more, are at a distance of 1 from all; pgvector's index has them not."""
    monkeypatch.setattr(segments, "TAIL", 100)
    grown = Grown(pool, "cosine")
    vectors = np.abs(_vectors(300))
    vectors[[3, 250]] = 0
    vectors[[4, 251]] *= [[1e-30], [-1e-40]]
    vectors[5] *= 1e-15
    grown.add(vectors[:240])
    grown.add(vectors[240:], 240)  # few at a time are written in another way
    if indexed:
        grown.settle()
        assert grown.held.segments
    query = -np.abs(_vectors(1, 5))  # all others are farther
    found = grown.query(query, 300)[0]
    assert set(found.ids[:4]) == {"r3", "r4", "r250", "r251"}
    assert found.scores is not None and found.scores[:4].tolist() == [1.0] * 4
    np.testing.assert_allclose(found.scores[found.ids.index("r5")], exact(vectors, query[0], "cosine")[5], rtol=1e-5)
    for zero in (np.zeros((1, DIMENSION)), np.full((1, DIMENSION), 1e-30)):
        of_zero = grown.query(zero, 3)[0]
        assert of_zero.ids == ["r0", "r1", "r2"]
        assert of_zero.scores is not None and of_zero.scores.tolist() == [1.0] * 3


@pytest.mark.parametrize("indexed", [False, True])
def test_filters_and_ids(pool: Pool, indexed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "TAIL", 100)
    monkeypatch.setattr("chromakeep.postgres.estimates.ALWAYS", 5)
    monkeypatch.setattr("chromakeep.postgres.estimates.WORTH", 0)
    grown, vectors = Grown(pool, **WHOLE), _vectors(200)
    grown.add(
        vectors, metadatas=[{"tenth": n % 10, "rare": n % 50, "side": bool(vectors[n, 0] > 1)} for n in range(200)]
    )
    if indexed:
        grown.settle()
    query = _vectors(1, 9)
    query[0, 0] = -5  # far away from all that are on that side
    for where, fits in (
        ({"tenth": 3}, lambda n: n % 10 == 3),
        ({"rare": 7}, lambda n: n % 50 == 7),
        ({"side": True}, lambda n: vectors[n, 0] > 1),
        ({"tenth": 77}, lambda n: False),
    ):
        distances = exact(vectors, query[0], "l2")
        expected = sorted(filter(fits, range(200)), key=distances.__getitem__)[:10]
        assert grown.query(query, 10, where=where)[0].ids == [f"r{n}" for n in expected], where
    assert grown.query(query, 5, ids=["r5", "nowhere", "r6"], where={"tenth": 5})[0].ids == ["r5"]
    assert set(grown.query(query, 5, ids=["r5", "nowhere", "r6"])[0].ids) == {"r5", "r6"}
    assert grown.query(query, 5, ids=[])[0].ids == []


def test_few_are_measured_and_many_are_asked_of_the_index(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice itself: either way finds the same, for what an index does not give is measured after all."""
    monkeypatch.setattr(segments, "TAIL", 100)
    monkeypatch.setattr("chromakeep.postgres.estimates.ALWAYS", 5)
    monkeypatch.setattr("chromakeep.postgres.estimates.WORTH", 0)
    grown = Grown(pool, **WHOLE)
    grown.add(_vectors(200), metadatas=[{"tenth": n % 10, "rare": n % 50} for n in range(200)])
    grown.settle()
    held = grown.held
    near = nearest.measure(held).near("(SELECT v FROM q)")

    def chosen(where: dict[str, int] | None) -> tuple[bool, int, bool]:
        """Whether all that satisfy it are measured; the candidates of an index; whether a statement asks one."""
        clause = None if where is None else read_where(where)
        scope = pool.run(lambda c: nearest.scope_of(c, held, 10, None, clause), write=False)
        sql, _ = nearest.statement(held, nearest.measure(held), 10, scope, Wanted(distances=True))
        return scope.exact, scope.search, near in sql

    assert chosen({"rare": 7})[::2] == chosen({"tenth": 77})[::2] == (True, False)
    assert chosen({"tenth": 3}) == (False, 250, True)  # of ten candidates one satisfies it
    assert chosen(None) == (False, 200, True)


@pytest.mark.parametrize("n_results", [10, 180, 300])
def test_an_index_is_asked_for_enough(pool: Pool, n_results: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than results, whatever the collection's own ef_search is, and on if a filter takes them away."""
    monkeypatch.setattr(segments, "TAIL", 100)
    grown = Grown(pool, ef_search=10)
    grown.add(_vectors(400))
    grown.settle()

    def ask(connection: psycopg.Connection[tuple[str]]) -> tuple[int, str]:
        nearest.query(connection, grown.held, _vectors(1, 2), n_results, None, None, Wanted(distances=True))
        settings = [connection.execute(f"SHOW hnsw.{name}").fetchone() for name in ("ef_search", "iterative_scan")]
        search, scan = [row[0] for row in settings if row]
        return int(search), scan

    assert pool.run(ask, write=False) == (max(20, 2 * n_results), "strict_order")


def test_what_lies_behind_does_not_hide_that_an_index_gave_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that satisfy the filter are far away in the first index, whose search ends before; others have enough."""
    monkeypatch.setattr(segments, "TAIL", 100)
    monkeypatch.setattr("chromakeep.postgres.estimates.ALWAYS", 20)
    monkeypatch.setattr("chromakeep.postgres.estimates.WORTH", 0)
    monkeypatch.setattr(nearest, "_SETTINGS", nearest._SETTINGS.replace(f"'{nearest.SCAN}'", "'100'"))
    pool = Pool(database_url)
    grown, vectors = Grown(pool), _vectors(1000)
    vectors[::8] += 10
    sides = [{"far": n % 8 == 0} for n in range(1000)]
    grown.add(vectors[:700], metadatas=sides[:700])
    grown.settle()
    grown.add(vectors[700:900], 700, metadatas=sides[700:900])
    with pool.autocommit() as connection:
        held = grown.held
        segments.build(connection, held, segments.Range(held.segments[-1].high, segments.new_high(connection), ()))
    grown.add(vectors[900:], 900, metadatas=sides[900:])
    asked = np.concatenate([_vectors(2, 9), vectors[:1]])  # of the last one both indexes have enough
    for query, found in zip(asked, grown.query(asked, 10, where={"far": True}), strict=True):
        distances = exact(vectors, query, "l2")
        expected = sorted(range(0, 1000, 8), key=distances.__getitem__)[:10]
        assert found.ids == [f"r{n}" for n in expected]
    pool.close()


def test_what_is_wanted_comes_with_it(pool: Pool) -> None:
    grown, vectors = Grown(pool), _vectors(5)
    grown.add(vectors, metadatas=[{"n": n} for n in range(5)])
    everything = Wanted(documents=True, metadatas=True, embeddings=True, uris=True, distances=True)
    found = grown.query(vectors[:1], 2, wanted=everything)[0]
    assert found.ids[0] == "r0" and found.documents == [None, None] and found.uris == [None, None]
    assert found.metadatas is not None and found.metadatas[0] == b'{"n": 0}'
    assert found.embeddings is not None and found.embeddings[0].tolist() == vectors[0].tolist()
    bare = grown.query(vectors[:1], 2, wanted=Wanted())[0]
    assert bare.scores is None and bare.metadatas is None and len(bare.ids) == 2


def test_the_edges(pool: Pool) -> None:
    grown = Grown(pool)
    assert [found.ids for found in grown.query(_vectors(2), 5)] == [[], []]  # of no dimension yet
    grown.add(_vectors(3))
    assert grown.query(_vectors(1), 0)[0].ids == []
    assert grown.query(np.zeros((0, DIMENSION)), 5) == []
    with pytest.raises(Refused, match=r"^Collection expecting embedding with dimension of 24, got 3$"):
        grown.query(np.zeros((1, 3)), 5)


@pytest.mark.parametrize(("dimension", "storage"), [(2500, "vector"), (2500, "halfvec"), (5000, "vector")])
def test_many_dimensions(pool: Pool, dimension: int, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2,000 the index is of halves, and what it finds is measured again; beyond 4,000 there is none."""
    monkeypatch.setattr(segments, "TAIL", 50)
    grown, vectors = Grown(pool, storage=storage, **WHOLE), _vectors(100, dimension=dimension)
    grown.add(vectors)
    grown.settle()
    assert bool(grown.held.segments) == (dimension < 4000)
    if storage == "halfvec":
        vectors = vectors.astype(np.float16).astype(np.float32)
    _same(grown, vectors, vectors[:2], "l2", 5)


@pytest.mark.parametrize(
    ("space", "storage", "dimension", "n"),
    [*((space, "vector", 2500, 200) for space in SPACES), ("cosine", "halfvec", 8, 200)],
)
def test_what_an_index_of_halves_cannot_hold(
    pool: Pool, space: str, storage: str, dimension: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that are too large for a half, and those that are nothing as halves."""
    monkeypatch.setattr(segments, "TAIL", 50)
    grown, vectors = Grown(pool, space, storage, **WHOLE), np.abs(_vectors(n, dimension=dimension))
    vectors[[5, -9]] = 1e-9
    if storage == "vector":
        vectors[[7, -5], 0] = 1e5
    grown.add(vectors[:-20])
    grown.add(vectors[-20:], n - 20)  # few at a time are written in another way
    grown.settle()
    if storage == "halfvec":
        vectors = vectors.astype(np.float16).astype(np.float32)
    assert len(grown.held.segments) == 1
    queries = np.concatenate([-np.abs(_vectors(2, 3, dimension)), np.full((1, dimension), 1e-3)])
    if storage == "vector":
        queries = np.concatenate([queries, vectors[7:8], -vectors[7:8]])
    for query, found in zip(queries, grown.query(queries, 5), strict=True):
        distances = exact(vectors, query, space)
        assert found.scores is not None
        np.testing.assert_allclose(np.sort(distances)[:5], found.scores, rtol=1e-3, atol=1e-3)


def test_an_index_of_lists(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "TAIL", 100)
    grown, vectors = Grown(pool), _vectors(500)
    grown.add(vectors)
    grown.settle(quickly=True)
    assert grown.held.segments[0].lists == 22
    found = [grown.query(vector[None], 1)[0].ids[0] for vector in vectors[:20]]
    assert found == [f"r{n}" for n in range(20)]


def test_a_stale_view_of_the_segments_is_only_slower(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance may still believe in indexes that another one has replaced."""
    monkeypatch.setattr(segments, "TAIL", 100)
    grown, vectors = Grown(pool, **WHOLE), _vectors(200)
    grown.add(vectors[:100])
    grown.settle()
    before = grown.held
    grown.add(vectors[100:], 100)
    grown.settle()
    assert before.segments != grown.held.segments
    monkeypatch.setattr(catalog, "held", lambda connection, target: before)
    _same(grown, vectors, _vectors(5, 3), "l2", 10)
