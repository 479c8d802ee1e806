"""A lease is shown to live from the moment it was taken, whatever its holder does, and told to be lost when it is."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from chromakeep.errors import LeaseLost, RepositoryNotFound, StoreDenied, StoreUnavailable
from chromakeep.events import Event
from chromakeep.operations import reign as reign_
from chromakeep.operations import tenure
from chromakeep.operations.beside import Beside
from chromakeep.operations.duty import SERVING, SYNC, Duty
from chromakeep.operations.keep import Keeping
from chromakeep.operations.reign import Reigning, reign
from chromakeep.operations.tenure import Tenure
from chromakeep.repository import Repository
from chromakeep.repository.lease import Lease, holder
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from chromakeep.testing.faults import FaultyStore
from run.running import PATIENCE, eventually, running


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(tenure, "RENEW", 0.05)
    monkeypatch.setattr(reign_, "WATCH", 0.02)
    return Repository.create(MemoryStore())


def test_it_does_not_lapse_while_its_holder_prepares(repository: Repository) -> None:
    """A restore may take longer than a lease lives: nobody takes over meanwhile, and at once when the beats end."""
    held, stop = Tenure(Lease.take(repository)), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reign, repository, stop=stop, lapse=5.0)  # longer than a machine stands still
        try:
            time.sleep(11)
            assert not waiting.done() and held.sure
            held.end()
            next_ = waiting.result(60)
            assert next_ and next_.epoch == 2
            next_.end()
        finally:
            stop.set()


def test_a_lost_one_is_told_before_anything_is_shipped(repository: Repository, tmp_path: Path) -> None:
    """An instance that only just begins to serve must not take a write that its successor will never see."""
    told: list[LeaseLost] = []
    held = Tenure(Lease.take(repository))
    held.on_lost = told.append
    keeping = Keeping(Beside(tmp_path / "data"), lambda: repository, every=60, stage=None)
    keeping.lease = held
    duty = Duty(SYNC, keeping)
    duty.role = SERVING
    assert duty.ready
    Lease.take(repository)
    eventually(held.lost.is_set, "the loss")
    eventually(lambda: told, "that it is told")
    assert not held.sure and isinstance(duty.refusal(), LeaseLost) and not duty.ready


def test_one_that_was_frozen_is_not_sure(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its next beat it cannot know."""
    held = Tenure(Lease.take(repository))
    held.end()
    assert held.sure
    monkeypatch.setattr(tenure, "LAPSE", 0.0)
    assert not held.sure


def test_the_address_goes_on_with_every_beat_and_into_the_next_reign(repository: Repository) -> None:
    """Those who forward writes find it there at any time, and a reign of the same instance has it too."""
    first = reign(repository, stop=threading.Event(), address="http://a:8000")
    assert first
    eventually(lambda: (found := holder(repository, 1)) and found.beat > 1, "beats")
    after = first.succeeded()
    try:
        for epoch in (1, 2):
            found = holder(repository, epoch)
            assert found
            assert found.address == "http://a:8000"
    finally:
        after.end()


