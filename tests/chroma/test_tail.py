"""Tail and apply: a copy brought up by the changes of a live server is what the server was, record by record."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chromakeep.changes import CREATED, DELETED, RENAMED, WROTE, Change, Row, Table
from chromakeep.chroma import tail as tail_
from chromakeep.chroma.apply import apply
from chromakeep.chroma.capture import capture
from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.purge import hold, purge
from chromakeep.chroma.reader import read_collection
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.tail import Tail
from chromakeep.errors import SourceError, VerificationFailed
from run.running import DATABASE, ENV, add, create

Model = dict[str, dict[str, tuple[float, str | None, Any]]]


class World:
    """A live server, a model of what it was told, and random requests to both."""

    def __init__(self, client: ChromaClient, seed: int) -> None:
        self.client, self.chance = client, random.Random(seed)
        self.model: Model = {}
        self.refs: dict[str, Ref] = {}
        client.request("POST", "/tenants/default_tenant/databases", {"name": "second"})

    def step(self) -> None:
        """One request that changes something, or in some cases nothing."""
        kind = self.chance.choices(
            ["create", "drop", "rename", "add", "upsert", "update", "delete"], [2, 1, 1, 8, 5, 4, 5]
        )[0]
        if kind == "create" or not self.refs:
            self._create()
            return
        name = self.chance.choice(sorted(self.refs))
        ref, records = self.refs[name], self.model[name]
        if kind == "drop":
            self.client.request("DELETE", f"{self._base(ref)}/collections/{name}")
            del self.refs[name], self.model[name]
        elif kind == "rename":
            new = f"{name[:12]}-{self.chance.randrange(10**6)}"
            self.client.request("PUT", ref.path, {"new_name": new})
            self.refs[new] = Ref(ref.id, new, ref.tenant, ref.database)
            self.model[new] = self.model.pop(name)
            del self.refs[name]
        elif kind == "delete":
            ids = self.chance.sample([f"i{n}" for n in range(30)], 4)
            self.client.request("POST", f"{ref.path}/delete", {"ids": ids})
            for i in ids:
                records.pop(i, None)
        else:
            self._write(ref, records, kind)

    def _base(self, ref: Ref) -> str:
        return f"/tenants/{ref.tenant}/databases/{ref.database}"

    def _create(self) -> None:
        name = self.chance.choice(["one", "two", "three"])
        if name in self.refs:
            return
        database = self.chance.choice(["default_database", "second"])
        # After updates an index of 16 neighbours has no way left to some 2 records in 1,000. With more neighbours than
        # there are records nothing is ever cut: a record is found by its own vector, or is not there.
        hnsw = {"sync_threshold": self.chance.choice([4, 15, 1000]), "max_neighbors": 128}
        body = {"name": name, "configuration": {"hnsw": hnsw}}
        made = self.client.request("POST", f"/tenants/default_tenant/databases/{database}/collections", body)
        self.refs[name] = Ref(made["id"], name, "default_tenant", database)
        self.model[name] = {}

    def _write(self, ref: Ref, records: dict[str, tuple[float, str | None, Any]], kind: str) -> None:
        ids = self.chance.sample([f"i{n}" for n in range(30)], self.chance.randint(1, 8))
        values = [(float(self.chance.randrange(1, 10**6)), f"text {self.chance.random()}") for _ in ids]
        metadatas = [{"n": self.chance.randrange(100)} for _ in ids]
        self.client.request(
            "POST",
            f"{ref.path}/{kind}",
            {
                "ids": ids,
                "embeddings": [[value, 1, 2] for value, _ in values],
                "documents": [text for _, text in values],
                "metadatas": metadatas,
            },
        )
        for i, (value, text), metadata in zip(ids, values, metadatas, strict=True):
            if kind == "upsert" or (i in records) == (kind == "update"):
                records[i] = (value, text, metadata)


def held_in(directory: Path) -> Model:
    """What a directory holds, by collection's name, with what waits in its queue."""
    found: Model = {}
    with Catalog(directory) as catalog:
        entries = catalog.entries
    for entry in entries:
        records = found.setdefault(entry.name, {})
        for portion in read_collection(directory, entry.id):
            for n, i in enumerate(portion.ids):
                records[i] = (float(portion.vectors[n][0]), portion.documents[n], portion.metadatas[n])
    return found


