"""What a collection is, wherever it lives, and the digest that proves two of them equal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Digest:
    """Order-independent digests of a collection's records, each 32 hex digits.

    Each field is the sum modulo 2**128 of the 128-bit BLAKE2b hashes of ``(id, value)`` over all records: two
    collections with equal digests hold the same ids with the same values, whatever order they were read in.
    ``vectors`` hashes little-endian float32 bytes as ``collection.get`` returns them.
    """

    ids: str
    vectors: str
    documents: str
    metadata: str


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection, by name and content. ``dimension`` is None until the first record fixed it."""

    id: str
    name: str
    tenant: str
    database: str
    count: int
    dimension: int | None = None
    space: str = "l2"
    model: str | None = None  # the embedding function and model the collection names; never built, only told
    digest: Digest | None = None
