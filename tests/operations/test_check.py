"""check beside others: what they put and delete meanwhile is no damage; and what it costs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.unlock import unlock
from chromakeep.repository import Repository
from chromakeep.store.base import Store
from chromakeep.testing.faults import FaultyStore
from operations.worlds import World, copied
from repository.test_collection import Interrupted


@pytest.mark.parametrize("other", ["prune", "backup"])
def test_others_at_work_are_no_damage(plain_world: World, generations: list[Path], tmp_path: Path, other: str) -> None:
    """A whole prune, or a whole backup, at each store call of a full check: the check finds nothing wrong."""

    def act(store: Store) -> None:
        repository = Repository.open(store)
        unlock(repository, everything=True)
        if other == "prune":
            prune(repository, Retention(last=1), wait=0)
        else:
            backup(generations[0], repository, stage=tmp_path / "stage")

    for at in itertools.count(1):
        store = copied(plain_world.store)
        between = Interrupted(store, at, lambda store=store: act(store))  # type: ignore[misc]
        report = check(plain_world.reopened(between), read_data=True)
        assert not report.problems, f"at call {at}: {report.problems}"
        if between.calls < at:
            break
    assert at > 10


def test_a_check_never_writes(plain_world: World) -> None:
    """Not even a session: a repository on a read-only store can be checked."""
    store = FaultyStore(plain_world.store)
    report = check(plain_world.reopened(store), read_data=True)
    assert {c.verb for c in store.calls} <= {"get", "list", "head"}
    packs = [o.size for o in plain_world.store.list() if o.name.startswith(("packs/", "meta/"))]
    assert report.snapshots == 2 and report.bytes_read >= sum(packs)
    assert report.objects == len(list(plain_world.store.list()))
