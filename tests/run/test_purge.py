"""The held purge: what a kill tears is made again from the last snapshot and the queue, whatever Chroma persisted."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chromakeep.chroma.capture import capture
from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.client import Ref
from chromakeep.chroma.purge import HOLD, SINCE, SWITCH, held_after, hold, purge, release
from chromakeep.chroma.salvage import salvage_all
from chromakeep.chroma.server import ChromaServer
from run.running import ENV, add, create, eventually, held, running


def switch(data: Path) -> dict[str, object]:
    """The object that Chroma reads before each purge."""
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        return dict(json.loads(db.execute("SELECT config_json_str FROM embeddings_queue_config").fetchone()[0]))


def rows(data: Path, ref: Ref) -> list[int]:
    """Sequence numbers of a collection's queue."""
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        found = db.execute("SELECT seq_id FROM embeddings_queue WHERE topic LIKE ? ORDER BY seq_id", (f"%{ref.id}",))
        return [seq for (seq,) in found]


def applied(copy: Path) -> dict[str, int]:
    """What both segments of a copy hold, by topic."""
    with Catalog(copy) as catalog:
        return {e.topic: min(e.metadata_seq, e.vector_seq or 0) for e in catalog.entries}


def test_a_held_queue_keeps_its_rows_and_a_purge_takes_what_a_copy_has(tmp_path: Path) -> None:
    """Held beside a running server: persists delete nothing; ours deletes the rows before the last applied one."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        ref = create(server.client, "one", sync_threshold=10)
        assert hold(data / "chroma.sqlite3") and hold(data / "chroma.sqlite3")
        for start in range(0, 100, 10):
            add(server.client, ref, start, 10)
        assert len(rows(data, ref)) == 100
        copy = capture(data, tmp_path / "copy").path
        add(server.client, ref, 100, 15)
        assert purge(data / "chroma.sqlite3", applied(copy)) == 99
        assert rows(data, ref) == list(range(100, 116))
        assert purge(data / "chroma.sqlite3", applied(copy)) == 0
        add(server.client, ref, 200, 10)
    assert held(data, ref).keys() == {f"i{n}" for n in (*range(115), *range(200, 210))}


def test_a_copy_is_never_held_and_a_release_leaves_what_was_there(tmp_path: Path) -> None:
    """Whoever serves a restored snapshot finds Chroma's own switch; released, the object is as Chroma wrote it."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        add(server.client, create(server.client, "one"), 0, 3)
        server.client.count(create(server.client, "one"))
        before = switch(data)
        found = hold(data / "chroma.sqlite3")
        assert switch(data) == {**before, SWITCH: False, SINCE: 3, HOLD: found}
        assert switch(capture(data, tmp_path / "copy").path) == before
        assert switch(capture(data, tmp_path / "copy").path) == before  # brought up to date: the same
        assert release(data / "chroma.sqlite3") and not release(data / "chroma.sqlite3")
        assert switch(data) == before


