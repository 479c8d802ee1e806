"""Logs to break: segments whose every change is known, read back as another process would."""

from __future__ import annotations

from collections.abc import Iterable

from chromakeep.changes import Change, Row
from chromakeep.repository import Repository
from chromakeep.repository.log import Log, Segment
from chromakeep.repository.snapshots import Snapshot
from chromakeep.store.base import Store


def at(second: int) -> str:
    """A time so many seconds after noon."""
    return f"2026-08-01T{12 + second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}.000Z"


def change(second: int, counter: int, *, whole: bool = False, size: int = 4) -> Change:
    row = Row(counter, "", 0, "topic", b"id\0\xc3\xbc", bytes(size), "FLOAT32", b"{}")
    return Change(at(second), counter, (row,), whole=whole)


def snapshot(
    name: str, second: int, *, epoch: int | None = None, counter: int = -1, number: int = 0, source: str = "/d"
) -> Snapshot:
    return Snapshot(
        id=name, time=at(second), source=source, hostname="", program_version="", chroma_version="", parent=None,
        collections=(), files=(), total_bytes=0, new_bytes=0, seconds=0, epoch=epoch, counter=counter,
        log_number=number,
    )  # fmt: skip


def write(store: Store, epoch: int, numbers: Iterable[int], *, size: int = 4, base: str | None = "base") -> None:
    """Segments of an epoch; of number n one change of second and counter n."""
    log = Log(Repository.open(store))
    for n in numbers:
        log.append(epoch, n, Segment((change(n, n, whole=n == 1, size=size),), base=base if n == 1 else None))


def counters(store: Store, epoch: int, after: int = 0, stop: int | None = None) -> list[int]:
    """The counters of the changes in segments, in the order in which they are read; numbers are what was written."""
    found = list(Log(Repository.open(store)).segments(epoch, after, stop))
    assert all(c.counter == number and c.time == at(number) for number, s in found for c in s.changes)
    return [number for number, _ in found]


def names(store: Store, prefix: str = "log/") -> list[str]:
    """What is in the log, without the prefix and leading zeros."""
    short = [o.name.removeprefix(prefix) for o in store.list(prefix)]
    return ["-".join(p.lstrip("0") for p in s.rpartition("/")[2].split("-")) for s in short]
