"""Run: the main job against a real `chroma run` and a repository in a folder."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.health import Health
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.writers import start_time
from chromakeep.errors import (
    PartialFailure,
    RefusedToServe,
    ServerAnswered,
    ServerFailed,
    StoreUnavailable,
    UsageError,
)
from chromakeep.operations.backup import backup
from chromakeep.operations.beside import Beside
from chromakeep.operations.restore import restore
from chromakeep.operations.watch import Watching
from chromakeep.repository import Repository
from chromakeep.server.front import open_door
from chromakeep.store.local import LocalStore
from run.running import PATIENCE, Writer, add, answers, create, eventually, held, process, ready, running


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder for a repository; the first run makes one in it."""
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


def newest(repository: Path, into: Path) -> Path:
    """The newest snapshot, restored."""
    restore(Repository.open(LocalStore(repository)), None, into)
    return into


def fill(data: Path, repository: Path | None, count: int = 100) -> None:
    """A directory with one collection, through a run."""
    with running(data, repository) as one:
        one.until("serving on")
        add(one.client, create(one.client, "some"), 0, count)
        one.end()


def test_fresh_then_found_then_restored(tmp_path: Path, repository: Path) -> None:
    """The life of a container's data: nothing, then a restart with the disk, then a restart without it."""
    data = tmp_path / "data"
    with running(data, repository) as one:
        one.until("serving on")
        assert one.said("fresh: no collections")
        ref = create(one.client, "some")
        add(one.client, ref, 0, 100)
        result = one.end()
        assert result.outcome == "fresh" and result.snapshots >= 1
    with running(data, repository) as one:
        one.until("serving on")
        assert one.said("found: 100 records in 1 collection (some 100), model: not named")
        assert not one.said("check")
        assert one.client.count(ref) == 100
        one.end()
    data.rename(tmp_path / "lost")
    with running(data, repository) as one:
        one.until("serving on")
        assert one.said("restored: 100 records in 1 collection (some 100), model: not named")
        assert one.client.get_vectors(ref, ["i7"])["i7"].tolist() == [7, 1, 1, 1]
        assert one.end().outcome == "restored"


def test_a_directory_stopped_cleanly_is_not_checked_again(tmp_path: Path, repository: Path) -> None:
    """The disposable check is for directories that nobody vouches for: unknown ones, and those of a killed run."""
    data = tmp_path / "data"
    fill(data, repository)
    from chromakeep.events import PhaseStarted

    def checked(one: object) -> bool:
        return any(isinstance(e, PhaseStarted) and e.phase == "check" for e in one.events)  # type: ignore[attr-defined]

    with running(data, repository) as one:
        one.until("serving on")
        assert not checked(one)
        one.end()
    stamp = (data / "chroma.sqlite3").stat()
    os.utime(data / "chroma.sqlite3", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))  # whatever the clock's tick
    with running(data, repository) as one:
        one.until("serving on")
        assert checked(one)
        one.end()


def test_empty_with_an_unreadable_repository_is_refused(tmp_path: Path, repository: Path) -> None:
    """Starting fresh would hide the loss: wrong password, missing store and a damaged snapshot all refuse."""
    data = tmp_path / "data"
    fill(data, repository)
    data.rename(tmp_path / "kept")
    for folder in repository.rglob("*"):
        if folder.is_file() and "packs" in folder.parts:
            folder.write_bytes(b"x" * folder.stat().st_size)
    with running(data, repository) as one, pytest.raises(RefusedToServe, match="cannot be restored"):
        one.thread.join(PATIENCE)
        one.end()
    repository.rename(tmp_path / "elsewhere")
    with running(data, repository) as one, pytest.raises(RefusedToServe, match="cannot be read"):
        one.thread.join(PATIENCE)
        one.end()
    assert not (data / "chroma.sqlite3").exists()


def test_a_blank_database_does_not_hide_the_snapshots(tmp_path: Path, repository: Path) -> None:
    """An image built with an empty Chroma in it boots into its snapshot all the same."""
    data = tmp_path / "data"
    fill(data, repository)
    data.rename(tmp_path / "lost")
    (tmp_path / ".data.chromakeep").rename(tmp_path / "forgotten")
    with running(data) as one:  # without a repository: a fresh, blank database
        one.until("serving on")
        one.end()
    (tmp_path / ".data.chromakeep").rename(tmp_path / "forgotten too")
    with running(data, repository) as one:
        one.until("serving on")
        assert one.end().outcome == "restored"


