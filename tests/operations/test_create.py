"""Making a repository: once, by one, and whoever dies over it leaves a place in which it can be made."""

from __future__ import annotations

import itertools

import pytest

from chromakeep.errors import RepositoryNotFound, UsageError
from chromakeep.operations import key
from chromakeep.repository import Repository, keys
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from chromakeep.testing.faults import Died, FaultyStore
from repository.test_collection import Interrupted


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are derived a hundred times here; the least cost Argon2id admits will do."""
    monkeypatch.setattr(keys, "ARGON2", {"name": "argon2id", "memory_kib": 8, "iterations": 1, "lanes": 1})


@pytest.mark.parametrize("after", [False, True])
def test_a_creation_that_dies_at_any_call(after: bool) -> None:
    """Either there is no repository, and one can be made, or there is one and its password opens it."""
    made = 0
    for n in itertools.count(1):
        store = MemoryStore()
        try:
            Repository.create(FaultyStore(store, die_at=n, after=after), password="p")
        except Died:
            pass
        else:
            break
        try:
            Repository.open(store, password="p")
            made += 1
        except RepositoryNotFound:
            Repository.create(store, password="q")
            assert Repository.open(store, password="q").snapshots() == []
    assert n > 4 and made == after


def test_two_make_one_at_the_same_time() -> None:
    """Another makes a repository at each call of ours: one of the two is told that there is one already; the other's
    password is the only one there is."""
    for at in itertools.count(1):
        store = MemoryStore()
        failed: list[str] = []

        def create(store: Store, password: str, failed: list[str] = failed) -> None:
            try:
                Repository.create(store, password=password)
            except UsageError:
                failed.append(password)

        between = Interrupted(store, at, lambda store=store: create(store, "theirs"))  # type: ignore[misc]
        create(between, "ours")
        if between.calls < at:
            break
        winner = "theirs" if failed == ["ours"] else "ours"
        assert failed in (["ours"], ["theirs"])
        assert len(key.keys(Repository.open(store, password=winner)).keys) == 1
    assert at > 4


def test_a_second_repository_in_the_same_place_is_refused() -> None:
    store = MemoryStore()
    first = Repository.create(store)
    with pytest.raises(UsageError, match="already"):
        Repository.create(store, password="p")
    assert Repository.open(store).config == first.config
