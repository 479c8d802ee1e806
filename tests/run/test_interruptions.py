"""The keeping of a directory, interrupted: a bucket or a disk that fails in the wrong moment, another directory that
appears beneath it. What it says of itself afterwards is true, and what it said was kept is found again."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest

from chromakeep.chroma.client import Ref
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.tail import Tail
from chromakeep.errors import LeaseLost, NotNow, SourceBusy, StoreUnavailable, UsageError
from chromakeep.events import Event, ignore
from chromakeep.operations import keep as keep_
from chromakeep.operations import reign as reign_
from chromakeep.operations import ship as ship_
from chromakeep.operations import succession as succession_
from chromakeep.operations import tenure as tenure_
from chromakeep.operations.backup import backup
from chromakeep.operations.beside import Beside, Process
from chromakeep.operations.boot import newest_state
from chromakeep.operations.duty import ASYNC, Duty
from chromakeep.operations.keep import Keeping
from chromakeep.operations.place import exchange
from chromakeep.operations.restore import restore
from chromakeep.operations.succession import Succession
from chromakeep.operations.tenure import Tenure
from chromakeep.repository import Repository
from chromakeep.repository.lease import Lease, holder, newest
from chromakeep.repository.log import Log
from chromakeep.server.front import open_door
from chromakeep.store.base import ObjectInfo
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from run.running import ENV, add, create, eventually, held, running

LONG = 3600.0


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ref]:
    """A directory at rest with a collection of three records."""
    data = tmp_path_factory.mktemp("template") / "data"
    with ChromaServer(data, env=ENV) as server:
        ref = create(server.client, "one")
        add(server.client, ref, 0, 3)
    return data, ref


@pytest.fixture
def data(template: tuple[Path, Ref], tmp_path: Path) -> Path:
    return Path(shutil.copytree(template[0], tmp_path / "data"))


def write(data: Path, ref: Ref, number: int) -> None:
    """A record ``i<number>``, committed as Chroma's server commits one."""
    topic = f"persistent://default/default/{ref.id}"
    vector = struct.pack("<4f", number, 1, 1, 1)
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as connection, connection:
        connection.execute(
            "INSERT INTO embeddings_queue (operation, topic, id, vector, encoding, metadata) VALUES (0, ?, ?, ?, ?, ?)",
            (topic, f"i{number}", vector, "FLOAT32", "{}"),
        )


