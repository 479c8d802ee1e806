"""Spools hold what was put into them, in memory or in a file, and give it back in any order asked for."""

from __future__ import annotations

import errno
import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from chroma.conftest import spooled
from chromakeep.chroma import spool
from chromakeep.chroma.spool import Spool, ascending, cuts, within
from chromakeep.errors import ChromakeepError, DiskFull


@pytest.mark.parametrize("highest", [1, 10, 1 << 40])
@pytest.mark.parametrize("rows", [0, 1, 6, 7, 8, 500])
def test_a_file_is_as_good_as_memory(rows: int, highest: int, tmp_path: Path) -> None:
    """Whole, in portions, in ranges and in ascending order, also where all numbers are equal."""
    chance = np.random.default_rng(rows)
    keys = chance.integers(-highest, highest, rows)
    values = chance.integers(0, 1 << 60, (rows, 2)).astype(np.uint64)
    order = np.argsort(keys, kind="stable")

    def look() -> bool:
        one, two = Spool(np.int64, tmp_path), Spool(np.uint64, tmp_path, width=2)
        for at in range(0, rows, 5):
            one.add(keys[at : at + 5])
            two.add(values[at : at + 5])
        for some, given in ((one, keys), (two, values)):
            assert len(some) == rows and (some.whole() == given).all() and some.whole().shape == given.shape
            some.let_go()
            assert sum(len(part) for part in some.portions()) == rows
        ranges = cuts(one)
        assert sum(len(within(*bounds, one)[0]) for bounds in ranges) == rows
        assert (np.concatenate([k for (k,) in ascending(one)] or [keys]) == keys[order]).all()
        both = list(ascending(one, two))
        assert (np.concatenate([k for k, _ in both]) == keys[order]).all()
        assert (np.concatenate([v for _, v in both]) == values[order]).all()
        return one.long

    assert not look()
    with spooled():
        assert look() == (rows > 0)
    assert not list(tmp_path.iterdir())


def test_a_portion_is_no_longer_than_asked_for(tmp_path: Path) -> None:
    """Of numbers that differ: memory is bounded by the portion."""
    with spooled(rows=100):
        some = Spool(np.int64, tmp_path)
        some.add(np.random.default_rng(1).permutation(10_000))
        assert max(len(part) for (part,) in ascending(some)) <= 200


def test_where_nothing_may_be_written_the_systems_place_serves(tmp_path: Path) -> None:
    """A directory that is gone, or read-only."""
    with spooled():
        some = Spool(np.int64, tmp_path / "gone")
        some.add(np.arange(10))
        assert some.long and some.whole().tolist() == list(range(10))


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, None)])
def test_a_full_disk_is_told(number: int, kind: type | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, with the place, whether it is noticed at once or when the last bytes are flushed."""

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(number, os.strerror(number))

    class Late(io.BytesIO):
        def flush(self) -> None:
            raise OSError(number, os.strerror(number))

    for file in (Full, Late):
        monkeypatch.setattr(spool, "_file", lambda folder, file=file: file())
        with spooled(), pytest.raises(kind or ChromakeepError, match=str(tmp_path)):
            some = Spool(np.int64, tmp_path)
            some.add(np.arange(10))
            list(some.portions())


def test_memory_is_the_same_for_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding, dividing and going through in ascending order: four times the rows take no more."""
    monkeypatch.setattr(spool, "SAMPLE", 1000)
    peaks = []
    for rows in (50_000, 200_000):
        numbers = np.random.default_rng(1).permutation(rows)
        with spooled(rows=4000):
            tracemalloc.start()
            some, others = Spool(np.int64, tmp_path), Spool(np.uint64, tmp_path, width=2)
            for at in range(0, rows, 1000):
                some.add(numbers[at : at + 1000])
                others.add(np.ones((1000, 2), np.uint64))
            assert sum(len(part) for part, _ in ascending(some, others)) == rows
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000
