"""Columns of any file as columns of ``batches``: exactly, or not at all.

A file may come from anywhere. Text may be large, dictionary-encoded or binary; vectors may be lists of any length and
of any numbers; metadata may be JSON or a struct. What has no exact counterpart is an error that names the record.
"""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromakeep.batches import COLUMNS, decode, encode, schema, vector_type
from chromakeep.errors import SourceError, UsageError
from chromakeep.exchange.described import short

MOST_TEXT = 1 << 30
"""Bytes of one column of one batch: a dictionary must not unfold to more."""

_Integer = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Scalar = bool | _Integer | float | str
_USUAL = msgspec.json.Decoder(dict[str, _Scalar | list[_Scalar]])


def exact(records: pa.RecordBatch, dimension: int | None, place: str, first: int) -> pa.RecordBatch:
    """Records as ``batches.schema(dimension)`` has them. ``first`` is the number of the first one, counted from 1; it
    and ``place`` are for messages. Raises ``SourceError``, and ``UsageError`` for numbers that are no float32."""
    found = {name: records.column(at) for at, name in enumerate(records.schema.names) if name in COLUMNS}
    count = len(records)
    ids = texts(found["id"], f"{place}: id")
    _check_ids(ids, place, first)
    vectors = vector_column(found["embedding"], dimension, ids, place)
    plain = [
        texts(found[name], f"{place}: {name}") if name in found else pa.nulls(count, pa.string())
        for name in ("document", "uri")
    ]
    metadata = _metadata(found["metadata"], ids, place) if "metadata" in found else pa.nulls(count, pa.string())
    return pa.RecordBatch.from_arrays([ids, vectors, *plain, metadata], schema=schema(dimension))


def texts(column: pa.Array, what: str) -> pa.Array:
    """A column of text as ``pa.string()``, of which every value is UTF-8."""
    column = _storage(column)
    kind = column.type
    try:
        if pa.types.is_dictionary(kind):
            import pyarrow.compute as pc  # not at the top: who writes files needs it not, and it takes as long as Arrow

            words = texts(column.dictionary, what)
            if (pc.sum(pc.binary_length(words).take(column.indices)).as_py() or 0) > MOST_TEXT:
                raise SourceError(f"{what}: {len(column)} records unfold to more than {MOST_TEXT >> 20} MiB")
            return words.take(column.indices)
        if pa.types.is_null(kind):
            return pa.nulls(len(column), pa.string())
        if not (_is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise SourceError(f"{what} is of the type {kind}, and text is needed", hint="cast it to a string")
        column.validate(full=True)  # offsets within their buffer, before anything follows them
        plain = column if kind == pa.string() else column.cast(pa.string())
        plain.validate(full=True)
    except pa.ArrowException as error:
        raise SourceError(f"{what} holds what is no text ({str(error).splitlines()[0]})") from None
    return plain


def vector_column(column: pa.Array, dimension: int | None, ids: pa.Array, place: str) -> pa.Array:
    """A column of lists of numbers as ``vector_type(dimension)``; without a copy where it is that already."""
    column = _storage(column)
    count = len(column)
    if pa.types.is_null(column.type) or column.null_count == count:
        return pa.nulls(count, vector_type(dimension))
    if not is_list(column.type):
        raise SourceError(
            f"{place}: embedding is of the type {column.type}, and a list of numbers is needed",
            hint="cast it to a list of float32",
        )
    present = ~np.asarray(column.is_null(), bool)
    if dimension is None:
        raise SourceError(f"{place}: record {_nth(ids, present, 0)} has a vector, and its collection no dimension")
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column)
    wrong = pc.fill_null(pc.not_equal(lengths, dimension), False)
    if pc.any(wrong).as_py():
        at = pc.index(wrong, True).as_py()
        raise SourceError(
            f"{place}: record {short(ids[at].as_py())} has {lengths[at].as_py()} dimensions, and others {dimension}"
        )
    numbers = column.flatten()  # of those that are present
    if numbers.null_count:
        at = int(np.flatnonzero(np.asarray(numbers.is_null(), bool))[0]) // dimension
        raise SourceError(f"{place}: record {_nth(ids, present, at)} has a vector with a null in it")
    rows = _float32(numbers, ids, present, dimension, place)
    check_finite(rows, ids, present, place)
    kind = vector_type(dimension)
    if present.all():
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=kind)
    full = np.zeros((count, dimension), np.float32)
    full[present] = rows
    return pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), type=kind, mask=pa.array(~present))


