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

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromakeep.errors import UsageError

COLUMNS = ("id", "embedding", "document", "uri", "metadata")

_FLOAT = pa.field("item", pa.float32(), nullable=False)
_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(dict[str, Any])
_SCALARS = (bool, int, float, str)
_INTEGERS = range(-(1 << 63), 1 << 63)


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
    ``metadatas`` are encoded. Raises ``UsageError`` for vectors of another dimension, or with a component missing."""
    shape = schema(dimension)
    if isinstance(vectors, np.ndarray) and dimension is not None:
        if vectors.size and vectors.shape[1:] != (dimension,):
            raise UsageError(f"vectors of shape {vectors.shape} are no vectors of dimension {dimension}")
        flat = np.ascontiguousarray(vectors, "<f4").reshape(-1)
        column = pa.FixedSizeListArray.from_arrays(numbers(flat, pa.float32()), type=shape.field("embedding").type)
    else:
        try:
            column = pa.array(list(vectors), shape.field("embedding").type)
        except pa.ArrowInvalid as error:
            raise UsageError(f"no vectors of dimension {dimension}: {error}") from None
        if column.flatten().null_count:
            raise UsageError("a vector has a component that is null")
    texts = [each if isinstance(each, pa.Array) else pa.array(each, pa.string()) for each in (documents, uris)]
    ids = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
    metadatas = metadatas if isinstance(metadatas, pa.Array) else pa.array(metadatas, pa.string())
    return pa.RecordBatch.from_arrays([ids, column, *texts, metadatas], schema=shape)


def numbers(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """A contiguous array as a column of the kind that it is of, without a copy; ``pa.array`` would look for masks, by
    an import of ``numpy.ma``."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def texts_of(values: Sequence[bytes]) -> pa.Array:
    """A column of text; a cast would do the same by an import of ``pyarrow.compute``. Raises ``pa.ArrowInvalid`` for
    what is not UTF-8."""
    found = pa.array(values, pa.binary()).view(pa.string())
    found.validate(full=True)
    return found


def vectors_of(records: pa.RecordBatch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The vectors, (n, dimension) without a copy, and which records have one, (n,). A row without one is
    anything."""
    column = records.column("embedding")
    present = ~np.asarray(column.is_null(), bool) if column.null_count else np.ones(len(records), bool)
    if not pa.types.is_fixed_size_list(column.type):
        widths = set(column.value_lengths().drop_null().to_pylist())
        if len(widths) > 1 or 0 in widths:
            raise UsageError("vectors of several dimensions, or of none, are in one collection")
        out = np.zeros((len(records), max(widths, default=0)), np.float32)
        out[present] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, out.shape[1] or 1)
        return out, present
    width = column.type.list_size
    flat = column.values.to_numpy(zero_copy_only=False)[column.offset * width : (column.offset + len(column)) * width]
    return flat.reshape(len(records), width), present


def encode(metadata: Mapping[str, Any] | None) -> str | None:
    """Metadata as canonical JSON: keys sorted, no spaces, integers without a point and floats with one or an exponent,
    in the fewest digits that give the same float64 again; so ``1``, ``1.0``, ``true`` and ``"1"`` stay apart. Raises
    ``UsageError`` for infinity and what is no number, which JSON does not have and Chroma 1.x loses."""
    if metadata is None:
        return None
    text = _ENCODER.encode(metadata).decode()
    if "null" in text:  # as which such a float is written
        for key, value in metadata.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, float) and not isfinite(item):
                    raise UsageError(f"the metadata value of {key!r} is {item}", hint="Chroma holds finite numbers")
    return text


def decode(text: str | bytes | None) -> dict[str, Any] | None:
    """The metadata in canonical or any other JSON, as far as Chroma could have held it. Raises ``UsageError``."""
    if text is None:
        return None
    try:
        found = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise UsageError(f"metadata is no JSON object ({error})") from None
    for key, value in found.items():
        if not (_is_list(value) if type(value) is list else _is_scalar(value)):
            raise UsageError(
                f"the metadata value of {key!r} is {_named(value)}",
                hint="Chroma holds text, numbers (integers of 64 bits), true, false, and lists of one of these kinds",
            )
    return found


def _is_scalar(value: Any) -> bool:
    kind = type(value)
    return value in _INTEGERS if kind is int else kind in _SCALARS


def _is_list(value: list[Any]) -> bool:
    return len({type(item) for item in value}) == 1 and all(map(_is_scalar, value))


def _named(value: Any) -> str:
    if isinstance(value, list):
        return "a list of several kinds, of none, or of what is none of these"
    if isinstance(value, int):
        return "an integer of more than 64 bits"
    return "null" if value is None else "an object" if isinstance(value, dict) else type(value).__name__
