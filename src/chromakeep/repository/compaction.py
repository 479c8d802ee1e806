"""Compaction: blocks of which few units are still needed are cut down to these.

A span's id is of its bytes, so its map may be replaced by another that finds the same bytes elsewhere, and no snapshot
changes. Units keep their order, so a unit's new place is its rank among those that stay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from chromakeep.layout import Column
from chromakeep.repository.blocks import encode, encode_like
from chromakeep.repository.index import Place
from chromakeep.repository.liveness import Needs, batches
from chromakeep.repository.packs import Stored, open_block
from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.spans import SpanMap

SPARSE = 0.5  # a block of which less is needed is cut down
AT_ONCE = 32  # blocks read together

Put = Callable[[bytes, bytes, int], None]  # id, encoded, plaintext length


def sparse_blocks(needed: Needs) -> set[bytes]:
    """Ids of the blocks that are worth cutting down."""
    return {i for i, used in needed.blocks.items() if used.mean() < SPARSE}


def compact(reader: SnapshotReader, needed: Needs, sparse: set[bytes], put_data: Put, put_meta: Put) -> set[bytes]:
    """Write cut-down blocks, and new maps for all spans that used them; the ids of those spans."""
    affected = {
        identity: one
        for batch in batches(needed.spans)
        for identity, one in reader.maps(batch).items()
        if not sparse.isdisjoint(one.blocks)
    }
    units = {b: one.unit for one in affected.values() for b in one.blocks if b in sparse}
    new_ids: dict[bytes, bytes] = {}
    ranks: dict[bytes, npt.NDArray[np.int64]] = {}
    repository = reader.repository

    def cut(stored: Stored, identity: bytes, place: Place) -> None:
        data, unit, used = repository.block(stored, identity, place), units[identity], needed.blocks[identity]
        pieces = [data[i * unit : (i + 1) * unit] for i in np.flatnonzero(used).tolist()]
        kept = b"".join(pieces)
        new_ids[identity] = repository.keys.block_id(kept)
        ranks[identity] = np.cumsum(used) - 1
        like = open_block(stored, place.pack, place.offset, identity, repository.keys)
        put_data(new_ids[identity], encode_like(like, kept), len(kept))

    for at in range(0, len(units), AT_ONCE):
        reader.get(sorted(units)[at : at + AT_ONCE], cut)
    for identity, one in affected.items():
        slot = one.slot.copy()
        for number, block in enumerate(one.blocks):
            if block in new_ids:
                slot[one.block == number] = ranks[block][one.slot[one.block == number]]
        names = [new_ids.get(b, b) for b in one.blocks]
        payload = SpanMap(one.unit, one.length, names, one.hashes, one.block, slot).encode()
        put_meta(identity, encode(payload, Column(4096)), len(payload))
    return set(affected)