def base_of(copy: Path) -> dict[str, int]:
    """By topic, the last row that a copy has."""
    with closing(sqlite3.connect(copy / "chroma.sqlite3")) as db:
        return dict(db.execute("SELECT topic, max(seq_id) FROM embeddings_queue GROUP BY topic"))


def looks(tail: Tail) -> list[Change]:
    """Changes up to a whole state."""
    found: list[Change] = []
    while (change := tail.look()) is not None:
        found.append(change)
        if not change.more:
            break
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_once", [8 << 20, 300])
def test_a_copy_is_brought_up_to_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int
) -> None:
    """Collections made, dropped, renamed and made again under the same names, persists and purges in between: after
    every look the copy holds what was acknowledged, and a Chroma that opens the last of them says the same."""
    monkeypatch.setattr(tail_, "AT_ONCE", at_once)
    data, chance = tmp_path / "data", random.Random(seed)
    with ChromaServer(data, env=ENV) as server:
        world = World(server.client, seed)
        hold(data / "chroma.sqlite3")
        for _ in range(15):
            world.step()
        copy = capture(data, tmp_path / "copy").path
        tail = Tail(data / "chroma.sqlite3", base_of(copy))
        changes: list[Change] = []
        for round_ in range(12):
            for _ in range(chance.randint(0, 8)):
                world.step()
            changes += looks(tail)
            into = tmp_path / f"state-{round_}"
            shutil.copytree(copy, into)
            apply(into, changes)
            assert held_in(into) == world.model
            if round_ == 6:  # as a snapshot does
                with Catalog(capture(data, tmp_path / "later").path) as catalog:
                    applied = {e.topic: min(e.metadata_seq, e.vector_seq or 0) for e in catalog.entries}
                purge(data / "chroma.sqlite3", applied)
        assert tail.look() is None and tail.look() is None
        tail.close()
    assert inspect(into).problems == ()
    later = tmp_path / "later"  # of a state in the middle: changes from before it do no harm
    apply(later, [c for c in changes if c.counter >= counter_of(later)])
    assert held_in(later) == world.model
    with ChromaServer(into, env=ENV) as server:
        for name, ref in world.refs.items():
            assert server.client.count(ref) == len(world.model[name])
            got = server.client.get_vectors(ref, list(world.model[name])) if world.model[name] else {}
            assert {i: float(v[0]) for i, v in got.items()} == {i: r[0] for i, r in world.model[name].items()}


def counter_of(copy: Path) -> int:
    """The change counter that a capture recorded: not the copy's own, which may be one ahead."""
    return int.from_bytes((copy / "chroma.sqlite3").read_bytes()[24:28], "big") - 1


def test_what_came_and_went_between_two_looks_is_not_left_in_a_copy_of_between(tmp_path: Path) -> None:
    """A collection that no look saw, captured while it was there, whose rows' numbers are used again; and a name that
    was another one for that time."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        hold(data / "chroma.sqlite3")
        stays = create(server.client, "stays")
        add(server.client, stays, 0, 2)
        tail = Tail(data / "chroma.sqlite3")
        looks(tail)
        passing = create(server.client, "passing")
        add(server.client, passing, 0, 3)
        server.client.request("PUT", stays.path, {"new_name": "other"})
        copy = capture(data, tmp_path / "copy").path
        server.client.request("DELETE", f"{DATABASE}/collections/passing")
        server.client.request("PUT", stays.path, {"new_name": "stays"})
        assert looks(tail) == []
        assert tail.captured(tail_.catalog_of(copy / "chroma.sqlite3")) and tail.changed()
        changes = looks(tail)
        add(server.client, stays, 10, 1)
        changes += looks(tail)
        assert not tail.captured(tail_.catalog_of(capture(data, tmp_path / "later").path / "chroma.sqlite3"))
        tail.close()
    apply(copy, changes)
    assert {name: records.keys() for name, records in held_in(copy).items()} == {"stays": {"i0", "i1", "i10"}}
    assert inspect(copy).problems == ()


def test_twice_is_once_and_an_unfinished_change_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same changes over again, and a continued one without its end."""
    monkeypatch.setattr(tail_, "AT_ONCE", 200)
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        hold(data / "chroma.sqlite3")
        copy = capture(data, tmp_path / "copy").path
        tail = Tail(data / "chroma.sqlite3")
        first = looks(tail)
        ref = create(server.client, "one")
        add(server.client, ref, 0, 20)
        changes = looks(tail)
        tail.close()
    assert len(changes) > 3 and all(c.more for c in changes[:-1])
    assert [m.added for m in changes[-1].moments if m.kind == WROTE] == [20]
    assert apply(copy, [*first, *changes[:-1]]) == first[-1]
    assert held_in(copy) == {}
    for _ in range(2):
        assert apply(copy, [*first, *changes]) == changes[-1]
        assert held_in(copy)["one"].keys() == {f"i{n}" for n in range(20)}


