"""Old records of the audit log go from a repository; what stays verifies at every moment, whoever dies when."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from chromakeep.errors import ChromakeepError, RepositoryBusy, VerificationFailed
from chromakeep.operations.audit_file import AuditFile, files
from chromakeep.operations.audit_objects import BEGINS, Beginning, begin, instances, shelf_of
from chromakeep.operations.audit_prune import AuditPruneReport, prune
from chromakeep.operations.audit_shipping import AuditShipping
from chromakeep.operations.audit_verify import records, verify
from chromakeep.operations.check import check
from chromakeep.repository import Repository
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from chromakeep.testing.faults import Died, FaultyStore
from repository.test_collection import Interrupted

DAY = 86400.0


class Kept:
    """A log of five objects of four records each, a day apart, the last one at day 5; and its file."""

    def __init__(self, folder: Path) -> None:
        self.path, self.store = folder / "a", MemoryStore()
        self.repository = Repository.create(self.store)
        for _ in range(5):
            self.write()
        self.instance = instances(self.repository)[0]
        self.age()

    def write(self, repository: Repository | None = None) -> None:
        """Four more records, shipped as another process would."""
        file = AuditFile(self.path, 1000)
        file.open({"pid": 1})
        for number in range(3):
            file.append([{"event": "write", "collection": f"c{number}"}])
        file.close()
        AuditShipping(self.path, file.instance, lambda: repository or self.repository).ship()

    def age(self) -> None:
        for day, one in enumerate(shelf_of(self.repository, self.instance).objects, 1):
            data, _ = self.store._objects[one.name]
            self.store._objects[one.name] = data, day * DAY


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def twin(store: MemoryStore) -> MemoryStore:
    """The same objects, of the same times, in another store."""
    other = MemoryStore()
    other._objects = dict(store._objects)
    return other


def interrupted(store: MemoryStore, at: int, act: Callable[[Store], object], other: Callable[[], object]) -> bool:
    """``act``, with ``other`` just before its ``at``-th call of the store; whether there was such a call."""
    between = Interrupted(store, at, lambda: other() and None)
    try:
        act(between)
    finally:
        happened = between.calls >= at
    return happened


def pruned(store: Store, days: float) -> AuditPruneReport:
    """All but what came within so many days, on day 5."""
    return prune(Repository.open(store), days * DAY, now=5 * DAY)


def names(store: Store) -> list[str]:
    return [one.name.rpartition("/")[2] for one in store.list("audit/")]


def whole(kept: Kept, store: Store) -> tuple[int, int]:
    """Records that the repository has; there and compared with the files nothing is wrong."""
    repository = Repository.open(store)
    assert check(repository).problems == ()
    report = verify(files(kept.path), {"r": repository})
    assert report.problems == ()
    (shown,) = [chain for chain in report.chains if chain.where == "r"]
    numbers = [one["number"] for one in records([], {"r": repository})]
    assert numbers == list(range(shown.first, shown.last + 1))
    return shown.first, shown.last


def test_what_is_old_goes_and_the_rest_says_where_it_begins(kept: Kept) -> None:
    """Twice, with what is shipped in between; a file that shipped all of it goes on."""
    report = pruned(kept.store, 2.5)
    assert [(c.first, c.last) for c in report.chains] == [(1, 8)]
    assert report.deleted_objects == 2 and report.freed_bytes > 100
    assert names(kept.store) == ["0000000009", "0000000009.begin", "0000000013", "0000000017"]
    assert whole(kept, kept.store) == (9, 20)
    assert pruned(kept.store, 2.5).deleted_objects == 0
    kept.write()
    assert whole(kept, kept.store) == (9, 24)
    report = pruned(kept.store, 0.5)
    assert [(c.first, c.last) for c in report.chains] == [(9, 16)]
    assert names(kept.store) == ["0000000017", "0000000017.begin", "0000000021"]
    assert whole(kept, kept.store) == (17, 24)


def test_all_of_a_log_may_go_and_it_goes_on(kept: Kept) -> None:
    """What the file still has is not shipped again."""
    (chain,) = pruned(kept.store, -1).chains
    assert (chain.first, chain.last) == (1, 20)
    assert names(kept.store) == ["0000000021.begin"]
    assert whole(kept, kept.store) == (21, 20)
    kept.write()
    assert names(kept.store) == ["0000000021", "0000000021.begin"]
    assert whole(kept, kept.store) == (21, 24)


def test_a_trial_changes_nothing(kept: Kept) -> None:
    """And says the same."""
    before = names(kept.store)
    tried = prune(kept.repository, 2.5 * DAY, now=5 * DAY, dry_run=True)
    assert names(kept.store) == before
    done = pruned(kept.store, 2.5)
    assert (tried.chains, tried.deleted_objects, tried.freed_bytes) == (
        done.chains,
        done.deleted_objects,
        done.freed_bytes,
    )


def test_what_is_older_stays_behind_what_is_not(kept: Kept) -> None:
    """A chain has one beginning: an object that was put (back) late keeps all that follows it."""
    first = shelf_of(kept.repository, kept.instance).objects[0]
    kept.store._objects[first.name] = kept.store._objects[first.name][0], 5 * DAY
    assert pruned(kept.store, 0.5).chains == ()
    assert whole(kept, kept.store) == (1, 20)


@pytest.mark.parametrize("days", [2.5, -1])
@pytest.mark.parametrize("after", [False, True])
def test_whoever_dies_leaves_a_whole_chain_and_the_next_one_goes_on(kept: Kept, after: bool, days: float) -> None:
    """At every call of the store, behind an earlier prune; with a shipment and without one before the next prune."""
    pruned(kept.store, 3.5)
    clean = FaultyStore(twin(kept.store))
    pruned(clean, days)
    expected = names(clean.inner)
    calls = len(clean.calls)
    assert calls > 8
    for number in range(1, calls + 1):
        store = twin(kept.store)
        with pytest.raises(Died):
            pruned(FaultyStore(store, die_at=number, after=after), days)
        first, last = whole(kept, store)
        assert first in (5, 9, 21) and last == 20
        pruned(store, days)
        assert names(store) == expected
        assert whole(kept, store)[1] == 20


def test_an_instance_ships_while_it_is_pruned(kept: Kept) -> None:
    """At every call of the prune; and a prune at every call of a shipment."""
    number, happened = 0, True
    while happened:
        number += 1
        store = twin(kept.store)
        write = partial(kept.write, Repository.open(store))
        happened = interrupted(store, number, lambda s: pruned(s, -1), write)
        pruned(store, -1)
        assert whole(kept, store)[0] == 21
    assert number > 10
    number, happened = 0, True
    while happened:
        number += 1
        store = twin(kept.store)
        prune_ = partial(pruned, store, -1)
        happened = interrupted(store, number, lambda s: kept.write(Repository.open(s)), prune_)
        assert whole(kept, store)[0] == (21 if happened else 1)
    assert number > 3


def test_who_verifies_meanwhile_misses_nothing(kept: Kept) -> None:
    """A prune at every call of a verification, and a second one: no false alarm."""
    number, happened = 0, True
    while happened:
        number += 1
        store = twin(kept.store)
        reports = []

        def look(s: Store) -> None:
            reports.append(verify(files(kept.path), {"r": Repository.open(s)}))  # noqa: B023

        prune_ = partial(pruned, store, 2.5 if number % 2 else -1)
        happened = interrupted(store, number, look, prune_)
        assert reports[0].problems == ()
    assert number > 8


def spoilt(store: MemoryStore, name: str) -> None:
    data, at = store._objects[name]
    store._objects[name] = data[:-1] + bytes([data[-1] ^ 1]), at


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_chain_that_does_not_verify_loses_nothing(kept: Kept, which: int) -> None:
    """Damaged in what is to go, or just behind it: it is evidence. Another instance's log is pruned all the same."""
    spoilt(kept.store, shelf_of(kept.repository, kept.instance).names[which])
    before = names(kept.store)
    report = pruned(kept.store, 2.5)
    assert (report.chains, report.deleted_objects, report.freed_bytes) == ((), 0, 0)
    assert len(report.problems) == 1
    assert names(kept.store) == before


