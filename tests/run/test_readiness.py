"""Ready is what serves, with what it had. An empty store that nobody emptied is not, however often anything starts
anew; and it becomes no snapshot."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import PartialFailure
from chromakeep.operations.beside import Beside
from chromakeep.operations.healthcheck import Health, healthcheck
from chromakeep.repository import Repository
from chromakeep.server.front import open_door
from chromakeep.store.local import LocalStore
from run.running import DATABASE, Running, add, create, eventually, running


def health(one: Running) -> Health:
    return healthcheck(f"http://127.0.0.1:{one.port}", timeout=30.0)


def counts(keep: Path) -> list[int]:
    """Collections of each snapshot."""
    return [len(s.collections) for s in Repository.open(LocalStore(keep)).snapshots()]


def empty(data: Path) -> None:
    """Behind everybody's back."""
    with closing(sqlite3.connect(data / "chroma.sqlite3", timeout=30)) as db, db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DELETE FROM collections")


def test_what_was_taken_away_while_nothing_ran_is_missed(tmp_path: Path, keep: Path) -> None:
    """Another disk is mounted in its place, and a Chroma began there. The newest snapshot stays that of all."""
    data = tmp_path / "data"
    with running(data, keep, every=3600.0, door=open_door) as one:
        one.until("serving on")
        for name in ("one", "two"):
            add(one.client, create(one.client, name), 0, 5)
        one.end()
    blank = tmp_path / "blank"
    with running(blank, None, every=3600.0) as other:
        other.until("serving on")
        other.end()
    shutil.rmtree(data)
    (blank / "chroma.sqlite3").rename(blank / "moved")
    data.mkdir()
    (blank / "moved").rename(data / "chroma.sqlite3")
    for _ in range(2):
        with running(data, keep, every=0.2, durability="snapshots", door=open_door) as one:
            one.until("serving on")
            one.until("all 2 collections are gone")
            one.until("snapshot failed")
            found = health(one)
            assert not found.healthy and "all 2 collections are gone" in str(found.why)
            with pytest.raises(PartialFailure, match="all 2 collections are gone"):
                one.end()
        assert counts(keep)[-1] == 2
    with running(data, keep, every=3600.0, probe_every=0.2, durability="sync", door=open_door) as one:
        one.until("all 2 collections are gone")
        create(
            one.client, "three"
        )  # is acknowledged when it is in the bucket: for which there must be a snapshot first
        eventually(lambda: health(one).healthy, "readiness")
        one.client.request("DELETE", f"{DATABASE}/collections/three")
        one.end()
    with running(data, keep, every=3600.0, durability="snapshots", door=open_door) as one:
        one.until("serving on")
        assert health(one).healthy and counts(keep)[-1] == 0


def test_what_was_taken_away_under_the_server_is_missed_by_the_next_one(tmp_path: Path, keep: Path) -> None:
    """A platform that gets no readiness starts it anew, which explains nothing."""
    data = tmp_path / "data"
    with running(data, keep, every=0.2, probe_every=0.2, durability="snapshots", door=open_door) as one:
        one.until("serving on")
        add(one.client, create(one.client, "one"), 0, 5)
        eventually(lambda: counts(keep)[-1:] == [1], "a snapshot")
        empty(data)
        one.until("the only collection is gone")
        one.client.request("GET", DATABASE)
        assert not health(one).healthy
        taken = len(counts(keep))
        with pytest.raises(PartialFailure):
            one.end()
    assert counts(keep)[taken - 1 :] == [1]
    with running(data, keep, every=3600.0, durability="snapshots", door=open_door) as one:
        one.until("the only collection is gone")
        assert not health(one).healthy


def test_what_a_client_deleted_last_is_not_missed(tmp_path: Path) -> None:
    """Although the run was killed before it could see that."""
    data = tmp_path / "data"
    with running(data, None, every=3600.0, probe_every=0.1, door=open_door) as one:
        one.until("serving on")
        create(one.client, "one")
        eventually(lambda: '"sighted":1' in _state(data), "the sight of it")
        one.client.request("DELETE", f"{DATABASE}/collections/one")
        assert '"sighted":0' in _state(data)


def test_without_a_server_it_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its end until the next one answers; the process lives all the same."""
    with running(tmp_path / "data", None, every=3600.0, door=open_door) as one:
        one.until("serving on")
        assert health(one).healthy
        again, start = threading.Event(), ChromaServer.start

        def held(self: ChromaServer, **settings: Any) -> None:
            assert again.wait(200)
            start(self, **settings)

        monkeypatch.setattr(ChromaServer, "start", held)
        server = Beside(tmp_path / "data")._read().server
        assert server
        os.kill(server.pid, signal.SIGKILL)
        one.until("starting it again")
        found = health(one)
        assert (found.healthy, found.status) == (False, 503) and "starting" in str(found.why)
        assert healthcheck(f"http://127.0.0.1:{one.port}", live=True, timeout=30.0).healthy
        again.set()
        one.until("serving on", 2)
        assert health(one).healthy


def _state(data: Path) -> str:
    return (data.parent / f".{data.name}.chromakeep" / "state.json").read_text()
