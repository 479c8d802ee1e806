"""SQLite's freelist: pages of a database file that hold nothing but what was deleted."""

from __future__ import annotations

import os
import struct

import numpy as np
from numpy.typing import NDArray

from chromakeep.sets import distinct

LOCK_BYTE = 0x40000000  # SQLite file format, 1.4: the page with this byte is never used


def zero_free_pages(descriptor: int) -> int:
    """Overwrite free pages of a database that nobody has open with zeros; returns how many.

    Chroma deletes its queue's rows, vectors included, after each persist; SQLite leaves them in the file. Their
    content means nothing to SQLite (file format 1.5: leaf pages hold no information), so zeros change no answer, but
    the copy compresses and holds no deleted data. Only leaves are touched, not the trunk pages that list them.
    A list that does not add up (a damaged file) is left as it is: returns 0.
    """
    leaves = free_leaves(descriptor)
    if len(leaves):
        size = _page_size(os.pread(descriptor, 100, 0))
        zeros = bytes(size)
        for page in leaves.tolist():
            if os.pread(descriptor, size, page * size) != zeros:
                os.pwrite(descriptor, zeros, page * size)
    return len(leaves)


def free_leaves(descriptor: int) -> NDArray[np.int64]:
    """These pages, numbered from 0, ascending; none of a list that does not add up."""
    header = os.pread(descriptor, 100, 0)
    size = _page_size(header)
    if not size:
        return np.zeros(0, np.int64)
    first, count = struct.unpack_from(">II", header, 32)
    leaves = _leaves(descriptor, size, size - header[20], first, count)
    return np.sort(np.concatenate([np.zeros(0, np.int64), *leaves])) - 1


def _page_size(header: bytes) -> int:
    """0 where it makes no sense."""
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return 0
    (size,) = struct.unpack_from(">H", header, 16)
    size = 65536 if size == 1 else size
    return size if size >= 512 and size & (size - 1) == 0 else 0


def _leaves(descriptor: int, size: int, usable: int, trunk: int, count: int) -> list[NDArray[np.int64]]:
    """Leaf pages by trunk, or none unless the chain is sound and as long as the header says. Memory: a byte a page."""
    pages = os.fstat(descriptor).st_size // size
    seen = np.zeros(pages + 1, bool)
    seen[[page for page in (0, 1, LOCK_BYTE // size + 1) if page <= pages]] = True  # never free
    found = 0
    leaves: list[NDArray[np.int64]] = []
    while trunk:
        if trunk > pages or seen[trunk] or found >= count:
            return []
        seen[trunk] = True
        content = os.pread(descriptor, size, (trunk - 1) * size)
        if len(content) < size:
            return []
        trunk, entries = struct.unpack_from(">II", content)
        if entries > usable // 4 - 2:
            return []
        listed = np.frombuffer(content, ">u4", entries, 8).astype(np.int64)
        if (listed > pages).any() or seen[listed].any() or len(distinct(listed)) < entries:
            return []
        seen[listed] = True
        leaves.append(listed)
        found += 1 + entries
    return leaves if found == count else []
