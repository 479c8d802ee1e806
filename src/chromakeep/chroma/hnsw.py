"""The HNSW files of a VECTOR segment: header, elements and links, checked before they are believed.

Formats from chroma-core/hnswlib (hnswalg.h: ``HEADER_FIELDS``, ``persistDirty``, ``loadLinkLists``), little-endian.
Files are read in portions of some MiB and never mapped: memory stays small for any size of index.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import pickles, spool
from chromakeep.chroma.pickles import IdMap
from chromakeep.chroma.spool import Spool
from chromakeep.errors import SourceBroken

HEADER, LEVEL0, LENGTH, LINKS = "header.bin", "data_level0.bin", "length.bin", "link_lists.bin"
FILES = (HEADER, LEVEL0, LENGTH, LINKS, pickles.FILE)
PORTION = 2 << 20
LINKS_PORTION = 1 << 18  # of link_lists.bin: each word of it becomes a number of Python's
BLOAT = 8  # link_lists.bin takes about a tenth of a bit of data_level0.bin; this many times its content is bloat

_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
_MAX_ELEMENT = 1 << 24


class Fault(NamedTuple):
    """A structural fault: the file it is in, its ``Problem`` code, and one line."""

    file: str
    code: str
    message: str


class Header(msgspec.Struct, frozen=True):
    """The fields of header.bin that describe the other files. ``count`` includes deleted elements."""

    count: int
    capacity: int
    element_size: int
    vector_offset: int
    label_offset: int
    max_level: int
    entry_point: int
    max_links: int  # per element on levels above 0
    max_links0: int

    @property
    def dimension(self) -> int:
        """Floats in a vector."""
        return (self.label_offset - self.vector_offset) // 4

    @property
    def element(self) -> np.dtype[Any]:
        """One element of data_level0.bin. Of ``head`` the low half counts links; bit 16 marks a deleted element."""
        formats: list[Any] = ["<u4", ("<u4", (self.max_links0,)), ("<f4", (self.dimension,)), "<u8"]
        return np.dtype(
            {
                "names": ["head", "links", "vector", "label"],
                "formats": formats,
                "offsets": [0, 4, self.vector_offset, self.label_offset],
                "itemsize": self.element_size,
            }
        )


def parse_header(data: bytes) -> Header:
    """The header in these bytes, its fields consistent with each other. Raises SourceBroken."""
    if len(data) != _HEADER.size:
        raise SourceBroken(f"{HEADER} is {len(data)} bytes long, not {_HEADER.size}")
    version, offset0, capacity, count, size, label, vector, level, entry, links, links0, m, *_ = _HEADER.unpack(data)
    if version != 1:
        raise SourceBroken(f"{HEADER} is of version {version}; only 1 is known")
    layout = offset0 == 0 and 1 <= links0 <= 0xFFFF and 1 <= links <= links0 and links == m and vector == 4 + 4 * links0
    vectors = vector < label <= _MAX_ELEMENT and (label - vector) % 4 == 0 and size == label + 8
    graph = count <= capacity < 1 << 32 and (0 <= level < 256 and entry < count if count else level == -1)
    if not (layout and vectors and graph):
        raise SourceBroken(f"{HEADER} contradicts itself")
    return Header(count, capacity, size, vector, label, level, entry, links, links0)


def expected_header(dimension: int, max_neighbors: int, count: int) -> Header:
    """The header of ``count`` elements that Chroma writes for such a collection; nothing in it leads into the graph."""
    vector = 4 + 8 * max_neighbors
    label = vector + 4 * dimension
    return Header(count, count, label + 8, vector, label, 0, 0, max_neighbors, 2 * max_neighbors)


def read_header(path: Path) -> Header:
    """The header at ``path`` (header.bin or its directory), bounded by the sizes of the files beside it.

    Raises SourceBroken when a field is impossible or the files are too short for ``count`` elements.
    """
    directory = path if path.is_dir() else path.parent
    try:
        with (directory / HEADER).open("rb") as file:
            header = parse_header(file.read(_HEADER.size + 1))
        for name, size in ((LEVEL0, header.element_size), (LENGTH, 4), (LINKS, 4)):
            have = (directory / name).stat().st_size
            if have < header.count * size:
                raise SourceBroken(f"{name} is {have} bytes long; {header.count} elements need {header.count * size}")
    except FileNotFoundError as missing:
        raise SourceBroken(f"{Path(str(missing.filename)).name} is missing") from None
    return header


class Portion(msgspec.Struct, frozen=True, eq=False):
    """Adjacent elements: ``elements`` (n,) of ``Header.element``, and their vectors' lengths in cosine space."""

    elements: NDArray[Any]
    lengths: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels, (n,)."""
        labels: NDArray[np.int64] = self.elements["label"].view(np.int64)
        return labels

    @property
    def deleted(self) -> NDArray[np.bool_]:
        """The deletion marks, (n,): bit 0 of the byte behind the link count."""
        marks: NDArray[np.bool_] = self.elements["head"] & 0x10000 != 0
        return marks

    def vectors(self) -> NDArray[np.float32]:
        """The vectors as ``collection.get`` returns them, (n, dimension), C-contiguous."""
        stored: NDArray[np.float32] = np.ascontiguousarray(self.elements["vector"])
        return stored if self.lengths is None else stored * self.lengths[:, None]


def elements(directory: Path, header: Header, *, lengths: bool) -> Iterator[Portion]:
    """All elements, in portions of some MiB; with their lengths or without. A file that is short gives fewer."""
    at_once = max(1, PORTION // header.element_size)
    starts = np.arange(0, header.count, at_once)
    yield from _portions(directory, header, lengths, starts, np.minimum(at_once, header.count - starts))


def read_vectors(directory: Path, header: Header, numbers: NDArray[np.int64], *, lengths: bool) -> NDArray[np.float32]:
    """The vectors of these elements as ``collection.get`` returns them, (n, dimension)."""
    ordered, inverse = np.unique(numbers, return_inverse=True)
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    starts = ordered[np.concatenate([[0], breaks])]
    counts = np.diff(np.concatenate([[0], breaks, [len(ordered)]]))
    runs = [portion.vectors() for portion in _portions(directory, header, lengths, starts, counts)]
    out: NDArray[np.float32] = np.concatenate(runs)[inverse]
    return out


class Mapped:
    """Random access to vectors of many elements: data_level0.bin mapped, whose pages are given back after each look."""

    def __init__(self, directory: Path, header: Header, *, lengths: bool) -> None:
        """The directory is at rest, and its files as long as ``read_header`` has found them."""
        self._elements = np.memmap(directory / LEVEL0, header.element, "r", shape=(header.count,))
        self._lengths = np.fromfile(directory / LENGTH, "<f4", header.count) if lengths else None
        self._file: Any = getattr(self._elements, "_mmap", None)
        if self._file is not None and hasattr(mmap, "MADV_RANDOM") and header.element_size < mmap.PAGESIZE:
            self._file.madvise(mmap.MADV_RANDOM)  # else the system maps sixteen pages for each element

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of these elements as ``collection.get`` returns them, (n, dimension)."""
        found: NDArray[np.float32] = self._elements["vector"][numbers]
        if self._lengths is not None:
            found *= self._lengths[numbers, None]
        if self._file is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)
        return found


