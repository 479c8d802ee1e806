"""Reading a snapshot's files back: every byte verified against the ids the snapshot names.

A file is rebuilt window by window (some tens of MiB). For a window the maps are fetched, then the blocks they name
that are not at hand, in ranges of a pack read together; then each band is put together, hashed and compared with the
span ids of the snapshot. While one window is put together the next is fetched. What a local file already holds is
taken from there, unit by unit, and verified in the same way. Memory is bounded by the window and the block cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from chromakeep.errors import CorruptObject, MissingObject
from chromakeep.repository.index import Index, Place
from chromakeep.repository.packs import Stored
from chromakeep.repository.repository import Repository
from chromakeep.repository.snapshots import FileEntry
from chromakeep.repository.spans import SpanMap, rows_per_span, unit_hashes

WINDOW = 16 << 20  # bytes of file put together at a time
CACHE = 32 << 20  # bytes of decoded blocks kept for the windows to come
GAP = 256 << 10  # a hole in a pack that is cheaper to read than to ask again
RANGE = 4 << 20  # bytes asked of a pack at once
GETTERS = 4


class Band(msgspec.Struct, frozen=True):
    """Some rows of a file: where they begin, how many bytes, and the id and length of each column's span."""

    offset: int
    rows: int
    spans: tuple[tuple[bytes, int], ...]


