"""Trigrams: the sets of three neighbouring code points of documents, hashed, by which an index finds candidates.

Where the server has no pg_trgm. A document that has a text in it has all trigrams of that text, so
``trigrams @> {...}`` leaves out none; what it lets pass is looked at again. A hash has 18 bits: a document of any
length has no more than 262,144 of them (1 MiB), and that two trigrams share one costs a look at a document.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BITS = 18
_PORTION = 1 << 20  # code points that are hashed at a time

Hashes = NDArray[np.int32]


def of(documents: Sequence[str | None]) -> tuple[Hashes, NDArray[np.int64]]:
    """The hashes of all documents, one after the other, each document's once and in order; and n + 1 offsets: those of
    document i are ``hashes[offsets[i]:offsets[i + 1]]``."""
    offsets = np.zeros(len(documents) + 1, np.int64)
    found: list[Hashes] = []
    start = 0
    while start < len(documents):
        stop, size = start, 0
        while stop < len(documents) and (stop == start or size + len(documents[stop] or "") <= _PORTION):
            size += len(documents[stop] or "")
            stop += 1
        portion = documents[start:stop]
        if stop == start + 1 and size > _PORTION:
            hashes = _of_long(portion[0] or "")
            offsets[stop] = len(hashes)
        else:
            hashes, offsets[start + 1 : stop + 1] = _of_several(portion)
        found.append(hashes)
        start = stop
    np.cumsum(offsets, out=offsets)
    return (np.concatenate(found) if found else np.zeros(0, np.int32)), offsets


def required(texts: Sequence[str]) -> Hashes:
    """The hashes that a document has which has all these texts in it; those shorter than three code points say
    nothing."""
    found = [
        _of_long(text) if len(text) > _PORTION else _hashes(_codes(text)).astype(np.int32)
        for text in texts
        if len(text) >= 3
    ]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int32)


def _of_several(documents: Sequence[str | None]) -> tuple[Hashes, NDArray[np.int64]]:
    """The hashes, and how many there are of each document."""
    n = len(documents)
    codes = _codes("".join(text or "" for text in documents))
    lengths = np.fromiter((len(text or "") for text in documents), np.int64, n)
    if len(codes) < 3:
        return np.zeros(0, np.int32), np.zeros(n, np.int64)
    owner = np.repeat(np.arange(n, dtype=np.int64), lengths)
    marked = (owner[:-2] << BITS) | _hashes(codes)
    marked = np.unique(marked[owner[:-2] == owner[2:]])
    counts = np.bincount(marked >> BITS, minlength=n).astype(np.int64)
    return (marked & ((1 << BITS) - 1)).astype(np.int32), counts


def _of_long(document: str) -> Hashes:
    seen = np.zeros(1 << BITS, np.bool_)
    for start in range(0, len(document), _PORTION):
        codes = _codes(document[start : start + _PORTION + 2])
        if len(codes) >= 3:
            seen[_hashes(codes)] = True
    return np.flatnonzero(seen).astype(np.int32)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _hashes(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """For ever the same: what is stored was hashed so."""
    a, b, c = codes[:-2], codes[1:-1], codes[2:]
    mixed = (a * np.uint32(0x9E3779B1)) ^ (b * np.uint32(0x85EBCA77)) ^ (c * np.uint32(0xC2B2AE3D))
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x27D4EB2F)
    found: NDArray[np.int64] = (mixed >> np.uint32(32 - BITS)).astype(np.int64)
    return found
