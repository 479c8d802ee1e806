"""Several instances on one PostgreSQL, on bad days: they are killed, it is restarted, it is full, its primary is lost.

``tests/stress/postgres_instances.py`` has the same for as long as one likes.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chromakeep.chroma.ports import free_port
from postgres.instances import (
    COLLECTIONS,
    SRC,
    Client,
    Instance,
    Tally,
    Writer,
    ask,
    create,
    eventually,
    stop,
)
from servers.nginx import ENGINE, nginx
from servers.postgresql import PostgreSQL


class World:
    """A PostgreSQL, three instances before it that know where its standby may be, and their log."""

    def __init__(self, base: Path) -> None:
        self.base, self.standby_port = base, free_port()
        self.server = PostgreSQL(base / "postgresql").make()
        self.server.database("chroma")
        self.url = self.server.url("chroma").replace(
            self.server.host, f"{self.server.host},127.0.0.1:{self.standby_port}"
        )
        self.instances = [Instance(base / f"instance-{n}", self.url) for n in range(3)]
        for one in self.instances:
            one.ready()
        self.ports = [one.port for one in self.instances]
        self.names = 0

    def name(self) -> str:
        """Of a new collection."""
        self.names += 1
        return f"collection-{self.names}"

    def writers(self, tally: Tally, count: int, ports: list[int], **more: int) -> list[Writer]:
        """Of a collection of their own, each at one of the ports; they have begun."""
        path = create(ports[0], self.name())
        first = len(ports) * 100 * self.names
        made = [Writer(tally, ports[n % len(ports)], first + n, [path], **more) for n in range(count)]
        for one in made:
            one.start()
        return made

    def verdict(self, tally: Tally, writers: list[Writer]) -> None:
        """All is as it was acknowledged, at each instance."""
        stop(tally, writers)
        for one in self.instances:
            eventually(one.is_ready, f"instance {one.port}")
            for writer in writers:
                writer.check_all(one.port)
        assert not tally.wrong, f"{tally}: {tally.wrong[:5]}"
        assert not tally.bare, f"{tally}"


def more(writers: list[Writer], each: int = 5) -> None:
    """Wait until each has had some more writes acknowledged."""
    before = [one.acknowledged for one in writers]
    eventually(
        lambda: all(one.acknowledged >= was + each for one, was in zip(writers, before, strict=True)), "more writes"
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("world")
    for place in (base, *base.parents):  # PostgreSQL may be another user in its namespace, nginx's workers are
        if place.stat().st_uid == base.stat().st_uid and place.name.startswith(("pytest-", "world")):
            place.chmod(0o755)
    made = World(base)
    yield made
    for one in made.instances:
        one.kill()
    made.server.end("immediate")


def test_instances_are_killed_behind_nginx(world: World, tmp_path: Path) -> None:
    """Every request succeeds with one try more at most, and what was acknowledged is there."""
    tally = Tally()
    with nginx(tmp_path / "nginx", world.ports, ENGINE) as (balanced, _):
        writers = world.writers(tally, 4, [balanced])
        for one in world.instances[:2]:
            more(writers)
            one.kill()
            more(writers)
            one.start()
            one.ready()
        more(writers)
        world.verdict(tally, writers)
    assert not tally.failed, tally.failed


def test_nobody_there_is_503_for_reads_and_writes(world: World, tmp_path: Path) -> None:
    """Of nginx, too, with Retry-After; and what is not there is 404 also where an instance is gone."""
    with nginx(tmp_path / "nginx", [world.ports[0], free_port(), free_port()], ENGINE) as (balanced, _):
        for _ in range(4):
            assert ask(balanced, "GET", f"{COLLECTIONS}/not-there")[0] == 404
    with nginx(tmp_path / "none", [free_port(), free_port(), free_port()], ENGINE) as (balanced, _):
        client = Client(balanced)
        for _ in range(4):
            for method in ("GET", "POST"):
                status, said = client.ask(method, COLLECTIONS, {"name": "x"} if method == "POST" else None)
                assert (status, client.fields["retry-after"]) == (503, "1"), said


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_postgresql_is_restarted_under_load(world: World, how: str) -> None:
    """While it is away every answer is 503 with Retry-After, or 504; then the instances go on by themselves."""
    tally = Tally()
    writers = world.writers(tally, 6, world.ports)
    more(writers)
    world.server.end(how)
    for port in world.ports:
        client = Client(port)
        for method, path in (("GET", COLLECTIONS), ("POST", COLLECTIONS)):
            status, said = client.ask(method, path, {"name": "not-made"} if method == "POST" else None)
            assert (status, client.fields["retry-after"]) == (503, "1"), said
            assert said["message"] == "PostgreSQL cannot be reached"
        eventually(lambda port=port: ask(port, "GET", "/readyz")[0] == 503, "it says that it is not ready")
        assert "127.0.0.1" not in str(ask(port, "GET", "/readyz")[1])
    for one in world.instances:
        line = next(line for line in one.said.splitlines() if "warning: PostgreSQL cannot be reached: " in line)
        assert str(world.server.port) in line
    world.server.start()
    more(writers)
    world.verdict(tally, writers)
    assert ask(world.ports[0], "GET", f"{COLLECTIONS}/not-made")[0] == 404


def test_postgresql_takes_fewer_connections_than_they_want(world: World) -> None:
    """Requests wait for each other or are refused with 503; none hangs, none is lost."""
    tally = Tally()
    world.server.settings["max_connections"] = "7"
    world.server.restart()
    try:
        first = psycopg.connect(world.server.url(), autocommit=True)
        holder = world.instances[0].port
        eventually(lambda: ask(holder, "GET", COLLECTIONS)[0] == 200, "it answers")
        writers = world.writers(tally, 24, [holder, *world.ports], tries=20)
        # An instance that finds none left may find none for as long as the others are busy: a balancer goes on to them.
        before = sum(one.acknowledged for one in writers)
        eventually(lambda: sum(one.acknowledged for one in writers) >= before + 48, "more writes, by whomever")
        stop(tally, writers)
        taken = taken_up(world.server, first)
        for port in world.ports:
            client = Client(port)
            for method in ("GET", "POST"):
                status, said = client.ask(method, COLLECTIONS, {"name": "not-made"} if method == "POST" else None)
                assert (status, client.fields.get("retry-after")) == (503, "1"), said
        for connection in taken:
            connection.close()
        for port in world.ports:
            eventually(lambda port=port: ask(port, "GET", COLLECTIONS)[0] == 200, "it answers again")
    finally:
        world.server.settings["max_connections"] = "100"
        world.server.restart()
    world.verdict(tally, writers)
    assert tally.slowest < 60, "a client has given up one that hung"


def taken_up(server: PostgreSQL, first: psycopg.Connection[Any]) -> list[psycopg.Connection[Any]]:
    """All connections that it takes, while no instance has one."""
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chromakeep'"
    most = int(server.settings["max_connections"])
    taken = [first]

    def all_ours() -> bool:
        try:
            while True:
                taken.append(psycopg.connect(server.url(), autocommit=True))
        except psycopg.OperationalError:
            first.execute(ends)
            return len(taken) == most  # one that ended by itself meanwhile has left room for another

    eventually(all_ours, "all connections")
    return taken


def test_many_write_the_same_ids_through_all_instances(world: World) -> None:
    """In any order, so that they cross: each record is whole, as one of them wrote it, and none is refused."""
    name = world.name()
    path = create(world.ports[0], name)
    ids = [f"i{n}" for n in range(40)]
    wrong: list[str] = []

    def write(number: int) -> None:
        client, order = Client(world.ports[number % 3]), random.Random(number)
        for turn in range(6):
            some = order.sample(ids, 30)
            mark = number * 100 + turn
            body: dict[str, Any] = {
                "ids": some,
                "embeddings": [[float(mark), 1.0]] * 30,
                "documents": [str(mark)] * 30,
                "metadatas": [{"mark": mark, f"only-{number}": mark}] * 30,
            }
            kind = order.choice(["upsert", "upsert", "update", "add", "delete"])
            status, said = client.ask("POST", f"{path}/{kind}", body if kind != "delete" else {"ids": some[:5]})
            if status not in (200, 201):
                wrong.append(f"{kind}: {status} {said}")

    together([lambda n=n: write(n) for n in range(9)])
    assert not wrong, wrong
    _, said = ask(world.ports[1], "POST", f"{path}/get", {"include": ["embeddings", "documents", "metadatas"]})
    assert len(said["ids"]) == len(set(said["ids"])) == ask(world.ports[2], "GET", f"{path}/count")[1] > 0
    for vector, document, metadata in zip(said["embeddings"], said["documents"], said["metadatas"], strict=True):
        assert vector == [float(document), 1.0] and metadata["mark"] == int(document)
        assert metadata[f"only-{int(document) // 100}"] == int(document)


def test_one_name_is_made_and_dropped_by_many(world: World) -> None:
    """What was made is either there or was dropped by exactly one; no id is made twice; no table is left over."""
    names, lock = [world.name(), world.name()], threading.Lock()
    made: list[str] = []
    seen: set[str] = set()
    dropped: list[str] = []
    wrong: list[str] = []

    def live(number: int) -> None:
        client, order = Client(world.ports[number % 3]), random.Random(number)
        for _ in range(15):
            name, kind = order.choice(names), order.choice(["create", "get_or_create", "drop", "rename", "add"])
            if kind == "drop":
                status, said = client.ask("DELETE", f"{COLLECTIONS}/{name}")
                if status == 200:
                    with lock:
                        dropped.append(name)
                expected = (200, 404)
            elif kind == "rename":
                status, said = client.ask("GET", f"{COLLECTIONS}/{name}")
                if status == 200:
                    other = names[1 - names.index(name)]
                    status, said = client.ask("PUT", f"{COLLECTIONS}/{said['id']}", {"new_name": other})
                expected = (200, 404, 409)
            elif kind == "add":
                with lock:
                    path = f"{COLLECTIONS}/{order.choice(sorted(seen))}" if seen else ""
                if not path:
                    continue
                status, said = client.ask("POST", f"{path}/add", {"ids": [str(number)], "embeddings": [[1.0, 2.0]]})
                expected = (201, 404)
            else:
                body = {"name": name, "get_or_create": kind == "get_or_create"}
                status, said = client.ask("POST", COLLECTIONS, body)
                expected = (200,) if kind == "get_or_create" else (200, 409)
                if status == 200:
                    with lock:
                        seen.add(said["id"])
                        if kind == "create":
                            made.append(said["id"])
            if status not in expected:
                wrong.append(f"{kind}: {status} {said}")

    together([lambda n=n: live(n) for n in range(9)])
    assert not wrong, wrong
    assert len(made) == len(set(made))
    _, listed = ask(world.ports[0], "GET", COLLECTIONS)
    left = [one["id"] for one in listed if one["name"] in names]
    assert len({one["name"] for one in listed}) == len(listed)
    assert set(left) <= seen and len(seen) == len(dropped) + len(left)
    tables = world.server.ask(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'chromakeep' AND tablename ~ '^c[0-9]+_'", "chroma"
    )
    assert tables == [(len(listed),)]


def test_a_replica_alone_is_refused_and_is_taken_after_its_promotion(world: World, tmp_path: Path) -> None:
    """Its URL alone is one clear line. Of several hosts the primary is found, also when it becomes another one: with
    a synchronous standby, nothing that was acknowledged is lost with the primary."""
    standby = world.server.standby(world.base / "standby", world.standby_port)
    world.server.synchronous()
    refused = subprocess.run(
        [sys.executable, "-m", "chromakeep", "serve", "--open", "--data", str(tmp_path), "--port", str(free_port())],
        env={"CHROMAKEEP_ENGINE": standby.url("chroma"), "PYTHONPATH": str(SRC), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode > 0 and "is a replica: it takes no writes" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr and "secret" not in refused.stderr
    backwards = Instance(tmp_path / "backwards", standby.url("chroma", world.server)).ready()  # the replica first
    world.instances.append(backwards)

    tally = Tally()
    writers = world.writers(tally, 4, [*world.ports, backwards.port], tries=3)
    more(writers)
    world.server.end("kill")
    world.server, gone = standby, world.server
    standby.promote()
    more(writers)
    world.verdict(tally, writers)
    assert not gone.running


def together(several: list[Callable[[], None]]) -> None:
    """Each in a thread; what one raises is raised."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if raised:
        raise raised[0]