def test_a_fault_of_ours_ends_neither_the_beats_nor_the_waiting_in_silence(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease without a beat is another's soon, and whoever waits for one that nobody takes waits for ever."""
    faults, renew = iter([MemoryError("no room")]), Lease.renew

    def faulty(lease: Lease, number: int = 0) -> None:
        for fault in faults:
            raise fault
        renew(lease, number)

    monkeypatch.setattr(Lease, "renew", faulty)
    held = Tenure(Lease.take(repository))
    eventually(lambda: (found := holder(repository, 1)) and found.beat, "a beat")
    held.release()

    def no_room() -> Repository:
        raise MemoryError("no room")

    said: list[Event] = []
    waiting = Reigning(no_room, stop=threading.Event(), observer=said.append)
    assert waiting.done.wait(60) and waiting.lease is None and "MemoryError" in str(said)


def test_who_waits_for_another_goes_on_waiting_whatever_fails(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that has run out for a moment is no reason to serve beside the one that writes."""
    monkeypatch.setattr(reign_, "UNREACHABLE", 0.01)
    other, stop = Tenure(Lease.take(repository)), threading.Event()
    store = FaultyStore(repository.store, fail_at=6, error=StoreDenied("expired"))
    waiting = Reigning(lambda: Repository(store, repository.config, repository.keys), stop=stop)
    try:
        eventually(lambda: len(store.calls) > 9 or waiting.done.is_set(), "that it goes on")
        assert waiting.other and not waiting.done.is_set()
        other.release()
        assert waiting.done.wait(60) and waiting.lease and waiting.lease.epoch == 2
    finally:
        stop.set()
        waiting.close()


def failing(repository: Repository, call: int, done: bool) -> tuple[Repository, FaultyStore]:
    """The same repository by a way on which one call fails; ``done``: it is done, and not answered."""
    store = FaultyStore(repository.store, fail_at=call, after=done)
    return Repository(store, repository.config, repository.keys), store


@pytest.mark.parametrize("done", [False, True])
def test_a_lease_that_was_taken_in_part_is_no_other_instance(
    repository: Repository, tmp_path: Path, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails at any call while it is taken: by who waits for it, by who makes the repository, and by who goes
    on with another log. Each tries again, and takes itself for nobody else."""
    monkeypatch.setattr(reign_, "UNREACHABLE", 0.01)
    monkeypatch.setattr(tenure, "RENEW", 3600.0)
    call, over = 0, False
    while not over:
        call += 1
        fresh = Repository.create(MemoryStore())
        mine, store = failing(fresh, call, done)
        keeping = Keeping(Beside(tmp_path / "data"), partial(Repository.open, fresh.store), every=60, stage=None)
        keeping.awaited = True
        for _ in range(2):
            with suppress(StoreUnavailable):
                keeping._claim(mine)
        assert keeping.lease and not keeping.lost
        over = len(store.calls) < call
        keeping.lease.end()

        said: list[Event] = []
        mine, store = failing(fresh, call, done)
        keeping.lease._lease.repository = fresh
        keeping.lease.release()
        waited = reign(mine, stop=threading.Event(), lapse=3600.0, observer=said.append)
        assert waited and not [e for e in said if "another instance" in str(e)]
        over = over and len(store.calls) < call
        waited.end()

        mine, store = failing(fresh, call, done)
        first = Tenure(Lease.take(fresh))
        first._lease.repository = mine
        after = None
        for _ in range(2):
            with suppress(StoreUnavailable):
                after = after or first.succeeded()
            first._lease.repository = fresh
            first._lease.renew()  # what was taken in part is not another's either
        assert after and after.epoch == first.epoch + 1
        over = over and len(store.calls) < call
        after._lease.repository = fresh
        after._lease.renew()
        other = Lease.take(fresh)
        for one in (first, after):
            one.end()
            with pytest.raises(LeaseLost):
                one._lease.renew()
        assert other.epoch == after.epoch + 1
    assert call > 5


def test_two_that_begin_at_once_where_nothing_is_do_not_both_go_on(tmp_path: Path) -> None:
    """No repository yet: whoever is second to make it stops."""
    (tmp_path / "repository").mkdir()
    store, both = LocalStore(tmp_path / "repository"), Barrier(2, timeout=PATIENCE)

    def opened() -> Repository:
        """One that finds none goes on when the other has found none either."""
        try:
            return Repository.open(store)
        except RepositoryNotFound:
            both.wait()
            raise

    settings = {"open_repository": opened, "create_repository": partial(Repository.create, store), "every": 3600.0}
    with running(tmp_path / "one", **settings) as one, running(tmp_path / "two", **settings) as two:
        eventually(lambda: not (one.thread.is_alive() and two.thread.is_alive()), "one of them stops")
        assert one.thread.is_alive() or two.thread.is_alive()
        assert isinstance(one.error or two.error, LeaseLost)