class Bucket(MemoryStore):
    """A store whose puts ask ``trouble`` first, which may raise or wait, and whose reads ``doubt``."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Callable[[str], None] = lambda name: None
        self.doubt: Callable[[str], None] = lambda name: None

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.doubt(name)
        return super().get(name, start=start, length=length)

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self.trouble(name)
        super().put(name, data, if_absent=if_absent)


class Away:
    """A way to a bucket that is cut off while ``away`` is set."""

    def __init__(self, bucket: Bucket, away: threading.Event) -> None:
        self._bucket, self._away = bucket, away

    def _there(self) -> Bucket:
        if self._away.is_set():
            raise StoreUnavailable("away")
        return self._bucket

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self._there().put(name, data, if_absent=if_absent)

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self._there().get(name, start=start, length=length)

    def head(self, name: str) -> ObjectInfo:
        return self._there().head(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._there().list(prefix)

    def delete(self, name: str) -> None:
        self._there().delete(name)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


def begun(keeping: Keeping) -> bool:
    """Whether there is a log with a segment."""
    shipping = keeping.shipping  # which may be taken away at any moment
    return shipping is not None and shipping.line[1] > 0


@contextmanager
def kept(data: Path, bucket: Bucket) -> Iterator[tuple[Keeping, list[str]]]:
    """A directory whose log has begun on a snapshot, and what is said."""
    said: list[str] = []
    repository = Repository.open(bucket) if "config" in {o.name for o in bucket.list()} else Repository.create(bucket)
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=LONG, stage=None, observer=lambda e: said.append(str(e)))
        keeping.lease = Tenure(Lease.take(repository))
        keeping.hold()
        keeping.start()
        keeping.soon()
        eventually(lambda: begun(keeping), "the log")
        try:
            yield keeping, said
        finally:
            bucket.trouble = lambda name: None
            keeping.finish(10, threading.Event())
            keeping.end()


def found_again(bucket: Bucket, ref: Ref, place: Path) -> set[str]:
    """What another instance, without that disk, finds when it has taken over."""
    bucket.trouble = lambda name: None
    repository = Repository.open(bucket)
    Lease.take(repository)
    restore(repository, newest_state(repository, "elsewhere"), place)
    return set(held(place, ref))


@pytest.mark.parametrize(("failures", "patience"), [(6, 60.0), (10_000, 1.0)])
def test_a_bucket_that_is_away_at_the_end(
    data: Path, template: tuple[Path, Ref], bucket: Bucket, tmp_path: Path, failures: int, patience: float
) -> None:
    """What was written last is in the log if it comes back in time, and else it is not said that all is kept: a last
    snapshot that holds more than its log counts for nothing once another instance has taken over."""
    ref, left = template[1], iter(range(failures))

    def trouble(name: str) -> None:
        if name.startswith("log/") and next(left, None) is not None:
            raise StoreUnavailable("away")

    with kept(data, bucket) as (keeping, _):
        bucket.trouble = trouble
        write(data, ref, 7)
        said = keeping.finish(patience, threading.Event())
        eventually(lambda: keeping.shipping and keeping.shipping._closed.is_set(), "the last try")
        assert said == ("i7" in found_again(bucket, ref, tmp_path / "found")) == (failures == 6)


def test_a_disk_that_fails_for_a_moment_does_not_end_the_log(
    data: Path, template: tuple[Path, Ref], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system says ESTALE once: writes go on to be acknowledged, so the log has to go on too."""
    ref, failed, changed = template[1], threading.Event(), Tail.changed

    def fail_once(tail: Tail) -> bool:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, "Stale file handle")
        return changed(tail)

    with kept(data, bucket) as (keeping, _):
        monkeypatch.setattr(Tail, "changed", fail_once)
        eventually(failed.is_set, "a look")
        write(data, ref, 7)
        assert keeping.shipping
        keeping.shipping.shipped().result(60)
        assert keeping.finish(60, threading.Event())
        assert "i7" in found_again(bucket, ref, tmp_path / "found")


def exchanged(data: Path, template: tuple[Path, Ref]) -> None:
    """Somebody puts another directory in its place, in one step: half of one is nothing that anybody could serve."""
    aside = data.with_name("aside")
    shutil.copytree(template[0], aside)
    if not exchange(aside, data):
        data.rename(data.with_name("old"))
        aside.rename(data)


def test_what_is_written_to_another_directory_is_not_taken_for_shipped(
    data: Path, template: tuple[Path, Ref], bucket: Bucket
) -> None:
    """Whose log is written lies elsewhere now: nothing more is acknowledged by it, and its end is not all."""
    with kept(data, bucket) as (keeping, said):
        exchanged(data, template)
        write(data, template[1], 7)
        assert keeping.shipping
        ticket = keeping.shipping.shipped()
        eventually(lambda: ticket.done() or any("not the database any more" in one for one in said), "the notice")
        assert not ticket.done()
        assert not keeping.finish(60, threading.Event())


def test_a_run_goes_on_with_the_directory_that_was_put_beneath_it(
    data: Path, template: tuple[Path, Ref], tmp_path: Path
) -> None:
    """By another container, say. What it acknowledges in sync from then on outlives that disk."""
    ref, keep = template[1], tmp_path / "keep"
    keep.mkdir()
    repository = Repository.create(LocalStore(keep))
    with running(data, keep, every=LONG, door=open_door, durability="sync", grace=30.0) as one:
        one.until("serving on")
        add(one.client, ref, 10, 3)
        exchanged(data, template)
        one.until("was replaced beneath it")
        one.until("serving on", 2)
        add(one.client, ref, 20, 3)
        restore(repository, newest_state(repository, str(data)), tmp_path / "found")
    assert set(held(tmp_path / "found", ref)) == {f"i{n}" for n in (0, 1, 2, 20, 21, 22)}


def test_what_another_run_serves_is_not_replaced(data: Path, bucket: Bucket) -> None:
    """In another container, where its processes are not seen: its lock is."""
    repository = Repository.create(bucket)
    backup(data, repository)
    with Beside(data) as beside:
        beside.take(1)
        beside.remember(keeper=Process(1, 1), server=Process(7, 7))
        with pytest.raises(UsageError, match="another chromakeep serves it"):
            restore(repository, None, data, replace=True)
    restore(repository, None, data, replace=True)
    with Beside(data) as beside:  # a run that boots
        beside.take(1)
        beside.tidy()
        assert restore(repository, None, data, replace=True).old


