"""Records: what was written is what is read, in Chroma's order and by its rules, also where others write at once."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from chromakeep.engine import Refused, Wanted, Written
from chromakeep.filters import Compare, Every, Matches
from chromakeep.postgres import packing, trigrams, writing
from chromakeep.postgres.batch import gathered
from chromakeep.postgres.pool import Pool
from postgres.instances import eventually
from postgres.tables import ALL, Records

_numbers = itertools.count(1)
HOSTILE = [
    "'; DROP SCHEMA chromakeep CASCADE; --",
    '"); DELETE FROM chromakeep.tenants; --',
    "%s %(a)s %b %% {0} $1 ::text",
    "\\'; SELECT 1",
    "a\0b",
    "\U0010fffe\U0010ffff\0",
    "é" * 5000,
    "null",
    '{"a": 1}',
    "\\x00",
    "NaN",
    "\u2028\x7f\x01",
]


@pytest.fixture
def records(pool: Pool) -> Records:
    return Records(pool, f"records-{next(_numbers)}")


def test_add_and_get(records: Records) -> None:
    records.add(
        ["b", "a", "c"],
        [[1, 2], [3, 4], [5, 6]],
        documents=["one", None, ""],
        uris=[None, "u", None],
        metadatas=[{"i": 1, "f": 1.0, "s": "x", "t": True, "l": [1, 2]}, None, {}],
    )
    found = records.get()
    assert found.ids == ["b", "a", "c"]
    assert found.documents == ["one", None, ""]
    assert found.uris == [None, "u", None]
    assert found.embeddings is not None and found.embeddings.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert records.shown("b")[2] == {"i": 1, "f": 1.0, "s": "x", "t": True, "l": [1, 2]}
    assert found.metadatas is not None and found.metadatas[1:] == [None, None]
    assert records.get(wanted=Wanted()).documents is None
    assert records.count() == 3


@pytest.mark.parametrize("n", [3, 300])
def test_add_leaves_alone_what_is_there(records: Records, n: int) -> None:
    records.add(["id1"], [[9, 9]], documents=["old"])
    ids = [f"id{i}" for i in range(n)]
    records.add([*ids, "id2"], documents=[*(f"new {i}" for i in range(n)), "last"])
    assert records.ids() == ["id1", "id0", *ids[2:]]
    assert records.shown("id1")[0] == "old"
    assert records.shown("id2")[0] == "new 2"
    records.add(ids)
    assert records.count() == n


@pytest.mark.parametrize("n", [2, 200])
def test_every_text_comes_back(records: Records, n: int) -> None:
    """Whether by INSERT or by COPY: as ids, documents, URIs, keys and values, and by filters."""
    ids = [f"{text}{i}" for i in range(n) for text in HOSTILE]
    metadatas = [{"k" + text: text, "l": [text]} for _ in range(n) for text in HOSTILE]
    records.add(ids, documents=ids, uris=ids, metadatas=metadatas)
    found = records.get()
    assert found.ids == found.documents == found.uris == ids
    for i, text in enumerate(HOSTILE):
        assert records.shown(ids[i])[2] == metadatas[i]
        assert len(records.ids(Compare("k" + text, "$eq", text))) == n
        assert ids[i] in records.ids(Matches("$contains", text))
    records.upsert(ids[:20], documents=ids[:20], metadatas=[{"l": None, "\0": "\0"}] * 20)
    assert records.shown(ids[4])[2] == {"ka\0b": "a\0b", "\0": "\0"}
    assert records.delete(ids) == len(ids)


def test_numbers_come_back(records: Records) -> None:
    values: list[Any] = [0, 1, -1, 1.0, 0.1, 1e300, -1e300, 5e-324, 1.7976931348623157e308, 2**63 - 1, -(2**63)]
    values += [2.0**53, 2.0**53 + 2, 1e16, 1e22, 1e23, 123456789012345680.0, 3.14, -2.5e-7, True, False]
    records.add(["a"], metadatas=[{f"k{i}": value for i, value in enumerate(values)}])
    shown = records.shown("a")[2]
    assert shown is not None
    back = [shown[f"k{i}"] for i in range(len(values))]
    assert [(type(value), value) for value in back] == [(type(value), value) for value in values]
    records.upsert(["a"], metadatas=[{"z": -0.0, "big": 2**63, "list": [1.0, 1e300]}])
    shown = records.shown("a")[2]
    assert shown is not None and str(shown["z"]) == "0.0"
    assert isinstance(shown["big"], float) and shown["big"] == 2.0**63
    assert shown["list"] == [1.0, 1e300]
    assert shown["k3"] == 1.0 and isinstance(shown["k3"], float)  # what was merged with is as it was


def test_upsert_merges(records: Records) -> None:
    records.add(["a", "b"], documents=["d", "e"], uris=["u", None], metadatas=[{"x": 1, "y": 2}, None])
    before = records.places()
    records.upsert(
        ["c", "a", "b"],
        [[7, 7], [8, 8], [9, 9]],
        documents=[None, None, "f"],
        metadatas=[{"n": None, "m": 1}, {"x": None, "z": [1]}, {"q": "r"}],
    )
    after = records.places()
    assert records.ids() == ["a", "b", "c"]
    assert records.shown("a") == ("d", "u", {"y": 2, "z": [1]}, [8, 8])
    assert records.shown("b") == ("f", None, {"q": "r"}, [9, 9])
    assert records.shown("c") == (None, None, {"m": 1}, [7, 7])
    assert [after[one][0] for one in "ab"] == [before[one][0] for one in "ab"]
    assert min(place for _, place in after.values()) > max(place for _, place in before.values())
    records.upsert(["a"], metadatas=[{"y": None, "z": []}])
    assert records.shown("a")[2] is None


def test_update_changes_what_is_given(records: Records) -> None:
    records.add(["a", "b", "c"], documents=["da", "db", None], metadatas=[{"k": 1}, {"k": 2}, None])
    before = records.places()
    records.update(
        ["b", "nobody", "a"],
        embeddings=np.array([[5, 5], [6, 6], [7, 7]], np.float32),
        given=np.array([True, True, False]),
        documents=[None, "x", "new"],
        metadatas=[{"l": 1.5}, {"k": 3}, None],
    )
    after = records.places()
    assert records.shown("a") == ("new", None, {"k": 1}, [0, 1])
    assert records.shown("b") == ("db", None, {"k": 2, "l": 1.5}, [5, 5])
    assert records.count() == 3
    assert after["a"] == before["a"] and after["c"] == before["c"]
    assert after["b"][0] == before["b"][0] and after["b"][1] > max(place for _, place in before.values())
    records.update(["a"], uris=["u"])
    records.update(["a"])
    assert records.shown("a") == ("new", "u", {"k": 1}, [0, 1])
    assert records.ids(Matches("$contains", "new")) == ["a"]


def test_an_id_that_comes_very_often_is_one_record() -> None:
    """With what each of them says. To copy what has been gathered for each one more would take minutes."""
    n = 300_000
    metadatas = [{"n": i, f"k{i}": None} if i % 2 else None for i in range(n)]
    documents = [None if i % 2 else str(i) for i in range(n)]
    batch = gathered(Written(["a"] * n, documents=documents, metadatas=metadatas), 0, n, first=False)
    assert (batch.ids, batch.order, batch.documents) == (["a"], [0], [str(n - 2)])
    assert batch.metadatas == [{"n": n - 1} | {f"k{i}": None for i in range(1, n, 2)}]
    assert metadatas[1] == {"n": 1, "k1": None}


def test_ids_that_come_twice(records: Records) -> None:
    """Of add the first counts; of upsert and update what the later ones say, on top of the earlier ones."""
    records.add(["a", "b", "a"], [[1, 1], [2, 2], [3, 3]], documents=["1", "2", "3"])
    assert records.shown("a") == ("1", None, None, [1, 1])
    records.upsert(
        ["n", "a", "n", "a"],
        [[4, 4], [5, 5], [6, 6], [7, 7]],
        documents=["x", None, None, None],
        metadatas=[{"p": 1, "q": 2}, {"r": 1}, {"q": None, "p": 3}, None],
    )
    assert records.shown("n") == ("x", None, {"p": 3}, [6, 6])
    assert records.shown("a") == ("1", None, {"r": 1}, [7, 7])
    assert records.ids() == ["a", "b", "n"]
    records.update(
        ["a", "a"],
        embeddings=np.array([[8, 8], [9, 9]], np.float32),
        given=np.array([True, False]),
        documents=["old", "new"],
    )
    assert records.shown("a") == ("new", None, {"r": 1}, [8, 8])


def test_an_id_that_comes_back_goes_last(records: Records) -> None:
    records.add(["a", "b", "c"])
    assert records.delete(["a"]) == 1
    records.add(["a"])
    assert records.ids() == ["b", "c", "a"]
    assert records.get(["a", "c", "none", "a"]).ids == ["c", "a"]
    assert records.get([]).ids == []


def test_delete(records: Records) -> None:
    n = 20
    records.add([f"id{i}" for i in range(n)], metadatas=[{"i": i} for i in range(n)])
    assert records.delete() == 0
    assert records.delete(["none", "id3", "id3"]) == 1
    assert records.delete(None, Compare("i", "$lt", 8), 2) == 2
    assert records.ids()[:3] == ["id2", "id4", "id5"]
    assert records.delete(["id2", "id4", "id15"], Compare("i", "$gte", 4)) == 2
    assert records.delete(None, Compare("i", "$gte", 18), 10) == 2
    assert records.delete(None, Every(())) == records_left(n)
    assert records.count() == 0


def records_left(n: int) -> int:
    return n - 1 - 2 - 2 - 2


def test_limit_and_offset(records: Records) -> None:
    n = 1500
    records.add([f"id{i}" for i in range(n)], metadatas=[{"tenth": i % 10 == 0, "late": i > 1400} for i in range(n)])
    everything = [f"id{i}" for i in range(n)]
    assert records.ids(limit=0) == []
    assert records.ids(limit=3, offset=4) == everything[4:7]
    assert records.ids(offset=1490) == everything[1490:]
    assert records.ids(limit=5, offset=n) == []
    for key, kept in (("tenth", everything[::10]), ("late", everything[1401:])):
        where = Compare(key, "$eq", True)
        assert records.ids(where) == kept
        for limit, offset in ((1, 0), (10, 0), (10, 7), (60, 45), (1000, 3), (10, 95), (10, 5000)):
            assert records.ids(where, limit, offset) == kept[offset : offset + limit]
        assert records.ids(where, None, 5) == kept[5:]


def test_the_first_vector_fixes_the_dimension(records: Records) -> None:
    records.add([], np.zeros((0, 3)))
    assert records.held.dimension is None
    records.update(["nobody"], embeddings=np.zeros((1, 3), np.float32))
    assert records.held.dimension == 3
    for write in (records.add, records.upsert):
        assert refused(write, ["a"], [[1, 2]]) == (400, "Collection expecting embedding with dimension of 3, got 2")
    assert refused(records.update, ["a"], embeddings=np.zeros((1, 4), np.float32))[0] == 400
    records.update(["a"], embeddings=np.zeros((1, 4), np.float32), given=np.array([False]))


def test_dimensions_beyond_the_type(records: Records) -> None:
    assert refused(records.add, ["a"], [[0.0] * 16_001])[0] == 400
    records.add(["a"], [[0.5] * 16_000])
    assert records.shown("a")[3] == [0.5] * 16_000


def test_a_collection_that_is_gone(records: Records) -> None:
    held = records.held
    records.pool.run(lambda c: c.execute("DELETE FROM chromakeep.collections WHERE id = %s", (held.id,)), write=True)
    status, message = refused(records.do, writing.add, held, Written(["a"], np.zeros((1, 2), np.float32)))
    assert status == 404 and held.id in message


@pytest.mark.parametrize("n", [5, 100])
def test_halfvec(pool: Pool, n: int) -> None:
    records = Records(pool, f"half-{n}", storage="halfvec")
    records.add([f"id{i}" for i in range(n)], [[i + 0.5, -1, 2**-10] for i in range(n)])
    records.upsert(["id0"], [[1, 1, 65504]])
    assert records.shown("id2")[3] == [2.5, -1, 2**-10]
    assert records.shown("id0")[3] == [1, 1, 65504]
    assert refused(records.upsert, ["id1"], [[1, 1, 65520]])[0] == 400


def test_vectors_are_exact(records: Records) -> None:
    rng = np.random.default_rng(7)
    vectors = rng.integers(0, 2**32, (200, 17), np.uint32).view(np.float32)
    vectors[~np.isfinite(vectors)] = np.float32(1e-45)
    records.add([f"a{i}" for i in range(200)], vectors)
    records.upsert([f"b{i}" for i in range(20)], vectors[:20])
    found = records.get().embeddings
    assert found is not None
    assert found.tobytes() == np.concatenate([vectors, vectors[:20]]).tobytes()


def test_internal_keys_are_hidden(records: Records) -> None:
    records.add(["a", "b"], metadatas=[{"chroma:x": 1}, {"chroma:x": "\0", "y": "chroma:x"}])
    assert records.get().metadatas == [b"{}", b'{"y": "chroma:x"}']
    assert records.ids(Compare("chroma:x", "$eq", 1)) == ["a"]


def test_large_texts(records: Records) -> None:
    """Five megabytes, in every place, with all indexes."""
    records.make_indexes("k")
    rng = random.Random(3)
    large = "".join(map(chr, rng.choices(range(32, 0x3000), k=17_000))) * 100
    records.add(["x" * 5000, "b"], documents=[large, "small"], metadatas=[{"k": large, "l": [large]}, {"k": 1}])
    assert records.ids(Matches("$contains", large[900_900:901_000])) == ["x" * 5000]
    assert records.ids(Compare("k", "$eq", large)) == ["x" * 5000]
    assert records.ids(Compare("k", "$gt", 0)) == ["b"]
    assert records.get(["x" * 5000]).documents == [large]


def test_trigrams_are_those_of_the_document(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigrams, "_PORTION", 10_000)
    texts = ["", "ab", "abc", "abcabcabc", None, "中文字😀a", "x" * 300_000 + "yz", "abd"]
    hashes, offsets = trigrams.of(texts)
    each = [trigrams.of([text])[0].tolist() for text in texts]
    assert [hashes[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())] == each
    assert list(map(len, each)) == [0, 0, 1, 3, 0, 3, 3, 1]
    assert trigrams.required(["abc", "abd", "ab"]).tolist() == sorted(each[2] + each[7])
    for n in (1, 9):
        records.add([f"{n}-{i}" for i in range(len(texts) * n)], documents=texts * n)
        table = records.held.table
        rows = records.pool.run(
            lambda c, table=table, n=n: c.execute(
                f"SELECT document, trigrams FROM {table} WHERE id LIKE '{n}-%%' ORDER BY seq", ()
            ).fetchall(),
            write=False,
        )
        assert [row[1] for row in rows] == [
            None if records.trgm or row[0] is None else trigrams.of([row[0]])[0].tolist() for row in rows
        ]


def test_concurrent_upserts_of_the_same_ids(records: Records) -> None:
    """Every record is one that somebody wrote, whole; none is lost and nobody waits for ever."""
    ids = [f"id{i}" for i in range(150)]

    def work(worker: int) -> None:
        rng = random.Random(worker)
        for turn in range(4):
            order = rng.sample(ids, 120)
            mark = worker * 10 + turn
            write = records.add if rng.random() < 0.3 else records.upsert
            write(order, [[mark, mark]] * 120, documents=[str(mark)] * 120, metadatas=[{"mark": mark}] * 120)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert sorted(records.ids()) == sorted(ids)
    for record_id in ids[:20]:
        document, _, metadata, vector = records.shown(record_id)
        assert metadata is not None
        assert document == str(metadata["mark"]) and vector == [metadata["mark"]] * 2


def test_concurrent_first_adds_of_two_dimensions(pool: Pool) -> None:
    """One dimension wins, and no vector of the other one is in."""
    for turn in range(5):
        records = Records(pool, f"dimensions-{turn}")
        held, ready, outcomes = records.held, threading.Barrier(6), []

        def work(i: int, records: Records = records, held: Any = held, ready: Any = ready) -> tuple[int, bool]:
            dimension = 2 + i % 2
            ready.wait(30)
            try:
                records.do(writing.add, held, Written([f"id{i}"], np.ones((1, dimension), np.float32)))
            except Refused as refused:
                assert refused.status == 400
                return dimension, False
            return dimension, True

        with ThreadPoolExecutor(6) as threads:
            outcomes = list(threads.map(work, range(6)))
        winner = records.held.dimension
        assert all(done == (dimension == winner) for dimension, done in outcomes)
        found = records.get(wanted=ALL).embeddings
        assert found is not None and found.shape == (3, winner)


def test_an_insert_that_meets_another(records: Records) -> None:
    """Somebody inserts one of the ids between the look and the COPY."""
    records.add(["first"])
    ids = [f"id{i}" for i in range(100)]
    held, waiting = records.held, threading.Event()

    def slow(connection: Any) -> None:
        writing.add(connection, held, Written(["id50"], np.full((1, 2), 5, np.float32), documents=["mine"]))
        waiting.set()
        assert release.wait(90)

    release = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(records.do, slow)
        assert waiting.wait(30)
        two = threads.submit(records.upsert, ids, documents=["yours"] * 100)
        until_blocked(records)
        release.set()
        one.result(60)
        two.result(60)
    assert records.count() == 101
    assert records.shown("id50")[0] == "yours"


def until_blocked(records: Records) -> None:
    """Wait until one transaction waits for another one."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"
    eventually(lambda: records.pool.run(lambda c: c.execute(waiting).fetchone(), write=False) != (0,), "one waits")


def refused(write: Callable[..., object], *arguments: Any, **members: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        write(*arguments, **members)
    return caught.value.status, caught.value.message


def test_packed_arrays_are_postgres_arrays(pool: Pool) -> None:
    def ask(connection: Any) -> Any:
        return connection.execute(
            "SELECT %b::text[], %b::int4[], %b::uuid[], %b::jsonb[], %b::text[]",
            (
                packing.texts([b"a", None, b""]),
                packing.integers(np.array([1, -2])),
                packing.uuids([b"\1" * 16]),
                packing.jsonbs([b'{"a": 1}', None]),
                packing.texts([]),
            ),
        ).fetchone()

    texts, integers, uuids, jsons, nothing = pool.run(ask, write=False)
    assert (texts, integers, jsons, nothing) == (["a", None, ""], [1, -2], [{"a": 1}, None], [])
    assert uuids[0].bytes == b"\1" * 16
