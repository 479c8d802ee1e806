"""Standby: a second instance answers reads while the first one writes, and goes on where that one ended, exactly."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.errors import ServerAnswered, ServerFailed
from chromakeep.operations import duty, standby
from chromakeep.repository import Repository
from chromakeep.repository.log import Log, name_of
from chromakeep.repository.snapshots import Snapshot
from chromakeep.server.front import open_door
from chromakeep.store.local import LocalStore
from run.running import PATIENCE, Running, Writer, add, create, eventually, held, process, running

LONG = 3600.0  # seconds between snapshots: all else must come from the log
SYNC: dict[str, Any] = {"every": LONG, "door": open_door, "durability": "sync"}


def snapshots(keep: Path) -> list[Snapshot]:
    """All there are."""
    return Repository.open(LocalStore(keep)).snapshots()


def page(one: Running, path: str) -> tuple[int, dict[str, Any]]:
    """Status and content of a page of the door."""
    try:
        with urlopen(f"http://127.0.0.1:{one.port}{path}") as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def serving(one: Running) -> None:
    """Wait until it takes writes."""
    one.until("serving on")
    eventually(lambda: page(one, "/readyz")[0] == 200, "readiness")


def read_all(client: ChromaClient, writer: Writer) -> dict[str, float]:
    """First component of every vector, as a server tells."""
    assert writer.ref
    return {i: float(v[0]) for i, v in client.get_vectors(writer.ref, limit=10**6).items()}


def test_a_standby_answers_reads_and_takes_over_after_sigterm(
    tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it shows is what was acknowledged, a moment later; then it writes on, without a snapshot, and a third
    instance restores all of it; the first, started again, stands by for it."""
    one, two = tmp_path / "one", tmp_path / "two"
    with running(one, keep, **SYNC) as first:
        serving(first)
        ref = create(first.client, "before")
        add(first.client, ref, 0, 10)
        with running(two, keep, **SYNC) as second:
            second.until("standing by")
            assert second.client.count(ref) == 10
            writer = Writer(first.port, sync_threshold=20)
            writer.start()
            eventually(lambda: writer.writes > 40, "writes")
            later = create(first.client, "later")
            add(first.client, later, 0, 5)
            eventually(lambda: "later" in {r.name for r in second.client.list_collections()}, "the new collection")
            eventually(lambda: second.client.count(later) == 5, "its records")
            with pytest.raises(ServerAnswered, match="stands by") as refused:
                add(second.client, ref, 100, 1)
            assert refused.value.status == 503
            assert page(second, "/readyz")[0] == 503 and page(second, "/readyz/reads")[0] == 200
            known = page(second, "/_keep/status")[1]
            assert known["role"] == "standby" and known["following"]["epoch"] == 1
            assert known["following"]["behind_seconds"] < 30
            monkeypatch.setattr(duty, "STALE", 0.0)  # as after a minute without a bucket
            assert page(second, "/readyz/reads")[0] == 503 and second.client.count(ref) == 10
            monkeypatch.undo()
            writer.over.set()
            writer.join()
            eventually(lambda: read_all(second.client, writer) == read_all(first.client, writer), "the rest")
            first.end()
            serving(second)
            assert second.said("followed") and not second.said("restored: ")
            writer.check(read_all(second.client, writer))
            assert second.client.count(ref) == 10 and second.client.count(later) == 5
            assert not [s for s in snapshots(keep) if s.source == str(two)]
            assert page(second, "/readyz")[0] == 200
            add(second.client, ref, 10, 10)
            more = Writer(second.port, seed=1)
            more.acked, more.ref = dict(writer.acked), writer.ref
            more.number = 10**6
            more.start()
            eventually(lambda: more.writes > 20, "writes to the second")
            with running(one, keep, **SYNC) as again:
                again.until("standing by")
                eventually(lambda: again.client.count(ref) == 20, "the first following")
                more.over.set()
                more.join()
                eventually(lambda: read_all(again.client, more) == read_all(second.client, more), "the rest")
                more.check(read_all(again.client, more))
                before = len(snapshots(keep))
                again.end()
                assert len(snapshots(keep)) == before
            second.end()
    assert more.ref
    more.check(held(two, more.ref))
    with running(tmp_path / "three", keep, **SYNC) as third:  # a disk that the repository has no snapshot of
        serving(third)
        more.check(read_all(third.client, more))