def test_a_repository_with_other_directories_is_not_guessed_from(tmp_path: Path, repository: Path) -> None:
    """Of two strangers' snapshots none is restored into a third directory; its own is."""
    for name in ("one", "two"):
        fill(tmp_path / name, None)  # each for itself, and then kept in one repository
        with running(tmp_path / name, repository) as one:
            one.until("serving on")
            one.end()
    with running(tmp_path / "three", repository) as one, pytest.raises(RefusedToServe, match="none of it"):
        one.thread.join(PATIENCE)
        one.end()
    (tmp_path / "one").rename(tmp_path / "lost")
    with running(tmp_path / "one", repository) as one:
        one.until("restored: 100 records")
        one.end()


def test_snapshots_are_taken_while_it_serves(tmp_path: Path, repository: Path) -> None:
    """Each change is in a snapshot soon after, without stopping; without a change there is no further one."""
    with running(tmp_path / "data", repository, every=0.3) as one:
        one.until("serving on")
        ref = create(one.client, "some")
        add(one.client, ref, 0, 50)
        one.until("snapshot ")
        names = (f"a{n}" for n in count())
        eventually(lambda: len(held(newest(repository, tmp_path / next(names)), ref)) == 50, "50")
        taken = len(one.said("snapshot "))
        add(one.client, ref, 50, 50)
        one.until("snapshot ", taken + 1)
        assert one.end().restarts == 0


def test_what_was_acknowledged_is_in_the_last_snapshot(tmp_path: Path, repository: Path) -> None:
    """SIGTERM with a writer at work: the server ends first, then comes the last snapshot; restored, it has it all."""
    data = tmp_path / "data"
    with process(data, repository, every=0.5) as (child, port, log):
        writer = Writer(port)
        writer.start()
        eventually(lambda: writer.writes > 60 or child.poll() is not None, "60 writes")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0, log.read_text()
        writer.over.set()
        writer.join()
    assert writer.ref
    writer.check(held(data, writer.ref))
    writer.check(held(newest(repository, tmp_path / "restored"), writer.ref))


def test_a_stop_before_serving_keeps_what_a_killed_run_left(tmp_path: Path, repository: Path) -> None:
    """Writes acknowledged before a SIGKILL are on the disk only; a start that is stopped at once still keeps them."""
    data = tmp_path / "data"
    with process(data, repository, every=3600) as (child, port, log):
        eventually(lambda: ready(child, port, log), "the server")
        client = ChromaClient("127.0.0.1", port)
        ref = create(client, "some")
        add(client, ref, 0, 10)
        child.kill()
        child.wait()
    with running(data, repository, stopped=True) as one:
        assert one.end().snapshots == 1
    assert len(held(newest(repository, tmp_path / "restored"), ref)) == 10


def test_a_dead_server_is_started_again(tmp_path: Path, repository: Path) -> None:
    """Its process is killed: checked, restarted, with all that was acknowledged."""
    with running(tmp_path / "data", repository) as one:
        one.until("serving on")
        ref = create(one.client, "some")
        add(one.client, ref, 0, 100)
        pid = int(one.said("serving on")[0].partition("(process ")[2].partition(",")[0])
        os.kill(pid, signal.SIGKILL)
        one.until("serving on", 2)
        assert one.said("chroma ended by itself (signal 9)")
        assert one.client.count(ref) == 100
        assert one.end().restarts == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a port be held for a server to come")
