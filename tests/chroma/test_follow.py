"""Follow: a live server brought up by the changes of another is read like the other, and writes on where it was."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma.test_tail import Model, World, looks
from chromakeep.changes import Change, Row, Table
from chromakeep.chroma import tail as tail_
from chromakeep.chroma.capture import capture
from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.follow import Follower
from chromakeep.chroma.nudge import TRIGGER, Nudge
from chromakeep.chroma.purge import hold
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.tail import Tail
from chromakeep.errors import VerificationFailed
from run.running import ENV, add, create


def queue(directory: Path) -> list[tuple[int, str, bytes]]:
    """Number, topic and id of all rows."""
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as db:
        return db.execute("SELECT seq_id, topic, CAST(id AS BLOB) FROM embeddings_queue ORDER BY seq_id").fetchall()


def read(client: ChromaClient, refs: dict[str, Ref]) -> Model:
    """What a server says it has, in every way it can be asked."""
    found: Model = {}
    for name, ref in refs.items():
        body = {"include": ["documents", "metadatas", "embeddings"]}
        got = client.request("POST", f"{ref.path}/get", body)
        found[name] = {
            i: (float(e[0]), d, m)
            for i, e, d, m in zip(got["ids"], got["embeddings"], got["documents"], got["metadatas"], strict=True)
        }
        assert client.count(ref) == len(found[name])
        vectors = {i: np.asarray(e, "<f4") for i, e in zip(got["ids"], got["embeddings"], strict=True)}
        for i in list(vectors)[:3]:
            assert client.query(ref, vectors[i], n=1) == [i]
    return found


def names(client: ChromaClient) -> dict[tuple[str, str], str]:
    """All collections: id by database and name."""
    databases = ("default_database", "second")
    return {(d, r.name): r.id for d in databases for r in client.list_collections("default_tenant", d)}


def states(tail: Tail) -> list[list[Change]]:
    """Changes up to now, by the states that they make."""
    found: list[list[Change]] = []
    while changes := looks(tail):
        found.append(changes)
    return found


@pytest.mark.parametrize("at_once", [8 << 20, 300])
@pytest.mark.parametrize("seed", range(4))
def test_a_live_server_follows_another_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int
) -> None:
    """After every change the follower is what was acknowledged, as its own API tells, with the same rows in its queue;
    then it takes writes itself, and a third server follows it."""
    monkeypatch.setattr(tail_, "AT_ONCE", at_once)
    data, chance = tmp_path / "data", random.Random(seed)
    with ChromaServer(data, env=ENV) as one:
        world = World(one.client, seed)
        hold(data / "chroma.sqlite3")
        for _ in range(10):
            world.step()
        copy = capture(data, tmp_path / "copy").path
        third = capture(data, tmp_path / "third").path
        hold(copy / "chroma.sqlite3")
        hold(third / "chroma.sqlite3")
        tail = Tail(data / "chroma.sqlite3")
        log: list[list[Change]] = []
        with ChromaServer(copy, env=ENV) as two:
            follower = Follower(copy, two.client)
            for _ in range(15):
                for _ in range(chance.randint(0, 8)):
                    world.step()
                for *before, last in states(tail):
                    log.append([*before, last])
                    follower.bring(last, before)
                    if chance.random() < 0.5:  # else several are shown at once
                        follower.show()
                follower.show()
                assert read(two.client, world.refs) == world.model
                assert names(two.client) == names(one.client)
                assert queue(copy) == queue(data)
            known = follower.known
            follower.finish()
            tail.close()
            one.stop()
            world.client = two.client
            tail = Tail(copy / "chroma.sqlite3", known)
            for _ in range(20):
                world.step()
            log += states(tail)
            for _ in range(10):
                world.step()
            log += states(tail)
            assert read(two.client, world.refs) == world.model
            tail.close()
    with ChromaServer(third, env=ENV) as server:
        follower = Follower(third, server.client)
        for *before, last in log:
            follower.bring(last, before)
            follower.bring(last, before)  # twice is once
        follower.show()
        assert read(server.client, world.refs) == world.model
        assert queue(third) == queue(copy)
        follower.close()


def test_what_the_api_takes_arrives_as_it_was(tmp_path: Path) -> None:
    """Arrays, keys taken away, documents without vectors, uris, zero bytes, collections and tenants: all as told."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as one:
        hold(data / "chroma.sqlite3")
        copy = capture(data, tmp_path / "copy").path
        tail = Tail(data / "chroma.sqlite3")
        with ChromaServer(copy, env=ENV) as two:
            follower = Follower(copy, two.client)
            one.client.request("POST", "/tenants", {"name": "another"})
            one.client.request("POST", "/tenants/another/databases", {"name": "there"})
            cosine = {"name": "odd", "configuration": {"hnsw": {"space": "cosine"}}, "metadata": {"k": 1.5}}
            made = one.client.request("POST", "/tenants/another/databases/there/collections", cosine)
            ref = Ref(made["id"], "odd", "another", "there")

            def tell(verb: str, **body: Any) -> None:
                one.client.request("POST", f"{ref.path}/{verb}", body)
                for *before, last in states(tail):
                    follower.bring(last, before)
                follower.show()

            vectors = [[0.1, -3e-9, 7], [1, 2, 3.3333], [0, 0, 1]]
            metadatas = [{"a": [1, 2], "b": True}, {"s": ["x", "y\u0000"], "f": 1.0}, None]
            documents = ["\u0000 zero", "", None]
            uris = ["file://x", None, None]
            tell("update", ids=["early"], metadatas=[{"no": 1}])  # of nothing, before there is a dimension
            tell("add", ids=["a", "b", "ü"], embeddings=vectors, metadatas=metadatas, documents=documents, uris=uris)
            tell("update", ids=["a", "none"], metadatas=[{"b": None, "n": 3}, {"x": 1}])
            tell("update", ids=["b"], documents=["other"])
            tell("add", ids=["early", "a"], embeddings=[[1, 1, 1], [2, 2, 2]])
            tell("upsert", ids=["ü"], embeddings=[[9, 9, 9]], metadatas=[{"late": [True]}])
            tell("delete", where={"late": {"$contains": True}})
            one.client.request("PUT", ref.path, {"new_metadata": {"k": 2}})
            tell("delete", ids=["absent"])
            body = {"include": ["documents", "metadatas", "embeddings", "uris"]}
            for path in (f"{ref.path}/get", "/tenants/another/databases/there/collections/odd"):
                method, sent = ("POST", body) if path.endswith("get") else ("GET", None)
                assert one.client.request(method, path, sent) == two.client.request(method, path, sent)
            assert two.client.count(ref) == 3
            follower.close()
        tail.close()


