"""Where blocks, span maps and span lists lie: immutable index objects, and the view a process has of them.

``index/<session>`` lists the packs a session wrote and what is in each. Entries are fixed-width columns (numpy), so a
repository of 20 GB (about 100,000 entries) costs some 5 MB of memory, not a dictionary of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from chromakeep.errors import CorruptObject
from chromakeep.repository.blocks import LARGEST

ID = 32
LARGEST_PACK = 1 << 40  # bytes believed at most
ENTRY = np.dtype(
    [("id", f"V{ID}"), ("pack", "<u4"), ("offset", "<u8"), ("stored", "<u4"), ("length", "<u4")]
)  # 52 bytes


class Place(msgspec.Struct, frozen=True):
    """One block: ``stored`` bytes at ``offset`` of ``pack``, ``length`` bytes of plaintext."""

    pack: str
    offset: int
    stored: int
    length: int


class PackInfo(msgspec.Struct, frozen=True):
    """A pack as its index names it: whole size and BLAKE3-256 of its bytes."""

    name: str
    size: int
    checksum: bytes


class _Encoded(msgspec.Struct, frozen=True):
    packs: list[PackInfo]
    entries: bytes


_DECODER = msgspec.msgpack.Decoder(_Encoded)  # see ``snapshots._DECODER``


class IndexPart(msgspec.Struct):
    """The contents of one index object: packs, and for each block its id and place."""

    packs: list[PackInfo] = msgspec.field(default_factory=list)
    entries: npt.NDArray[np.void] = msgspec.field(default_factory=lambda: np.empty(0, dtype=ENTRY))

    def encode(self) -> bytes:
        """Payload of the index object."""
        return msgspec.msgpack.encode(_Encoded(self.packs, self.entries.tobytes()))

    @staticmethod
    def decode(name: str, payload: bytes) -> IndexPart:
        """Parse a payload; anything out of bounds is ``CorruptObject``."""
        try:
            raw = _DECODER.decode(payload)
        except (msgspec.MsgspecError, ValueError) as e:  # a name that is not UTF-8 is a UnicodeDecodeError
            raise CorruptObject(name, f"is not an index ({e})") from None
        if len(raw.entries) % ENTRY.itemsize:
            raise CorruptObject(name, "ends in the middle of an entry")
        entries = np.frombuffer(raw.entries, dtype=ENTRY)
        if any(not 0 <= p.size < LARGEST_PACK or len(p.checksum) != ID for p in raw.packs):
            raise CorruptObject(name, "names a pack of a size that cannot be")
        if len(entries):
            if int(entries["pack"].max()) >= len(raw.packs):
                raise CorruptObject(name, "names a pack it does not list")
            sizes = np.array([p.size for p in raw.packs], dtype=np.uint64)[entries["pack"]]
            if beyond(entries, sizes):
                raise CorruptObject(name, "places a block beyond the end of its pack")
            if int(entries["length"].max()) > LARGEST:
                raise CorruptObject(name, f"claims a block of {int(entries['length'].max()):,} bytes")
        return IndexPart(raw.packs, entries)


def beyond(entries: npt.NDArray[np.void], ends: npt.NDArray[np.uint64] | int) -> bool:
    """Whether an entry reaches beyond the end of its pack, without believing that offset and size add up in 64 bits."""
    ends = np.asarray(ends, dtype=np.uint64)
    offset, stored = entries["offset"].astype(np.uint64), entries["stored"].astype(np.uint64)
    return bool(((offset > ends) | (stored > ends - np.minimum(offset, ends))).any())


def entry_rows(items: Iterable[tuple[bytes, int, int, int, int]]) -> npt.NDArray[np.void]:
    """(id, pack number, offset, stored, length) tuples as rows of an index."""
    return np.array(list(items), dtype=ENTRY)


class Index:
    """A searchable view of several parts. Where a block lies in several packs, the part added last wins."""

    def __init__(
        self, parts: Iterable[IndexPart] = (), *, without: Iterable[str] = (), avoid: Iterable[str] = ()
    ) -> None:
        """``without`` names packs whose entries are left out; ``avoid`` packs that are the last choice."""
        self.packs: list[PackInfo] = []
        absent, last = set(without), set(avoid)
        avoided, kept = [np.empty(0, dtype=ENTRY)], [np.empty(0, dtype=ENTRY)]
        for part in parts:
            rows = part.entries.copy()
            keep = np.array([p.name not in absent for p in part.packs], dtype=bool)
            rows = rows[keep[rows["pack"]]] if len(rows) else rows
            mask = np.array([p.name in last for p in part.packs], dtype=bool)
            held = mask[rows["pack"]] if len(rows) else np.empty(0, dtype=bool)
            rows["pack"] += len(self.packs)
            self.packs.extend(part.packs)
            avoided.append(rows[held])
            kept.append(rows[~held])
        self._rows = np.concatenate([*avoided, *kept])[::-1]
        keys = self._keys(self._rows)
        order = np.argsort(keys, kind="stable")  # stable over the reversed rows: the newest of equals comes first
        self._rows, self._sorted = self._rows[order], keys[order]

    @staticmethod
    def _keys(rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
        """The first eight bytes of each id as a sortable number; the full id decides."""
        raw = np.frombuffer(rows["id"].tobytes(), dtype=np.uint8).reshape(-1, ID)
        return np.ascontiguousarray(raw[:, :8]).view(">u8").reshape(-1).astype(np.uint64)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, identity: bytes) -> Place | None:
        """The place of a block, or None."""
        key = np.uint64(int.from_bytes(identity[:8], "big"))
        i = int(np.searchsorted(self._sorted, key))
        while i < len(self._sorted) and self._sorted[i] == key:
            row = self._rows[i]
            if row["id"].tobytes() == identity:
                return Place(
                    self.packs[int(row["pack"])].name, int(row["offset"]), int(row["stored"]), int(row["length"])
                )
            i += 1
        return None

    def __contains__(self, identity: bytes) -> bool:
        return self.find(identity) is not None

    def entries(self) -> Iterator[tuple[bytes, Place]]:
        """All entries, a block that lies in several packs several times (the preferred place first)."""
        for row in self._rows:
            yield (
                row["id"].tobytes(),
                Place(self.packs[int(row["pack"])].name, int(row["offset"]), int(row["stored"]), int(row["length"])),
            )
