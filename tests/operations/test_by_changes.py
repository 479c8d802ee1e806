"""Following a directory by its queue: what changed is carried over exactly, nothing else is read, and a kill at any
moment loses nothing. Chroma writes, Chroma is written to."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.locking import LiveDatabase
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.server_patch import ServerPatch
from chromakeep.chroma.server_sink import ServerSink
from chromakeep.chroma.tail import TOPIC
from chromakeep.errors import VerificationFailed
from chromakeep.events import Event, Noted
from chromakeep.operations import by_changes, transfer_ends
from chromakeep.operations.by_changes import ByChanges
from chromakeep.operations.endpoints import Means
from chromakeep.operations.standing import Standing
from chromakeep.operations.tracked import Options
from chromakeep.operations.transfer import Ends, follow, start, verify
from chromakeep.operations.transfer_state import State, StateFile

PATH = "/tenants/default_tenant/databases/default_database"
D = 8


class Killed(BaseException):
    """The process was killed."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ChromaClient, ChromaClient]]:
    """A directory, the server that writes to it, and another server."""
    a, b = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    with ChromaServer(a, env=os.environ) as one, ChromaServer(b, env=os.environ) as two:
        yield a, one.client, two.client


class World:
    """One transfer between the two, of collections of its own."""

    def __init__(self, places: tuple[Path, ChromaClient, ChromaClient], folder: Path) -> None:
        self.directory, self.a, self.b = places
        self.folder, self.file = folder, folder / "state.json"
        self.told: list[str] = []
        self.captures = 0
        for client in (self.a, self.b):
            for ref in client.list_collections("default_tenant", "default_database"):
                client.request("DELETE", f"{PATH}/collections/{ref.name}")

    def ends(self, state: State) -> Ends:
        means = Means(Path(state.work), _none, os.environ)
        return transfer_ends.ends_of(state, means, means)

    def observe(self, event: Event) -> None:
        if isinstance(event, Noted):
            self.told.append(event.message)

    def start(self, **options: Any) -> Standing:
        to = f"http://{self.b.host}:{self.b.port}"
        return start(
            StateFile(self.file), str(self.directory), to, Options(**options), self.folder, self.ends,
            observer=self.observe,
        )  # fmt: skip

    def follow(self, **extra: Any) -> Standing:
        return follow(StateFile(self.file), self.ends, observer=self.observe, **extra)

    def verify(self) -> Standing:
        return verify(StateFile(self.file), self.ends, observer=self.observe)

    @property
    def state(self) -> State:
        file = StateFile(self.file)
        file.read()
        return file.need()

    def create(self, name: str, *, space: str = "l2", **hnsw: Any) -> Ref:
        body = {"name": name, "configuration": {"hnsw": {"space": space, **hnsw}}}
        return Ref(self.a.request("POST", f"{PATH}/collections", body)["id"], name)

    def write(self, ref: Ref, verb: str, ids: list[str], salt: int = 0, **more: Any) -> None:
        body: dict[str, Any] = {"ids": ids}
        if verb in ("add", "upsert"):
            body["embeddings"] = [vector(id_, salt) for id_ in ids]
        self.a.request("POST", f"{ref.path}/{verb}", {**body, **more})

    def fill(self, ref: Ref, count: int, start: int = 0) -> None:
        for at in range(start, start + count, 500):
            ids = [f"i{n}" for n in range(at, min(at + 500, start + count))]
            self.write(ref, "add", ids, documents=[f"text {id_}" for id_ in ids], metadatas=[{"n": id_} for id_ in ids])


def _none(address: str) -> Any:
    raise AssertionError(address)


def vector(id_: str, salt: int = 0) -> list[float]:
    rng = random.Random(f"{id_} {salt}")
    return [rng.uniform(-1, 1) for _ in range(D)]