def test_after_sigkill_nothing_acknowledged_is_missing(tmp_path: Path, keep: Path) -> None:
    """The writing instance is killed under load: the other one, which has followed it, goes on without a snapshot, in
    an epoch that builds on the end of the first."""
    with process(tmp_path / "0" / "data", keep, every=LONG, more=("--durability", "sync")) as (run, port, log):
        eventually(lambda: "serving on" in log.read_text(), "the server")
        with running(tmp_path / "two", keep, **SYNC) as second:
            second.until("another instance writes")
            writer = Writer(port, sync_threshold=20)
            writer.start()
            second.until("standing by")
            start = writer.writes
            eventually(lambda: writer.writes > start + 60, "writes")
            taken = {s.id for s in snapshots(keep)}
            run.kill()
            run.wait()
            writer.over.set()
            writer.join()
            serving(second)
            assert second.said("followed") and not second.said("restored: ")
            found = read_all(second.client, writer)
            writer.check(found)
            assert writer.ref and second.client.count(writer.ref) == len(found)
            assert {s.id for s in snapshots(keep)} == taken
            more = Writer(second.port, seed=3)
            more.acked, more.open, more.ref, more.number = dict(writer.acked), dict(writer.open), writer.ref, 10**6
            more.start()
            eventually(lambda: more.writes > 20, "writes to the second")
            more.over.set()
            more.join()
            log_ = Log(Repository.open(LocalStore(keep)))
            assert log_.epochs()[-1] == 2
            first = log_.read(2, 1)
            assert first and first.after and first.after[0] == 1 and first.base is None
            more.check(read_all(second.client, more))
            second.end()
    assert more.ref
    more.check(held(tmp_path / "two", more.ref))


def test_of_two_standbys_one_takes_over_and_the_other_follows_it(tmp_path: Path, keep: Path) -> None:
    """The first is frozen past its time: one goes on, the other follows the new log without restoring anew; when the
    first wakes up it stops."""
    with process(tmp_path / "0" / "data", keep, every=LONG, more=("--durability", "sync")) as (run, port, log):
        client = ChromaClient("127.0.0.1", port)
        eventually(lambda: "serving on" in log.read_text(), "the server")
        ref = create(client, "one")
        add(client, ref, 0, 10)
        with running(tmp_path / "a", keep, **SYNC) as a, running(tmp_path / "b", keep, **SYNC) as b:
            for one in (a, b):
                one.until("standing by")
            add(client, ref, 10, 10)
            os.kill(run.pid, signal.SIGSTOP)
            eventually(lambda: a.said("serving on") or b.said("serving on"), "a takeover")
            writing, other = (a, b) if a.said("serving on") else (b, a)
            serving(writing)
            assert writing.said("followed") and writing.client.count(ref) == 20
            add(writing.client, ref, 20, 10)
            eventually(lambda: not other.thread.is_alive() or other.client.count(ref) == 30, "the other following")
            assert other.thread.is_alive(), (other.error, other.result, other.said(""))
            os.kill(run.pid, signal.SIGCONT)
            assert run.wait(PATIENCE) == 20
            writing.end()
            serving(other)
            assert len(other.said("standing by")) == 1 and not other.said("restored: ")
            assert other.client.count(ref) == 30
            add(other.client, ref, 30, 10)
            other.end()
    assert held(tmp_path / ("b" if other is b else "a"), ref).keys() == {f"i{n}" for n in range(40)}


def test_a_standbys_directory_is_never_served_by_itself(tmp_path: Path, keep: Path) -> None:
    """Killed while it stands by, then started when the first is gone: it restores what the first wrote since."""
    two = tmp_path / "2" / "data"
    with running(tmp_path / "one", keep, **SYNC) as first:
        serving(first)
        ref = create(first.client, "one")
        add(first.client, ref, 0, 10)
        with process(two, keep, every=LONG, more=("--durability", "sync")) as (run, port, log):
            eventually(lambda: "standing by" in log.read_text(), "the standby")
            assert ChromaClient("127.0.0.1", port).count(ref) == 10
            run.kill()
            run.wait()
        add(first.client, ref, 10, 10)
        first.end()
    with running(two, keep, **SYNC) as second:
        serving(second)
        assert second.said("restored") and second.client.count(ref) == 20
    assert not list(two.parent.glob("data.old-*"))