class SnapshotReader:
    """Reads files of snapshots of one repository. One thread uses it; it fetches with several."""

    def __init__(self, repository: Repository, index: Index | None = None) -> None:
        """``index``: look there and nowhere else; without it in all that the repository has, and again when needed."""
        self.repository = repository
        self._fixed = index
        self._missing: set[str] = set()  # packs that are gone, though an index names them
        self.index: Index = self._look()
        self.fetched_bytes = 0
        self._getting = ThreadPoolExecutor(GETTERS, thread_name_prefix="get")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()  # of the cache: a window is prepared while the one before is put together

    def _look(self) -> Index:
        return self._fixed if self._fixed is not None else self.repository.index(avoid=self._missing)

    def close(self) -> None:
        """Stop the pools."""
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._getting.shutdown(wait=True, cancel_futures=True)

    def bands(self, file: FileEntry) -> Iterator[Band]:
        """The bands of a file, from the list of spans its entry names. Raises ``CorruptObject`` / ``MissingObject``."""
        try:
            listing = self.blocks([file.spans])[file.spans]
        except MissingObject:
            self.index = self._look()
            listing = self.blocks([file.spans])[file.spans]
        rows, stride, columns = rows_per_span(file.layout), file.layout.stride, file.layout.columns
        count = -(-(file.size // stride) // rows) * len(columns) + (file.size % stride > 0)
        if len(listing) != 32 * count:
            raise CorruptObject(f"spans of {file.path}", "do not add up to the size of the file")
        spans = (listing[i : i + 32] for i in range(0, len(listing), 32))
        for first in range(0, file.size // stride, rows):
            n = min(rows, file.size // stride - first)
            yield Band(first * stride, n, tuple((next(spans), n * c.width) for c in columns))
        if tail := file.size % stride:
            yield Band(file.size - tail, 1, ((next(spans), tail),))

    def read(self, file: FileEntry, out: BinaryIO, done: Callable[[int], None], local: Path | None = None) -> None:
        """Write the bytes of ``file`` to ``out``. ``local`` is a file that may hold some of them already."""
        windows = _windows(self.bands(file))
        source = local.open("rb") if local and local.is_file() else None
        try:
            following = next(windows, None)
            prepared: Future[_Prepared] | None = None
            while window := following:
                ready = prepared.result() if prepared else self._prepare(file, window, source)
                following = next(windows, None)
                prepared = self._ahead.submit(self._prepare, file, following, source) if following else None
                for band in window:
                    out.write(self._band(file, band, ready))
                    done(sum(size for _, size in band.spans))
        finally:
            if source:
                source.close()

    # -- one window ---------------------------------------------------------------------------------------------

    def _prepare(self, file: FileEntry, window: list[Band], source: BinaryIO | None) -> _Prepared:
        """Fetch what a window needs. A prune may have cut blocks down since the index was read: then look again."""
        try:
            return self._fetch_window(file, window, source)
        except MissingObject:
            self.index = self._look()
            return self._fetch_window(file, window, source)

    def _fetch_window(self, file: FileEntry, window: list[Band], source: BinaryIO | None) -> _Prepared:
        """Nothing for spans that are at hand, else maps, then blocks."""
        at_hand = self._at_hand(file, window, source) if source else {}
        needed = [i for b in window for i, _ in b.spans if not (i in at_hand and at_hand[i].whole)]
        maps = self.maps(dict.fromkeys(needed))
        blocks: dict[bytes, None] = {}
        sizes = dict(span for band in window for span in band.spans)
        for identity, found in maps.items():
            if found.length != sizes[identity]:
                raise CorruptObject(self.place(identity).pack, f"holds a span map of another length, of {file.path}")
            mine = at_hand.get(identity)
            wanted = mine.differing(found, self.repository) if mine else np.arange(len(found.hashes))
            blocks.update((found.blocks[int(b)], None) for b in dict.fromkeys(found.block[wanted].tolist()))
        with self._lock:
            return _Prepared(maps, self._cached_blocks(list(blocks)), at_hand)

    def _at_hand(self, file: FileEntry, window: list[Band], source: BinaryIO) -> dict[bytes, _AtHand]:
        """The bytes that stand at these places in the local file, by the id of the span that belongs there."""
        found = {}
        for band in window:
            source.seek(band.offset)
            wanted = sum(size for _, size in band.spans)
            data = source.read(wanted)
            if len(data) < wanted:
                break
            widths = [size // band.rows for _, size in band.spans]
            table, at = np.frombuffer(data, dtype=np.uint8).reshape(band.rows, -1), 0
            for (identity, _), width in zip(band.spans, widths, strict=True):
                column = np.ascontiguousarray(table[:, at : at + width]).reshape(-1)
                at += width
                whole = self.repository.keys.span_id(column.data) == identity
                found[identity] = _AtHand(column, whole)
        return found

    def _band(self, file: FileEntry, band: Band, ready: _Prepared) -> memoryview:
        """The bytes of a band, each span verified."""
        columns = [self._span(file, identity, size, ready) for identity, size in band.spans]
        if len(columns) == 1:
            return columns[0].data
        table = np.empty((band.rows, file.layout.stride), dtype=np.uint8)
        at = 0
        for column, data in zip(file.layout.columns, columns, strict=True):
            table[:, at : at + column.width] = data.reshape(band.rows, column.width)
            at += column.width
        return table.reshape(-1).data

    def _span(self, file: FileEntry, identity: bytes, size: int, ready: _Prepared) -> npt.NDArray[np.uint8]:
        mine = ready.at_hand.get(identity)
        if mine and mine.whole:
            return mine.data
        found = ready.maps[identity]
        if found.length != size:
            raise CorruptObject(f"span of {file.path}", "has a map of another length")
        data = self._assemble(found, ready.blocks, mine)
        if self.repository.keys.span_id(data.data) != identity:
            # A damaged block is named by this; and one unit in 2**64 at hand looks unchanged and is not.
            data = self._assemble(found, self.blocks(dict.fromkeys(found.blocks)), None)
        if self.repository.keys.span_id(data.data) != identity:
            raise CorruptObject(f"span of {file.path}", "put together from its blocks, holds other bytes than recorded")
        return data

    def _assemble(self, found: SpanMap, blocks: dict[bytes, bytes], mine: _AtHand | None) -> npt.NDArray[np.uint8]:
        """Scatter units of blocks to their places. The last unit of a span may be short."""
        unit, count = found.unit, len(found.hashes)
        if mine is None and len(found.blocks) == 1 and bool((np.diff(found.slot) == 1).all()):
            run = np.frombuffer(blocks[found.blocks[0]], dtype=np.uint8)  # of one block: nothing to scatter
            return run[int(found.slot[0]) * unit :][: found.length]
        out = np.empty(count * unit, dtype=np.uint8)
        wanted = np.arange(count)
        if mine:
            out[: found.length] = mine.data
            wanted = mine.differing(found, self.repository)
        table = out.reshape(count, unit)
        numbers, slots = found.block[wanted], found.slot[wanted]
        for number in dict.fromkeys(numbers.tolist()):
            chosen = numbers == number
            data = np.frombuffer(blocks[found.blocks[number]], dtype=np.uint8)
            places, rows = wanted[chosen], slots[chosen].astype(np.int64)
            whole = len(data) // unit
            full = rows < whole
            table[places[full]] = data[: whole * unit].reshape(whole, unit)[rows[full]]
            for place, row in zip(places[~full].tolist(), rows[~full].tolist(), strict=True):
                piece = data[row * unit : (row + 1) * unit]
                if place * unit + len(piece) < min((place + 1) * unit, found.length):
                    raise CorruptObject("span map", "points beyond the end of a block")
                table[place, : len(piece)] = piece
        return out[: found.length]

    # -- blocks and maps ----------------------------------------------------------------------------------------

    def maps(self, ids: Iterable[bytes]) -> dict[bytes, SpanMap]:
        """Span maps by id, verified. Raises ``MissingObject`` / ``CorruptObject``."""
        maps: dict[bytes, SpanMap] = {}

        def opened(stored: Stored, identity: bytes, place: Place) -> None:
            maps[identity] = self.repository.span_map(stored, identity, place)

        self.get(ids, opened)
        return maps

    def blocks(self, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """Decoded blocks by id from the store, each verified."""
        found: dict[bytes, bytes] = {}

        def opened(stored: Stored, identity: bytes, place: Place) -> None:
            found[identity] = self.repository.block(stored, identity, place)

        self.get(dict.fromkeys(ids), opened)
        return found

    def _cached_blocks(self, wanted: list[bytes]) -> dict[bytes, bytes]:
        """Decoded blocks, from the cache or the store, for ``_span``, which verifies every byte it takes from them."""
        found = {i: self._cache[i] for i in wanted if i in self._cache}

        def opened(stored: Stored, identity: bytes, place: Place) -> None:
            found[identity] = self.repository.plain(stored, identity, place)

        self.get([i for i in wanted if i not in found], opened)
        for identity in wanted:
            if identity not in self._cache:
                self._cache[identity] = found[identity]
                self._cached += len(found[identity])
            self._cache.move_to_end(identity)
        while self._cached > CACHE:
            self._cached -= len(self._cache.popitem(last=False)[1])
        return found

    def get(self, ids: Iterable[bytes], opened: Callable[[Stored, bytes, Place], None]) -> None:
        """Fetch blocks, neighbours in a pack together, several ranges at a time, and hand each to ``opened``."""
        self.fetch_places([(self.place(i), i) for i in ids], opened)

    def fetch_places(self, places: list[tuple[Place, bytes]], opened: Callable[[Stored, bytes, Place], None]) -> None:
        """``get`` for blocks whose places are known."""
        places.sort(key=lambda p: (p[0].pack, p[0].offset))
        list(self._getting.map(lambda group: self._fetch(group, opened), _ranges(places)))

    def _fetch(self, group: list[tuple[Place, bytes]], opened: Callable[[Stored, bytes, Place], None]) -> None:
        first, last = group[0][0], group[-1][0]
        span = Place(first.pack, first.offset, last.offset + last.stored - first.offset, 0)
        try:
            data = self.repository.stored(span)
        except MissingObject:
            # A prune may have moved these blocks since the index was read, or have died and left an index that names
            # what others took away: look where else they are.
            self._missing.add(first.pack)
            index, again = self._look(), []
            for _, identity in group:
                place = index.find(identity)
                if place is None or place.pack == first.pack:
                    raise
                again.append((place, identity))
            for place, identity in again:
                opened(self._counted(self.repository.stored(place)), identity, place)
            return
        view = memoryview(self._counted(data))
        for place, identity in group:
            at = place.offset - first.offset
            opened(view[at : at + place.stored], identity, place)

    def _counted(self, data: bytes) -> bytes:
        self.fetched_bytes += len(data)
        return data

    def place(self, identity: bytes) -> Place:
        """Where a block lies. Raises ``MissingObject``."""
        place = self.index.find(identity)
        if place is None:
            for damage in self.repository.damaged.values():
                raise damage
            raise MissingObject(
                f"block {identity.hex()[:16]}",
                hint="an index object is missing; see what is affected: chromakeep check REPO",
            )
        return place


def _ranges(places: list[tuple[Place, bytes]]) -> Iterator[list[tuple[Place, bytes]]]:
    """Groups of sorted places that are worth one request each."""
    group: list[tuple[Place, bytes]] = []
    for place, identity in places:
        if group:
            first, last = group[0][0], group[-1][0]
            end = last.offset + last.stored
            if (
                place.pack != last.pack
                or place.offset - end > GAP
                or place.offset + place.stored - first.offset > RANGE
            ):
                yield group
                group = []
        group.append((place, identity))
    if group:
        yield group


class _AtHand:
    """The local bytes where a span belongs, and whether they are the span already."""

    def __init__(self, data: npt.NDArray[np.uint8], whole: bool) -> None:
        self.data, self.whole = data, whole
        self._differing: npt.NDArray[np.intp] | None = None

    def differing(self, found: SpanMap, repository: Repository) -> npt.NDArray[np.intp]:
        """Numbers of the units that are not what the map says."""
        if self._differing is None:
            mine = unit_hashes(self.data.data, found.unit, repository.keys)
            self._differing = np.flatnonzero(mine != found.hashes)
        return self._differing


class _Prepared(msgspec.Struct, frozen=True):
    maps: dict[bytes, SpanMap]
    blocks: dict[bytes, bytes]
    at_hand: dict[bytes, _AtHand]


def _windows(bands: Iterable[Band]) -> Iterator[list[Band]]:
    """Bands in groups of about ``WINDOW`` bytes."""
    group: list[Band] = []
    size = 0
    for band in bands:
        group.append(band)
        size += sum(s for _, s in band.spans)
        if size >= WINDOW:
            yield group
            group, size = [], 0
    if group:
        yield group
