"""Replication: what was committed outlives the disk; one instance writes at a time; any second can be restored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.command import find_chroma
from chromakeep.chroma.purge import hold
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import RefusedToServe, ServerAnswered, StoreUnavailable, UsageError
from chromakeep.operations import keep as keep_
from chromakeep.operations.backup import backup
from chromakeep.operations.beside import Beside
from chromakeep.operations.check import check
from chromakeep.operations.replicate import replicate
from chromakeep.operations.restore import restore
from chromakeep.operations.ship import Shipping
from chromakeep.operations.tenure import Tenure
from chromakeep.repository import Repository
from chromakeep.repository.lease import Lease, newest
from chromakeep.repository.log import Log
from chromakeep.repository.merging import merge
from chromakeep.repository.moments import happenings
from chromakeep.repository.snapshots import encode, now, rfc3339
from chromakeep.server.front import open_door
from chromakeep.store.local import LocalStore
from run.running import DATABASE, ENV, GRACE, PATIENCE, add, create, eventually, held, kill, process, running


class Slow(LocalStore):
    """A store whose puts take a while, or fail while ``broken`` is set."""

    seconds = 0.05
    broken = threading.Event()

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        time.sleep(self.seconds)
        if self.broken.is_set():
            raise StoreUnavailable("the bucket is away")
        super().put(name, data, if_absent=if_absent)


def synchronous(keep: Path) -> dict[str, object]:
    """Settings of a run that acknowledges what is in a slow bucket."""
    Slow.broken.clear()
    return {
        "every": LONG,
        "door": open_door,
        "durability": "sync",
        "open_repository": lambda: Repository.open(Slow(keep)),
    }


LONG = 3600.0  # seconds between snapshots: all else must come from the log


def logged(keep: Path) -> int:
    """Rows in the newest epoch of the log."""
    log = Log(Repository.open(LocalStore(keep)))
    epochs = log.epochs()
    return sum(len(c.rows) for _, s in log.segments(epochs[-1]) for c in s.changes) if epochs else 0


def test_a_killed_run_without_its_disk_comes_back_with_what_was_logged(tmp_path: Path, keep: Path) -> None:
    """SIGKILL, the data directory and all beside it gone: the next boot restores the snapshot and the log."""
    data = tmp_path / "data"
    with process(data, keep, every=LONG) as (run, port, log):
        client = ChromaClient("127.0.0.1", port)
        eventually(lambda: "serving on" in log.read_text(), "the server")
        one, two = create(client, "one", sync_threshold=20), create(client, "two")
        for start in range(0, 200, 10):
            add(client, one, start, 10)
        add(client, two, 0, 5)
        client.delete(one, ["i0", "i1"])
        eventually(lambda: logged(keep) >= 207, "the log")
        kill(run, data)  # its server too: what it wrote meanwhile would come in the way
    shutil.rmtree(data)
    shutil.rmtree(tmp_path / ".data.chromakeep")
    assert len(Repository.open(LocalStore(keep)).snapshots()) == 1
    with running(data, keep, every=LONG) as again:
        again.until("restored: 203 records in 2 collections")
        again.until("serving on")
        assert again.client.count(one) == 198 and again.client.count(two) == 5
        add(again.client, one, 500, 10)
        again.end()
    assert held(data, one).keys() == {f"i{n}" for n in (*range(2, 200), *range(500, 510))}


def test_any_second_can_be_restored(tmp_path: Path, keep: Path) -> None:
    """A moment before a mistake, by its time; and the newest state, while the server goes on."""
    data = tmp_path / "data"
    with running(data, keep, every=LONG) as one:
        one.until("serving on")
        ref = create(one.client, "one")
        eventually(lambda: Log(Repository.open(LocalStore(keep))).epochs(), "the log")
        add(one.client, ref, 0, 50)
        eventually(lambda: logged(keep) >= 50, "the log")
        time.sleep(0.01)
        before = rfc3339(now())
        time.sleep(0.01)
        one.client.delete(ref, [f"i{n}" for n in range(40)])
        eventually(lambda: logged(keep) >= 90, "the log")
        repository = Repository.open(LocalStore(keep))
        done = restore(repository, before, tmp_path / "then")
        assert done.moment <= before and [c.count for c in done.collections] == [50]
        assert held(tmp_path / "then", ref).keys() == {f"i{n}" for n in range(50)}
        restore(repository, None, tmp_path / "now")
        assert held(tmp_path / "now", ref).keys() == {f"i{n}" for n in range(40, 50)}
        gone = create(one.client, "gone")
        add(one.client, gone, 0, 7)
        eventually(lambda: logged(keep) >= 97, "the log")
        one.client.request("DELETE", f"{DATABASE}/collections/gone")
        eventually(lambda: any(h.kind == "deleted" for h in happenings(repository)), "the log")
        restore(repository, "before:gone-deleted", tmp_path / "before")
        assert held(tmp_path / "before", gone).keys() == {f"i{n}" for n in range(7)}
        alone = restore(repository, repository.snapshots()[0].id, tmp_path / "snapshot")
        assert sum(c.count for c in alone.collections) == 0


def test_a_second_instance_waits_and_takes_over_at_once(tmp_path: Path, keep: Path) -> None:
    """While the first serves the second does not; after SIGTERM it restores what the first had to the last write."""
    with running(tmp_path / "one", keep, every=LONG) as first:
        first.until("serving on")
        ref = create(first.client, "one")
        add(first.client, ref, 0, 20)
        eventually(lambda: logged(keep) >= 20, "the log")
        with running(tmp_path / "two", keep, every=LONG) as second:
            second.until("another instance writes to this repository")
            add(first.client, ref, 20, 20)
            first.end()
            second.until("restored: 40 records")
            second.until("serving on")
            assert second.client.count(ref) == 40
            assert newest(Repository.open(LocalStore(keep))) == 2


def test_a_frozen_holder_that_wakes_up_stops(tmp_path: Path, keep: Path) -> None:
    """SIGSTOP past its time: another takes over; continued, the first ends with a status of its own, and when it is
    started again on its old disk it takes the other's data."""
    one = tmp_path / "one"
    with process(one, keep, every=LONG) as (run, port, log):
        client = ChromaClient("127.0.0.1", port)
        eventually(lambda: "serving on" in log.read_text(), "the server")
        ref = create(client, "one")
        add(client, ref, 0, 10)
        eventually(lambda: logged(keep) >= 10, "the log")
        os.kill(run.pid, signal.SIGSTOP)
        with running(tmp_path / "two", keep, every=LONG) as second:
            second.until("serving on")
            add(second.client, ref, 10, 10)
            os.kill(run.pid, signal.SIGCONT)
            assert run.wait(PATIENCE) == 20, log.read_text()[-2000:]
            second.end()
    with running(one, keep, every=LONG) as again:
        again.until("it is replaced")
        again.until("restored: 20 records")
        again.until("serving on")
        assert again.client.count(ref) == 20
    assert list(tmp_path.glob("one.old-*"))