def test_moments_tell_what_happened(tmp_path: Path) -> None:
    """Made, written to, renamed and deleted: with names, database and counts."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        hold(data / "chroma.sqlite3")
        tail = Tail(data / "chroma.sqlite3")
        assert looks(tail)[0].moments == ()
        ref = create(server.client, "one")
        add(server.client, ref, 0, 20)
        server.client.request("POST", f"{ref.path}/delete", {"ids": [f"i{n}" for n in range(7)]})
        where = ref.id, "default_tenant", "default_database"
        assert looks(tail)[0].moments == ((CREATED, *where, "one", 0, 0, 0), (WROTE, *where, "one", 20, 0, 7))
        server.client.request("PUT", ref.path, {"new_name": "other"})
        assert looks(tail)[0].moments == ((RENAMED, *where, "other", 0, 0, 0),)
        server.client.request("DELETE", f"{DATABASE}/collections/other")
        assert looks(tail)[0].moments == ((DELETED, *where, "other", 0, 0, 0),)
        tail.close()


def test_a_write_in_the_tick_of_a_look_is_seen(tmp_path: Path) -> None:
    """Looks in quick succession, each right after a write: ``changed`` never says no when there is something."""
    data, seen = tmp_path / "data", 0
    with ChromaServer(data, env=ENV) as server:
        hold(data / "chroma.sqlite3")
        ref = create(server.client, "one")
        tail = Tail(data / "chroma.sqlite3")
        for n in range(60):
            add(server.client, ref, n, 1)
            assert tail.changed()
            seen += sum(len(c.rows) for c in looks(tail))
            assert seen == n + 1
        tail.close()


def test_a_database_in_wal_mode_is_told(tmp_path: Path) -> None:
    """Its commits leave no mark in the file's header."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        create(server.client, "one")
    begun = Tail(data / "chroma.sqlite3")
    looks(begun)
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        db.execute("PRAGMA journal_mode=WAL")
        assert begun.changed()
        with pytest.raises(SourceError, match="WAL"):  # also where somebody has switched it since
            begun.look()
    begun.close()
    with pytest.raises(SourceError, match="WAL"):
        Tail(data / "chroma.sqlite3")


Spoil = Callable[[Change], Change]


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ({"sqlite_master": Table(("sql",))}, "none of the catalog"),
        ({"embeddings": Table(("id",))}, "none of the catalog"),
        ({"tenants": Table(("id", 'x" --'))}, "has not"),
        ({"tenants": Table(("id",), ((1, "a", "b"),))}, "does not fit"),
    ],
)
def test_a_log_of_a_strangers_making_is_refused(tmp_path: Path, tables: dict[str, Table], what: str) -> None:
    """Tables, columns and values that no tail writes: refused, and the copy is as it was."""
    data = tmp_path / "data"
    with ChromaServer(data, env=ENV) as server:
        add(server.client, create(server.client, "one"), 0, 3)
    before = held_in(data)
    row = Row(1, "", 0, "persistent://default/default/x", b"a", None, None, None)
    with pytest.raises(VerificationFailed, match=what):
        apply(data, [Change("", 0, (row,), tables)])
    assert held_in(data) == before
