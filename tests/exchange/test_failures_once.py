"""A disk that refuses once and takes the next write: what is noted as durable then is durable, or is not noted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from chromakeep.errors import ChromakeepError
from chromakeep.exchange import files
from chromakeep.exchange.archive_sink import ParquetArchiveSink
from chromakeep.exchange.open import ExchangeSink, sink_of
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.copy import copy
from chromakeep.operations.planning import Plan
from chromakeep.testing.memory_records import Memory, MemorySource
from chromakeep.testing.specimens import assert_same, gathered, ordinary, records_of
from exchange.scenes import KINDS, SAMPLE, at, read


class Source(MemorySource):
    """To which marks lead back."""

    def state(self) -> str:
        return "the same"


def opened(address: str) -> ExchangeSink:
    if address.endswith("/"):
        return ParquetArchiveSink(Path(address), part_bytes=4_000)
    return sink_of(address)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_refuses_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The k-th write or sync fails, half done, and all after it go well, of which a mark is one: whoever goes on from
    what was noted has every record, as it was. For all k."""
    records, memory = ordinary(300), Memory()
    memory.put(SAMPLE, records)
    monkeypatch.setattr("chromakeep.operations.pump.DURABLE", -1.0)  # a mark after each portion
    left = -1

    def once(function: Callable[..., Any], half: bool) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left != 0:
                return function(*args)
            if half:
                function(args[0], args[1][: len(args[1]) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        return call

    class Raw:
        """The file below an output."""

        def __init__(self, file: Any) -> None:
            self._file = file
            self.write = lambda data: once(lambda _, some: file.write(some), True)(self, bytes(data))
            self.flush = once(file.flush, False)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it takes long, and no power fails here
    begin = files.Output.__init__

    def made(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self._file = Raw(self._file)

    monkeypatch.setattr(files.Output, "__init__", made)
    failed = 0
    for step in range(1, 1000):
        address, checkpoint = at(tmp_path / f"{step}", kind), tmp_path / f"{step}" / "c.json"
        (tmp_path / f"{step}").mkdir()
        left = step
        for last in (False, True):
            with closing(opened(address)) as sink, suppress(*([] if last else [ChromakeepError])):
                copy(Source(memory), sink, Plan(), checkpoint=Checkpoint(checkpoint, {}))
                break
            failed += 1
        _, batches = read(address)
        assert_same(records_of(records), gathered(batches))
        if left > 0:
            break
    assert failed > 8
