"""Bad days: PostgreSQL killed under load, writers that cross, text that would be SQL."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from chromakeep.engine import DATABASE, TENANT, CollectionWanted, Refused, Target, Wanted, Written
from chromakeep.filters import Compare, Matches
from chromakeep.postgres.embedded import Embedded
from chromakeep.postgres.engine import PostgresEngine

ALL = Wanted(True, True, True, True, True)
HOSTILE = ["'; DROP TABLE chromakeep.collections; --", '"x"', "%s %(x)s %b %%", "\\", "$1", "{}", "''"]
HOSTILE += ["a\0b", "\U0010fffe"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One that a test may kill."""
    made = Embedded(tmp_path_factory.mktemp("killed"), memory=1 << 30)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def engine(database_url: str) -> Iterator[PostgresEngine]:
    made = PostgresEngine(database_url, 16, allow_reset=True)  # one for each thread: none waits for one in vain
    made.reset()
    yield made
    made.close()


def collection(engine: PostgresEngine) -> Target:
    shown = engine.create_collection(TENANT, DATABASE, CollectionWanted("docs"))
    return Target(TENANT, DATABASE, shown.id)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_server_that_restarts_under_load_loses_nothing_that_was_acknowledged(
    server: Embedded, kill: signal.Signals
) -> None:
    """And has nothing of what was refused with 503: only of 504 nobody knows."""
    engine = PostgresEngine(server.url, 4, allow_reset=True)
    engine.reset()
    target = collection(engine)
    done: set[str] = set()
    refused: set[str] = set()
    over, some = threading.Event(), threading.Semaphore(0)

    def write(writer: int) -> None:
        for number in range(1_000_000):
            if over.is_set():
                return
            batch = [f"{writer}.{number}.{part}" for part in range(3)]
            try:
                engine.add(target, Written(batch, np.zeros((3, 2), np.float32)))
            except Refused as error:
                assert error.status in (503, 504)
                if error.status == 503:
                    refused.update(batch)
                over.wait(0.005)
            else:
                done.update(batch)
                some.release()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        for _ in range(40):
            assert some.acquire(timeout=60)
        assert server._process
        os.kill(server._process.pid, kill)
        server._process.wait()
        server.start()
    for _ in range(40):
        assert some.acquire(timeout=60), "the writers did not go on"
    over.set()
    for thread in threads:
        thread.join()
    there = set(engine.get(target, None, None, None, 0, Wanted()).ids)
    engine.close()
    assert done <= there
    assert not refused & there
    assert engine.pool._open == 0


def test_upserts_of_the_same_ids_in_any_order(engine: PostgresEngine) -> None:
    """All come through, and each record is as one of them left it: vector, document and metadata together."""
    target = collection(engine)
    ids = [str(number) for number in range(60)]

    def write(writer: int) -> None:
        order = random.Random(writer)
        for _ in range(3):
            some = order.sample(ids, 40)
            engine.upsert(
                target,
                Written(
                    some,
                    np.full((40, 2), writer, np.float32),
                    documents=[str(writer)] * 40,
                    metadatas=[{"writer": writer}] * 40,
                ),
            )

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(write, writer) for writer in range(8)]:
            future.result(120)
    rows = engine.get(target, None, None, None, 0, ALL)
    assert len(rows.ids) == len(set(rows.ids)) <= 60
    assert rows.documents and rows.metadatas and rows.embeddings is not None
    for document, metadata, vector in zip(rows.documents, rows.metadatas, rows.embeddings, strict=True):
        assert metadata and metadata.replace(b" ", b"") == b'{"writer":%s}' % str(document).encode()
        assert vector.tolist() == [float(str(document))] * 2


def test_first_records_of_two_dimensions_at_once(engine: PostgresEngine) -> None:
    """One dimension wins, and there is no record of the other."""
    target, start = collection(engine), threading.Barrier(16, timeout=30)

    def write(number: int) -> bool:
        start.wait()
        try:
            engine.add(target, Written([str(number)], np.zeros((1, 2 + number % 2), np.float32)))
        except Refused as refused:
            assert refused.status == 400
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        won = [future.result(60) for future in [threads.submit(write, number) for number in range(16)]]
    dimension = engine.collection_by_id(target).dimension
    assert won == [2 + number % 2 == dimension for number in range(16)]
    assert engine.count(target) == 8


def test_text_is_never_sql(engine: PostgresEngine) -> None:
    target = collection(engine)
    vectors = np.zeros((len(HOSTILE), 2), np.float32)
    metadatas = [{text: text, "k": text, "list": [text, text]} for text in HOSTILE]
    engine.add(target, Written(HOSTILE, vectors, documents=HOSTILE, uris=HOSTILE, metadatas=metadatas))
    rows = engine.get(target, None, None, None, 0, ALL)
    assert rows.ids == rows.documents == rows.uris == HOSTILE
    for text in HOSTILE:
        assert engine.get(target, [text], None, None, 0, ALL).documents == [text]
        assert engine.get(target, None, Compare("k", "$eq", text), None, 0, ALL).ids == [text]
        assert engine.get(target, None, Compare(text, "$eq", text), None, 0, ALL).ids == [text]
        assert text in engine.get(target, None, Matches("$contains", text), None, 0, ALL).ids
        assert engine.query(target, vectors[:1], 5, [text], Compare("k", "$eq", text), ALL)[0].ids == [text]
    assert engine.delete(target, None, Compare("k", "$eq", HOSTILE[0]), None) == 1
    assert engine.count(target) == len(HOSTILE) - 1