def test_a_queue_that_chroma_never_purges_is_not_ours(tmp_path: Path) -> None:
    """Of directories begun before 0.5.6: neither held nor purged nor changed. Nor is a missing database made."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        ref = create(server.client, "one", sync_threshold=5)
        add(server.client, ref, 0, 3)
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db, db:
        db.execute("UPDATE embeddings_queue_config SET config_json_str = ?", ('{"automatically_purge":false}',))
    assert not hold(data / "chroma.sqlite3")
    assert purge(data / "chroma.sqlite3", applied(data) | {f"persistent://default/default/{ref.id}": 3}) == 0
    assert switch(data) == {SWITCH: False} and rows(data, ref) == [1, 2, 3]
    assert not hold(tmp_path / "chroma.sqlite3") and not (tmp_path / "chroma.sqlite3").exists()


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"automatically_purge":1}', "[" * 10_000])
def test_a_switch_that_makes_no_sense_is_left_alone(tmp_path: Path, text: str) -> None:
    """Of unknown origin: not held, not changed."""
    data = tmp_path / "chroma.sqlite3"
    with closing(sqlite3.connect(data)) as db, db:
        db.execute("CREATE TABLE embeddings_queue (seq_id INTEGER PRIMARY KEY, topic)")
        db.execute("CREATE TABLE embeddings_queue_config (id INTEGER PRIMARY KEY, config_json_str TEXT)")
        db.execute("INSERT INTO embeddings_queue_config VALUES (1, ?)", (text,))
    assert not hold(data) and not release(data) and purge(data, {"t": 5}) == 0
    with closing(sqlite3.connect(data)) as db:
        assert held_after(db) is None
        assert db.execute("SELECT config_json_str FROM embeddings_queue_config").fetchone() == (text,)


def scramble(server: ChromaServer, ref: Ref, chance: random.Random, vectors: dict[str, float], count: int) -> None:
    """Writes of every kind, of which many do nothing in Chroma, and some twice."""
    names = [f"n{n}" for n in range(60)]
    for _ in range(count):
        kind = chance.choice(["add", "upsert", "update", "delete", "metadata"])
        ids = chance.sample(names, chance.randint(1, 6))
        values = {i: float(chance.randrange(1, 1 << 20)) for i in ids}
        if kind == "delete":
            server.client.request("POST", f"{ref.path}/delete", {"ids": ids})
            for i in ids:
                vectors.pop(i, None)
        elif kind == "metadata":
            server.client.request("POST", f"{ref.path}/update", {"ids": ids, "metadatas": [{"a": 1}] * len(ids)})
        else:
            body = {"ids": ids, "embeddings": [[values[i], 1, 1, 1] for i in ids], "documents": ids}
            server.client.request("POST", f"{ref.path}/{kind}", body)
            for i in ids:
                if kind == "upsert" or (i in vectors) == (kind == "update"):
                    vectors[i] = values[i]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_copy", [True, False])
def test_a_torn_map_costs_nothing_after_any_number_of_persists(tmp_path: Path, seed: int, with_copy: bool) -> None:
    """The pickle cut to nothing, dozens of persists after the last copy, or in a collection that no copy has; ids
    deleted, added again and added twice: every vector is found, and none is wrong. Without the held rows it is not so.
    """
    chance, data, vectors = random.Random(seed), tmp_path / "data", dict[str, float]()
    with ChromaServer(data, env=ENV) as server:
        if not with_copy:  # something older, so that the collection does not begin with the first row of all
            add(server.client, create(server.client, "older"), 0, 20)
        hold(data / "chroma.sqlite3")
        ref = create(server.client, "torn", sync_threshold=chance.choice([7, 20]))
        scramble(server, ref, chance, vectors, 60)
        if with_copy:
            copy = capture(data, tmp_path / "copy").path
            purge(data / "chroma.sqlite3", applied(copy))
            scramble(server, ref, chance, vectors, 120)
    with Catalog(data) as catalog:
        entry = catalog.entry(ref.id)
    assert rows(data, ref)[0] < (entry.vector_seq or 0)
    os.truncate(data / str(entry.vector_segment) / "index_metadata.pickle", 0)

    found = salvage_all(data, ref.id, older=tmp_path / "copy" if with_copy else None)
    assert found.missing == ()
    assert {i: float(v[0]) for i, v in zip(found.ids, found.vectors, strict=True)} == vectors

    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db, db:  # as Chroma would have purged them
        db.execute("DELETE FROM embeddings_queue WHERE topic LIKE ? AND seq_id < ?", (f"%{ref.id}", entry.vector_seq))
        db.execute("UPDATE embeddings_queue_config SET config_json_str = ?", ('{"automatically_purge":true}',))
    found = salvage_all(data, ref.id, older=tmp_path / "copy" if with_copy else None)
    assert found.missing
    assert all(vectors[i] == float(v[0]) for i, v in zip(found.ids, found.vectors, strict=True))


def test_a_collection_purged_after_a_snapshot_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """Born while the purge was held and purged since: its rows no longer make it, and nothing is made of them alone."""
    data, vectors, chance = tmp_path / "data", dict[str, float](), random.Random(1)
    with ChromaServer(data, env=ENV) as server:
        create(server.client, "first")
        hold(data / "chroma.sqlite3")
        ref = create(server.client, "torn", sync_threshold=10)
        scramble(server, ref, chance, vectors, 60)
        copy = capture(data, tmp_path / "copy").path
        purge(data / "chroma.sqlite3", applied(copy))
        scramble(server, ref, chance, vectors, 20)
    with Catalog(data) as catalog:
        segment = str(catalog.entry(ref.id).vector_segment)
    os.truncate(data / segment / "index_metadata.pickle", 0)
    alone = salvage_all(data, ref.id)
    assert alone.missing
    assert all(vectors[i] == float(v[0]) for i, v in zip(alone.ids, alone.vectors, strict=True))
    both = salvage_all(data, ref.id, older=copy)
    assert {i: float(v[0]) for i, v in zip(both.ids, both.vectors, strict=True)} == vectors


def test_a_run_holds_purges_and_lets_go(tmp_path: Path) -> None:
    """Held while it serves, purged down to what no snapshot has, and as Chroma left it after a clean end."""
    data, repository = tmp_path / "data", tmp_path / "repository"
    repository.mkdir()
    with running(data, repository, every=0.3) as one:
        one.until("serving on")
        ref = create(one.client, "one", sync_threshold=10)
        for start in range(0, 60, 10):
            add(one.client, ref, start, 10)
        eventually(lambda: SINCE in switch(data), "the purge held")
        for start in range(60, 100, 10):  # a change brings the next snapshot, and that the purge
            taken = len(one.said("snapshot "))
            add(one.client, ref, start, 10)
            one.until("snapshot ", taken + 1)
        assert len(rows(data, ref)) <= 40
        one.end()
        assert switch(data)[SWITCH] is True and SINCE not in switch(data)
    with running(data, repository, every=60) as two:
        two.until("serving on")
        assert SINCE in switch(data)