def test_an_object_that_is_missing_keeps_the_rest(kept: Kept) -> None:
    """It was not a prune that took it."""
    kept.store.delete(shelf_of(kept.repository, kept.instance).names[1])
    report = pruned(kept.store, 1.5)
    assert report.chains == () and "is missing before it" in report.problems[0].what


def test_a_beginning_that_is_not_ours_is_found(kept: Kept) -> None:
    """Damaged, of another place, of another chain: each is a problem, and none is built on."""
    folder = f"audit/{kept.instance}/"
    store = twin(kept.store)
    begin(Repository.open(store), kept.instance, Beginning(9, "0" * 64))
    report = verify([], {"r": Repository.open(store)})
    assert "does not follow what was before it" in report.problems[0].what
    assert verify(files(kept.path), {"r": Repository.open(store)}).problems
    with pytest.raises(VerificationFailed, match="another audit log"):
        begin(Repository.open(store), kept.instance, Beginning(9, "1" * 64))

    store = twin(kept.store)
    begin(Repository.open(store), kept.instance, Beginning(21, "0" * 64))
    assert verify([], {"r": Repository.open(store)}).problems == ()
    (problem,) = verify(files(kept.path), {"r": Repository.open(store)}).problems
    assert problem.what.startswith("record 20 or one before it is not what")
    with pytest.raises(VerificationFailed, match="does not go on"):
        kept.write(Repository.open(store))

    for payload in (b"{", b"[]", b'{"number":8,"previous":"x"}', b'{"number":9,"previous":"x"}'):
        store = twin(kept.store)
        Repository.open(store).put_sealed(BEGINS, f"{folder}0000000009.begin", payload)
        (problem,) = verify([], {"r": Repository.open(store)}).problems
        assert problem.place == f"{folder}0000000009.begin"
        with pytest.raises(ChromakeepError):
            pruned(store, 1)


def test_two_prunes_at_once_leave_a_whole_chain(kept: Kept) -> None:
    """One at every call of another one, of more and of less; the one that comes too late says so."""
    for inner, outer in ((2.5, 0.5), (0.5, 2.5), (-1, 2.5)):
        number, happened = 0, True
        while happened:
            number += 1
            store = twin(kept.store)
            with suppress(RepositoryBusy):
                happened = interrupted(store, number, lambda s: pruned(s, outer), partial(pruned, store, inner))  # noqa: B023
            whole(kept, store)
            pruned(store, min(inner, outer))
            assert whole(kept, store)[0] == (21 if min(inner, outer) < 0 else 17)
        assert number > 8
