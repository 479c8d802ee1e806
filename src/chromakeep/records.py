"""What a collection is, wherever it lives, and the digest that proves two of them equal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Digest:
    """Order-independent digests of a collection's records, each 32 hex digits.

    Two collections with equal digests hold the same ids with the same values, in whatever order and by whatever files.
    H(x) is BLAKE2b with 16 bytes of output and V(x) XXH3-128 (canonical bytes), each taken as two little-endian 64-bit
    words; products and sums are word by word modulo 2**64, and the two words of a sum are printed one after the other.

    * ``ids``: the sum of H(id) over all records, ids in UTF-8.
    * ``vectors``: the sum of H(id) * V(vector), vectors as the little-endian float32 that ``collection.get`` returns.
    * ``documents``: the sum of H(id) * V(document) over the documents that are not null, in UTF-8. An empty document
      counts, a missing one does not.
    * ``metadata``: the sum of H(id) * (H(key) | 1) * V(value) over all entries; a URI is an entry with the key
      ``chroma:uri``, other keys with that prefix are not content. A value is encoded as one letter and the value: ``s``
      text, ``i`` decimal integer, ``f`` little-endian float64 (minus zero as zero), ``b1`` or ``b0``, ``l`` and each
      item led by its length and a colon. So 1, 1.0, true and "1" differ. No metadata and ``{}`` are the same.

    Sums of products can be fed in any order and portion, which a digest of a stream could not: SQLite and the index
    hold records in different orders. They guard against damage, not against someone who picks records to collide.
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