def test_no_read_passes_before_the_standby_is_complete(
    tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server runs, but it has not yet followed to the end of the log: 503 to everything."""
    go = threading.Event()
    bring = standby.Follower.bring

    def slow(self: Any, *args: Any) -> None:
        assert go.wait(PATIENCE)
        bring(self, *args)

    monkeypatch.setattr(standby.Follower, "bring", slow)
    made = standby.Follower.__init__

    def late(self: Any, *args: Any) -> None:
        made(self, *args)
        add(first.client, ref, 10, 10)  # something to bring, whatever was restored

    monkeypatch.setattr(standby.Follower, "__init__", late)
    with running(tmp_path / "one", keep, **SYNC) as first:
        serving(first)
        ref = create(first.client, "one")
        add(first.client, ref, 0, 10)
        with running(tmp_path / "two", keep, **SYNC) as second:
            second.until("another instance writes")
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                with pytest.raises(ServerFailed):
                    second.client.count(ref)
            assert page(second, "/_keep/status")[1]["role"] == "waiting"
            go.set()
            second.until("standing by")
            assert second.client.count(ref) == 20


def test_a_standby_keeps_up_with_a_writer_quicker_than_its_replay(
    tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always more in the log: it is shown together, reads are answered, and how old they are is told."""
    show = standby.Follower.show

    def slow(self: Any) -> None:
        time.sleep(0.5)
        show(self)

    monkeypatch.setattr(standby.Follower, "show", slow)
    with running(tmp_path / "one", keep, **SYNC) as first:
        serving(first)
        writer = Writer(first.port, sync_threshold=20)
        writer.start()
        eventually(lambda: writer.writes > 20, "writes")
        with running(tmp_path / "two", keep, **SYNC) as second:
            second.until("standing by")
            start = writer.writes
            eventually(lambda: writer.writes > start + 40, "more writes")
            assert page(second, "/_keep/status")[1]["following"]["behind_seconds"] < 30
            writer.over.set()
            writer.join()
            first.end()
            serving(second)
            writer.check(read_all(second.client, writer))


def test_a_standby_that_has_grown_large_begins_again(
    tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first has taken a newer snapshot, from there; and what it takes over is the same."""
    monkeypatch.setattr(standby, "ROOM", -(1 << 40))
    monkeypatch.setattr(standby, "CHECK", 0.3)
    with running(tmp_path / "one", keep, **{**SYNC, "every": 2.0}) as first:
        serving(first)
        ref = create(first.client, "one", sync_threshold=10)
        with running(tmp_path / "two", keep, **SYNC) as second:
            second.until("standing by")
            add(first.client, ref, 0, 50)
            second.until("begins again at a newer snapshot")
            second.until("standing by", 2)
            monkeypatch.setattr(standby, "CHECK", LONG)
            add(first.client, ref, 50, 50)
            first.end()
            serving(second)
            assert second.client.count(ref) == 100 and not second.said("fell out")
            second.end()
    assert not list(tmp_path.glob("two.old-*"))


def test_a_standby_that_fails_restores_when_its_turn_comes(
    tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma refuses what follows, whatever is tried: told, no reads, and the takeover is by a restore, as exact."""
    with running(tmp_path / "one", keep, **SYNC) as first:
        serving(first)
        ref = create(first.client, "one")
        add(first.client, ref, 0, 10)
        with running(tmp_path / "two", keep, **SYNC) as second:
            second.until("standing by")

            def broken(*_: object) -> None:
                raise ServerFailed("no replay today")

            monkeypatch.setattr(standby.Follower, "bring", broken)
            monkeypatch.setattr(standby.Follower, "__init__", broken)
            add(first.client, ref, 10, 10)
            second.until("fell out")
            with pytest.raises(ServerFailed):
                second.client.count(ref)
            first.end()
            serving(second)
            assert second.said("restored: 20 records") and second.client.count(ref) == 20
            add(second.client, ref, 20, 1)


def test_a_gap_and_damage_in_the_log_are_told_and_not_passed(tmp_path: Path, keep: Path) -> None:
    """A segment that is spoilt before it is read: the standby falls out and says which, and shows nothing wrong."""
    store = LocalStore(keep)
    with running(tmp_path / "one", keep, **SYNC) as first:
        serving(first)
        ref = create(first.client, "one")
        with running(tmp_path / "two", keep, **SYNC) as second:
            second.until("standing by")
            number = Log(Repository.open(store)).end(1)[0]
            (keep / name_of(1, number + 1)).write_bytes(b"rubbish")
            second.until("fell out")
            assert second.said(name_of(1, number + 1))
            with pytest.raises(ServerFailed):
                second.client.count(ref)
