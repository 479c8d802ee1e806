"""Tally: the running digest of a collection's records (``records.Digest`` says what the sums mean)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from chromakeep.records import Digest

Lanes = NDArray[np.uint64]  # (n, 2): 128-bit hashes as two little-endian words

_FLOAT = struct.Struct("<d")


def hashes(values: Iterable[bytes | memoryview]) -> Lanes:
    """BLAKE2b-128 of each value, shape (n, 2)."""
    return np.frombuffer(b"".join([blake2b(v, digest_size=16).digest() for v in values]), "<u8").reshape(-1, 2)


def value_hashes(values: Iterable[bytes | memoryview]) -> Lanes:
    """XXH3-128 of each value, shape (n, 2): four times as fast, and good enough for what is not used to find an id."""
    return np.frombuffer(b"".join([xxh3_128_digest(v) for v in values]), "<u8").reshape(-1, 2)


def row_hashes(vectors: NDArray[np.float32]) -> Lanes:
    """XXH3-128 of the bytes of each row of a C-contiguous (n, d) array."""
    flat, width = vectors.reshape(-1).data.cast("B"), 4 * vectors.shape[1]
    return value_hashes([flat[i : i + width] for i in range(0, len(flat), width)])


def key_hash(key: bytes) -> Lanes:
    """The hash of a metadata key, shape (2,), made odd: multiplying by it loses nothing."""
    lanes: Lanes = hashes([key])[0] | np.uint64(1)
    return lanes


def encode_value(value: object) -> bytes:
    """The canonical bytes of a metadata value: a letter for its type, the value; a list's items led by their lengths.

    ``1``, ``1.0``, ``True`` and ``"1"`` all differ. ``-0.0`` is ``0.0``, as which SQLite stores it.
    """
    if isinstance(value, str):
        return b"s" + value.encode()
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, int):
        return b"i%d" % value
    if isinstance(value, float):
        return b"f" + _FLOAT.pack(value + 0.0)
    if isinstance(value, list):
        return b"l" + b"".join([b"%d:%b" % (len(item), item) for item in map(encode_value, value)])
    raise TypeError(f"no metadata value of Chroma: {type(value).__name__}")


class Tally:
    """The sums of a digest, each two words modulo 2**64. Terms may come in any order and portions."""

    def __init__(self) -> None:
        self.ids, self.vectors, self.documents, self.metadata = np.zeros((4, 2), np.uint64)

    def digest(self) -> Digest:
        """The digest of what was added so far."""
        sums = (self.ids, self.vectors, self.documents, self.metadata)
        return Digest(*("".join(f"{int(word):016x}" for word in lanes) for lanes in sums))