def late(data: Path, repository: Callable[[], Repository], stop: threading.Event) -> tuple[Keeping, Succession]:
    """An instance with data of its own, that begins while the repository does not answer."""
    beside = Beside(data)
    beside.take(1)
    keeping = Keeping(beside, repository, every=LONG, stage=None)
    duty = Duty(ASYNC, keeping)
    succession = Succession(beside, keeping, duty, repository, make_server=None, observer=ignore, stop=stop)
    assert succession.reign() is None
    return keeping, succession


def look_again(succession: Succession, keeping: Keeping) -> Tenure | None:
    succession.look_again()
    return keeping.lease


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Short waits, and what ends them."""
    monkeypatch.setattr(succession_, "PATIENCE", 0.2)
    monkeypatch.setattr(reign_, "UNREACHABLE", 0.05)
    monkeypatch.setattr(tenure_, "RENEW", 0.05)
    stop = threading.Event()
    yield stop
    stop.set()


def test_who_began_without_an_answer_ends_when_another_one_writes(
    data: Path, bucket: Bucket, hasty: threading.Event
) -> None:
    """It serves what it has; as soon as it sees that another holder lives, two would acknowledge. It takes no snapshot
    before that: such a one would be taken for the newest state."""
    repository = Repository.create(bucket)
    other = Tenure(Lease.take(repository))
    away = threading.Event()
    mine = Repository.open(Away(bucket, away))
    away.set()
    keeping, succession = late(data, lambda: mine, hasty)
    with pytest.raises(NotNow):
        keeping.start()
        keeping.snapshot().result(60)
    away.clear()
    with pytest.raises(LeaseLost):
        eventually(lambda: look_again(succession, keeping), "that another one lives")
    other.end()
    assert not repository.snapshots()


def test_a_repository_that_could_not_be_opened_gets_its_log_later(
    data: Path, bucket: Bucket, hasty: threading.Event
) -> None:
    """Also where it is the very first request that is not answered."""
    Repository.create(bucket)
    away = threading.Event()
    away.set()
    keeping, succession = late(data, lambda: Repository.open(Away(bucket, away)), hasty)
    away.clear()
    eventually(lambda: look_again(succession, keeping), "the lease")
    keeping.end()


def test_a_lease_that_could_not_be_taken_at_once_is_taken_later(data: Path, bucket: Bucket) -> None:
    """Of a repository that is made by the first snapshot: the log is not given up for one request."""
    repository, failures = Repository.create(bucket), iter(range(1))

    def trouble(name: str) -> None:
        if name.startswith("lease/") and next(failures, None) is not None:
            raise StoreUnavailable("away")

    bucket.trouble = trouble
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=LONG, stage=None)
        keeping.awaited = True
        keeping.start()
        with pytest.raises(StoreUnavailable):
            keeping.snapshot().result(60)
        keeping.snapshot().result(60)
        eventually(lambda: begun(keeping), "the log")
        assert keeping.finish(60, threading.Event())
        keeping.end()


def test_who_is_second_to_make_a_repository_takes_over_from_nobody(
    data: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is quicker between the look and the take: it serves already."""
    repository = Repository.create(bucket)

    def none_yet(repository: Repository) -> int:
        Lease.take(repository)
        return 0

    monkeypatch.setattr(keep_, "newest", none_yet)
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=LONG, stage=None)
        keeping.awaited = True
        keeping.start()
        with pytest.raises(LeaseLost):
            keeping.snapshot().result(60)
        assert keeping.lost and newest(repository) == 1
        assert not keeping.finish(60, threading.Event())