def check_finite(rows: NDArray[np.float32], ids: pa.Array, present: NDArray[np.bool_], place: str) -> None:
    """Raise ``SourceError`` for a vector that no Chroma takes; ``rows`` are those of the records ``present``."""
    if not np.isfinite(rows).all():
        at = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise SourceError(
            f"{place}: record {_nth(ids, present, at)} has a vector with NaN or infinity, which Chroma refuses",
            hint="remove the record, or give it a vector",
        )


def canonical(text: str | bytes, place: str, record: str) -> str | None:
    """Metadata in any JSON as ``batches.encode`` has it; None for ``null``. Raises ``SourceError``, naming
    ``place`` and the id ``record``."""
    if text in ("null", b"null"):
        return None
    try:
        return encode(_read(text))
    except UsageError as error:
        raise SourceError(f"{place}: record {short(record)}: {error.message}", hint=error.hint) from None
    except ValueError as error:  # bytes that are no UTF-8
        raise SourceError(f"{place}: record {short(record)}: metadata is no text ({error})") from None


def _read(text: str | bytes) -> dict[str, Any] | None:
    """As ``decode``, of which it is the quick way for what is right."""
    try:
        found = _USUAL.decode(text)
    except (ValueError, RecursionError):
        return decode(text)
    for value in found.values():
        if type(value) is list and len(set(map(type, value))) != 1:
            return decode(text)
    return found


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any sort."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _metadata(column: pa.Array, ids: pa.Array, place: str) -> pa.Array:
    column = _storage(column)
    found = column if pa.types.is_struct(column.type) else texts(column, f"{place}: metadata")
    made = []
    for record, value in zip(ids.to_pylist(), found.to_pylist(), strict=True):
        text = _of_struct(value, place, record) if isinstance(value, dict) else value
        made.append(None if text is None else canonical(text, place, record))
    return pa.array(made, pa.string())


def _of_struct(row: dict[str, Any], place: str, record: str) -> str:
    """A row's entries as JSON, those that are null left out. JSON would make text of dates and bytes."""
    entries = {key: value for key, value in row.items() if value is not None}
    for key, value in entries.items():
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, (bool, int, float, str)) or (isinstance(item, float) and not isfinite(item)):
                raise SourceError(f"{place}: record {short(record)}: metadata cannot hold the {key!r} that it has")
    return encode(entries) or "{}"


def _float32(
    numbers: pa.Array, ids: pa.Array, present: NDArray[np.bool_], dimension: int, place: str
) -> NDArray[np.float32]:
    kind = numbers.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise SourceError(f"{place}: embedding holds {kind}, and numbers are needed")
    given = numbers.to_numpy(zero_copy_only=False).reshape(-1, dimension)
    if given.dtype == np.float32:
        rows: NDArray[np.float32] = given
        return rows
    with np.errstate(over="ignore", invalid="ignore"):
        rows = given.astype(np.float32)
        same = (rows.astype(np.float64) == given) | np.isnan(given)
        if pa.types.is_integer(kind):
            same &= np.abs(rows) <= 1 << 24  # beyond, two integers may be one float
    if not same.all():
        at = int(np.flatnonzero(~same.all(axis=1))[0])
        raise SourceError(
            f"{place}: record {_nth(ids, present, at)} has numbers that are no float32, which is what Chroma holds",
            hint="cast the column embedding to float32 if the difference does not matter",
        )
    return rows


def _check_ids(ids: pa.Array, place: str, first: int) -> None:
    import pyarrow.compute as pc

    empty = pc.fill_null(pc.equal(pc.binary_length(ids), 0), True)
    if pc.any(empty).as_py():
        at = pc.index(empty, True).as_py()
        raise SourceError(f"{place}: row {first + at} has no id", hint="give each record an id that is not empty")


def _nth(ids: pa.Array, present: NDArray[np.bool_], at: int) -> str:
    return short(ids[int(np.flatnonzero(present)[at])].as_py())


def _storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or (hasattr(pa.types, "is_string_view") and pa.types.is_string_view(kind))
    )
