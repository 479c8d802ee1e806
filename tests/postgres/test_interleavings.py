"""Two instances at one thing: one is held up before each of its statements in turn while the other does all it has to.

Whatever they do, both are answered as if one had come after the other, and what is there then is what that leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import psycopg
import pytest

from chromakeep.engine import DATABASE, TENANT, Change, CollectionWanted, Refused, Target, Wanted, Written
from chromakeep.errors import TargetNotEmpty
from chromakeep.filters import Compare
from chromakeep.postgres import catalog
from chromakeep.postgres.engine import PostgresEngine
from chromakeep.postgres.pool import Pool
from chromakeep.postgres.sink import PostgresSink
from chromakeep.records import Definition

Act = Callable[[PostgresEngine, Target], object]
FIELDS = Wanted(documents=True, metadatas=True, embeddings=True)


def named(name: str, **more: Any) -> CollectionWanted:
    return CollectionWanted(name, **more)


def written(*ids: str, dimension: int = 2, number: int = 1) -> Written:
    """Whoever writes it leaves its number in the vector, the document and the metadata."""
    return Written(
        list(ids),
        np.full((len(ids), dimension), number, np.float32),
        None,
        [f"text {number}"] * len(ids),
        None,
        [{f"key{number}": number, "all": True}] * len(ids),
    )


ACTS: dict[str, Act] = {
    "create x": lambda e, t: e.create_collection(TENANT, DATABASE, named("x")).name,
    "create or get x": lambda e, t: e.create_collection(TENANT, DATABASE, named("x", get_or_create=True)).name,
    "create or get y": lambda e, t: e.create_collection(TENANT, DATABASE, named("y", get_or_create=True)).name,
    "rename to y": lambda e, t: e.modify(t, Change(name="y")),
    "set metadata": lambda e, t: e.modify(t, Change(metadata={"b": 2})),
    "drop x": lambda e, t: e.drop_collection(TENANT, DATABASE, "x"),
    "drop y": lambda e, t: e.drop_collection(TENANT, DATABASE, "y"),
    "fork to y": lambda e, t: e.fork(t, "y").dimension,
    "add": lambda e, t: e.add(t, written("1", "3")),
    "add wider": lambda e, t: e.add(t, written("3", "4", dimension=3, number=2)),
    "upsert": lambda e, t: e.upsert(t, written("2", "3", number=3)),
    "update": lambda e, t: e.update(t, written("1", "2", "3", number=4)),
    "delete": lambda e, t: e.delete(t, ["1", "3"], None, None),
    "delete where": lambda e, t: e.delete(t, None, Compare("all", "$eq", True), None),
    "delete two": lambda e, t: e.delete(t, None, Compare("all", "$eq", True), 2),
    "drop database": lambda e, t: e.drop_database(TENANT, DATABASE),
    "reset": lambda e, t: e.reset(),
}
FULL = ("0", "1", "2", "5", "6")  # of what there is before; () for a collection that has no dimension yet
PAIRS: list[tuple[str, str, tuple[str, ...]]] = [
    ("create x", "drop x", FULL),
    ("create or get y", "fork to y", FULL),
    ("rename to y", "drop x", FULL),
    ("rename to y", "create or get y", FULL),
    ("fork to y", "add", FULL),
    ("fork to y", "add", ()),
    ("fork to y", "drop x", FULL),
    ("drop database", "add", FULL),
    ("drop database", "fork to y", FULL),
    ("reset", "upsert", FULL),
    ("add", "reset", FULL),
    ("add", "drop x", ()),
    ("add", "add wider", ()),
    ("add", "delete", FULL),
    ("upsert", "update", FULL),
    ("upsert", "delete", FULL),
    ("update", "upsert", FULL),
    ("delete", "update", FULL),
    ("delete two", "delete two", FULL),
    ("delete two", "delete", FULL),
]


@pytest.fixture(scope="module")
def engines(database_url: str) -> Iterator[tuple[PostgresEngine, PostgresEngine]]:
    made = [PostgresEngine(database_url, 2, allow_reset=True) for _ in range(2)]
    yield made[0], made[1]
    for one in made:
        one.close()


def begin(engine: PostgresEngine, ids: tuple[str, ...]) -> Target:
    engine.reset()
    target = Target(TENANT, DATABASE, engine.create_collection(TENANT, DATABASE, named("x")).id)
    if ids:
        engine.add(target, written(*ids, number=0))
    return target


def outcome(act: Act, engine: PostgresEngine, target: Target) -> object:
    try:
        return act(engine, target)
    except Refused as refused:
        return refused.status


def state(engine: PostgresEngine) -> list[Any]:
    """All there is; and every table is of a collection."""
    found = []
    for one in engine.collections(TENANT, DATABASE, None, 0):
        rows = engine.get(Target(TENANT, DATABASE, one.id), None, None, None, 0, FIELDS)
        assert rows.embeddings is not None and one.schema is not None
        values = zip(rows.ids, rows.embeddings.tolist(), rows.documents or (), rows.metadatas or (), strict=True)
        found.append((one.name, one.dimension, one.metadata, sorted(values), sorted(one.schema["keys"])))
    assert engine.pool.run(catalog.orphans, write=False) == []
    return sorted(found, key=repr)


class HeldUp:
    """The thread that calls ``here`` stops before its ``at``-th statement from then on, until it may go ``on``."""

    def __init__(self, at: int, patch: pytest.MonkeyPatch) -> None:
        self.at, self.count = at, 0
        self.there, self.on = threading.Event(), threading.Event()
        self._thread = 0
        patch.setattr(psycopg.Cursor, "execute", self._around(psycopg.Cursor.execute))
        patch.setattr(psycopg.Cursor, "copy", self._around(psycopg.Cursor.copy))
        patch.setattr(psycopg.Connection, "commit", self._around(psycopg.Connection.commit))

    def here(self) -> None:
        self._thread = threading.get_ident()

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **more: Any) -> Any:
            if threading.get_ident() == self._thread:
                self.count += 1
                if self.count == self.at:
                    self.there.set()
                    assert self.on.wait(60)
            return real(*arguments, **more)

        return called


def beside(url: str, at: int, slow: Callable[[], object], other: Callable[[], object]) -> tuple[object, object, bool]:
    """What both give, ``other`` done whole, or as far as it comes, before the statement ``at`` of ``slow``; and whether
    ``slow`` has so many."""

    def held() -> object:
        one.here()
        return slow()

    with (
        pytest.MonkeyPatch.context() as patch,
        ThreadPoolExecutor(2) as threads,
        psycopg.connect(url, autocommit=True) as watch,
    ):
        one = HeldUp(at, patch)
        first = threads.submit(held)
        while not (one.there.wait(0.002) or first.done()):
            pass
        reached = one.there.is_set()
        second = threads.submit(other)
        while reached and not second.done() and not waits(watch):
            pass
        one.on.set()
        return first.result(60), second.result(60), reached


def waits(watch: psycopg.Connection[Any]) -> bool:
    """Whether a session waits for another one's lock."""
    row = watch.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return bool(row and row[0])


