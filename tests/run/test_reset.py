"""A reset, and whatever else has Chroma purge its queue for a while: no acknowledged write is missing in the log."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from chromakeep.chroma.client import Ref
from chromakeep.chroma.purge import complete, hold, holding, release
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ServerAnswered, SourceBusy, StoreUnavailable
from chromakeep.operations import held_queue
from chromakeep.operations.restore import restore
from chromakeep.operations.ship import PATIENCE, Shipping
from chromakeep.operations.tenure import Tenure
from chromakeep.repository import Repository
from chromakeep.repository.lease import Lease
from chromakeep.repository.log import Log
from chromakeep.server import front
from chromakeep.store.local import LocalStore
from run.running import DATABASE, ENV, Running, add, create, eventually, held, running

LONG = 3600.0  # seconds between snapshots: all else must come from the log


class Gated(LocalStore):
    """A store in which the log waits for ``go``, and that takes no snapshot while ``full`` is set."""

    go, full = threading.Event(), threading.Event()

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        if name.startswith("log/"):
            assert self.go.wait(200)
        if name.startswith("snapshots/") and self.full.is_set():
            raise StoreUnavailable("there is no room")
        super().put(name, data, if_absent=if_absent)


@pytest.fixture(autouse=True)
def opened() -> None:
    """The gates of the bucket are, whatever a test before has left."""
    Gated.go.set()
    Gated.full.clear()


@contextmanager
def resettable(tmp_path: Path, keep: Path, durability: str, every: float = LONG) -> Iterator[Running]:
    """A run with a gated bucket, of a Chroma that clients may reset, and a log that has begun."""
    config = tmp_path / "chroma.yaml"
    config.write_text("allow_reset: true\n")
    settings: dict[str, Any] = {"every": every, "door": front.open_door, "durability": durability}
    settings["open_repository"] = lambda: Repository.open(Gated(keep))
    with running(tmp_path / "data", keep, options=(str(config),), **settings) as one:
        one.until("serving on")
        add(one.client, create(one.client, "one"), 0, 50)
        eventually(lambda: "i49" in logged(keep), "the log")
        try:
            yield one
        finally:
            Gated.go.set()


def logged(keep: Path) -> set[str]:
    """Ids in the newest epoch of the log."""
    log = Log(Repository.open(LocalStore(keep)))
    return {r.id.decode() for e in log.epochs()[-1:] for _, s in log.segments(e) for c in s.changes for r in c.rows}


def queued(data: Path) -> int:
    """Rows in Chroma's queue."""
    with closing(sqlite3.connect(data / "chroma.sqlite3", timeout=30)) as db:
        return int(db.execute("SELECT count(*) FROM embeddings_queue").fetchone()[0])


def collections(one: Running) -> dict[str, str] | None:
    """Ids by name; None in the middle of a reset, in which tables are missing."""
    try:
        found = one.client.request("GET", f"{DATABASE}/collections")
    except ServerAnswered:
        return None
    return {collection["name"]: collection["id"] for collection in found}


def restored(keep: Path, to: Path, ref: Ref) -> set[str]:
    restore(Repository.open(LocalStore(keep)), None, to)
    return set(held(to, ref))


def names(number: int) -> set[str]:
    return {f"i{n}" for n in range(number)}


