"""Backup: refused with the reason where no exact copy can be made, and published in one step where it can."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from chromakeep.errors import ChromakeepError, NotAChromaDirectory, RepositoryBusy, SourceBroken, StoreUnavailable
from chromakeep.events import Event, PhaseStarted, Progressed, Retried
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore
from chromakeep.operations.unlock import unlock
from chromakeep.repository import Repository
from chromakeep.repository.snapshots import Snapshot
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from chromakeep.store.retrying import RetryingStore
from chromakeep.testing.faults import FaultyStore
from operations.directories import everything
from operations.namespaces import forked, in_child


def refused(source: Path, *errors: type[Exception], word: str | None = None) -> ChromakeepError:
    """Backing up ``source`` raises one of ``errors`` with a reason; the repository and all around are as before."""
    repository = Repository.create(MemoryStore())
    before = everything(source.parent)
    with pytest.raises(errors or NotAChromaDirectory, match=word) as raised:
        backup(source, repository)
    assert isinstance(raised.value, ChromakeepError)
    assert repository.snapshots() == [] and not list(repository.store.list("sessions/"))
    assert everything(source.parent) == before
    return raised.value


# -- what is no Chroma directory --------------------------------------------------------------------------------------


def test_places_that_hold_no_chroma(tmp_path: Path, generations: list[Path]) -> None:
    """Nothing there, a file, an empty folder, other files, a database of nothing, a text of that name, another
    program's database: refused with a hint, never an empty snapshot."""
    error = refused(tmp_path / "none", word="no such directory")
    assert error.exit_status == 15
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", word="not a directory")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert refused(folder, word=r"no chroma\.sqlite3").hint
    shutil.copytree(next(p for p in generations[0].iterdir() if p.is_dir()), folder / "segment-without-database")
    refused(folder, word=r"no chroma\.sqlite3")
    for text in (b"", b"just a text file\n" * 500, b"SQLite format 3\0", b"SQLite format 3\0" + bytes(4080)):
        (folder / "chroma.sqlite3").write_bytes(text)
        refused(folder, NotAChromaDirectory, SourceBroken)
    (folder / "chroma.sqlite3").unlink()
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as db:
        db.execute("CREATE TABLE invoices (id INTEGER)")
        db.commit()
    refused(folder, NotAChromaDirectory, SourceBroken)


def test_a_database_without_collections(generations: list[Path], tmp_path: Path) -> None:
    """A fresh Chroma is most often the wrong directory: refused, unless that is what is wanted."""
    empty = generations[0].parent / "empty"
    assert "directory" in (refused(empty, word="without any collection").hint or "")
    repository = Repository.create(MemoryStore())
    assert backup(empty, repository, allow_empty=True).collections == ()
    restore(repository, None, tmp_path / "out")
    assert list(everything(tmp_path / "out")) == ["chroma.sqlite3"]