def test_sync_acknowledges_what_is_in_the_bucket(tmp_path: Path, keep: Path) -> None:
    """After every answer the log has the write, whatever became of this instance: eight writers at once share puts."""
    with running(tmp_path / "data", keep, **synchronous(keep)) as one:
        one.until("serving on")
        ref = create(one.client, "one")

        def write(writer: int) -> None:
            client = ChromaClient("127.0.0.1", one.port)
            for n in range(5):
                add(client, ref, writer * 100 + n, 1)
                found = logged_ids(keep)
                assert f"i{writer * 100 + n}".encode() in found

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        changes = [c for _, s in Log(Repository.open(LocalStore(keep))).segments(1) for c in s.changes if c.rows]
        assert len(changes) < 40
        status = json.loads(urlopen(f"http://127.0.0.1:{one.port}/_keep/status").read())
        assert status["role"] == "serving" and status["durability"] == "sync" and status["lag_seconds"] < 60
        assert urlopen(f"http://127.0.0.1:{one.port}/readyz").status == 200


def logged_ids(keep: Path) -> set[bytes]:
    """Ids in the log."""
    log = Log(Repository.open(LocalStore(keep)))
    return {r.id for e in log.epochs() for _, s in log.segments(e) for c in s.changes for r in c.rows}


def test_without_a_bucket_a_synchronous_write_waits(tmp_path: Path, keep: Path) -> None:
    """Away for a moment: the write is answered when the bucket is back, and nothing was lost or done twice."""
    with running(tmp_path / "data", keep, **synchronous(keep)) as one:
        one.until("serving on")
        ref = create(one.client, "one")
        add(one.client, ref, 0, 1)
        Slow.broken.set()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(add, ChromaClient("127.0.0.1", one.port, timeout=PATIENCE), ref, 1, 1)
            one.until("the log is not written")
            time.sleep(0.5)
            assert not waiting.done() and b"i1" not in logged_ids(keep)
            Slow.broken.clear()
            waiting.result(PATIENCE)
        assert b"i1" in logged_ids(keep)
        one.until("the log is written again")


