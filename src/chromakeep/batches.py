"""Batches: records as Arrow columns, the one schema in which they pass from any place to any other.

=========== ================================ =====================================================================
``id``        string, not null                 any text but the empty one
``embedding`` fixed_size_list<float>[n]        float32, bit for bit; null only where a record has no vector at all
``document``  string                           null and "" are two different things
``uri``       string
``metadata``  string                           canonical JSON, see ``encode``; null and {} are the same to Chroma
=========== ================================ =====================================================================

A collection that never had a record has no dimension: its ``embedding`` is a list of no fixed size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromakeep.digests import Tally, encode_value, hashes, key_hash, row_hashes, value_hashes
from chromakeep.errors import UsageError

COLUMNS = ("id", "embedding", "document", "uri", "metadata")
URI = b"chroma:uri"  # the key under which a digest counts it

_FLOAT = pa.field("item", pa.float32(), nullable=False)
_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(dict[str, Any])
_SCALARS = (bool, int, float, str)


def vector_type(dimension: int | None) -> pa.DataType:
    """The type of the column ``embedding``."""
    return pa.list_(_FLOAT) if dimension is None else pa.list_(_FLOAT, dimension)


def schema(dimension: int | None) -> pa.Schema:
    """The schema of every batch of a collection of this dimension."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("embedding", vector_type(dimension)),
            *[pa.field(name, pa.string()) for name in COLUMNS[2:]],
        ]
    )


def batch(
    ids: Sequence[str] | pa.Array,
    vectors: NDArray[np.float32] | Sequence[Sequence[float] | None],
    documents: Sequence[str | None] | pa.Array,
    uris: Sequence[str | None] | pa.Array,
    metadatas: Sequence[str | None] | pa.Array,
    dimension: int | None,
) -> pa.RecordBatch:
    """One batch; ``vectors`` is (n, dimension) float32, taken without a copy, or rows of which some may be None;
    ``metadatas`` are encoded."""
    shape = schema(dimension)
    if isinstance(vectors, np.ndarray) and dimension is not None:
        flat = pa.array(np.ascontiguousarray(vectors, "<f4").reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=shape.field("embedding").type)
    else:
        column = pa.array(list(vectors), shape.field("embedding").type)
    texts = [each if isinstance(each, pa.Array) else pa.array(each, pa.string()) for each in (documents, uris)]
    ids = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
    metadatas = metadatas if isinstance(metadatas, pa.Array) else pa.array(metadatas, pa.string())
    return pa.RecordBatch.from_arrays([ids, column, *texts, metadatas], schema=shape)


