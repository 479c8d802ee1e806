"""Packing: values in PostgreSQL's binary format, whole arrays of them as one parameter, whole batches as one COPY.

Vectors are packed by numpy at once; what is left is a few microseconds a record. A parameter that was packed here is
``Packed``; it stands in SQL as ``%b::type[]``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Dumper
from psycopg.pq import Format

from chromakeep.engine import Refused, Vectors

UUID, TEXT, JSONB, INTEGER = 2950, 25, 3802, 23
_NULL = b"\xff\xff\xff\xff"
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
Blob = bytes | memoryview


class Packed(bytes):
    """A parameter in binary format; the cast in the SQL says of which type."""


class _PackedDumper(Dumper):
    format = Format.BINARY
    oid = 0

    def dump(self, obj: Packed) -> bytes:
        return bytes(obj)


psycopg.adapters.register_dumper(Packed, _PackedDumper)


class Server(msgspec.Struct, frozen=True):
    """What a connection must know of its server. ``trgm``: documents are found by pg_trgm, and no trigrams are kept."""

    vector: int
    halfvec: int
    trgm: bool


_servers: WeakKeyDictionary[psycopg.Connection[Any], Server] = WeakKeyDictionary()


def server(connection: psycopg.Connection[Any]) -> Server:
    """Asked once per connection."""
    known = _servers.get(connection)
    if known is None:
        row = connection.execute(
            "SELECT 'vector'::regtype::oid::int8, 'halfvec'::regtype::oid::int8,"
            " (SELECT value = 'pg_trgm' FROM chromakeep.settings WHERE name = 'documents')"
        ).fetchone()
        assert row is not None
        known = _servers[connection] = Server(row[0], row[1], bool(row[2]))
    return known


def key(record_id: str) -> bytes:
    """The primary key of a record."""
    return sha256(record_id.encode()).digest()[:16]


def array(element: int, items: Sequence[bytes | None]) -> Packed:
    """An array of values that are in binary format already."""
    out: list[bytes] = [struct.pack(">5i", 1, int(None in items), element, len(items), 1)]
    for item in items:
        if item is None:
            out.append(_NULL)
        else:
            out += (len(item).to_bytes(4, "big"), item)
    return Packed(b"".join(out))


def uuids(keys: Sequence[bytes]) -> Packed:
    """An array of uuid."""
    return array(UUID, keys)


def texts(values: Sequence[bytes | None]) -> Packed:
    """An array of text, from UTF-8."""
    return array(TEXT, values)


def jsonbs(texts: Sequence[bytes | None]) -> Packed:
    """An array of jsonb, from JSON."""
    return array(JSONB, [None if text is None else b"\x01" + text for text in texts])


def integers(values: NDArray[Any]) -> Packed:
    """An array of integer."""
    return Packed(struct.pack(">5i", 1, 0, INTEGER, len(values), 1) + _elements(values))


def vectors(element: int, values: Vectors, *, half: bool, given: Sequence[bool] | None = None) -> Packed:
    """An array of vector, or of halfvec, from (n, d), null where none is given. Raises ``Refused`` for what halfvec
    cannot hold."""
    out = np.zeros(len(values), _vector_type(values.shape[1], half))
    out["size"], out["dimension"] = out.dtype.itemsize - 4, values.shape[1]
    out["values"] = _numbers(values, half)
    data = out.tobytes()
    if given is not None:
        width = out.dtype.itemsize
        data = b"".join(data[i * width : (i + 1) * width] if one else _NULL for i, one in enumerate(given))
    return Packed(struct.pack(">5i", 1, int(given is not None), element, len(values), 1) + data)


def unpacked(values: Sequence[bytes | None], dimension: int, *, half: bool) -> Vectors:
    """(n, d) float32 from values of vector, or halfvec, in binary format; NaN where there is none."""
    kind = np.dtype(_vector_type(dimension, half).descr[1:])
    nothing = struct.pack(">hh", dimension, 0) + np.full(dimension, np.nan, ">f2" if half else ">f4").tobytes()
    joined = b"".join(nothing if value is None else value for value in values)
    found: Vectors = np.frombuffer(joined, kind)["values"].astype(np.float32)
    return found


def _vector_type(dimension: int, half: bool) -> np.dtype[Any]:
    return np.dtype(
        [("size", ">i4"), ("dimension", ">i2"), ("unused", ">i2"), ("values", ">f2" if half else ">f4", (dimension,))]
    )


def _numbers(values: Vectors, half: bool) -> NDArray[Any]:
    if not half:
        return values.astype(">f4")
    with np.errstate(over="ignore"):
        out = values.astype(">f2")
    if not np.isfinite(out).all():
        raise Refused(400, "An embedding has a value beyond 65504, which this collection's halfvec cannot hold")
    return out


def _elements(values: NDArray[Any]) -> bytes:
    out = np.zeros(len(values), [("size", ">i4"), ("value", ">i4")])
    out["size"], out["value"] = 4, values
    return out.tobytes()


COLUMNS = "key, seq, place, id, embedding, document, uri, metadata, trigrams"
"""In the order in which ``rows`` writes them."""


def rows(
    keys: Sequence[bytes],
    numbers: Sequence[int],
    places: Sequence[int],
    ids: Sequence[bytes],
    embeddings: Vectors,
    documents: Sequence[bytes | None],
    uris: Sequence[bytes | None],
    metadatas: Sequence[bytes | None],
    trigrams: tuple[NDArray[np.int32], NDArray[np.int64]] | None,
    *,
    half: bool = False,
) -> bytes:
    """A whole stream of ``COPY relation (COLUMNS) FROM STDIN (FORMAT BINARY)``: lists of one length, texts in UTF-8 as
    they are held, ``numbers`` for seq, metadata as JSON, trigrams as ``trigrams.of`` gives them."""
    dimension = embeddings.shape[1]
    width = dimension * (2 if half else 4)
    data = memoryview(_numbers(embeddings, half).tobytes())
    head = struct.pack(">ihh", 4 + width, dimension, 0)
    hashes, offsets = (None, []) if trigrams is None else (memoryview(_elements(trigrams[0])), trigrams[1].tolist())
    fixed = struct.Struct(">hi16siqiqi")
    out: list[Blob] = [_BEGIN]
    for i, record_key in enumerate(keys):
        number, record_id, document, uri, metadata = numbers[i], ids[i], documents[i], uris[i], metadatas[i]
        out.append(fixed.pack(9, 16, record_key, 8, number, 8, places[i], len(record_id)))
        out += (record_id, head, data[i * width : (i + 1) * width])
        for text in (document, uri):
            if text is None:
                out.append(_NULL)
            else:
                out += (len(text).to_bytes(4, "big"), text)
        if metadata is None:
            out.append(_NULL)
        else:
            out += ((len(metadata) + 1).to_bytes(4, "big"), b"\x01", metadata)
        if hashes is None or document is None:
            out.append(_NULL)
        else:
            start, stop = offsets[i], offsets[i + 1]
            # of an array without elements there are no dimensions
            size, dimensions = (20 + 8 * (stop - start), (stop - start, 1)) if stop > start else (12, ())
            out.append(struct.pack(f">{4 + len(dimensions)}i", size, len(dimensions) // 2, 0, INTEGER, *dimensions))
            out.append(hashes[8 * start : 8 * stop])
    out.append(_END)
    return b"".join(out)