def test_a_log_that_cannot_begin_begins_later(tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket goes away just when the log would begin: told, and what was written meanwhile is in it in the end."""
    made, failures = Shipping.__init__, iter(range(2))

    def late(self: Shipping, *args: Any, **more: Any) -> None:
        if next(failures, None) is not None:
            raise StoreUnavailable("the bucket is away")
        made(self, *args, **more)

    monkeypatch.setattr(Shipping, "__init__", late)
    monkeypatch.setattr(keep_, "FIRST_RETRY", 0.2)
    with running(tmp_path / "data", keep, **synchronous(keep)) as one:
        one.until("serving on")
        ref = create(one.client, "one")
        add(one.client, ref, 0, 5)
        one.until("the log does not begin yet", 2)
        assert logged_ids(keep) >= {f"i{n}".encode() for n in range(5)}


def test_an_async_run_goes_on_without_a_bucket_and_catches_up(tmp_path: Path, keep: Path) -> None:
    """Writes are answered meanwhile; afterwards the log has them all."""
    settings = {**synchronous(keep), "durability": "async"}
    with running(tmp_path / "data", keep, **settings) as one:
        one.until("serving on")
        ref = create(one.client, "one")
        add(one.client, ref, 0, 1)
        eventually(lambda: b"i0" in logged_ids(keep), "the log")
        Slow.broken.set()
        for n in range(1, 60):
            add(one.client, ref, n, 1)
        one.until("the log is not written")
        assert b"i59" not in logged_ids(keep)
        Slow.broken.clear()
        eventually(lambda: logged_ids(keep) >= {f"i{n}".encode() for n in range(60)}, "the log")


def test_who_waits_refuses_writes_and_says_so(tmp_path: Path, keep: Path) -> None:
    """503 and not ready while another instance serves; both right once it has taken over."""
    with running(tmp_path / "one", keep, every=LONG, door=open_door) as first:
        first.until("serving on")
        ref = create(first.client, "one")
        eventually(lambda: Log(Repository.open(LocalStore(keep))).epochs(), "the log")
        with running(tmp_path / "two", keep, every=LONG, door=open_door) as second:
            second.until("another instance writes")
            with pytest.raises(ServerAnswered, match="stands by") as refused:
                add(second.client, ref, 0, 1)
            assert refused.value.status == 503
            with pytest.raises(HTTPError):
                urlopen(f"http://127.0.0.1:{second.port}/readyz")
            assert urlopen(f"http://127.0.0.1:{second.port}/healthz").status == 200
            first.end()
            second.until("serving on")
            add(second.client, ref, 0, 1)
            assert urlopen(f"http://127.0.0.1:{second.port}/readyz").status == 200


def test_a_collection_broken_while_it_is_served_is_mended_and_logged_anew(tmp_path: Path, keep: Path) -> None:
    """The server dies and its index is torn: the run rebuilds it, begins another epoch on a snapshot of the result, and
    all of it can be restored from there."""
    data = tmp_path / "data"
    program = tmp_path / "chroma"
    program.write_text(
        f"""#!/bin/sh
{find_chroma(None, ENV)} "$@" &
child=$!
trap 'kill $child' TERM
wait $child
case "$*" in *"--path {data} "*) if [ -e {tmp_path}/tear ]; then
    rm {tmp_path}/tear; for f in {data}/*-*/index_metadata.pickle; do : > $f; done
