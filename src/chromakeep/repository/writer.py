"""Writing a snapshot: only what no snapshot holds yet is compressed and stored.

Per span (about 1 MiB): hash it; if the repository knows the hash, done. Else compare its units with the span that
stood there in the parent snapshot, by 8-byte hashes from the parent's map; units that changed go into blocks. Blocks
are compressed in a small pool (zstandard and numpy let the interpreter go) while the next spans are read and hashed.
Memory: bounded by the blocks in flight, whatever the size of the directory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from chromakeep.layout import Column, Layout
from chromakeep.repository.blocks import BLOCK, PAGES_BLOCK, encode
from chromakeep.repository.packs import DATA, META, PackWriter
from chromakeep.repository.repository import Repository
from chromakeep.repository.sessions import Session
from chromakeep.repository.snapshots import FileEntry, Snapshot
from chromakeep.repository.spans import SpanMap, rows_per_span, unit_hashes, unit_length

WORKERS = 2
IN_FLIGHT = 6  # blocks being compressed or waiting for it
NOTHING = np.zeros(0, np.int64)


class Block:
    """A block being filled with units of one column; its id is known once it is sealed."""

    __slots__ = ("identity", "pieces", "size", "units")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = self.units = 0
        self.identity: bytes | None = None


class Pending(msgspec.Struct):
    """A span whose map waits for the ids of blocks that are still being filled."""

    identity: bytes
    unit: int
    length: int
    hashes: npt.NDArray[np.uint64]
    block: npt.NDArray[np.uint16]
    slot: npt.NDArray[np.uint32]
    blocks: list[bytes | Block]


class SnapshotWriter:
    """Adds files to a session and commits them as one snapshot. One thread uses it."""

    def __init__(self, repository: Repository, session: Session, parent: Snapshot | None) -> None:
        self.repository, self.session, self.parent = repository, session, parent
        self.index = repository.index(writing=True)
        self._keys = repository.keys
        self._parent_files = {f.path: f for f in parent.files} if parent else {}
        self._compressing = ThreadPoolExecutor(WORKERS, thread_name_prefix="compress")
        self._putting = ThreadPoolExecutor(WORKERS, thread_name_prefix="put")
        self._data = PackWriter(repository.store, self._keys, session.id, DATA, self._putting)
        self._meta = PackWriter(repository.store, self._keys, session.id, META, self._putting)
        self._known: set[bytes] = set()  # ids this session has added itself
        self._room = threading.Semaphore(IN_FLIGHT)
        self._failed: list[BaseException] = []

    # -- files --------------------------------------------------------------------------------------------------

    def add_file(
        self,
        path: Path,
        name: str,
        layout: Layout,
        done: Callable[[int], None],
        *,
        blank: npt.NDArray[np.int64] = NOTHING,
    ) -> FileEntry:
        """Store one file under ``name``; ``done`` hears of bytes finished. The file must not change meanwhile.

        Rows that ``blank`` numbers, ascending, are stored as zeros, whatever they hold. Raises ``OSError``.
        """
        status = path.stat()
        old = self._parent_files.get(name)
        if old and old.layout == layout and old.spans in self.index:
            before: list[bytes] = self._old_spans(old)
        else:
            before, old = [], None
        rows, stride = rows_per_span(layout), layout.stride
        columns = [ColumnWriter(self, c, fresh=old is None) for c in layout.columns]
        spans: list[bytes] = []
        whole = status.st_size // stride
        with path.open("rb", buffering=0) as f:
            for first in range(0, whole, rows):
                n = min(rows, whole - first)
                band = _blanked(_read_exactly(f, n * stride, path), first, n, stride, blank)
                for column, data in zip(columns, _split(band, n, layout), strict=True):
                    at = len(spans)
                    spans.append(column.add_span(data, before[at] if at < len(before) else None))
                done(n * stride)
            if tail := status.st_size % stride:
                last = ColumnWriter(self, Column(tail), fresh=True)
                spans.append(last.add_span(memoryview(_read_exactly(f, tail, path)), None))
                last.flush()
                done(tail)
        for column in columns:
            column.flush()
        listing = b"".join(spans)
        return FileEntry(name, status.st_size, status.st_mtime_ns, layout, self._add_meta_block(listing))

    def _old_spans(self, old: FileEntry) -> list[bytes]:
        place = self.index.find(old.spans)
        assert place is not None
        listing = self.repository.block(self.repository.stored(place), old.spans, place)
        return [listing[i : i + 32] for i in range(0, len(listing), 32)]

    def _add_meta_block(self, data: bytes) -> bytes:
        identity = self._keys.block_id(data)
        if identity not in self.index and identity not in self._known:
            self._known.add(identity)
            self._meta.add(identity, encode(data, Column(4096)), len(data))
        return identity

    # -- spans and blocks ---------------------------------------------------------------------------------------

    def knows(self, identity: bytes) -> bool:
        """Whether a span or block of that id is in the repository or in this session."""
        return identity in self._known or identity in self.index

    def old_map(self, identity: bytes) -> SpanMap | None:
        """The map of a span of the parent, if every block it names can still be relied upon."""
        place = self.index.find(identity)
        if place is None:
            return None
        found = self.repository.span_map(self.repository.stored(place), identity, place)
        return found if all(b in self.index for b in found.blocks) else None

    def seal_block(self, block: Block, column: Column) -> None:
        """Name a full block and hand it to the pool, unless it is known already."""
        if self._failed:
            raise self._failed[0]
        self._data.raise_failure()
        data = b"".join(block.pieces)
        block.pieces.clear()
        block.identity = identity = self._keys.block_id(data)
        if self.knows(identity):
            return
        self._known.add(identity)
        self._room.acquire()
        self._compressing.submit(self._store_block, identity, data, column).add_done_callback(self._finished)

    def _store_block(self, identity: bytes, data: bytes, column: Column) -> None:
        self._data.add(identity, encode(data, column), len(data))

    def _finished(self, future: Future[None]) -> None:
        self._room.release()
        if not future.cancelled() and (error := future.exception()):
            self._failed.append(error)

    def add_map(self, pending: Pending) -> None:
        """Store a span's map; all its blocks are sealed."""
        names = [b if isinstance(b, bytes) else b.identity for b in pending.blocks]
        assert all(names)
        payload = SpanMap(
            pending.unit, pending.length, [n for n in names if n], pending.hashes, pending.block, pending.slot
        ).encode()
        self._meta.add(pending.identity, encode(payload, Column(4096)), len(payload))

    # -- the end ------------------------------------------------------------------------------------------------

    def publish(self) -> int:
        """Make packs and index durable; bytes put. Nothing refers to them until the session commits."""
        self._compressing.shutdown(wait=True)
        if self._failed:
            raise self._failed[0]
        data, meta = self._data.finish(), self._meta.finish()
        size = self._data.bytes_put + self._meta.bytes_put
        if data.packs or meta.packs:
            moved = meta.entries.copy()
            moved["pack"] += len(data.packs)
            data.packs.extend(meta.packs)
            data.entries = np.concatenate([data.entries, moved])
            size += self.repository.put_sealed("I", f"index/{self.session.id}", data.encode())
        return size

    def close(self) -> None:
        """Stop the pools; packs that were not published are left for a prune."""
        self._compressing.shutdown(wait=True, cancel_futures=True)
        self._putting.shutdown(wait=True, cancel_futures=True)