@pytest.fixture
def world(places: tuple[Path, ChromaClient, ChromaClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(places, tmp_path)
    capture = transfer_ends.capture

    def counted(*args: Any, **more: Any) -> Any:
        found.captures += 1
        return capture(*args, **more)

    monkeypatch.setattr(transfer_ends, "capture", counted)
    return found


@pytest.mark.parametrize("space", ["l2", "cosine"])
def test_whatever_can_be_done_to_a_record(world: World, space: str) -> None:
    """Each round by the rows alone: no copy of the directory is made, and no record is read whole."""
    ref = world.create("books", space=space)
    world.fill(ref, 60)
    world.start()
    assert world.captures == 1
    world.write(ref, "add", ["new"], metadatas=[{"a": 1, "b": [1, 2], "c": 1.0, "d": True}], documents=["one"])
    world.write(ref, "add", ["i1"], 5, metadatas=[{"ignored": True}])  # it is there: nothing happens
    world.write(ref, "upsert", ["i2", "other"], 6, documents=["two", None], metadatas=[{"n": None, "m": "x"}, None])
    world.write(ref, "update", ["i3", "nobody"], metadatas=[{"n": None, "k": 2}, {"k": 1}])  # the vector stays
    world.write(ref, "update", ["i4"], embeddings=[vector("i4", 9)], uris=["file:///4"])
    world.write(ref, "delete", ["i5", "i6"])
    world.write(ref, "add", ["i6"], 3)
    world.write(ref, "update", ["late"], embeddings=[vector("late", 1)])  # it is not there yet: nothing happens
    world.write(ref, "add", ["late"], 2)
    world.write(ref, "delete", ["nobody"])
    world.write(ref, "add", ["short"], 1)
    world.write(ref, "delete", ["short"])
    last = world.follow().last_round
    assert last is not None
    assert (last.read, last.upserted, last.deleted) == (11, 8, 1)
    assert world.captures == 1
    found = world.verify()
    assert found.verified is not None
    assert found.verified.records == found.records == 62
    assert found.rounds == 1  # the copy that was verified was that of the same state
    assert not world.told or not any("are read" in line or "compared" in line for line in world.told)


def test_a_round_reads_what_changed_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in steps of SQLite's machine at A, in ids that B is asked for, and in files: none of the index."""
    steps, asked = [0], [0]
    shared, present = LiveDatabase.shared, ServerPatch.present

    @contextmanager
    def counted(self: LiveDatabase, deadline: float) -> Iterator[sqlite3.Connection]:
        def step() -> None:
            steps[0] += 1

        with shared(self, deadline) as connection:
            connection.set_progress_handler(step, 1)
            try:
                yield connection
            finally:
                connection.set_progress_handler(None, 0)

    def asking(self: ServerPatch, ids: Any) -> set[str]:
        asked[0] += len(ids)
        return present(self, ids)

    monkeypatch.setattr(LiveDatabase, "shared", counted)
    monkeypatch.setattr(ServerPatch, "present", asking)

    def cost(k: int, salt: int) -> tuple[int, int]:
        world.write(ref, "upsert", [f"i{n}" for n in range(k)], salt)
        world.a.request("POST", f"{ref.path}/get", {"ids": ["i0"]})
        steps[0] = asked[0] = 0
        last = world.follow().last_round
        assert last is not None
        assert last.upserted == k
        return steps[0], asked[0]

    ref = world.create("books", sync_threshold=100_000)
    world.fill(ref, 300)
    world.start()
    captures = world.captures
    monkeypatch.setattr("chromakeep.chroma.hnsw._portions", _none)  # whoever reads vectors out of an index
    (few, asked_few), (many, asked_many) = cost(10, 1), cost(200, 2)
    assert (asked_few, asked_many) == (10, 200)
    world.fill(ref, 2700, start=300)
    world.follow()
    again, asked_again = cost(10, 3)
    assert asked_again == 10
    assert again < few + 300  # of 3,000 records as of 300
    assert many > few + 190 * 5
    steps[0] = asked[0] = 0
    last = world.follow().last_round
    assert last is not None
    assert last.read == 0
    assert (steps[0], asked[0]) == (0, 0)
    assert world.captures == captures


def test_collections_come_go_and_are_renamed(world: World) -> None:
    """They are read whole, and those that were there are not."""
    books, laws = world.create("books"), world.create("laws")
    world.fill(books, 40)
    world.fill(laws, 20)
    world.start()
    rooms = world.create("rooms")
    world.fill(rooms, 10)
    world.write(books, "update", ["i1"], documents=["changed"])
    last = world.follow().last_round
    assert last is not None
    assert (last.created, last.upserted, last.read) == (1, 11, 11), world.told
    assert any("rooms is new" in line for line in world.told)
    world.a.request("PUT", laws.path, {"new_name": "rules"})
    world.write(books, "delete", ["i2"])
    last = world.follow().last_round
    assert last is not None
    assert (last.created, last.dropped, last.deleted) == (1, 1, 1)
    world.a.request("DELETE", f"{PATH}/collections/rooms")
    last = world.follow().last_round
    assert last is not None
    assert last.dropped == 1
    again = world.create("books2")
    world.fill(again, 3)
    world.a.request("DELETE", f"{PATH}/collections/books2")  # the last rows of all are gone: numbers are used again
    world.write(books, "upsert", ["i3"], 8)
    last = world.follow().last_round
    assert last is not None
    assert last.upserted == 1
    world.verify()
    assert {ref.name for ref in world.b.list_collections("default_tenant", "default_database")} == {"books", "rules"}


@pytest.mark.parametrize("at", ["written", "patched", "asked"])
def test_a_kill_between_write_and_position_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The round is made again from the position that was written down, by what the target had had then: an id that the
    killed round has added would else be taken for one that was there, whose add has no effect."""
    ref = world.create("books")
    world.fill(ref, 20)
    world.start()
    position = world.state.position
    world.write(ref, "update", ["x"], embeddings=[vector("x", 9)])  # not there: no effect
    world.write(ref, "add", ["x"], 1, documents=["x"])
    world.write(ref, "update", ["i3"], metadatas=[{"k": 1}])
    world.write(ref, "delete", ["i4"])

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        if at == "written":
            patched.setattr(ServerSink, "patch", killed)
        elif at == "asked":
            patched.setattr(by_changes, "fill", killed)
        else:
            one = ByChanges._one

            def after(*args: Any) -> Any:
                one(*args)
                raise Killed

            patched.setattr(ByChanges, "_one", after)
        with pytest.raises(Killed):
            world.follow()
    assert world.state.position == position
    if at == "written":
        there = world.b.request("POST", f"{_at(world.b, 'books').path}/get", {"ids": ["x"]})["ids"]
        assert there == ["x"]
    world.write(ref, "upsert", ["y"], 4)
    world.follow()
    assert world.captures == 1
    assert world.state.position != position
    assert not (Path(world.state.work) / by_changes.NOTES).exists()
    found = world.verify()
    assert found.records == 21
    assert found.verified is not None
    assert found.verified.records == 21


def _at(client: ChromaClient, name: str) -> Ref:
    return next(r for r in client.list_collections("default_tenant", "default_database") if r.name == name)


def test_a_queue_that_was_purged_past_the_position(world: World) -> None:
    """Chroma purges what its index holds: that is seen, said, and the collection is compared."""
    ref = world.create("books", sync_threshold=50, batch_size=20)
    other = world.create("other")
    world.fill(ref, 40)
    world.fill(other, 10)
    world.start()
    seen = world.state.position
    assert seen is not None
    for n in range(6):
        world.write(ref, "upsert", [f"p{n}-{k}" for k in range(30)])
    world.write(ref, "update", ["i1"], documents=["changed"])
    with closing(sqlite3.connect(world.directory / "chroma.sqlite3")) as connection:
        query = "SELECT min(seq_id) FROM embeddings_queue WHERE topic = ?"
        assert connection.execute(query, (TOPIC + ref.id,)).fetchone()[0] > seen.rows[ref.id]
    last = world.follow().last_round
    assert last is not None
    assert last.upserted == 181
    assert any("purged rows" in line for line in world.told)
    world.told.clear()
    world.write(ref, "update", ["i2"], documents=["changed"])
    last = world.follow().last_round
    assert last is not None
    assert (last.upserted, last.read) == (1, 1)
    assert not any("purged rows" in line for line in world.told)
    world.verify()


def test_a_target_that_somebody_else_wrote_to(world: World) -> None:
    """Where that shows in what is asked, or in a verification, all is compared and put right."""
    ref = world.create("books")
    world.fill(ref, 30)
    world.start()
    there = _at(world.b, "books")
    world.b.request("POST", f"{there.path}/delete", {"ids": ["i1"]})
    world.write(ref, "update", ["i1"], documents=["changed"])
    world.follow()
    assert any("not what it was brought to" in line for line in world.told)
    world.verify()
    world.b.request("POST", f"{there.path}/delete", {"ids": ["i2"]})
    with pytest.raises(VerificationFailed):
        world.verify()
    last = world.follow().last_round
    assert last is not None
    assert last.upserted == 1
    world.verify()


def test_verifying_while_it_is_written_to(world: World) -> None:
    """What is verified is a moment of the source, to which the target is brought first."""
    ref = world.create("books")
    world.fill(ref, 30)
    world.start()
    world.write(ref, "upsert", ["later"], 1)
    found = world.verify()
    assert found.verified is not None
    assert found.verified.records == 30  # the copy of the moment that was brought over
    world.follow()
    world.write(ref, "upsert", ["still-later"], 1)
    found = world.verify()
    assert found.verified is not None
    assert (found.verified.records, found.records, found.rounds) == (32, 32, 2)


def test_a_write_just_before_the_copy_that_is_verified(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was looked at in which state the directory is: the copy is of another one, to which the target must be
    brought, or there is a difference that is none."""
    ref = world.create("books")
    world.fill(ref, 30)
    world.start()
    world.write(ref, "upsert", ["later"], 1)
    deadline = time.monotonic() + 60  # until its files are older than their clock's steps: then it is in one state
    while transfer_ends.state_of(world.directory) != transfer_ends.state_of(world.directory):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    world.follow()
    capture = transfer_ends.capture

    def written(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(transfer_ends, "capture", capture)
        world.write(ref, "upsert", ["at-that-moment"], 1)
        return capture(*args, **more)

    monkeypatch.setattr(transfer_ends, "capture", written)
    found = world.verify()
    assert found.verified is not None and found.verified.records == 32
    world.follow()
    assert world.verify().verification == "equal"


def test_random_histories(world: World) -> None:
    """Many operations in few ids, in rounds: each round leads to what is there."""
    rng = random.Random(7)
    refs = [world.create("plain", sync_threshold=40, batch_size=10), world.create("cosine", space="cosine")]
    for ref in refs:
        world.fill(ref, 10)
    world.start()
    for _ in range(3):
        for _ in range(20):
            ref, id_, salt = rng.choice(refs), f"i{rng.randrange(14)}", rng.randrange(100)
            verb = rng.choice(["add", "upsert", "update", "delete", "vector"])
            if verb == "vector":
                world.write(ref, "update", [id_], embeddings=[vector(id_, salt)])
            elif verb == "delete":
                world.write(ref, "delete", [id_])
            else:
                document, key = rng.choice([None, f"text {salt}"]), rng.choice("abc")
                value = rng.choice([1, 2.5, "x", True, [1, 2]] + [None] * (verb != "add"))
                world.write(ref, verb, [id_], salt, documents=[document], metadatas=[{key: value}])
        world.follow()
        world.verify()
    assert not any("not what it was" in line for line in world.told), world.told