fi;; esac
"""
    )
    program.chmod(0o755)
    with running(data, keep, every=LONG, program=str(program)) as one:
        one.until("serving on")
        ref = create(one.client, "one", sync_threshold=10)
        for start in range(0, 100, 10):
            add(one.client, ref, start, 10)
        eventually(lambda: logged(keep) >= 100, "the log")
        (tmp_path / "tear").touch()
        server = Beside(data)._read().server
        assert server
        for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        one.until("rebuilt 'one'")
        one.until("serving on", 2)
        eventually(lambda: newest(Repository.open(LocalStore(keep))) == 2, "another epoch")
        eventually(lambda: 2 in Log(Repository.open(LocalStore(keep))).epochs(), "its log")
        add(one.client, ref, 100, 10)
        eventually(lambda: b"i109" in logged_ids(keep), "the log")
        restored = tmp_path / "restored"
        restore(Repository.open(LocalStore(keep)), None, restored)
        assert held(restored, ref).keys() == {f"i{n}" for n in range(110)}


def test_an_upgraded_chroma_begins_on_a_snapshot_of_its_own(tmp_path: Path, keep: Path) -> None:
    """The schema is not that of the newest snapshot: nothing is logged on that one."""
    data = tmp_path / "data"
    with running(data, keep, every=LONG) as one:
        one.until("serving on")
        ref = create(one.client, "one")
        add(one.client, ref, 0, 5)
        one.end()
    repository = Repository.open(LocalStore(keep))
    last = repository.snapshots()[-1]
    old = msgspec.structs.replace(last, schema="embeddings_queue:2 metadb:5 sysdb:9")
    repository.put_sealed("S", f"snapshots/{last.id}", encode(old), if_absent=False)
    with running(data, keep, every=LONG) as two:
        two.until("serving on")
        eventually(lambda: 2 in Log(Repository.open(LocalStore(keep))).epochs(), "the log")
        first = Log(Repository.open(LocalStore(keep))).read(2, 1)
        assert first and first.base not in (None, last.id)


def test_what_lies_before_a_snapshot_is_merged(tmp_path: Path, keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it serves: fewer objects, the same moments; and whoever takes over goes on from it."""
    monkeypatch.setattr(keep_, "merge", partial(merge, least=2))
    data = tmp_path / "data"
    with running(data, keep, every=1.0) as one:
        one.until("serving on")
        ref = create(one.client, "one")
        eventually(lambda: Log(Repository.open(LocalStore(keep))).epochs(), "the log")
        moments = []
        for n in range(12):
            add(one.client, ref, n, 1)
            eventually(lambda n=n: f"i{n}".encode() in logged_ids(keep), "the log")
            moments.append(rfc3339(now()))
        add(one.client, ref, 100, 1)
        eventually(lambda: any("-" in p.name for p in (keep / "log").rglob("0*-*")), "a merged object")
        one.end()
    repository = Repository.open(LocalStore(keep))
    assert not check(repository, read_data=True).problems
    for n in (0, 5, 11):
        restore(repository, moments[n], tmp_path / f"at{n}")
        assert held(tmp_path / f"at{n}", ref).keys() == {f"i{k}" for k in range(n + 1)}
    with running(tmp_path / "two", keep, every=LONG) as two:
        two.until("restored: 13 records")
        two.until("serving on")


def test_a_client_that_goes_away_does_not_end_the_log(tmp_path: Path, keep: Path) -> None:
    """It waited for its write to be in the bucket: its ticket is cancelled, and the others' are not."""
    data, repository = tmp_path / "data", Repository.open(LocalStore(keep))
    with ChromaServer(data, env=ENV) as server:
        ref = create(server.client, "one")
        base, held = backup(data, repository).snapshot, hold(data / "chroma.sqlite3")
        tenure = Tenure(Lease.take(repository))
        shipping = Shipping(data / "chroma.sqlite3", tenure, source="", base=base, held=held, hold=int, on_broken=list)
        shipping.shipped().cancel()
        shipping.start()
        add(server.client, ref, 0, 3)
        shipping.shipped().result(60)
        shipping.shipped().cancel()
        add(server.client, ref, 3, 3)
        shipping.shipped().result(60)
        assert shipping.finish(60, threading.Event())
        shipping.close()
    assert logged_ids(keep) == {f"i{n}".encode() for n in range(6)}