@pytest.mark.parametrize("first, second, ids", PAIRS)
def test_two_are_answered_as_one_after_the_other(
    engines: tuple[PostgresEngine, PostgresEngine],
    database_url: str,
    first: str,
    second: str,
    ids: tuple[str, ...],
) -> None:
    one, other = engines
    target = begin(one, ids)
    serial: list[Any] = [[outcome(ACTS[first], one, target), outcome(ACTS[second], one, target), state(one)]]
    target = begin(one, ids)
    said = outcome(ACTS[second], one, target)
    serial.append([outcome(ACTS[first], one, target), said, state(one)])
    for at in count(1):
        target = begin(one, ids)
        for engine in engines if ids else ():
            engine.count(target)  # it is known to both
        slow, quick, reached = beside(
            database_url,
            at,
            lambda target=target: outcome(ACTS[first], one, target),  # type: ignore[misc]
            lambda target=target: outcome(ACTS[second], other, target),  # type: ignore[misc]
        )
        assert [slow, quick, state(one)] in serial, f"before the statement {at} of {first}"
        if not reached:
            break


@pytest.mark.parametrize("conflict", ["fail", "replace"])
def test_a_copy_publishes_beside_who_makes_one_of_the_name(
    engines: tuple[PostgresEngine, PostgresEngine], database_url: str, conflict: str
) -> None:
    """One of the two is refused, or what was made is kept under another name; never an error, nothing is lost."""
    one, other = engines
    for at in count(1):
        one.reset()
        sink = PostgresSink(Pool(database_url, 2), TENANT, DATABASE)
        sink.collection(Definition("y"), conflict=conflict).finish()

        def publish(sink: PostgresSink = sink) -> object:
            try:
                return sink.publish()
            except TargetNotEmpty:
                return 409

        slow, quick, reached = beside(
            database_url,
            at,
            publish,
            lambda: outcome(
                lambda e, t: e.create_collection(TENANT, DATABASE, named("y")).id, other, Target("", "", "")
            ),
        )
        sink.close()
        names = sorted(found.name for found in one.collections(TENANT, DATABASE, None, 0))
        assert "y" in names
        if conflict == "fail":
            assert len(names) == 1 and (slow == 409) != (quick == 409)
        else:
            assert slow is None and len(names) == 1 + (quick != 409)
        if not reached:
            break