def test_thousands_of_rows_and_persists(tmp_path: Path) -> None:
    """Batches as large as the client's largest, of more than an index is written for; deleted again at the end."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as one:
        hold(data / "chroma.sqlite3")
        ref = create(one.client, "large", sync_threshold=1000)
        copy = capture(data, tmp_path / "copy").path
        tail = Tail(data / "chroma.sqlite3")
        with ChromaServer(copy, env=ENV) as two:
            follower = Follower(copy, two.client)
            add(one.client, ref, 0, 4000)
            add(one.client, ref, 4000, 1500)
            one.client.delete(ref, [f"i{n}" for n in range(5000)])
            for *before, last in states(tail):
                follower.bring(last, before)
            follower.show()
            assert sorted(i for page in two.client.ids(ref) for i in page) == [f"i{n}" for n in range(5000, 5500)]
            assert read(two.client, {"large": ref}).keys() == {"large"}
            follower.close()
        tail.close()


def test_a_nudge_leaves_no_row_and_makes_chroma_replay(tmp_path: Path) -> None:
    """What Chroma does with a row that others put into its queue: nothing, until it is nudged."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server, closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        db.isolation_level = None
        ref = create(server.client, "one")
        add(server.client, ref, 0, 3)
        assert server.client.count(ref) == 3
        nudge = Nudge(db)
        db.execute(
            "INSERT INTO embeddings_queue SELECT 100, created_at, operation, topic, 'new', vector, encoding, metadata"
            " FROM embeddings_queue WHERE seq_id = 3"
        )
        assert server.client.count(ref) == 3
        nudge.give(server.client, ref, timeout=30)
        assert server.client.count(ref) == 4
        assert [n for n, *_ in queue(data)][-1] == 100
        add(server.client, ref, 3, 1)
        assert [n for n, *_ in queue(data)][-1] == 101


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A number that another row has, a table that is none of the catalog; and the end leaves no trigger."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        ref, other = create(server.client, "one"), create(server.client, "two")
        add(server.client, ref, 0, 3)
    with ChromaServer(data, env=ENV) as server:
        follower = Follower(data, server.client)
        row = Row(3, "2026-01-01 00:00:00", 0, f"persistent://default/default/{other.id}", b"a", None, None, None)
        with pytest.raises(VerificationFailed, match="row 3"):
            follower.bring(Change("", 0, (row,)))
        with pytest.raises(VerificationFailed, match="none of the catalog"):
            follower.bring(Change("", 0, (), {"embeddings": Table(("id",))}))
        follower.finish()
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TRIGGER,)).fetchone()