def test_some_collections_are_chosen_by_what_the_moment_has(tmp_path: Path, keep: Path) -> None:
    """Made, renamed, or deleted and made again since the snapshot: a name means what it meant at that moment."""
    data = tmp_path / "data"
    with running(data, keep, every=LONG) as one:
        one.until("serving on")
        old, moved = create(one.client, "books"), create(one.client, "moved")
        add(one.client, old, 0, 3)
        add(one.client, moved, 0, 4)
        one.end()
    with running(data, keep, every=LONG) as two:
        two.until("serving on")
        eventually(lambda: 2 in Log(Repository.open(LocalStore(keep))).epochs(), "the log")
        two.client.request("DELETE", f"{DATABASE}/collections/books")
        books, young = create(two.client, "books"), create(two.client, "young")
        add(two.client, books, 0, 5)
        add(two.client, young, 0, 6)
        two.client.request("PUT", moved.path, {"new_name": "renamed"})
        eventually(lambda: {h.kind for h in happenings(Repository.open(LocalStore(keep)))} >= {"renamed"}, "the log")
        repository = Repository.open(LocalStore(keep))
        assert {c.name for c in repository.snapshots()[-1].collections} == {"books", "moved"}
        for ref, name, count in ((books, "books", 5), (young, "young", 6), (moved, "renamed", 4)):
            done = restore(repository, None, tmp_path / name, collections=[name])
            assert [(c.id, c.name, c.count) for c in done.collections] == [(ref.id, name, count)]
            assert len(held(tmp_path / name, ref)) == count
        for gone in ("moved", old.id):
            with pytest.raises(UsageError, match="no collection"):
                restore(repository, None, tmp_path / "none", collections=[gone])
        at_the_snapshot = restore(repository, repository.snapshots()[-1].id, tmp_path / "before", collections=["books"])
        assert [c.id for c in at_the_snapshot.collections] == [old.id]


def test_a_restore_beneath_a_replicate_is_what_is_kept_from_then_on(tmp_path: Path, keep: Path) -> None:
    """The application is stopped, an earlier moment is put in the place of its directory, and it goes on: so does the
    log, and the newest state is that of the new directory, not of the one that was put aside."""
    data, stop, said = tmp_path / "data", threading.Event(), list[str]()
    repository = Repository.open(LocalStore(keep))

    def note(event: object) -> None:
        said.append(str(event))

    replicating = partial(replicate, every=LONG, grace=GRACE, stop=stop, observer=note)
    with ThreadPoolExecutor(1) as pool:
        try:
            with ChromaServer(data, env=ENV) as server:
                done = pool.submit(replicating, data, lambda: repository)
                ref = create(server.client, "one", sync_threshold=10)
                add(server.client, ref, 0, 20)
                eventually(lambda: b"i19" in logged_ids(keep), "the log")
                moment = Log(repository).last_time(1, Log(repository).end(1)[0])
                assert moment
                time.sleep(0.01)
                add(server.client, ref, 20, 20)
                eventually(lambda: b"i39" in logged_ids(keep), "the log")
            restore(repository, rfc3339(moment), data, replace=True)
            with ChromaServer(data, env=ENV) as server:
                add(server.client, ref, 100, 5)
                eventually(lambda: done.done() or b"i104" in logged_ids(keep), "the log of what is there now")
                assert server.client.count(ref) == 25
        finally:
            stop.set()
    result = done.result(PATIENCE)
    assert result.epoch == 2 and any("was replaced" in one for one in said)
    restore(repository, None, tmp_path / "newest")
    assert held(tmp_path / "newest", ref).keys() == {f"i{n}" for n in (*range(20), *range(100, 105))}
    assert not check(repository).problems


def test_what_was_restored_on_purpose_is_served(tmp_path: Path, keep: Path) -> None:
    """Another instance has written since; then an earlier moment is put in the place of the directory that was served
    first, and a run and a replicate go on from that: it is not taken for one that was overtaken."""
    one, repository = tmp_path / "one", Repository.open(LocalStore(keep))
    with running(one, keep, every=LONG) as first:
        first.until("serving on")
        ref = create(first.client, "one")
        add(first.client, ref, 0, 10)
        eventually(lambda: logged(keep) >= 10, "the log")
        first.end()
    moment = rfc3339(now())
    with running(tmp_path / "two", keep, every=LONG) as second:
        second.until("serving on")
        add(second.client, ref, 10, 10)
        eventually(lambda: 2 in Log(repository).epochs(), "the log")
        second.end()
    stop = threading.Event()
    stop.set()
    with pytest.raises(RefusedToServe, match="another instance has written"):
        replicate(one, lambda: repository, stop=threading.Event())
    restore(repository, moment, one, replace=True)
    assert replicate(one, lambda: repository, stop=stop).seconds
    with running(one, keep, every=LONG) as again:
        again.until("serving on")
        assert again.said("found: ") and again.client.count(ref) == 10
        add(again.client, ref, 20, 5)
        again.end()
    restore(repository, None, tmp_path / "newest")
    assert held(tmp_path / "newest", ref).keys() == {f"i{n}" for n in (*range(10), *range(20, 25))}