def test_after_a_reset_the_log_has_what_chroma_persists(
    tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset makes all tables anew, and with them the switch that held the purge: it is held again."""
    monkeypatch.setattr(front, "PATIENCE", 200.0)
    with resettable(tmp_path, keep, "sync") as one, ThreadPoolExecutor(10) as pool:
        one.client.request("POST", "/reset", {})
        ref = create(one.client, "two", sync_threshold=10)
        Gated.go.clear()
        writes = [pool.submit(add, one.client, ref, start, 10) for start in range(0, 100, 10)]
        eventually(lambda: one.client.count(ref) == 100, "the records")
        Gated.go.set()
        for write in writes:
            write.result(200)
        assert restored(keep, tmp_path / "restored", ref) == names(100)
        assert not one.said("begins anew")


def test_a_write_that_the_log_may_have_missed_waits_for_a_snapshot(
    tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a put takes its time nobody sees the reset, and Chroma purges what was written since: the log begins anew,
    and everybody who waited for it is answered."""
    monkeypatch.setattr(front, "PATIENCE", 200.0)
    with resettable(tmp_path, keep, "sync") as one, ThreadPoolExecutor(16) as pool:
        Gated.go.clear()
        writes: list[Future[Any]] = [pool.submit(create, one.client, "waits")]
        eventually(lambda: "waits" in (collections(one) or {}), "the first collection")
        writes.append(pool.submit(one.client.request, "POST", "/reset", {}))
        eventually(lambda: collections(one) == {}, "the reset")
        writes.append(pool.submit(create, one.client, "two", sync_threshold=10))
        eventually(lambda: "two" in (collections(one) or {}), "the second collection")
        ref = Ref((collections(one) or {})["two"], "two")
        writes += [pool.submit(add, one.client, ref, start, 10) for start in range(0, 100, 10)]
        eventually(lambda: one.client.count(ref) == 100 and queued(tmp_path / "data") < 100, "the purge")
        Gated.go.set()
        for write in writes:
            write.result(200)
        assert restored(keep, tmp_path / "then", ref) == names(100)
        assert one.said("begins anew")
        for start in range(100, 200, 10):
            add(one.client, ref, start, 10)
        assert restored(keep, tmp_path / "now", ref) == names(200)


def test_a_queue_that_was_let_go_is_held_again(tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was nearly full and no snapshot succeeded; from the next one on the log is whole again."""
    monkeypatch.setattr(held_queue, "LOW", 2.0)  # of a disk: it always is
    with resettable(tmp_path, keep, "async", every=0.5) as one:
        Gated.full.set()
        ref = create(one.client, "two", sync_threshold=10)
        one.until("queue is let go")
        numbers = count(0, 10)

        def purged() -> bool:
            number = next(numbers)
            add(one.client, ref, number, 10)
            return queued(tmp_path / "data") < number

        eventually(purged, "the purge")
        monkeypatch.setattr(held_queue, "LOW", 0.0)
        taken = len(one.said(" new of "))
        Gated.full.clear()
        one.until(" new of ", taken + 1)
        Gated.full.set()  # from here on there is the log alone
        first = next(numbers)
        Gated.go.clear()
        for start in range(first, first + 100, 10):
            add(one.client, ref, start, 10)
        eventually(lambda: one.client.count(ref) == first + 100, "the records")
        Gated.go.set()
        eventually(lambda: f"i{first + 99}" in logged(keep), "the log")
        assert restored(keep, tmp_path / "restored", ref) == names(first + 100)


def test_a_hold_is_told_from_the_next_one(tmp_path: Path) -> None:
    """Held twice it is the same one; let go and held again it is another, and what was purged between shows."""
    database = tmp_path / "data" / "chroma.sqlite3"

    def state() -> tuple[str | None, bool]:
        with closing(sqlite3.connect(database, timeout=30)) as db:
            return holding(db), complete(db)

    with ChromaServer(tmp_path / "data", env=ENV) as server:
        ref = create(server.client, "one", sync_threshold=10)
        first = hold(database)
        add(server.client, ref, 0, 50)
        assert first and hold(database) == first and state() == (first, True)
        assert release(database) == first and state() == (None, True) and release(database) == ""
        add(server.client, ref, 50, 50)
        eventually(lambda: queued(tmp_path / "data") < 100, "the purge")
        second = hold(database)
        assert second and second != first and state() == (second, False)


def test_the_purge_is_held_again_when_the_reset_has_ended(tmp_path: Path, keep: Path) -> None:
    """A write of ours between two of its steps had the rest of it fail: "database is locked". So not while commits
    follow each other; but not for ever, for others may write all the time."""
    database, holds = tmp_path / "data" / "chroma.sqlite3", list[str | None]()
    with ChromaServer(tmp_path / "data", env=ENV) as server:
        ref = create(server.client, "one")
        tenure = Tenure(Lease.take(Repository.open(LocalStore(keep))))
        first = hold(database)
        shipping = Shipping(
            database,
            tenure,
            source="",
            base="x",
            held=first,
            hold=lambda: holds.append(hold(database)),
            on_broken=list,
        )
        try:
            assert shipping._look(False)
            release(database)
            for number in range(PATIENCE):
                with pytest.raises(SourceBusy):
                    shipping._look(False)
                add(server.client, ref, number, 1)
            assert not holds and shipping._look(False) and len(holds) == 1
            release(database)
            with pytest.raises(SourceBusy):
                shipping._look(False)
            assert len(holds) == 1
            shipping._look(False)  # nobody has written since
            assert len(holds) == 2
        finally:
            shipping.close()
