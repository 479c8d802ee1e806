"""Instances that know each other's doors: a write is taken at any of them, done and acknowledged by one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.ports import free_port
from chromakeep.errors import ServerAnswered
from chromakeep.operations.elsewhere import Forwarding
from chromakeep.operations.key_places import RepositoryKeys
from chromakeep.operations.keyring import create as create_key
from chromakeep.repository import Repository
from chromakeep.repository.lease import holder
from chromakeep.server.front import open_door
from chromakeep.store.local import LocalStore
from run.running import DATABASE, Running, add, create, eventually, kill, process, running
from run.test_standby import page, serving

SYNC: dict[str, Any] = {"every": 3600.0, "door": open_door, "durability": "sync"}


def ask(port: int, method: str, path: str, body: object = None, **fields: str) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json", **fields}, method=method
    )
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except HTTPError as error:
        return error.code, json.loads(error.read())


@contextmanager
def two(tmp_path: Path, keep: Path) -> Iterator[tuple[Running, Running]]:
    """One that takes writes, and one that stands by; they know of each other."""
    with ExitStack() as stack:
        made: list[Running] = []
        for name in ("one", "two"):
            port = free_port()
            forwarding = Forwarding(f"http://127.0.0.1:{port}")
            run = running(tmp_path / name, keep, port=port, forwarding=forwarding, **SYNC)
            made.append(stack.enter_context(run))
            if name == "one":
                serving(made[0])
        made[1].until("standing by")
        yield made[0], made[1]


def test_a_write_at_the_standby_is_done_by_the_other_and_shown_by_both(tmp_path: Path, keep: Path) -> None:
    """Collections, records, deletions, errors. Then it takes over and does them itself, and the first asks it."""
    with two(tmp_path, keep) as (first, second):
        assert second.said(f"writes go on to http://127.0.0.1:{first.port}")
        ref = create(second.client, "one")
        add(second.client, ref, 0, 20)  # at once: the standby need not know of it yet
        assert first.client.count(ref) == 20
        eventually(lambda: "one" in {r.name for r in second.client.list_collections()}, "the collection")
        eventually(lambda: second.client.count(ref) == 20, "the records")
        second.client.request("POST", f"{ref.path}/delete", {"ids": ["i3"]})
        assert first.client.count(ref) == 19
        assert page(second, "/readyz")[0] == 503  # it still is no place for writes of its own
        with pytest.raises(ServerAnswered, match="already exists"):
            second.client.request("POST", f"{DATABASE}/collections", {"name": "one"})
        first.end()
        serving(second)
        assert second.client.count(ref) == 19
        add(second.client, ref, 20, 1)
        again = running(tmp_path / "one", keep, port=first.port, forwarding=first.settings.forwarding, **SYNC)
        with again as third:  # the lease has moved, and with it the way
            third.until(f"writes go on to http://127.0.0.1:{second.port}")
            add(third.client, ref, 21, 1)
            assert second.client.count(ref) == 21
        found = holder(Repository.open(LocalStore(keep)), 2)
        assert found
        assert found.address == f"http://127.0.0.1:{second.port}"


def test_both_ask_for_the_key(tmp_path: Path, keep: Path) -> None:
    """What a key may not do is refused at the standby; what comes to the other without a right is refused there."""
    place = RepositoryKeys(Repository.open(LocalStore(keep)))
    _, write = create_key(place, "app", "writer", database="default_database", collections=("docs-*",))
    _, read = create_key(place, "shown", "reader")
    collections = f"/api/v2{DATABASE}/collections"
    with two(tmp_path, keep) as (first, second):
        assert ask(second.port, "POST", collections, {"name": "docs-1"})[0] == 401
        assert ask(second.port, "POST", collections, {"name": "docs-1"}, **{"x-chroma-token": read})[0] == 403
        assert ask(second.port, "POST", collections, {"name": "other"}, **{"x-chroma-token": write})[0] == 403
        assert ask(first.port, "GET", f"{collections}_count", **{"x-chroma-token": read}) == (200, 0)
        status, made = ask(second.port, "POST", collections, {"name": "docs-1"}, authorization=f"Bearer {write}")
        assert status == 200
        records = {"ids": ["a"], "embeddings": [[1, 2]]}
        path = f"{collections}/{made['id']}/add"
        assert ask(second.port, "POST", path, records, **{"x-chroma-token": write})[0] == 201
        for token, expected in (("", 401), (read, 403)):
            marked = {"chromakeep-forwarded": "1", **({"x-chroma-token": token} if token else {})}
            assert ask(first.port, "POST", path, records, **marked)[0] == expected
        elsewhere = f"/api/v2/tenants/default_tenant/databases/other/collections/{made['id']}/add"
        assert ask(second.port, "POST", elsewhere, records, **{"x-chroma-token": write})[0] == 403
        unknown = f"{collections}/0e7c3c3e-8a53-4d5e-9a0e-6d1c3e1f5b11/add"  # to the standby: perhaps made just now
        assert ask(second.port, "POST", unknown, records, **{"x-chroma-token": write})[0] == 404
        assert ask(first.port, "GET", f"{collections}/{made['id']}/count", **{"x-chroma-token": read}) == (200, 1)


class Adding(threading.Thread):
    """Adds one record after the other through one instance, and asks again only after 503."""

    def __init__(self, port: int, path: str, start: int) -> None:
        super().__init__(daemon=True)
        self.port, self.path, self.number, self.over = port, path, start, threading.Event()
        self.by: dict[int, set[str]] = {201: set(), 502: set(), 503: set(), 504: set()}

    def run(self) -> None:
        while not self.over.is_set():
            name = f"i{self.number}"
            status, _ = ask(self.port, "POST", self.path, {"ids": [name], "embeddings": [[1, self.number]]})
            self.by[status].add(name)
            if status == 503:
                self.over.wait(0.05)
            else:
                self.number += 1


def test_the_holder_is_killed_under_forwarded_writes(tmp_path: Path, keep: Path) -> None:
    """503 until another one has taken over, whom the third then asks; one that holds writes answers none at all
    with 503. What was acknowledged is there once, and of the rest at most what was sent to the dying one."""
    with ExitStack() as stack:
        runs = {}
        for name in ("one", "two", "three"):
            port = free_port()
            hold = ("--hold-writes", "50s") if name == "three" else ()
            more = ("--advertise", f"http://127.0.0.1:{port}", *hold)
            at = tmp_path / name / "data"
            run, _, log = stack.enter_context(process(at, keep, every=3600, durability="sync", port=port, more=more))
            runs[port] = (run, at)
            said = "serving on" if name == "one" else "standing by"
            eventually(lambda log=log, said=said: said in log.read_text(), said)
        first, *others = runs
        ref = create(ChromaClient("127.0.0.1", others[0]), "written")
        writers = [Adding(port, f"/api/v2{ref.path}/add", 10**6 * n) for n, port in enumerate([*others, *others])]
        for writer in writers:
            writer.start()

        def more_of_each(count: int) -> None:
            before = [len(writer.by[201]) for writer in writers]

            def enough() -> bool:
                assert all(writer.is_alive() for writer in writers)
                return all(len(w.by[201]) > n + count for w, n in zip(writers, before, strict=True))

            eventually(enough, "writes")

        more_of_each(20)
        kill(*runs[first])
        more_of_each(20)
        for writer in writers:
            writer.over.set()
            writer.join()
        done, unsure = (
            set().union(*(w.by[status] for w in writers for status in which)) for which in ((201,), (502, 504))
        )
        assert len(unsure) <= 2 * len(writers)  # a process that dies closes one socket after the other: the next write
        # of a client may still reach it
        assert not any(w.by[503] for w in writers if w.port == others[1])
        assert any(w.by[503] for w in writers if w.port == others[0])

        def shown(port: int) -> set[str]:
            return set(ChromaClient("127.0.0.1", port).get_vectors(ref, limit=10**6))

        eventually(lambda: shown(others[0]) == shown(others[1]), "the same at both")
        assert done <= shown(others[0]) <= done | unsure
