"""Gauges: what is read of a run, and that it never gets in a capture's way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chromakeep.operations import gauges
from chromakeep.operations.beside import Beside, Process
from chromakeep.operations.duty import ASYNC, SERVING, Duty
from chromakeep.operations.gauges import Gauges, resident
from chromakeep.operations.keep import Keeping
from chromakeep.repository import Repository
from chromakeep.store.memory import MemoryStore
from run.test_keep import CREATE, keep_once


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with one record."""
    subprocess.run([sys.executable, "-c", CREATE, str(tmp_path / "data")], check=True, timeout=120)
    return tmp_path / "data"


def test_a_capture_is_never_disturbed(data: Path) -> None:
    """While somebody reads the directory nothing of it is opened: its close would drop the locks of that reading. The
    other numbers are there, and these are read when it is over."""
    with Beside(data) as beside:
        keeping = Keeping(beside, lambda: Repository.create(MemoryStore()), every=60, stage=None)
        duty = Duty(ASYNC, keeping)
        duty.role = SERVING
        reader = Gauges(beside, duty, keeping, lambda: 3)
        with keeping.access:
            during = reader.read()
        assert (during.collections, during.records, during.snapshot_pending) == (None, (), None)
        assert (during.role, during.restarts, during.snapshots) == (SERVING, 3, 0)
        assert during.disk_free and during.data_size
        after = reader.read()
        assert after.records == (("default_tenant", "default_database", "only", 1),)
        assert after.snapshot_pending is True
        assert not keeping.access.locked()


def test_what_has_changed_since_the_newest_snapshot_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how old that is, also when an earlier run took it."""
    keep_once(data, repository := Repository.create(MemoryStore()))
    with Beside(data) as beside:
        beside.take(1)
        keeping = Keeping(beside, lambda: repository, every=60, stage=None)
        duty = Duty(ASYNC, keeping)
        duty.role = SERVING
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        found = Gauges(beside, duty, keeping, lambda: 0).read()
        assert found.snapshot_pending is False
        assert found.snapshot_age is not None and 0 <= found.snapshot_age < 3600
        told = duty.status()  # at the same moment: one number for both
        assert (told["snapshot"], told["snapshot_age_seconds"]) == (beside.state.snapshot, found.snapshot_age)
        monkeypatch.setattr(gauges, "LOOK", 0.0)
        monkeypatch.setattr(gauges, "SHARE", 0)
        reader = Gauges(beside, duty, keeping, lambda: 0)
        reader.read()
        (data / "chroma.sqlite3").touch()
        assert reader.read().snapshot_pending is True


def test_looks_are_seldom(data: Path) -> None:
    """A second reading soon after tells what the first one found."""
    with Beside(data) as beside:
        duty = Duty(ASYNC, None)
        duty.role = SERVING
        reader = Gauges(beside, duty, None, lambda: 0)
        assert reader.read().collections == 1
        (data / "chroma.sqlite3").unlink()
        assert reader.read().collections == 1


def test_memory_is_that_of_the_process_and_of_no_other_of_its_number() -> None:
    """None for one that has ended."""
    assert (resident(None) or 0) > 1 << 20
    mine = Process.of(os.getpid())
    assert resident(mine)
    assert resident(Process(mine.pid, 1)) is None
