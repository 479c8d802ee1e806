"""Whoever dies, and wherever: the repository and the directory are as before or as after, and the next run works."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chromakeep.errors import CorruptObject, StoreUnavailable
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore
from chromakeep.operations.unlock import unlock
from chromakeep.repository import Repository
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from chromakeep.store.retrying import RetryingStore
from chromakeep.testing.faults import Died, FaultyStore
from operations.directories import everything
from operations.worlds import World, copied

LAST = Retention(last=1)


class Scene:
    """A repository with one generation in it, another to be backed up, and what each holds."""

    def __init__(self, generations: list[Path], scratch: Path) -> None:
        self.generations, self.scratch, self.stage = generations, scratch, scratch / "stage"
        self.store = MemoryStore()
        Repository.create(self.store)
        self.held: dict[str, dict[str, bytes]] = {}
        self.first = self.backup(self.store, 0)

    def backup(self, store: Store, number: int) -> str:
        made = backup(self.generations[number], Repository.open(store), stage=self.stage).snapshot
        self.held[made] = everything(self.stage)
        return made

    def verify(self, store: Store, *, but: str = "") -> list[str]:
        """Ids of all snapshots, after a full check and an exact restore of each (but one)."""
        repository = Repository.open(store)
        report = check(repository, read_data=True)
        assert not report.problems, report.problems
        for snapshot in (found := [s.id for s in repository.snapshots()]):
            if snapshot != but:
                target = self.scratch / "verified"
                restore(repository, snapshot, target)
                held = self.held.get(snapshot) or everything(self.stage)  # died after its commit: what it captured
                assert everything(target) == held
                shutil.rmtree(target)
        return found

    def carries_on(self, store: Store) -> None:
        """A further backup and prune do their whole work, and leave nothing of the dead."""
        unlock(Repository.open(store), everything=True)
        latest = self.backup(store, 2)
        assert not prune(Repository.open(store), LAST, wait=0).deferred
        assert [s.id for s in Repository.open(store).snapshots()] == [latest]
        assert not list(store.list("sessions/"))
        assert not check(Repository.open(store), read_data=True).problems


@pytest.fixture
def scene(generations: list[Path], tmp_path: Path) -> Scene:
    return Scene(generations, tmp_path)


def dying(act: Callable[[Store], object], base: Store, *, after: bool) -> Iterator[Store]:
    """The store as it is left when ``act`` dies at its first call, at its second, ... until it lives."""
    for n in itertools.count(1):
        store = copied(base)
        try:
            act(FaultyStore(store, die_at=n, after=after))
        except Died:
            yield store
        else:
            assert n > 10, "too few calls to have been a whole run"
            return


@pytest.mark.parametrize("after", [False, True])
def test_a_backup_that_dies_at_any_call(scene: Scene, after: bool) -> None:
    """The snapshots are the old, or the old and the new; all restore exactly; the next backup and prune work."""
    committed = 0
    for store in dying(lambda s: scene.backup(s, 1), scene.store, after=after):
        shown = scene.verify(store, but=scene.first)
        assert shown[0] == scene.first and len(shown) in (1, 2)
        committed += len(shown) == 2
        if committed < 3:
            scene.carries_on(store)
    assert committed, "a death after the commit was never tried"


@pytest.mark.parametrize("retrying", [False, True])
def test_a_backup_whose_answer_is_lost_at_any_call(scene: Scene, retrying: bool) -> None:
    """Done, but the answer lost: with the retries that every opened store has, the backup succeeds with one snapshot;
    without them it fails or succeeds, and shows one or none."""
    for n in itertools.count(1):
        store = copied(scene.store)
        faulty = FaultyStore(store, fail_at=n, after=True)
        try:
            scene.backup(RetryingStore(faulty, first_delay=0.001) if retrying else faulty, 1)
        except StoreUnavailable:
            assert not retrying
        shown = scene.verify(store, but=scene.first)
        assert shown[0] == scene.first and len(shown) in ((2,) if retrying else (1, 2))
        if len(faulty.calls) < n:
            break


@pytest.mark.parametrize("after", [False, True])
def test_a_prune_that_dies_at_any_call(plain_world: World, tmp_path: Path, after: bool) -> None:
    """Snapshots to be removed are there or gone; what stays is exact at every moment; the next prune ends it."""
    newest = max(plain_world.expected)

    def act(store: Store) -> None:
        repository = Repository.open(store)
        unlock(repository, everything=True)
        prune(repository, LAST, wait=0)

    sizes = set()
    for n, store in enumerate(dying(act, plain_world.store, after=after)):
        repository = Repository.open(store)
        shown = [s.id for s in repository.snapshots()]
        assert set(shown) <= set(plain_world.expected) and shown[-1] == newest
        assert not check(repository, read_data=True).problems
        sizes.add(len(shown))
        act(store)
        assert [s.id for s in Repository.open(store).snapshots()] == [newest]
        assert not check(Repository.open(store), read_data=True).problems
        if n % 3 == 0:
            plain_world.restores(Repository.open(store), newest, tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
    assert sizes == {1, 2}


class Deadly:
    """A store at whose n-th call the process is killed, as by the kernel: no ``finally`` runs."""

    def __init__(self, inner: Store, n: int) -> None:
        self.inner, self.n, self.calls = inner, n, itertools.count(1)

    def __getattr__(self, verb: str) -> object:
        if next(self.calls) == self.n:  # of several threads, too, each number comes once
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self.inner, verb)


@pytest.mark.parametrize("occupied", [False, True])
def test_a_restore_that_is_killed_at_any_call(plain_world: World, tmp_path: Path, occupied: bool) -> None:
    """SIGKILL at each store call: the target is as before, absent or the old content; the next restore works and
    leaves nothing of the dead one."""
    newest, oldest = max(plain_world.expected), min(plain_world.expected)
    target = tmp_path / "data"
    if occupied:
        plain_world.restores(plain_world.reopened(plain_world.store), oldest, target)
    before = everything(target)
    for n in itertools.count(1):
        child = os.fork()
        if child == 0:
            try:
                restore(plain_world.reopened(Deadly(plain_world.store, n)), newest, target, replace=True)  # type: ignore[arg-type]
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
        assert everything(target) == before and target.exists() == occupied
    assert n > 5
    assert everything(target) == plain_world.expected[newest]
    restore(plain_world.reopened(plain_world.store), oldest, target, replace=True, discard_old=True)
    assert everything(target) == plain_world.expected[oldest]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_restore_whose_store_fails_at_any_call(plain_world: World, tmp_path: Path) -> None:
    """An error of the store at each call in turn: the target is untouched and nothing is left beside it."""
    newest = max(plain_world.expected)
    target = tmp_path / "data"
    for n in itertools.count(1):
        try:
            restore(plain_world.reopened(FaultyStore(plain_world.store, fail_at=n)), newest, target)
        except StoreUnavailable:
            assert list(tmp_path.iterdir()) == []
        else:
            break
    assert n > 5 and everything(target) == plain_world.expected[newest]


def test_a_prune_that_damage_stops_has_removed_nothing(plain_world: World) -> None:
    """Every map and list of the repository is damaged (in the middle of a pack may lie what nobody needs): prune
    refuses, and the older snapshot, which may be the last whole one, is still there."""
    store = copied(plain_world.store)
    unlock(Repository.open(store), everything=True)
    for name in plain_world.names("meta/"):
        data = bytearray(store.get(name))
        data[8::16] = bytes(b ^ 1 for b in data[8::16])
        store.put(name, bytes(data))
    before = {o.name for o in store.list("snapshots/")}
    with pytest.raises(CorruptObject):
        prune(Repository.open(store), LAST, wait=0)
    assert {o.name for o in store.list("snapshots/")} == before
    assert not list(store.list("sessions/")), "the prune's own announcement was withdrawn"
