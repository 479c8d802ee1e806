"""SQLite's freelist: pages of a database file that hold nothing but what was deleted."""

from __future__ import annotations

import os
import struct

LOCK_BYTE = 0x40000000  # SQLite file format, 1.4: the page with this byte is never used


def zero_free_pages(descriptor: int) -> int:
    """Overwrite free pages of a database that nobody has open with zeros; returns how many.

    Chroma deletes its queue's rows, vectors included, after each persist; SQLite leaves them in the file. Their
    content means nothing to SQLite (file format 1.5: leaf pages hold no information), so zeros change no answer, but
    the copy compresses and holds no deleted data. Only leaves are touched, not the trunk pages that list them.
    A list that does not add up (a damaged file) is left as it is: returns 0.
    """
    header = os.pread(descriptor, 100, 0)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return 0
    (size,) = struct.unpack_from(">H", header, 16)
    size = 65536 if size == 1 else size
    first, count = struct.unpack_from(">II", header, 32)
    if size < 512 or size & (size - 1):
        return 0
    leaves = _leaves(descriptor, size, size - header[20], first, count)
    zeros = bytes(size)
    for page in leaves:
        if os.pread(descriptor, size, (page - 1) * size) != zeros:
            os.pwrite(descriptor, zeros, (page - 1) * size)
    return len(leaves)


def _leaves(descriptor: int, size: int, usable: int, trunk: int, count: int) -> list[int]:
    """Leaf pages of the trunk chain, or none unless the chain is sound and as long as the header says."""
    pages = os.fstat(descriptor).st_size // size
    forbidden = {1, LOCK_BYTE // size + 1}
    seen: set[int] = set()
    leaves: list[int] = []

    def sound(page: int) -> bool:
        if not 1 < page <= pages or page in seen or page in forbidden:
            return False
        seen.add(page)
        return True

    while trunk:
        if not sound(trunk) or len(seen) > count:
            return []
        content = os.pread(descriptor, size, (trunk - 1) * size)
        if len(content) < size:
            return []
        trunk, entries = struct.unpack_from(">II", content)
        if entries > usable // 4 - 2:
            return []
        for (page,) in struct.iter_unpack(">I", content[8 : 8 + 4 * entries]):
            if not sound(page):
                return []
            leaves.append(page)
    return leaves if len(seen) == count else []