def test_the_port_behind_a_door_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the server listens there, which may be long after the run began, and between its lives: a run whose port
    another program was given would start its server in vain until it gives up."""
    start, found = ChromaServer.start, list[int | None]()

    def tried(self: ChromaServer, *arguments: Any, **more: Any) -> None:
        with socket.socket() as other:
            try:
                other.bind(("127.0.0.1", self.options.port))
                found.append(None)
            except OSError as error:
                found.append(error.errno)
        start(self, *arguments, **more)

    monkeypatch.setattr(ChromaServer, "start", tried)
    with running(tmp_path / "data", door=open_door, durability="snapshots") as one:
        one.until("serving on")
        os.kill(int(one.said("serving on")[0].partition("(process ")[2].partition(",")[0]), signal.SIGKILL)
        one.until("serving on", 2)
        assert one.end().restarts == 1
    assert len(found) >= 2 and set(found) == {errno.EADDRINUSE}


def test_a_server_dead_inside_is_healed(tmp_path: Path, repository: Path) -> None:
    """The poisoned write: seen behind the heartbeat, its row taken out of the queue, nothing acknowledged is lost."""
    with running(tmp_path / "data", repository, probe_every=0.5) as one:
        one.until("serving on")
        hit, other = create(one.client, "hit"), create(one.client, "other")
        add(one.client, hit, 0, 60)
        add(one.client, other, 0, 60)
        with pytest.raises(ServerAnswered):
            one.client.request(
                "POST",
                f"{hit.path}/add",
                {
                    "ids": ["poison", "beside"],
                    "embeddings": [[9, 9, 9, 9]] * 2,
                    "metadatas": [{"chroma:document": 5}, {"n": 1}],
                },
            )
        one.until("serving on", 2)
        assert one.said("dead inside")
        rebuilt = one.said("rebuilt 'hit'")
        assert rebuilt and "1 unreadable queued writes removed (poison)" in rebuilt[0]
        assert sorted(i for page in one.client.ids(hit) for i in page) == sorted(
            ["beside", *(f"i{n}" for n in range(60))]
        )
        assert len(one.client.get_vectors(hit, limit=100)) == 61
        add(one.client, other, 60, 1)  # writes go through again
        assert one.client.count(other) == 61
        assert one.end().restarts == 1


def test_it_gives_up_on_a_server_that_keeps_dying(tmp_path: Path, repository: Path) -> None:
    """More deaths than allowed end the run with the server's last words and an exit status of its own."""
    program = tmp_path / "chroma"
    program.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    program.chmod(0o755)
    with running(tmp_path / "data", repository, program=str(program), deaths=1) as one:
        one.thread.join(PATIENCE)
        with pytest.raises(ServerFailed, match=r"2 times.*the disk is on fire") as caught:
            one.end()
    assert caught.value.exit_status == 18


def test_a_broken_collection_is_healed_at_boot(tmp_path: Path, repository: Path) -> None:
    """A truncated pickle, as a kill leaves it: the vectors come from the snapshot, the broken files are kept."""
    data = tmp_path / "data"
    with running(data, repository) as one:
        one.until("serving on")
        ref = create(one.client, "some", sync_threshold=10)
        add(one.client, ref, 0, 100)
        one.end()
    os.truncate(next(data.glob("*/index_metadata.pickle")), 30)
    with running(data, repository) as one:
        one.until("serving on")
        assert one.said("collection 'some' is broken") and one.said("rebuilt 'some'")
        assert {i: v[0] for i, v in one.client.get_vectors(ref, limit=1000).items()} == {f"i{n}": n for n in range(100)}
        one.end()
    kept = next(tmp_path.glob("data.broken-*"))
    assert next(kept.glob("*/index_metadata.pickle")).stat().st_size == 30
    assert b'"name":"some"' in (kept / "rescue.json").read_bytes()


def test_a_broken_database_is_replaced_by_the_newest_snapshot(tmp_path: Path, repository: Path) -> None:
    """What may be missing is said with the snapshot's time; without a repository it is refused, untouched."""
    data = tmp_path / "data"
    fill(data, repository, 1000)
    with (data / "chroma.sqlite3").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200_000)
    with running(data) as one, pytest.raises(RefusedToServe, match="no repository"):
        one.thread.join(PATIENCE)
        one.end()
    with running(data, repository) as one:
        one.until("serving on")
        assert one.said("is missing; the broken directory is kept")
        assert one.said("found: 1,000 records")
        one.end()


def test_a_last_snapshot_that_fails_is_a_failure(tmp_path: Path, repository: Path) -> None:
    """Stopped, but without the last snapshot: exit status 3 and what the newest one is."""

    def unplugged() -> Repository:
        raise StoreUnavailable("unplugged")

    with running(tmp_path / "data", repository, create_repository=unplugged) as one:
        one.until("serving on")
        add(one.client, create(one.client, "some"), 0, 10)
        with pytest.raises(PartialFailure, match=r"before all was in the repository: unplugged; there is none at all"):
            one.end()


class Stalled(LocalStore):
    """A store that takes no object but leases until it is released."""

    released = threading.Event()

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        if not name.startswith("lease/"):
            self.released.wait()
        super().put(name, data, if_absent=if_absent)


@pytest.mark.parametrize("hurried", [False, True])
def test_a_store_that_hangs_does_not_hold_the_end_up(tmp_path: Path, repository: Path, hurried: bool) -> None:
    """When the grace period is over, or at a second signal, it ends without the last snapshot and says so."""
    Repository.create(LocalStore(repository))
    Stalled.released = threading.Event()
    grace = 3600.0 if hurried else 1.0
    try:
        with running(
            tmp_path / "data", grace=grace, open_repository=lambda: Repository.open(Stalled(repository))
        ) as one:
            one.until("serving on")
            add(one.client, create(one.client, "some"), 0, 10)
            one.stop.set()
            if hurried:
                one.hurry.set()
            with pytest.raises(PartialFailure, match="could not be finished in time"):
                one.end()
    finally:
        Stalled.released.set()


