"""``search`` means what it means in distributed Chroma: expected values are worked out by hand or by numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from chromadb.execution.expression import operator as expression

from chromakeep.engine import Refused, Rows, Search, Written
from chromakeep.filters import read_where
from chromakeep.postgres import catalog, forking, searching, writing
from chromakeep.postgres.pool import Pool
from postgres.grown import Grown

VECTORS = np.array([[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0]], np.float32)
KINDS = ("a", "b", "a", "b", "a", None)


def _sparse(**weights: float) -> dict[str, Any]:
    return {
        "#type": "sparse_vector",
        "indices": [int(name[1:]) for name in weights],
        "values": list(weights.values()),
    }


@pytest.fixture(scope="module")
def grown(pool: Pool) -> Grown:
    made = Grown(pool)
    metadatas: list[dict[str, Any]] = [{"n": n, "kind": kind} if kind else {"n": n} for n, kind in enumerate(KINDS)]
    metadatas[1]["words"] = _sparse(i1=1.0, i7=2.0)
    metadatas[4]["words"] = _sparse(i7=0.5, i4000000000=1.0)
    metadatas[5]["words"] = _sparse(i3=9.0)
    records = Written(
        [f"r{n}" for n in range(6)], VECTORS, documents=[f"text {n}" for n in range(6)], metadatas=list(metadatas)
    )
    pool.run(lambda c: writing.add(c, made.held, records), write=True)
    return made


def _search(grown: Grown, rank: Mapping[str, Any] | expression.Rank | None, **asked: Any) -> Rows:
    if isinstance(rank, expression.Rank):
        rank = rank.to_dict()
    where = asked.pop("where", None)
    one = Search(
        None if where is None else read_where(where, ids=True),
        rank,
        asked.pop("group_by", None),
        asked.pop("offset", 0),
        asked.pop("limit", None),
        tuple(asked.pop("select", ("#score",))),
    )
    return grown.pool.run(lambda c: searching.search(c, catalog.held(c, grown.target), [one]), write=False)[0]


def _scored(grown: Grown, rank: Mapping[str, Any] | expression.Rank, **asked: Any) -> dict[str, float]:
    found = _search(grown, rank, **asked)
    assert found.scores is not None
    return dict(zip(found.ids, [round(score, 5) for score in found.scores.tolist()], strict=True))


Knn, Val, Rrf, K = expression.Knn, expression.Val, expression.Rrf, expression.K


def test_nearest(grown: Grown) -> None:
    assert _scored(grown, Knn([0.0, 0.0], limit=3)) == {"r0": 0, "r1": 1, "r2": 4}
    assert list(_scored(grown, Knn([5.0, 0.0], limit=2, return_rank=True)).items()) == [("r5", 0), ("r4", 1)]
    assert len(_scored(grown, Knn([0.0, 0.0]))) == 6
    assert _scored(grown, Knn([0.0, 0.0], limit=2), where={"kind": "b"}) == {"r1": 1, "r3": 9}
    assert _scored(grown, Knn([0.0, 0.0]), where={"#id": {"$in": ["r4", "r2"]}}) == {"r2": 4, "r4": 16}


def test_arithmetic(grown: Grown) -> None:
    near = Knn([0.0, 0.0], limit=3)
    assert _scored(grown, near * 2 + 1) == {"r0": 1, "r1": 3, "r2": 9}
    assert _scored(grown, 10 - near) == {"r2": 6, "r1": 9, "r0": 10}
    assert _scored(grown, near / 2) == {"r0": 0, "r1": 0.5, "r2": 2}
    assert _scored(grown, near.max(2).min(3)) == {"r0": 2, "r1": 2, "r2": 3}
    assert _scored(grown, abs(near - 2)) == {"r1": 1, "r0": 2, "r2": 2}
    assert _scored(grown, (near + 1).log().exp()) == {"r0": 1, "r1": 2, "r2": 5}
    assert list(_scored(grown, -near)) == ["r2", "r1", "r0"]
    assert _scored(grown, Val(1.0)) == {}  # names no record


def test_without_a_default_a_record_needs_a_value_from_each(grown: Grown) -> None:
    one, other = Knn([0.0, 0.0], limit=2), Knn([2.0, 0.0], limit=3)
    assert _scored(grown, one + other) == {"r1": 2}
    assert _scored(grown, Knn([0.0, 0.0], limit=2, default=100.0) + other) == {"r1": 2, "r2": 100, "r3": 101}
    both = _scored(grown, Knn([0.0, 0.0], limit=1, default=7.0) + Knn([5.0, 0.0], limit=1, default=9.0))
    assert both == {"r5": 7, "r0": 9}


def test_reciprocal_rank_fusion(grown: Grown) -> None:
    ranks = [Knn([0.0, 0.0], return_rank=True, limit=6), Knn([5.0, 0.0], return_rank=True, limit=6)]
    found = _scored(grown, Rrf(ranks, k=60, weights=[2.0, 1.0]))
    expected = {f"r{n}": round(-(2 / (60 + n) + 1 / (60 + 5 - n)), 5) for n in range(6)}
    assert found == expected and next(iter(found)) == "r0"


def test_sparse_vectors(grown: Grown) -> None:
    query = _sparse(i7=2.0, i8=1.0)
    found = _scored(grown, {"$knn": {"query": query, "key": "words", "limit": 5}})
    assert found == {"r1": -3, "r4": 0}  # 1 - the product; those that share nothing are not found
    assert list(found) == ["r1", "r4"]
    untagged = {"indices": query["indices"], "values": query["values"]}  # as metadata may be, too
    assert _scored(grown, {"$knn": {"query": untagged, "key": "words", "limit": 5}}) == found
    assert _scored(grown, {"$knn": {"query": query, "key": "words"}}, where={"kind": "a"}) == {"r4": 0}
    assert _scored(grown, {"$knn": {"query": query, "key": "kind"}}) == {}
    fused = _scored(grown, {"$sum": [{"$knn": {"query": query, "key": "words"}}, {"$knn": {"query": [4.0, 0.0]}}]})
    assert fused == {"r4": 0, "r1": 6}


def test_pages_and_members(grown: Grown) -> None:
    found = _search(grown, Knn([0.0, 0.0]), offset=1, limit=2, select=["#document", "#embedding", "n", "none"])
    assert found.ids == ["r1", "r2"] and found.documents == ["text 1", "text 2"] and found.scores is None
    assert found.metadatas == [b'{"n":1}', b'{"n":2}']
    assert found.embeddings is not None and found.embeddings.tolist() == [[1, 0], [2, 0]]
    whole = _search(grown, Knn([5.0, 0.0]), limit=2, select=["#metadata"])
    assert whole.ids == ["r5", "r4"]  # in the order of their scores, not of the table
    assert [json.loads(metadata or b"") for metadata in whole.metadatas or ()][1]["kind"] == "a"


def test_without_a_rank_in_the_order_of_the_table(grown: Grown) -> None:
    found = _search(grown, None, where={"kind": "a"}, offset=1, select=["#score", "kind"])
    assert found.ids == ["r2", "r4"] and found.metadatas == [b'{"kind":"a"}'] * 2
    assert found.scores is not None and found.scores.tolist() == [0, 0]


def test_groups(grown: Grown) -> None:
    def group(operator: str, keys: list[str], k: int, by: str = "kind") -> dict[str, Any]:
        return {"keys": [by], "aggregate": {operator: {"keys": keys, "k": k}}}

    near = Knn([0.0, 0.0])
    assert list(_scored(grown, near, group_by=group("$min_k", ["#score"], 1))) == ["r0", "r1", "r5"]
    assert list(_scored(grown, near, group_by=group("$max_k", ["#score"], 1))) == ["r3", "r4", "r5"]
    assert list(_scored(grown, near, group_by=group("$max_k", ["n"], 2))) == ["r1", "r2", "r3", "r4", "r5"]
    assert list(_scored(grown, near, group_by=group("$min_k", ["absent", "#score"], 1), limit=2)) == ["r0", "r1"]
    assert len(_scored(grown, near, group_by={})) == 6


@pytest.mark.parametrize(
    ("rank", "group_by", "status"),
    [
        ({}, None, 422),
        ({"$val": "1"}, None, 422),
        ({"$val": True}, None, 422),
        ({"$nothing": []}, None, 422),
        ({"$sum": {"$val": 1}}, None, 422),
        ({"$sub": {"left": {"$val": 1}}}, None, 422),
        ({"$knn": {"query": "text"}}, None, 422),
        ({"$knn": {"query": [1, "x"]}}, None, 422),
        ({"$knn": {"query": [1.0, 0.0], "limit": -1}}, None, 422),
        ({"$knn": {"query": [1.0, 0.0], "return_rank": 1}}, None, 422),
        ({"$knn": {"query": [1.0, 0.0, 0.0]}}, None, 400),
        ({"$knn": {"query": [3.4028235677973366e38, 0.0]}}, None, 400),  # the first that is infinite in 32 bits
        ({"$knn": {"query": [1.0], "key": "words"}}, None, 400),
        ({"$knn": {"query": _sparse(i1=1.0)}}, None, 400),
        ({"$knn": {"query": {"#type": "sparse_vector", "indices": [2, 1], "values": [1, 1]}, "key": "w"}}, None, 400),
        ({"$knn": {"query": {"#type": "sparse_vector", "indices": [1], "values": []}, "key": "w"}}, None, 400),
        ({"$sum": [{"$knn": {"query": [1.0, 0.0]}}] * 65}, None, 400),
        ({"$val": 1}, {"keys": ["a"]}, 400),
        ({"$val": 1}, {"keys": ["#score"], "aggregate": {"$min_k": {"keys": ["n"], "k": 1}}}, 400),
        ({"$val": 1}, {"keys": ["a"], "aggregate": {"$min_k": {"keys": [], "k": 1}}}, 400),
        ({"$val": 1}, {"keys": ["a"], "aggregate": {"$min_k": {"keys": ["n"], "k": 0}}}, 400),
        ({"$val": 1}, {"keys": ["a"], "aggregate": {"$first": {"keys": ["n"], "k": 1}}}, 422),
        (None, {"keys": ["a"], "aggregate": {"$min_k": {"keys": ["n"], "k": 1}}}, 400),
    ],
)
def test_what_is_no_search(grown: Grown, rank: Any, group_by: Any, status: int) -> None:
    with pytest.raises(Refused) as refused:
        _search(grown, rank, group_by=group_by)
    assert refused.value.status == status


def test_depth_is_bounded(grown: Grown) -> None:
    rank: dict[str, Any] = {"$val": 1}
    for _ in range(2000):
        rank = {"$abs": rank}
    with pytest.raises(Refused):
        _search(grown, rank)


def test_forks(grown: Grown, pool: Pool) -> None:
    """A fork has what there was, goes its own way, and is counted by all of its family."""
    held = grown.held
    shown = pool.run(lambda c: forking.fork(c, held, "fork-1"), write=True)
    assert (shown.name, shown.dimension, shown.id == held.id) == ("fork-1", 2, False)
    copy = Grown.__new__(Grown)
    copy.pool, copy.target = pool, catalog.Target("default_tenant", "default_database", shown.id)
    copy.add(np.array([[9, 9]]), 50)
    copy.delete(["r0"])
    assert _search(copy, None).ids == ["r1", "r2", "r3", "r4", "r5", "r50"]
    assert _search(grown, None).ids == [f"r{n}" for n in range(6)]
    again = pool.run(lambda c: forking.fork(c, copy.held, "fork-2"), write=True)
    assert pool.run(lambda c: forking.count_forks(c, held), write=False) == 2
    assert pool.run(lambda c: forking.count_forks(c, copy.held), write=False) == 2
    with pytest.raises(Refused) as refused:
        pool.run(lambda c: forking.fork(c, held, "fork-2"), write=True)
    assert refused.value.status == 409
    pool.run(lambda c: catalog.drop_collection(c, "default_tenant", "default_database", again.name), write=True)
    assert pool.run(lambda c: forking.count_forks(c, held), write=False) == 1