def _portions(
    directory: Path, header: Header, lengths: bool, starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> Iterator[Portion]:
    with (directory / LEVEL0).open("rb", buffering=0) as file, (directory / LENGTH).open("rb", buffering=0) as norms:
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            file.seek(start * header.element_size)
            data = file.read(count * header.element_size)
            rows = np.frombuffer(data, header.element, len(data) // header.element_size)
            if lengths:
                norms.seek(4 * start)
            yield Portion(rows, np.frombuffer(norms.read(4 * len(rows)), "<f4") if lengths else None)


def through_cosine(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a cosine index returns of a vector, or of each row: divided by its length when added, multiplied by it when
    read.

    ``normalize_vector`` and ``getDataByLabel`` of hnswalg.h, operation by operation in float32; the squares are summed
    one after the other, as the x86-64 wheels do (bit for bit on 1020 vectors of 1 to 768 dimensions).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt(np.add.accumulate(vector * vector, axis=-1)[..., -1:])
        return vector * (np.float32(1) / (length + np.float32(1e-30))) * length


class Elements:
    """What a pass over all elements tells: labels, deletions, and links that cannot be followed."""

    def __init__(self, header: Header, folder: Path) -> None:
        """``folder``: where labels are spooled if there are many."""
        self.header = header
        self.labels, self.deleted = Spool(np.int64, folder), Spool(bool, folder)
        self._astray = 0
        self._slots = np.arange(header.max_links0, dtype=np.uint32)

    def see(self, portion: Portion) -> None:
        """Take the next portion of ``elements``."""
        self.labels.add(portion.labels.copy())
        self.deleted.add(portion.deleted)
        counts = portion.elements["head"] & 0xFFFF
        astray = (portion.elements["links"] >= self.header.count) & (self._slots < counts[:, None])
        self._astray += int((astray.any(axis=1) | (counts > self.header.max_links0)).sum())

    def faults(self) -> list[Fault]:
        """To be asked after the last portion."""
        found, seen = [], len(self.labels)
        if seen < self.header.count:
            found.append(Fault(LEVEL0, "level0", f"{LEVEL0} ends after {seen} of {self.header.count} elements"))
        if self._astray:
            found.append(
                Fault(LEVEL0, "level0", f"{self._astray} elements of {LEVEL0} link to elements that do not exist")
            )
        portions = (ordered for (ordered,) in spool.ascending(self.labels))
        if any(len(ordered) and (ordered[0] < 1 or not (np.diff(ordered) > 0).all()) for ordered in portions):
            found.append(
                Fault(LEVEL0, "level0", f"{LEVEL0} has elements that were never written, or the same one twice")
            )
        return found

    def against(self, ids: IdMap) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The labels of living elements and those of an id map, ascending, portions of the same range at a time."""
        done = 0
        for labels, deleted in spool.ascending(self.labels, self.deleted):
            end = int(np.searchsorted(ids.labels, labels[-1], "right")) if len(labels) else done
            yield labels[~deleted], ids.labels[done:end]
            done = end
            ids.let_go()
        yield np.zeros(0, np.int64), ids.labels[done:]


def check_links(directory: Path, header: Header) -> list[Fault]:
    """Walk link_lists.bin: sizes add up, links lead to elements that exist on their level, the entry is on top."""
    levels = np.zeros(header.count, np.uint8)
    links, floors = Spool(np.uint32, directory), Spool(np.uint8, directory)
    try:
        for blocks, level in _link_blocks(directory, header, levels):
            used = np.arange(header.max_links) < (blocks[:, :1] & 0xFFFF)
            if (blocks[:, 0] > header.max_links).any():
                raise SourceBroken(f"{LINKS} has a list of more than {header.max_links} links")
            links.add(blocks[:, 1:][used])
            floors.add(np.repeat(level, used.sum(axis=1)))
    except SourceBroken as broken:
        return [Fault(LINKS, "links", broken.message)]
    for targets, floor in zip(links.portions(), floors.portions(), strict=True):
        if (targets >= header.count).any() or (levels[targets] < floor).any():
            return [Fault(LINKS, "links", f"{LINKS} has links to elements that are not on their level")]
    if header.count and (int(levels[header.entry_point]) != header.max_level or int(levels.max()) != header.max_level):
        return [Fault(LINKS, "links", f"{LINKS} has no entry point on level {header.max_level}")]
    return []


def _link_blocks(
    directory: Path, header: Header, levels: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint8]]]:
    """Fill ``levels``; yield the link lists of the upper levels, (n, 1 + max_links) words, and the level of each.

    An element is a word with the size of its lists and the lists. Most have none, so runs of zero words are stepped
    over at once.
    """
    width = 1 + header.max_links
    element, rest = 0, np.zeros(0, np.uint32)
    with (directory / LINKS).open("rb", buffering=0) as file:
        while element < header.count:
            fresh = file.read(max(LINKS_PORTION, 4 * (header.max_level + 1) * width))
            words = np.concatenate([rest, np.frombuffer(fresh, "<u4", len(fresh) // 4)])
            filled: list[int] = np.flatnonzero(words).tolist()
            at, k, starts, heights = 0, 0, [], []
            while element < header.count:
                k = bisect_left(filled, at, k)
                zeros = (filled[k] if k < len(filled) else len(words)) - at
                element, at = min(header.count, element + zeros), at + zeros
                if element == header.count or at == len(words):
                    break
                height, odd = divmod(int(words[at]), 4 * width)
                if odd or height > header.max_level:
                    raise SourceBroken(f"{LINKS} makes no sense at element {element}")
                if at + 1 + height * width > len(words):
                    break
                levels[element] = height
                starts.append(at + 1)
                heights.append(height)
                element, at = element + 1, at + 1 + height * width
            rest = words[at:]
            if element < header.count and not fresh:
                raise SourceBroken(f"{LINKS} ends after {element} of {header.count} elements")
            tall = np.array(heights, np.int64)
            level = np.arange(int(tall.sum())) - np.repeat(np.cumsum(tall) - tall, tall)
            first = np.repeat(np.array(starts, np.int64), tall) + level * width
            yield words[first[:, None] + np.arange(width)], (level + 1).astype(np.uint8)


def bloat(directory: Path, header: Header) -> str | None:
    """One line when link_lists.bin is far larger than the graph explains (it can grow to fill a disk), else None."""
    status = (directory / LINKS).stat()
    expected = header.count * (4 + 4 * (1 + header.max_links)) + (1 << 20)
    if status.st_size <= BLOAT * expected:
        return None
    taken = getattr(status, "st_blocks", 0) * 512
    return (
        f"{LINKS} is {status.st_size} bytes long ({taken} on disk), "
        f"{status.st_size / max(1, header.count * header.element_size):.1f} times {LEVEL0}"
    )


def check_segment(directory: Path) -> list[str]:
    """What is structurally wrong with the files of one segment by themselves, one line each; empty when nothing is.

    A segment without ids (no pickle, or an empty one) is uninitialised: Chroma writes its files anew.
    """
    try:
        if not (directory / pickles.FILE).exists():
            return []
        if not len(ids := pickles.read_id_map(directory / pickles.FILE)):
            return []
        header = read_header(directory)
    except (SourceBroken, OSError) as broken:
        return [str(broken)]
    seen = Elements(header, directory)
    for portion in elements(directory, header, lengths=False):
        seen.see(portion)
    faults = [fault.message for fault in seen.faults() + check_links(directory, header)]
    if not ids.one_to_one or not all(np.array_equal(here, there) for here, there in seen.against(ids)):
        faults.append(f"{pickles.FILE} does not name exactly the elements that {LEVEL0} holds")
    return faults