def test_a_server_that_hangs_is_started_again(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its tracks it is alive to the system, but answers nobody."""
    probing, probe, watches = threading.Lock(), Watching._probe, list[Watching]()

    def noted(self: Watching, suspicious: bool) -> Health:
        with probing:
            watches.append(self)
            return probe(self, suspicious)

    monkeypatch.setattr(Watching, "_probe", noted)
    with running(tmp_path / "data", repository, probe_every=0.2) as one:
        one.until("serving on")
        ref = create(one.client, "some")
        add(one.client, ref, 0, 10)
        eventually(lambda: watches, "a probe")
        with probing:  # in none of its other requests
            os.kill(int(one.said("serving on")[0].partition("(process ")[2].partition(",")[0]), signal.SIGSTOP)
            watches[-1]._client.timeout = 1.0  # for this one alone: the next server may be slow
        one.until("serving on", 2)
        assert one.said("chroma hangs in its heartbeat")
        assert one.client.count(ref) == 10
        one.end()


def test_a_failed_snapshot_is_tried_again_and_serving_goes_on(tmp_path: Path, repository: Path) -> None:
    with running(tmp_path / "data", repository, every=0.2) as one:
        one.until("serving on")
        repository.rename(tmp_path / "unplugged")
        ref = create(one.client, "some")
        add(one.client, ref, 0, 10)
        one.until("snapshot failed, it will be tried again", 2)
        (tmp_path / "unplugged").rename(repository)
        one.until("MB new of")
        assert one.client.count(ref) == 10
        one.end()


def test_loss_on_purpose_is_said_at_every_start(tmp_path: Path, repository: Path) -> None:
    """--ephemeral says so; no repository and no --ephemeral warns; both together are refused."""
    with running(tmp_path / "data", ephemeral=True) as one:
        one.until("serving on")
        assert one.said("will be lost")
        one.end()
    with running(tmp_path / "data") as one:
        one.until("serving on")
        assert one.said("no repository")
        one.end()
    with running(tmp_path / "data", repository, ephemeral=True) as one, pytest.raises(UsageError):
        one.thread.join(PATIENCE)
        one.end()


def test_a_kill_of_everything_loses_nothing_that_was_acknowledged(tmp_path: Path, repository: Path) -> None:
    """SIGKILL of the run at random moments, then boot: the directory has all of it, and no server is left behind."""
    data = tmp_path / "data"
    writer: Writer | None = None
    for round_ in range(4):
        with process(data, repository, every=0.3) as (child, port, log):
            if writer is None:
                writer = Writer(port, seed=7)
                writer.start()
            writer.client = ChromaClient("127.0.0.1", port, timeout=20)
            wanted = writer.writes + 25 + 10 * round_
            eventually(partial(enough, writer, wanted, child), "writes")
            assert child.poll() is None, log.read_text()[-3000:]
            child.kill()
            child.wait()
    assert writer
    writer.over.set()
    writer.join()
    with running(data, repository) as one:
        one.until("serving on")
        one.end()
    assert writer.ref
    writer.check(held(data, writer.ref))
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_server_left_by_a_killed_run_is_gone_before_the_next_serves(tmp_path: Path, repository: Path) -> None:
    """Two writers on one directory destroy it: the second run starts its server only when the first one's has ended."""
    data = tmp_path / "data"
    with process(data, repository) as (child, port, _):
        client = ChromaClient("127.0.0.1", port)
        eventually(lambda: answers(client) and Beside(data)._read().server, "the server")
        server = Beside(data)._read().server
        assert server and server.alive()
        os.kill(server.pid, signal.SIGSTOP)  # it will not end by itself
        child.kill()
        child.wait()
    with running(data, repository, grace=4.0) as one:  # too short for an end to be sure of its last snapshot
        one.until("serving on")
        assert start_time(server.pid) != server.started


def enough(writer: Writer, wanted: int, child: subprocess.Popen[bytes]) -> bool:
    """Whether the writer got that far, or never will."""
    return writer.writes > wanted or child.poll() is not None


def test_a_backup_by_hand_beside_a_run_is_possible(tmp_path: Path, repository: Path) -> None:
    """`chromakeep backup` of a served directory needs no permission of the run."""
    with running(tmp_path / "data", repository) as one:
        one.until("serving on")
        add(one.client, create(one.client, "some"), 0, 10)
        one.until("serving on")
        made = backup(tmp_path / "data", Repository.create(LocalStore(tmp_path)))
        assert made.collections[0].count == 10
        one.end()