class ColumnWriter:
    """One column of one file: finds changed units and fills blocks with them."""

    def __init__(self, writer: SnapshotWriter, column: Column, *, fresh: bool) -> None:
        self._writer, self._column = writer, column
        self._unit = unit_length(column)
        # Pages of a first copy are packed in large blocks: the same text stands megabytes apart in them.
        self._target = PAGES_BLOCK if fresh and self._unit >= 4096 and column.kind != "float32" else BLOCK
        self._block = Block()
        self._pending: list[Pending] = []

    def add_span(self, data: memoryview, before: bytes | None) -> bytes:
        """The id of a span after making sure that the repository has, or will have, all of it."""
        writer, unit = self._writer, self._unit
        identity = writer._keys.span_id(data)
        if writer.knows(identity):
            return identity
        writer._known.add(identity)
        old = writer.old_map(before) if before else None
        hashes = unit_hashes(data, unit, writer._keys)
        n = len(hashes)
        block, slot = np.zeros(n, dtype=np.uint16), np.zeros(n, dtype=np.uint32)
        changed = np.ones(n, dtype=bool)
        names: list[bytes | Block] = []
        if old and old.unit == unit:
            m = min(n, len(old.hashes))
            if old.length != len(data) and m and (old.length % unit or len(data) % unit):
                m -= 1  # the short unit at the end of either is compared with nothing
            changed[:m] = hashes[:m] != old.hashes[:m]
            kept = np.flatnonzero(~changed)
            used, numbers = np.unique(old.block[kept], return_inverse=True)
            names.extend(old.blocks[int(b)] for b in used)
            block[kept], slot[kept] = numbers.reshape(-1), old.slot[kept]
        self._fill(data, np.flatnonzero(changed), names, block, slot)
        self._pending.append(Pending(identity, unit, len(data), hashes, block, slot, names))
        self._settle()
        return identity

    def _fill(
        self,
        data: memoryview,
        changed: npt.NDArray[np.intp],
        names: list[bytes | Block],
        block: npt.NDArray[np.uint16],
        slot: npt.NDArray[np.uint32],
    ) -> None:
        """Append the changed units to blocks, in runs, and note where each went."""
        unit, at = self._unit, 0
        while at < len(changed):
            room = max((self._target - self._block.size) // unit, 1)
            take = changed[at : at + room]
            if not names or names[-1] is not self._block:
                names.append(self._block)
            block[take] = len(names) - 1
            slot[take] = np.arange(self._block.units, self._block.units + len(take), dtype=np.uint32)
            piece = _gather(data, take, unit)
            self._block.pieces.append(piece)
            self._block.size += len(piece)
            self._block.units += len(take)
            at += len(take)
            if self._block.size >= self._target or self._block.size % unit:
                self._seal()  # full, or ended by a short unit: nothing may follow that

    def _seal(self) -> None:
        if self._block.units:
            self._writer.seal_block(self._block, self._column)
            self._block = Block()

    def _settle(self) -> None:
        """Store the maps of spans all of whose blocks have their names."""
        while self._pending and all(isinstance(b, bytes) or b.identity for b in self._pending[0].blocks):
            self._writer.add_map(self._pending.pop(0))

    def flush(self) -> None:
        """End the column: the last block is sealed and every map stored."""
        self._seal()
        self._settle()
        assert not self._pending


def _gather(data: memoryview, units: npt.NDArray[np.intp], unit: int) -> bytes:
    """The bytes of some units of a span, in order. A run is one slice; scattered ones are one numpy gather."""
    first, last = int(units[0]), int(units[-1])
    if last - first + 1 == len(units):
        return bytes(data[first * unit : (last + 1) * unit])
    whole = len(data) // unit
    rows = np.frombuffer(data[: whole * unit], dtype=np.uint8).reshape(whole, unit)
    if last < whole:
        return rows[units].tobytes()
    return rows[units[:-1]].tobytes() + bytes(data[whole * unit :])


def _blanked(band: bytes, first: int, rows: int, stride: int, blank: npt.NDArray[np.int64]) -> bytes | bytearray:
    low, high = np.searchsorted(blank, [first, first + rows])
    if low == high:
        return band
    table = bytearray(band)
    for row in (blank[low:high] - first).tolist():
        table[row * stride : (row + 1) * stride] = bytes(stride)
    return table


def _split(band: bytes | bytearray, rows: int, layout: Layout) -> list[memoryview]:
    """The columns of a band of rows, each contiguous."""
    if len(layout.columns) == 1:
        return [memoryview(band)]
    table, at, parts = np.frombuffer(band, dtype=np.uint8).reshape(rows, layout.stride), 0, []
    for column in layout.columns:
        parts.append(np.ascontiguousarray(table[:, at : at + column.width]).reshape(-1).data)
        at += column.width
    return parts


def _read_exactly(f: object, size: int, path: Path) -> bytes:
    data: bytes = f.read(size)  # type: ignore[attr-defined]
    while len(data) < size:
        more = f.read(size - len(data))  # type: ignore[attr-defined]
        if not more:
            raise OSError(f"{path} became shorter while it was read")
        data += more
    return data
