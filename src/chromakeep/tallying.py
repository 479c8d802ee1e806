"""Tallying: the digests of records that pass as batches (``records.Digest`` says what the sums mean)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from chromakeep.batches import decode, vectors_of
from chromakeep.digests import Lanes, Tally, encode_value, hashes, key_hash, row_hashes, value_hashes

URI = b"chroma:uri"  # the key under which a digest counts it
_ENCODER = msgspec.json.Encoder(order="sorted")


class Adder:
    """Adds batches to a tally; remembers the hashes of keys. For one thread at a time."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._keys = _Keys()

    def add(self, records: pa.RecordBatch) -> None:
        """Add all records of a batch. Raises ``UsageError`` for metadata that is none."""
        lanes = hashes(_bytes(records.column("id")))
        self.tally.ids += lanes.sum(axis=0)
        self.tally.vectors += (lanes * _vector_hashes(records)).sum(axis=0)
        self.tally.documents += (lanes * _value_hashes(_bytes(records.column("document")))).sum(axis=0)
        uris = [None if uri is None else b"s" + uri for uri in _bytes(records.column("uri"))]
        self.tally.metadata += (lanes * _value_hashes(uris)).sum(axis=0) * key_hash(URI)
        counts: list[int] = []
        keys: list[str] = []
        values: list[bytes] = []
        for text in _texts(records.column("metadata")):
            metadata = decode(text) or {}
            counts.append(len(metadata))
            keys += metadata
            values += map(encode_value, metadata.values())
        if keys:
            terms = np.repeat(lanes, counts, axis=0) * self._keys.of(keys) * value_hashes(values)
            self.tally.metadata += terms.sum(axis=0)


class _Keys(dict[str, int]):
    """The hashes of keys, each made once; the values are places in ``table``."""

    def __init__(self) -> None:
        self.table: list[Lanes] = []

    def __missing__(self, key: str) -> int:
        self.table.append(key_hash(key.encode()))
        self[key] = len(self)
        return self[key]

    def of(self, keys: Sequence[str]) -> Lanes:
        """The hash of each key, (n, 2)."""
        if len(self) > 1 << 14:
            self.clear()
            self.table.clear()
        places = np.fromiter(map(self.__getitem__, keys), np.intp, len(keys))
        found: Lanes = np.array(self.table)[places]
        return found


def each_record(records: pa.RecordBatch) -> Lanes:
    """For every record the hash of its id and one of all it holds, (n, 2, 2): what two places are compared by when
    their digests differ. As in those, minus zero in metadata is zero."""
    parts = {
        b"vector": _vector_hashes(records),
        b"document": _value_hashes(_bytes(records.column("document"))),
        b"uri": _value_hashes(_bytes(records.column("uri"))),
        b"metadata": _value_hashes([_comparable(text) for text in _texts(records.column("metadata"))]),
    }
    one = np.zeros((len(records), 2, 2), np.uint64)
    one[:, 0] = hashes(_bytes(records.column("id")))
    for name, part in parts.items():
        one[:, 1] += part * key_hash(name)
    return one


def _comparable(text: str | None) -> bytes | None:
    metadata = decode(text)
    if not metadata:
        return None
    found: bytes = _ENCODER.encode(metadata)
    if b"-0.0" in found:  # perhaps a text of that wording
        metadata = {key: _without_sign(value) for key, value in metadata.items()}
        found = _ENCODER.encode(metadata)
    return found


def _without_sign(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_sign(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def _vector_hashes(records: pa.RecordBatch) -> Lanes:
    """V of each record's vector, (n, 2); zero where there is none."""
    vectors, present = vectors_of(records)
    if len(vectors) and present.all():
        return row_hashes(np.ascontiguousarray(vectors))
    found = np.zeros((len(records), 2), np.uint64)
    if present.any():
        found[present] = row_hashes(vectors[present])
    return found


def _value_hashes(values: Sequence[bytes | None]) -> Lanes:
    """V of each value, (n, 2); zero where there is none."""
    present = [value for value in values if value is not None]
    if values and len(present) == len(values):
        return value_hashes(present)
    found = np.zeros((len(values), 2), np.uint64)
    if present:
        found[[value is not None for value in values]] = value_hashes(present)
    return found


def _bytes(column: pa.Array) -> list[Any]:
    return list(column.cast(pa.binary()).to_pylist())


def _texts(column: pa.Array) -> Iterable[str | None]:
    found: list[str | None] = column.to_pylist()
    return found