def test_a_database_that_is_busy_when_its_log_is_to_begin_has_one_later(
    data: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was killed in a transaction, say: the next one undoes it."""
    tails: list[object] = []

    def busy_once(*arguments: object, **more: object) -> Tail:
        tails.append(arguments)
        if len(tails) == 1:
            raise SourceBusy("its writer died in a transaction")
        return Tail(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ship_, "Tail", busy_once)
    monkeypatch.setattr(keep_, "FIRST_RETRY", 0.1)
    with kept(data, bucket):
        assert len(tails) == 2


def test_an_instance_whose_log_has_not_begun_ends_with_one(
    data: Path, template: tuple[Path, Ref], bucket: Bucket, tmp_path: Path
) -> None:
    """Told to stop before its first snapshot. The last one is there before anybody may take over, and who does builds
    on it: a standby, which reads the log only, would pass over a snapshot."""
    repository, puts = Repository.create(bucket), list[str]()
    bucket.trouble = puts.append
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=LONG, stage=None)
        keeping.lease = Tenure(Lease.take(repository))
        keeping.hold()
        write(data, template[1], 7)
        assert keeping.finish(60, threading.Event())
        keeping.end()
    ended = puts.index("log/00000001/0000000002")
    assert puts.index(f"snapshots/{keeping.newest}") < puts.index("log/00000001/0000000001") < ended
    first = Log(repository).read(1, 1)
    assert first and first.base == keeping.newest
    assert "i7" in found_again(bucket, template[1], tmp_path / "found")


def test_a_log_whose_base_is_taken_away_as_it_begins_begins_anew(
    data: Path, template: tuple[Path, Ref], bucket: Bucket, tmp_path: Path
) -> None:
    """By a prune that had not seen its first segment. Nothing is acknowledged by a log that leads on from nothing."""

    def trouble(name: str) -> None:
        if name == "log/00000001/0000000001":
            for one in bucket.list("snapshots/"):
                bucket.delete(one.name)

    bucket.trouble = trouble
    with kept(data, bucket) as (keeping, _):
        write(data, template[1], 7)
        assert keeping.shipping and keeping.shipping.line[0] == 2
        keeping.shipping.shipped().result(60)
        assert "i7" in found_again(bucket, template[1], tmp_path / "found")


def unreadable(times: int) -> Callable[[str], None]:
    """Snapshots cannot be read so many times: what a log builds on is looked at before it begins."""
    left = iter(range(times))

    def doubt(name: str) -> None:
        if name.startswith("snapshots/") and next(left, None) is not None:
            raise StoreUnavailable("away")

    return doubt


def test_a_log_whose_base_cannot_be_read_at_once_begins_later(
    data: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for one of another Chroma, which would need a snapshot anew: nothing has changed since."""
    monkeypatch.setattr(keep_, "FIRST_RETRY", 0.1)
    bucket.doubt = unreadable(2)
    with kept(data, bucket) as (keeping, said):
        assert keeping.taken == 1 and any("the log does not begin yet" in one for one in said)


@pytest.mark.parametrize("failures", [3, 10_000])
def test_the_end_of_an_instance_whose_log_cannot_begin(data: Path, bucket: Bucket, failures: int) -> None:
    """Its last snapshot alone is not all: a standby, which reads the log only, would pass over it."""
    repository, over, tries = Repository.create(bucket), threading.Event(), count(1)

    def note(event: Event) -> None:
        """Its time is up when the snapshot is there and the log could not begin another time."""
        if "the log does not begin yet" in str(event) and next(tries) == 2 and failures > 3:
            over.set()

    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=LONG, stage=None, observer=note)
        keeping.lease = Tenure(Lease.take(repository))
        keeping.hold()
        bucket.doubt = unreadable(failures)
        assert keeping.finish(60, over) == (failures == 3)
        keeping.end()
        assert keeping.taken
    bucket.doubt = unreadable(0)
    assert Log(repository).end(1) == ((1, True) if failures == 3 else (0, True))


def test_one_that_was_frozen_in_a_sign_of_life_is_not_sure(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had looked that nobody has taken over, slept, and then put its beat: that says nothing of the time between."""
    repository, asleep, awake = Repository.create(bucket), threading.Event(), threading.Event()
    monkeypatch.setattr(tenure_, "RENEW", 0.05)
    monkeypatch.setattr(tenure_, "LAPSE", 0.5)
    lease = Lease.take(repository)

    def trouble(name: str) -> None:
        if name == "lease/00000001":
            monkeypatch.setattr(tenure_, "RENEW", LONG)
            asleep.set()
            awake.wait(60)

    bucket.trouble = trouble
    held = Tenure(lease)
    assert asleep.wait(60)
    slept = time.monotonic()
    Lease.take(repository)
    eventually(lambda: time.monotonic() > slept + tenure_.LAPSE, "that the time is up")
    awake.set()
    eventually(lambda: (found := holder(repository, 1)) and found.beat == 1, "the beat")
    for _ in range(20):
        assert not held.sure
        time.sleep(0.01)
    held.end()
