"""Lines of JSONL and batches: the one into the other.

``{"collection": {...}}`` begins a collection; then each record is one line::

    {"id": "...", "embedding": "<base64 of little-endian float32>" | [numbers], "document": "...", "uri": "...",
     "metadata": {...}}

A key that a record has nothing for is absent. ``text_chunk`` is taken for a document, as chromadb-data-pipes has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromakeep.batches import schema, vector_type, vectors_of
from chromakeep.errors import SourceError
from chromakeep.exchange.described import MOST_DIMENSIONS, from_json, short, to_json
from chromakeep.exchange.exact import canonical, check_finite
from chromakeep.records import Definition

_HEAD = b'{"collection"'
_NULL = msgspec.Raw(b"null")


class _Record(msgspec.Struct, omit_defaults=True):
    id: str
    embedding: bytes | list[float] | None = None
    document: str | None = None
    text_chunk: str | None = None
    uri: str | None = None
    metadata: msgspec.Raw = _NULL


class _Out(msgspec.Struct, omit_defaults=True):
    id: str
    embedding: memoryview | list[float] | None = None
    document: str | None = None
    uri: str | None = None
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Id(msgspec.Struct):
    id: str | None = None


class _Head(msgspec.Struct):
    collection: msgspec.Raw


_DECODER = msgspec.json.Decoder(_Record)
_ID_DECODER = msgspec.json.Decoder(_Id)
_HEAD_DECODER = msgspec.json.Decoder(_Head)
_ENCODER = msgspec.json.Encoder()
_BLOCK = 1 << 13  # numbers that stay in the processor's cache
_POWERS = 10.0 ** np.arange(23)  # those that a float64 has exactly


def head_line(definition: Definition) -> bytes:
    """The line that begins a collection, with its end."""
    return b'{"collection":%b}\n' % to_json(definition)


def head_of(line: bytes, place: str) -> Definition | None:
    """The definition in a line that begins a collection; None for any other line. Raises ``SourceError``."""
    if not line.startswith(_HEAD) or line[len(_HEAD) :].lstrip(b" :")[:1] != b"{":
        return None
    try:
        return from_json(_HEAD_DECODER.decode(line).collection, place)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: no JSON ({error})") from None


def dimension_of(line: bytes, place: str) -> int | None:
    """The dimension of one record's vector, None if it has none."""
    vector = _decoded(line, place).embedding
    if vector is None:
        return None
    size = len(vector) // 4 if isinstance(vector, bytes) else len(vector)
    if not 0 < size <= MOST_DIMENSIONS:
        raise SourceError(f"{place}: a vector cannot have {size} dimensions")
    return size


def id_of(line: bytes) -> str | None:
    """The id in a line of ours, None of one that begins a collection."""
    return _ID_DECODER.decode(line).id


def id_in(line: bytes, place: str) -> str:
    """The id of one record. Raises ``SourceError``."""
    try:
        found = _ID_DECODER.decode(line).id
    except (ValueError, RecursionError):
        found = None
    return found or _decoded(line, place).id


def record_lines(records: pa.RecordBatch, *, decimal: bool = False) -> bytes:
    """The records as lines, each with its end; vectors in base64, or as decimal numbers."""
    vectors, present = vectors_of(records)
    flat = np.ascontiguousarray(vectors, "<f4")
    rows: list[memoryview] | list[list[float]]
    if decimal:
        rows = shortest(flat).tolist()
    else:
        whole, width = flat.reshape(-1).view(np.uint8).data, 4 * flat.shape[1]
        rows = [whole[at * width : (at + 1) * width] for at in range(len(flat))]
    out = []
    for id, vector, has, document, uri, metadata in zip(
        records.column("id").to_pylist(),
        rows,
        present.tolist(),
        *(records.column(name).to_pylist() for name in ("document", "uri", "metadata")),
        strict=True,
    ):
        if metadata is not None and "\n" in metadata:  # it can only be between two tokens
            metadata = metadata.replace("\n", " ")
        raw = msgspec.UNSET if metadata is None else msgspec.Raw(metadata.encode())
        out.append(_ENCODER.encode(_Out(id, vector if has else None, document, uri, raw)))
    return b"\n".join([*out, b""])


def record_batch(found: Sequence[tuple[int, bytes]], dimension: int | None, place: str) -> pa.RecordBatch:
    """Numbered lines, each a record, as one batch. Raises ``SourceError`` with the number of the line."""
    decoded = [_decoded(line, f"{place}: line {number}") for number, line in found]
    numbers = [number for number, _ in found]
    ids = pa.array([record.id for record in decoded], pa.string())
    texts = [record.document if record.document is not None else record.text_chunk for record in decoded]
    metadata = [
        canonical(bytes(record.metadata), f"{place}: line {number}", record.id)
        for number, record in zip(numbers, decoded, strict=True)
    ]
    return pa.RecordBatch.from_arrays(
        [
            ids,
            _vectors(decoded, numbers, dimension, place),
            pa.array(texts, pa.string()),
            pa.array([record.uri for record in decoded], pa.string()),
            pa.array(metadata, pa.string()),
        ],
        schema=schema(dimension),
    )


def shortest(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """For every float32 a float64 of few digits that rounds to it, bit for bit: itself where there is none.

    JSON writes it in those digits: 0.1 and not 0.10000000149011612.
    """
    exact = vectors.astype(np.float64)
    flat, bits = exact.reshape(-1), vectors.reshape(-1).view(np.uint32)
    with np.errstate(all="ignore"):
        for at in range(0, len(flat), _BLOCK):
            flat[at : at + _BLOCK] = _shortest(flat[at : at + _BLOCK], bits[at : at + _BLOCK])
    return exact


def _shortest(exact: NDArray[np.float64], bits: NDArray[np.uint32]) -> NDArray[np.float64]:
    exponent = np.nan_to_num(np.floor(np.log10(np.abs(exact))), neginf=-99).astype(np.int64)
    out = exact
    for digits in (9, 8, 7):  # whatever has fewer has seven with zeros
        power = digits - 1 - exponent
        scale = _POWERS[np.minimum(np.abs(power), 22)]
        rounded = np.where(power >= 0, np.rint(exact * scale) / scale, np.rint(exact / scale) * scale)
        out = np.where(rounded.astype(np.float32).view(np.uint32) == bits, rounded, out)
    return out


def _vectors(decoded: list[_Record], numbers: list[int], dimension: int | None, place: str) -> pa.Array:
    full = np.zeros((len(decoded), dimension or 0), "<f4")
    present = np.zeros(len(decoded), bool)
    for at, record in enumerate(decoded):
        vector = record.embedding
        if vector is None:
            continue
        size = len(vector) / 4 if isinstance(vector, bytes) else len(vector)
        if size != dimension:
            raise SourceError(
                f"{place}: line {numbers[at]}: record {short(record.id)} has {size:g} dimensions,"
                f" and others {dimension}"
            )
        with np.errstate(over="ignore"):
            full[at] = np.frombuffer(vector, "<f4") if isinstance(vector, bytes) else vector
        present[at] = True
    kind = vector_type(dimension)
    if not present.any():
        return pa.nulls(len(decoded), kind)
    check_finite(full[present], pa.array([record.id for record in decoded]), present, place)
    flat = pa.array(full.astype(np.float32, copy=False).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=None if present.all() else pa.array(~present))


def _decoded(line: bytes, place: str) -> _Record:
    try:
        record = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} is no record ({error})", hint="each line is one JSON object with an id") from None
    if not record.id:
        raise SourceError(f"{place} has an empty id", hint="give each record an id that is not empty")
    return record
