"""Garbage collection beside writers: whatever interleaves, dies or freezes, every snapshot shown is whole."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from chromakeep.errors import ObjectExists, RepositoryBusy
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.unlock import unlock
from chromakeep.repository import Repository, collector, sessions
from chromakeep.repository.index import IndexPart
from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.repository import MERGED
from chromakeep.repository.sessions import Session
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from chromakeep.testing.faults import Died, FaultyStore
from repository.interleaving import Actor, Stepping
from repository.scenes import Scene


class Interrupted(Stepping):
    """A store that runs ``other`` once, just before its n-th call: another process that was faster."""

    def __init__(self, inner: Store, at: int, other: Callable[[], None]) -> None:
        super().__init__(inner)
        self.at, self.other, self.calls = at, other, 0

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.other()


KEEP_ONE = Retention(last=1)


def prepared(scene: Scene) -> MemoryStore:
    """A repository with garbage in the making: five generations, old content that comes back later.

    Made once in a process; every other scene goes on with a copy of it, and with changes of its own.
    """
    store, content, expected = _garbage_in_the_making()
    scene.content[:], scene.expected = content, dict(expected)
    return copied(store)


@cache
def _garbage_in_the_making() -> tuple[MemoryStore, bytes, dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        store = MemoryStore()
        Repository.create(store)
        first = bytes(scene.content)
        for _ in range(4):
            scene.backup(store)
            scene.change(12)
        scene.backup(store)
        # With the first content the next backup finds all its blocks in snapshots that are about to be removed.
        return store, first, scene.expected


def copied(store: MemoryStore) -> MemoryStore:
    """Another store with the same objects, of the same age."""
    copy = MemoryStore()
    copy._objects = dict(store._objects)
    return copy


def collect(store: Store, *, wait: float = 0.0) -> None:
    """A prune that keeps one snapshot; another one under way is no failure."""
    with suppress(RepositoryBusy):
        prune(Repository.open(store), KEEP_ONE, wait=wait)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_prune_at_every_moment_of_a_backup(
    scene: Callable[[int], Scene], monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    """A prune runs at each of the backup's store calls. The backup commits and is whole, or is told that it was
    fenced and shows nothing; with ``frozen`` every session counts as dead at once, as after a long SIGSTOP."""
    if frozen:
        monkeypatch.setattr(collector, "STALE", -1.0)
    committed, at = [], 0
    while True:
        at += 1
        one = scene(at)
        store = prepared(one)
        between = Interrupted(store, at, lambda store=store: collect(store))  # type: ignore[misc]
        try:
            snapshot = one.backup(between)
        except RepositoryBusy:
            committed.append(False)
            assert frozen
            one.verify(store)
        else:
            committed.append(True)
            assert snapshot.id in one.verify(store)
        monkeypatch.setattr(collector, "STALE", -1.0)
        collect(store)  # whatever was left over goes, and nothing that is needed
        assert one.verify(store)
        if not frozen:
            monkeypatch.undo()
        if between.calls < at:
            break
    assert any(committed)
    assert not frozen or not all(committed)


def test_a_backup_at_every_moment_of_a_prune(scene: Callable[[int], Scene]) -> None:
    """A whole backup runs at each of the prune's store calls: both end well, and its snapshot is whole."""
    at = 0
    while True:
        at += 1
        one = scene(at)
        store = prepared(one)
        made: list[str] = []
        between = Interrupted(store, at, lambda one=one, store=store, made=made: made.append(one.backup(store).id))  # type: ignore[misc]
        prune(Repository.open(between), KEEP_ONE, wait=0.0)
        shown = one.verify(store)
        assert set(made) <= set(shown) and shown
        if between.calls < at:
            break
    assert at > 15


