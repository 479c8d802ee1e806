"""Packs: some MiB of blocks in one object, so that a store sees few puts and a restore few gets.

``CKPACK1\\n`` | blocks back to back | trailer | trailer length u32 | ``CKPACK1\\n``. The trailer (id, offset, stored
and plain length of each block, sealed) makes a pack self-describing: an index can be built anew from packs alone.
Under encryption each block is AES-256-GCM under the pack's own key with its offset as nonce and its id authenticated.
Data and maps go to packs of their own (``packs/``, ``meta/``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future

import blake3
import numpy as np
import numpy.typing as npt

from chromakeep.errors import CorruptObject
from chromakeep.repository.index import ENTRY, ID, IndexPart, PackInfo, Place, beyond, entry_rows
from chromakeep.repository.keys import TAG_BYTES, Keys
from chromakeep.repository.sealed import seal, unseal
from chromakeep.store.base import Store

MAGIC = b"CKPACK1\n"
TARGET = 16 << 20
DATA, META = "packs", "meta"

Stored = bytes | memoryview  # a block as a pack has it; mostly a view of a range that was read


def session_of(pack: str) -> str:
    """The session that wrote a pack: its name is ``<folder>/<session>-<number>``."""
    return pack.split("/", 1)[1].rsplit("-", 1)[0]


def open_block(stored: Stored, pack: str, offset: int, identity: bytes, keys: Keys) -> Stored:
    """The encoded block out of its stored bytes: decrypted and authenticated, or as it is."""
    cipher = keys.cipher(pack)
    if cipher is None:
        return stored
    from cryptography.exceptions import InvalidTag

    try:
        return bytes(cipher.decrypt(offset.to_bytes(12, "little"), stored, identity))
    except (InvalidTag, ValueError):
        raise CorruptObject(pack, f"the block at byte {offset} does not authenticate") from None


class PackWriter:
    """Collects blocks of one folder and puts a pack whenever there is enough. Thread-safe.

    A block counts as written only when ``finish`` has returned: it waits for the puts and raises their first error.
    """

    def __init__(self, store: Store, keys: Keys, session: str, folder: str, pool: Executor) -> None:
        self._store, self._keys, self._pool = store, keys, pool
        self._prefix = f"{folder}/{session}-"
        self._lock = threading.Lock()
        self._puts: list[Future[None]] = []
        self._in_flight = threading.Semaphore(2)  # packs held in memory while they are put
        self.part = IndexPart()
        self._rows: list[npt.NDArray[np.void]] = []  # of each pack: a third of what tuples take
        self.bytes_put = 0
        self._begin()

    def _begin(self) -> None:
        self._name = f"{self._prefix}{len(self.part.packs)}"
        self._cipher = self._keys.cipher(self._name)
        self._pieces: list[bytes] = [MAGIC]
        self._size = len(MAGIC)
        self._current: list[tuple[bytes, int, int, int, int]] = []

    def add(self, identity: bytes, encoded: bytes, length: int) -> None:
        """Append a block of ``length`` plaintext bytes under its id."""
        full: Callable[[], None] | None = None
        with self._lock:
            if self._cipher is not None:
                encoded = self._cipher.encrypt(self._size.to_bytes(12, "little"), encoded, identity)
            self._current.append((identity, len(self.part.packs), self._size, len(encoded), length))
            self._pieces.append(encoded)
            self._size += len(encoded)
            if self._size >= TARGET:
                full = self._close()
        if full:
            full()

    def raise_failure(self) -> None:
        """Raise the error of a put that has failed by now."""
        for put in self._puts:
            if put.done() and (error := put.exception()):
                raise error

    def _close(self) -> Callable[[], None]:
        """End the current pack (lock held) and return what puts it, to be called without the lock."""
        rows = entry_rows(self._current)
        trailer = seal("T", self._name, rows.tobytes(), self._keys)
        data = b"".join((*self._pieces, trailer, len(trailer).to_bytes(4, "little"), MAGIC))
        name = self._name
        self.part.packs.append(PackInfo(name, len(data), blake3.blake3(data).digest()))
        self._rows.append(rows)
        self.bytes_put += len(data)
        self._begin()

        def put() -> None:
            self._in_flight.acquire()
            self._puts.append(self._pool.submit(self._put, name, data))

        return put

    def _put(self, name: str, data: bytes) -> None:
        try:
            self._store.put(name, data, if_absent=True)
        finally:
            self._in_flight.release()

    def finish(self) -> IndexPart:
        """Put what is left, wait for all, and return the index of all that was written."""
        with self._lock:
            last = self._close() if self._current else None
        if last:
            last()
        for done in self._puts:
            done.result()
        self.part.entries = np.concatenate([entry_rows(()), *self._rows])
        return self.part


def read_trailer(name: str, data: bytes, keys: Keys) -> list[tuple[bytes, Place]]:
    """What a whole pack says of itself: the ids and places of its blocks. Raises ``CorruptObject``."""
    foot = len(MAGIC) + 4
    if len(data) < len(MAGIC) + foot or data[: len(MAGIC)] != MAGIC or data[-len(MAGIC) :] != MAGIC:
        raise CorruptObject(name, "is truncated or not a pack")
    size = int.from_bytes(data[-foot : -foot + 4], "little")
    end = len(data) - foot
    if size > end - len(MAGIC):
        raise CorruptObject(name, "claims a trailer larger than itself")
    payload = unseal("T", name, data[end - size : end], keys)
    if len(payload) % ENTRY.itemsize:
        raise CorruptObject(name, "has a trailer that ends in the middle of an entry")
    rows = np.frombuffer(payload, dtype=ENTRY)
    if beyond(rows, end - size):
        raise CorruptObject(name, "has a trailer that points beyond its blocks")
    return [(r["id"].tobytes(), Place(name, int(r["offset"]), int(r["stored"]), int(r["length"]))) for r in rows]


__all__ = ["DATA", "ID", "META", "TAG_BYTES", "PackWriter", "open_block", "read_trailer", "session_of"]
