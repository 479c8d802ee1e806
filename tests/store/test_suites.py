"""Every Store passes the shipped StoreSuite."""

from __future__ import annotations

from pathlib import Path

from chromakeep.store.base import Store
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from chromakeep.store.metered import MeteredStore
from chromakeep.store.retrying import RetryingStore
from chromakeep.store.unconditional import HeadThenPut
from chromakeep.testing.faults import FaultyStore
from chromakeep.testing.store_suite import StoreSuite


class TestMemoryStore(StoreSuite):
    def make_store(self, tmp_path: Path) -> Store:
        return MemoryStore()


class TestLocalStore(StoreSuite):
    def make_store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path)


class TestWrappers(StoreSuite):
    """The wrappers change no guarantee of what they wrap."""

    def make_store(self, tmp_path: Path) -> Store:
        return RetryingStore(MeteredStore(FaultyStore(MemoryStore())))


class TestHeadThenPut(StoreSuite):
    """Without a conditional put below, everything but the race between writers holds."""

    conditional = False

    def make_store(self, tmp_path: Path) -> Store:
        return HeadThenPut(FaultyStore(MemoryStore(), ignore_if_absent=True))