def test_backups_without_end_hold_no_more_than_the_last_snapshots(
    generations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one open repository, as ``run`` has it for months."""
    monkeypatch.setattr("chromakeep.operations.backup.RECENT", 2)
    repository, held = Repository.create(MemoryStore()), []
    for number in range(6):
        backup(generations[number % 2], repository)
        gc.collect()  # else what earlier tests of this process have left goes when it likes
        held.append(sum(isinstance(one, Snapshot) for one in gc.get_objects()))
    assert held[2:] == [held[2]] * 4, held
    assert len(repository.snapshots()) == 6


def test_a_directory_that_may_not_be_read(tmp_path: Path, generations: list[Path]) -> None:
    """Without permission for the directory, the database or a segment: one line that says so. (A child without
    root's power.)"""
    source = tmp_path / "data"
    shutil.copytree(generations[0], source)
    segment = next(p for p in source.iterdir() if p.is_dir())
    for folder in (tmp_path, *(p for p in tmp_path.parents if str(p).startswith("/tmp/"))):
        if os.geteuid() == 0:
            folder.chmod(folder.stat().st_mode | 0o055)  # pytest closes its folders to others

    def act() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        repository = Repository.create(MemoryStore())
        with pytest.raises(ChromakeepError, match=r"ermission|not be read"):
            backup(source, repository)
        assert repository.snapshots() == []

    for locked, mode in ((source, 0o700), (source / "chroma.sqlite3", 0o600), (segment / "header.bin", 0o600)):
        if os.geteuid():
            mode = 0o000
        usual = locked.stat().st_mode
        locked.chmod(mode)
        in_child(act)
        locked.chmod(usual)


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda segment: os.truncate(segment / name, min(size, (segment / name).stat().st_size))


def overwritten(name: str, at: int, data: bytes) -> Callable[[Path], None]:
    def change(segment: Path) -> None:
        with (segment / name).open("r+b") as f:
            f.seek(at)
            f.write(data)

    return change


BREAKAGES: dict[str, Callable[[Path], None]] = {
    "pickle empty": cut("index_metadata.pickle", 0),
    "pickle cut": cut("index_metadata.pickle", 700),
    "pickle with code": overwritten("index_metadata.pickle", 2, b"cos\nsystem\n(S'echo'\ntR."),
    "header cut": cut("header.bin", 50),
    "header absurd": overwritten("header.bin", 20, b"\xff" * 8),
    "vectors cut": cut("data_level0.bin", 5000),
    "links cut": cut("link_lists.bin", 3),
    "vectors gone": lambda segment: (segment / "data_level0.bin").unlink(),
    "header gone": lambda segment: (segment / "header.bin").unlink(),
    "segment gone": shutil.rmtree,
    "page overwritten": overwritten("../chroma.sqlite3", 3 * 4096, b"\x5a" * 4096),
    "database cut": cut("../chroma.sqlite3", 100_000),
}


def test_a_broken_directory_is_refused_with_the_reason(tmp_path: Path, generations: list[Path]) -> None:
    """What a crash or a torn copy left: refused with the reason, and no snapshot of it. (All at once: a capture waits
    some seconds for a writer that may still finish.)"""

    def attempt(name: str) -> str:
        source = tmp_path / name / "data"
        shutil.copytree(generations[0], source)
        segment = max((p for p in source.iterdir() if p.is_dir()), key=lambda p: (p / "data_level0.bin").stat().st_size)
        BREAKAGES[name](segment)
        long_ago = time.time() - 3600
        for path in source.rglob("*"):
            os.utime(path, (long_ago, long_ago))
        message = refused(source, NotAChromaDirectory, SourceBroken).message
        return "" if any(word in message for word in (str(source), "chroma.sqlite3", segment.name[:8])) else message

    with ThreadPoolExecutor(len(BREAKAGES)) as pool:
        for name, nameless in zip(BREAKAGES, pool.map(attempt, BREAKAGES), strict=True):
            assert not nameless, f"{name}: {nameless}"


# -- stores that are not what they should be --------------------------------------------------------------------------


def test_a_store_that_is_unavailable_for_a_while(generations: list[Path], tmp_path: Path) -> None:
    """Five faults, each tried again: the backup and the restore succeed and tell of it. For ever: StoreUnavailable, and
    nothing is shown."""
    inner = MemoryStore()
    Repository.create(inner)
    events: list[Event] = []
    faulty = FaultyStore(inner, unavailable=5)
    store = RetryingStore(faulty, first_delay=0.001, observer=events.append)
    made = backup(generations[0], Repository.open(store), stage=tmp_path / "stage").snapshot
    assert len([e for e in events if isinstance(e, Retried)]) == 5
    restore(
        Repository.open(RetryingStore(FaultyStore(inner, unavailable=5), first_delay=0.001)), made, tmp_path / "out"
    )
    assert everything(tmp_path / "out") == everything(tmp_path / "stage")
    gone = RetryingStore(FaultyStore(inner, unavailable=10**9), first_delay=0.001, attempts=3)
    repository = Repository(gone, Repository.open(inner).config, Repository.open(inner).keys)
    with pytest.raises(StoreUnavailable):
        backup(generations[1], repository, stage=tmp_path / "stage")
    with pytest.raises(StoreUnavailable):
        restore(repository, made, tmp_path / "other")
    assert len(Repository.open(inner).snapshots()) == 1 and not (tmp_path / "other").exists()


def test_a_slow_store_and_progress(generations: list[Path], tmp_path: Path) -> None:
    """Every call takes 20 ms: nothing changes but the time; progress rises to the announced total, of a restore too."""
    repository = Repository.create(FaultyStore(MemoryStore(), delay=0.02))
    for act in (
        lambda see: backup(generations[0], repository, observer=see),
        lambda see: restore(repository, None, tmp_path / "out", observer=see),
    ):
        events: list[Event] = []
        act(events.append)
        totals = {e.phase: e.total_bytes for e in events if isinstance(e, PhaseStarted)}
        for phase in ("store", "restore"):
            steps = [e.done_bytes for e in events if isinstance(e, Progressed) and e.phase == phase]
            assert steps == sorted(steps) and (not steps or steps[-1] == totals[phase])
    assert steps


# -- several at once --------------------------------------------------------------------------------------------------


def test_two_backups_and_a_prune_at_once(
    generations: list[Path], captured: list[dict[str, bytes]], tmp_path: Path
) -> None:
    """Two processes back up, each another directory, while a third prunes again and again: every snapshot that is
    shown at the end is whole and exact, among them the last of each writer."""
    (tmp_path / "repo").mkdir()
    store = LocalStore(tmp_path / "repo")
    Repository.create(store)
    rounds = 6

    def writer(number: int) -> None:
        with (tmp_path / f"made{number}").open("w") as log:
            for n in range(rounds):
                which = (number + n) % 3
                done = backup(generations[which], Repository.open(store), stage=tmp_path / f"stage{number}")
                log.write(f"{done.snapshot} {which}\n")

    def pruner(_: int) -> None:
        for _ in range(rounds):
            with suppress(RepositoryBusy):
                prune(Repository.open(store), Retention(last=4), wait=0.3)
            time.sleep(0.05)

    children = [forked(partial(act, number)) for act, number in ((writer, 0), (writer, 1), (pruner, 2))]
    assert [os.waitpid(c, 0)[1] for c in children] == [0, 0, 0]
    logs = [[line.split() for line in (tmp_path / f"made{n}").read_text().splitlines()] for n in (0, 1)]
    made = {snapshot: int(which) for log in logs for snapshot, which in log}
    repository = Repository.open(store)
    shown = [s.id for s in repository.snapshots()]
    assert set(shown) <= set(made) and {log[-1][0] for log in logs} & set(shown)
    assert not check(repository, read_data=True).problems
    for snapshot in shown:
        restore(repository, snapshot, tmp_path / snapshot)
        assert everything(tmp_path / snapshot) == captured[made[snapshot]]
    assert not unlock(repository).left
    prune(repository, Retention(last=1), wait=0)
    assert [s.id for s in repository.snapshots()] == shown[-1:]
    assert not check(repository, read_data=True).problems


def test_threads_share_a_repository(generations: list[Path], captured: list[dict[str, bytes]], tmp_path: Path) -> None:
    """One open repository, three threads that back up, restore and prune through it at once."""
    repository = Repository.create(MemoryStore())
    first = backup(generations[0], repository).snapshot
    failures: list[str] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException:
            failures.append(traceback.format_exc())

    def reading() -> None:
        for n in range(4):
            restore(repository, first, tmp_path / f"out{n}")
            assert everything(tmp_path / f"out{n}") == captured[0]

    acts: list[Callable[[], object]] = [
        lambda: [backup(generations[n], repository) for n in (1, 2, 1)],
        reading,
        lambda: [prune(repository, Retention(last=50), wait=0) for _ in range(4)],
    ]
    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert len(repository.snapshots()) == 4 and not check(repository, read_data=True).problems