@pytest.mark.parametrize("others", [1, 2])
def test_a_prune_at_every_moment_of_a_prune(
    scene: Callable[[int], Scene], monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """A second prune starts at each call of the first, and takes over from it as if it were dead, and so does a third:
    whichever gives up, the snapshot that stays is whole, and so is one made afterwards."""
    at = 0
    while True:
        at += 1
        one = scene(at)
        store = prepared(one)

        def other(store: MemoryStore = store) -> None:
            monkeypatch.setattr(collector, "STALE", -1.0)
            for _ in range(others):
                collect(store)
            monkeypatch.undo()

        between = Interrupted(store, at, other)
        with suppress(RepositoryBusy):
            prune(Repository.open(between), KEEP_ONE, wait=0.0)
        assert one.verify(store)
        latest = one.backup(store).id
        assert latest in one.verify(store)
        collect(store)
        assert latest in one.verify(store)
        if between.calls < at:
            break


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", ["backup", "prune"])
def test_death_at_every_store_call(scene: Callable[[int], Scene], what: str, after: bool) -> None:
    """The process dies before or after its n-th store call, for every n: what was there is whole, the snapshot is
    there whole or not at all, and backup and prune work afterwards, leaving nothing behind."""
    n = 0
    while True:
        n += 1
        one = scene(n)
        store = prepared(one)
        before = set(one.expected)
        faulty = FaultyStore(store, die_at=n, after=after)
        done = False
        try:
            if what == "backup":
                one.backup(faulty)
            else:
                prune(Repository.open(faulty), KEEP_ONE, wait=0.0)
            done = True
        except Died:
            pass
        shown = set(one.verify(store))
        assert shown == before if what == "backup" and not done and len(shown) == len(before) else shown
        repository = Repository.open(store)
        unlock(repository, everything=True)
        one.change()
        latest = one.backup(store).id
        report = prune(Repository.open(store), KEEP_ONE, wait=0.0)
        assert not report.deferred
        assert one.verify(store) == [latest]
        assert not list(store.list("sessions/"))
        held = sum(o.size for o in store.list("packs/"))
        assert held < 2.2 * len(one.content)
        if done:
            break
    assert n > 8


def test_an_index_that_names_packs_that_are_gone_is_in_nobodys_way(scene: Callable[[int], Scene]) -> None:
    """Left by a prune that was overtaken, and died when it had put it: what it names is found where else it is."""
    one = scene(1)
    store = prepared(one)
    repository = Repository.open(store)
    for part in list(repository.parts().values()):
        packs = [msgspec.structs.replace(p, name=f"{p.name}9") for p in part.packs]
        repository.put_sealed("I", f"{MERGED}{packs[0].name[6:]}", IndexPart(packs, part.entries).encode())
    assert len(one.verify(store)) == 5
    collect(store)
    assert len(one.verify(store)) == 1 and len(list(store.list("index/"))) == 1


def test_two_backups_and_a_prune_at_once(scene: Callable[[int], Scene]) -> None:
    """Two backups of different content with a prune in the middle of both: both commit and all is whole."""
    for at in range(2, 14, 2):
        one, two = scene(at), scene(100 + at)
        store = prepared(one)
        two.expected = one.expected

        def second(one: Scene = one, two: Scene = two, store: MemoryStore = store) -> None:
            inner = Interrupted(store, 9, lambda: collect(store))
            two.backup(inner)

        one.backup(Interrupted(store, at, second))
        assert len(one.verify(store)) >= 2


def test_prune_waits_for_a_writer_and_then_leaves_the_deleting_to_the_next(scene: Callable[[int], Scene]) -> None:
    """With a session open the prune removes snapshots and defers deleting; once unlock ended it, the next deletes."""
    one = scene(1)
    store = prepared(one)
    Session.start(Repository.open(store))
    held = sum(o.size for o in store.list("packs/"))
    first = prune(Repository.open(store), KEEP_ONE, wait=0.0)
    assert first.deferred and len(first.removed) == 4
    assert sum(o.size for o in store.list("packs/")) >= held
    assert unlock(Repository.open(store)).fenced == ()
    told, before = unlock(Repository.open(store), everything=True, dry_run=True), list(store.list())
    assert len(told.fenced) == 1 and told.dry_run and list(store.list()) == before
    assert len(unlock(Repository.open(store), everything=True).fenced) == 1
    second = prune(Repository.open(store), KEEP_ONE, wait=0.0)
    assert not second.deferred and second.freed_bytes > 0
    assert sum(o.size for o in store.list("packs/")) < held
    one.verify(store)


def test_a_restore_goes_on_while_a_prune_moves_its_blocks(scene: Callable[[int], Scene]) -> None:
    """A whole prune, with rewriting and cutting down of blocks, at each store call of a read: the bytes are right."""
    at = 0
    while True:
        at += 1
        one = scene(at)
        store = prepared(one)
        latest = Repository.open(store).snapshots()[-1]
        between = Interrupted(store, at, lambda store=store: collect(store))  # type: ignore[misc]
        reader = SnapshotReader(Repository.open(between))
        out = one.folder / "read"
        with out.open("wb") as f:
            reader.read(latest.files[0], f, lambda n: None)
        reader.close()
        assert out.read_bytes() == one.expected[latest.id]
        if between.calls < at:
            break
    assert at > 6


@pytest.mark.parametrize("what", ["backup", "prune"])
def test_a_check_whose_listing_is_of_no_one_moment_finds_no_damage(scene: Callable[[int], Scene], what: str) -> None:
    """A whole backup, or prune, between any two pages of its listings and any two of its calls: all is whole."""
    at, over = 0, False
    while not over:
        at += 1
        one = scene(at)
        store = prepared(one)
        slow = Actor(store, lambda store: check(Repository.open(store)), page=2)
        over = slow.go(at)
        one.change()
        one.backup(store) if what == "backup" else collect(store)
        slow.go()
        assert slow.error is None and slow.result and not slow.result.problems, f"stopped at {at}"  # type: ignore[attr-defined]
    assert at > 20


def test_blocks_of_which_little_is_needed_are_cut_down(scene: Callable[[int], Scene]) -> None:
    """After thirty generations of scattered changes a prune to one snapshot leaves about one copy of the content."""
    one = scene(1)
    store = MemoryStore()
    Repository.create(store)
    for _ in range(30):
        one.backup(store)
        one.change(6)
    latest = one.backup(store).id
    prune(Repository.open(store), KEEP_ONE, wait=0.0)
    assert one.verify(store) == [latest]
    assert sum(o.size for o in store.list("packs/")) < 2 * len(one.content)
    one.change(1)
    assert one.backup(store).new_bytes < 12_000, "what was cut down is still recognised"


def test_a_fenced_session_cannot_commit(scene: Callable[[int], Scene]) -> None:
    """The tombstone and the snapshot contend for one name: after unlock the writer gets RepositoryBusy."""
    one = scene(1)
    store = prepared(one)
    session = Session.start(Repository.open(store))
    unlock(Repository.open(store), everything=True)
    snapshot = Repository.open(store).snapshots()[0]
    with pytest.raises(RepositoryBusy):
        session.commit(snapshot)
    with pytest.raises(ObjectExists):
        store.put(f"snapshots/{session.id}", b"", if_absent=True)


@pytest.mark.parametrize("clock", ["monotonic", "time"])
def test_a_session_of_a_machine_that_slept_does_not_commit(
    scene: Callable[[int], Scene], monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    """Nobody has counted with it for long, and a suspended machine's own monotonic clock has not gone on."""
    one = scene(1)
    store = prepared(one)
    session = Session.start(Repository.open(store))
    late = getattr(time, clock)() + 8 * 86400
    monkeypatch.setattr(sessions, "time", SimpleNamespace(monotonic=time.monotonic, time=time.time))
    monkeypatch.setattr(sessions.time, clock, lambda: late)
    with pytest.raises(RepositoryBusy, match="too long"):
        session.commit(Repository.open(store).snapshots()[0])


def test_a_store_whose_put_if_absent_does_not_hold_is_never_fenced(scene: Callable[[int], Scene]) -> None:
    """On such a store an open session, however quiet, makes a prune wait: deleting needs a day without a sign of it."""
    one = scene(1)
    inner = MemoryStore()
    store = FaultyStore(inner, ignore_if_absent=True)
    assert Repository.create(store).config.conditional_put is False
    for _ in range(3):
        one.backup(store)
        one.change(30)
    session = Session.start(Repository.open(store))
    assert prune(Repository.open(store), KEEP_ONE, wait=0.0).deferred
    one.verify(inner)
    # Of a container with our host's name, whose processes we do not see: for all that we know it is at work.
    elsewhere = msgspec.structs.replace(session.info, pid=2**22 + 1)
    repository = Repository.open(inner)
    repository.put_sealed("N", f"sessions/{session.id}", msgspec.json.encode(elsewhere), if_absent=False)
    assert prune(Repository.open(store), KEEP_ONE, wait=0.0).deferred
