"""A door with keys before an engine: what a stock Chroma does not answer (search, fork) is bounded as all else is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from chromakeep.engine import CollectionWanted, Engine, Target, Written
from chromakeep.server import Door
from chromakeep.server.admission import Admission
from chromakeep.server.api import answer
from server.test_admission import BODIES, Ring, call

COLLECTIONS = "/api/v2/tenants/{}/databases/prod/collections"
SEARCH = {"searches": [{"rank": {"$knn": {"query": [1.0, 2.0]}}, "select": {"keys": ["#score"]}}]}


@pytest.fixture(scope="module")
def ids(engine: Engine) -> dict[str, str]:
    """``tenant/collection`` -> UUID, each with one record."""
    made: dict[str, str] = {}
    for tenant in ("acme", "other"):
        engine.create_tenant(tenant)
        engine.create_database(tenant, "prod")
        for name in ("docs-1", "secret"):
            made[f"{tenant}/{name}"] = id = engine.create_collection(tenant, "prod", CollectionWanted(name)).id
            engine.add(Target(tenant, "prod", id), Written(["a"], np.array([[1, 2]], np.float32)))
    return made


@pytest.fixture(scope="module")
def ring() -> Ring:
    ring = Ring()
    for role in ("reader", "writer"):
        ring.add(role, role, tenant="acme", database="prod", collections=("docs-*",))
    return ring


@pytest.fixture(scope="module")
def door(engine: Engine, ring: Ring) -> Iterator[Door]:
    guard = Admission(lambda: ring.ring, time.time)
    door = Door("127.0.0.1", 0, ("", 0), answering=partial(answer, engine), guard=guard)
    door.start()
    yield door
    door.stop(1)


@pytest.mark.parametrize(
    ("name", "body", "done"),
    [
        ("get", {}, 200),
        ("query", BODIES["collection.query"], 200),
        ("search", SEARCH, 200),
        ("add", BODIES["collection.add"], 201),
        ("upsert", BODIES["collection.upsert"], 200),
        ("update", BODIES["collection.update"], 200),
        ("fork", {"new_name": "docs-9"}, 200),
        ("delete", {"ids": ["x"]}, 200),
    ],
)
def test_a_key_does_what_it_may_where_it_may(
    engine: Engine, door: Door, ring: Ring, ids: dict[str, str], name: str, body: Any, done: int
) -> None:
    """A reader writes nothing; another tenant's collection is not there, also by its UUID under one's own path."""
    writes = name not in ("get", "query", "search")

    def status(key: str | None, tenant: str, collection: str, sent: Any = body) -> int:
        path = f"{COLLECTIONS.format(tenant)}/{ids[collection]}/{name}"
        return call(door, ring.tokens[key] if key else None, "POST", path, json.dumps(sent).encode())[0]

    before = {place: kept(engine, ids, place) for place in ids if place != "acme/docs-1"}
    assert status(None, "acme", "acme/docs-1") == 401
    assert status("reader", "acme", "acme/docs-1") == (403 if writes else done)
    assert status("writer", "acme", "acme/docs-1") == done
    for key in ("reader", "writer"):
        forbidden = writes and key == "reader"
        assert status(key, "acme", "other/docs-1") == (403 if forbidden else 404)
        assert status(key, "acme", "acme/secret") == status(key, "other", "other/docs-1") == 403
    if name == "fork":
        assert status("writer", "acme", "acme/docs-1", {"new_name": "secret-2"}) == 403
        assert engine.count_collections("acme", "prod") == 3
        assert engine.count_collections("other", "prod") == 2
    assert {place: kept(engine, ids, place) for place in before} == before


def kept(engine: Engine, ids: dict[str, str], place: str) -> int:
    return engine.count(Target(place.partition("/")[0], "prod", ids[place]))
