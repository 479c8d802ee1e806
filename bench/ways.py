"""Three ways to ship what is committed between snapshots, on the same store under the same writes.

    python bench/ways.py [--seconds 20] [--work DIR]

rows    Chroma's own purge of its queue is held; new rows of the queue and what changed in the catalog (what we do)
pages   a shadow of hashes of SQLite's pages; the database is read when its change counter has moved
frames  the database in WAL mode, opted in to; the frames that were added to the log file

Each looks every 0.15 s, and compresses what it found (zstd 3). CPU is of the looking alone. With pages and frames
an index must be shipped when it is persisted, too (here never: 1,000 writes are a persist); with rows it is replayed.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import boot
import msgspec
import writers
import zstandard
from directories import gigabyte, pair
from replication import serving
from xxhash import xxh3_64_intdigest

from chromakeep.chroma.purge import hold
from chromakeep.chroma.tail import Tail

PAGE, LOOK = 4096, 0.15
HEAD = 32  # bytes before the first frame of SQLite's WAL (sqlite.org/fileformat2.html)


@dataclass
class Found:
    """What a way cost: looks that found something, their CPU seconds, bytes to ship."""

    looks: int = 0
    cpu: float = 0.0
    size: int = 0


def rows(database: Path) -> Callable[[], bytes | None]:
    """The first look takes the whole catalog: made here."""
    tail = Tail(database)
    seen = tail.look()
    while seen is not None and seen.more:
        seen = tail.look()

    def look() -> bytes | None:
        if not tail.changed():
            return None
        change = tail.look()
        return msgspec.msgpack.encode(change) if change else None

    return look


def pages(database: Path) -> Callable[[], bytes | None]:
    """Hashes of all pages are in memory."""

    def read(known: list[int]) -> list[bytes]:
        changed, number = [], 0
        with database.open("rb") as file:
            while block := file.read(256 * PAGE):
                for at in range(0, len(block), PAGE):
                    page = block[at : at + PAGE]
                    found = xxh3_64_intdigest(page)
                    if number == len(known):
                        known.append(found)
                        changed.append(page)
                    elif known[number] != found:
                        known[number] = found
                        changed.append(page)
                    number += 1
        return changed

    shadow: list[int] = []
    read(shadow)
    counter = [_counter(database)]

    def look() -> bytes | None:
        now = _counter(database)
        if now == counter[0]:
            return None
        counter[0] = now
        return b"".join(read(shadow))

    return look


def frames(database: Path) -> Callable[[], bytes | None]:
    """As of a log that is not restarted while this goes on."""
    log = database.with_name(database.name + "-wal")
    at = [log.stat().st_size if log.exists() else HEAD]

    def look() -> bytes | None:
        size = log.stat().st_size if log.exists() else 0
        if size <= at[0]:
            return None
        with log.open("rb") as file:
            file.seek(at[0])
            found = file.read(size - at[0])
        at[0] = size
        return found

    return look


def _counter(database: Path) -> bytes:
    with database.open("rb") as file:
        file.seek(24)
        return file.read(4)


WAYS: dict[str, Callable[[Path], Callable[[], bytes | None]]] = {"rows": rows, "pages": pages, "frames": frames}


def measure(way: str, source: Path, work: Path, seconds: float) -> tuple[Found, int]:
    """On a copy of a store, under 10 writes a second; and how many writes there were."""
    data = work / "data"
    boot.forget(data)
    shutil.copytree(source, data)
    database = data / "chroma.sqlite3"
    if way == "frames":
        with closing(sqlite3.connect(database)) as db:
            db.execute("PRAGMA journal_mode=WAL")
    with serving(data) as (port, _):
        into = writers.collection(port, "large")
        if way == "rows":
            hold(database)
        look, found, over = WAYS[way](database), Found(), threading.Event()

        def watch() -> None:
            compressor = zstandard.ZstdCompressor(level=3)
            while not over.wait(LOOK):
                begun = time.thread_time()
                change = look()
                if change is not None:
                    found.looks += 1
                    found.size += len(compressor.compress(change))
                found.cpu += time.thread_time() - begun

        thread = threading.Thread(target=watch)
        thread.start()
        written = writers.write(port, into, clients=1, seconds=seconds, dimension=768, rate=10)
        time.sleep(2 * LOOK)
        over.set()
        thread.join()
    return found, len(written.answered)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chromakeep-bench")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print("| store | way | looks that found something | CPU | bytes a write |\n|---|---|---|---|---|")
    for source in (pair("sample", args.work).base, pair("large", args.work).base, gigabyte(args.work)):
        size = sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
        for way in WAYS:
            found, count = measure(way, source, args.work, args.seconds)
            share = f"{found.cpu / args.seconds * 100:.1f} % of a core"
            print(f"| {size / 1e6:,.0f} MB | {way} | {found.looks} | {share} | {found.size / count:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