def vectors_of(records: pa.RecordBatch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The vectors, (n, dimension) without a copy, and which records have one, (n,). A row without one is
    anything."""
    column = records.column("embedding")
    present = ~np.asarray(column.is_null(), bool) if column.null_count else np.ones(len(records), bool)
    if not pa.types.is_fixed_size_list(column.type):
        rows = [row for row in column.to_pylist() if row]
        if len({len(row) for row in rows}) > 1:
            raise UsageError("vectors of several dimensions are in one collection")
        out = np.zeros((len(records), len(rows[0]) if rows else 0), np.float32)
        out[present] = rows if rows else np.zeros((0, out.shape[1]))
        return out, present
    width = column.type.list_size
    flat = column.values.to_numpy(zero_copy_only=False)[column.offset * width : (column.offset + len(column)) * width]
    return flat.reshape(len(records), width), present


def encode(metadata: Mapping[str, Any] | None) -> str | None:
    """Metadata as canonical JSON: keys sorted, no spaces, integers without a point and floats with one or an exponent,
    in the fewest digits that give the same float64 again; so ``1``, ``1.0``, ``true`` and ``"1"`` stay apart."""
    return None if metadata is None else _ENCODER.encode(metadata).decode()


def decode(text: str | bytes | None) -> dict[str, Any] | None:
    """The metadata in canonical or any other JSON, as far as Chroma could have held it. Raises ``UsageError``."""
    if text is None:
        return None
    try:
        found = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"metadata is no JSON object ({error})") from None
    for key, value in found.items():
        if type(value) not in _SCALARS and not _is_list(value):
            raise UsageError(
                f"the metadata value of {key!r} is {_named(value)}",
                hint="Chroma holds text, numbers, true, false, and lists of one of these kinds",
            )
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len({type(item) for item in value}) == 1 and type(value[0]) in _SCALARS


def _named(value: Any) -> str:
    if isinstance(value, list):
        return "a list of several kinds, or of none"
    return "null" if value is None else "an object" if isinstance(value, dict) else type(value).__name__


class Adder:
    """Adds batches to a tally; remembers the hashes of keys. For one thread at a time."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._keys: dict[str, Any] = {}

    def add(self, records: pa.RecordBatch) -> None:
        """Add all records of a batch. Raises ``UsageError`` for metadata that is none."""
        lanes = hashes(_bytes(records.column("id")))
        self.tally.ids += lanes.sum(axis=0)
        vectors, present = vectors_of(records)
        if present.any():
            self.tally.vectors += (lanes[present] * row_hashes(np.ascontiguousarray(vectors[present]))).sum(axis=0)
        self.tally.documents += _sum(lanes, records.column("document"), b"")
        self.tally.metadata += _sum(lanes, records.column("uri"), b"s") * self._key(URI.decode())
        at: list[int] = []
        keys: list[str] = []
        values: list[bytes] = []
        for number, metadata in enumerate(map(decode, _texts(records.column("metadata")))):
            for key, value in (metadata or {}).items():
                at.append(number)
                keys.append(key)
                values.append(encode_value(value))
        if at:
            by_key = np.array([self._key(key) for key in keys])
            self.tally.metadata += (lanes[at] * by_key * value_hashes(values)).sum(axis=0)

    def _key(self, key: str) -> Any:
        found = self._keys.get(key)
        if found is None:
            if len(self._keys) > 1 << 14:
                self._keys.clear()
            found = self._keys[key] = key_hash(key.encode())
        return found


def each_record(records: pa.RecordBatch) -> NDArray[np.uint64]:
    """For every record the hash of its id and one of all it holds, (n, 2, 2): what two places are compared by when
    their digests differ."""
    lanes = hashes(_bytes(records.column("id")))
    one = np.zeros((len(records), 2, 2), np.uint64)
    one[:, 0] = lanes
    vectors, present = vectors_of(records)
    rows = row_hashes(np.ascontiguousarray(vectors)) if vectors.size else np.zeros_like(lanes)
    contents = []
    for number, (document, uri, metadata) in enumerate(
        zip(*[_texts(records.column(name)) for name in COLUMNS[2:]], strict=True)
    ):
        fields = sorted((key.encode(), encode_value(value)) for key, value in (decode(metadata) or {}).items())
        parts = [b"" if text is None else b"1" + text.encode() for text in (document, uri)]
        flat = [part for pair in fields for part in pair]
        vector = rows[number].tobytes() if present[number] else b""
        contents.append(b"".join(b"%d:%b" % (len(part), part) for part in (vector, *parts, *flat)))
    one[:, 1] = hashes(contents)
    return one


def _sum(lanes: NDArray[np.uint64], column: pa.Array, letter: bytes) -> Any:
    """The sum of H(id) * V(value) over the values that are not null."""
    present = ~np.asarray(column.is_null(), bool)
    if not present.any():
        return np.zeros(2, np.uint64)
    values = (letter + value if letter else value for value in _bytes(column) if value is not None)
    return (lanes[present] * value_hashes(values)).sum(axis=0)


def _bytes(column: pa.Array) -> list[Any]:
    return list(column.cast(pa.binary()).to_pylist())


def _texts(column: pa.Array) -> Iterable[str | None]:
    found: list[str | None] = column.to_pylist()
    return found
