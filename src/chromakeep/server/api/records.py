"""Records as clients send them: one body of add, upsert or update into arrays and checked lists."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.engine import Refused, Vectors, Written
from chromakeep.server.api import payloads
from chromakeep.server.api.answers import joined
from chromakeep.server.api.bodies import EXPLAINED, mistake, once
from chromakeep.server.api.metadata import Invalid, Metadata, fits_record, fits_update, of_record

_LENGTHS = "Inconsistent number of IDs, embeddings, documents, URIs and metadatas"
_RAGGED = "Inconsistent dimensions in provided embeddings"
_SHORT = "Each embedding must have at least 1 dimension"
_ENDLESS = "Embeddings must not contain NaN or Infinity values"
_NO_ID = "Empty ID, ID must have at least one character"
_SYMBOLS = re.compile(r"[A-Za-z0-9+/]*")

Row = bytes | list[float] | None


class _Body(msgspec.Struct):
    """Embeddings are base64, which msgspec decodes in passing, or numbers."""

    ids: list[str]
    embeddings: list[bytes | list[float]]
    documents: list[str | None] | None = None
    uris: list[str | None] | None = None
    metadatas: list[dict[str, Any] | None] | None = None


class _Update(msgspec.Struct):
    ids: list[str]
    embeddings: list[bytes | list[float] | None] | None = None
    documents: list[str | None] | None = None
    uris: list[str | None] | None = None
    metadatas: list[dict[str, Any] | None] | None = None


class _Texts(msgspec.Struct):
    """Embeddings that may be no base64."""

    embeddings: list[str | list[float] | None] | None = None


_BODY, _UPDATE, _TEXTS = msgspec.json.Decoder(_Body), msgspec.json.Decoder(_Update), msgspec.json.Decoder(_Texts)


def added(body: bytes) -> Written:
    """The records of an add. Raises ``Refused``."""
    return _written(payloads.ADD, body, _BODY)


def upserted(body: bytes) -> Written:
    """The records of an upsert. Raises ``Refused``."""
    return _written(payloads.UPSERT, body, _BODY)


def updated(body: bytes) -> Written:
    """The records of an update. Raises ``Refused``."""
    return _written(payloads.UPDATE, body, _UPDATE)


def _written(shape: Any, body: bytes, decoder: Any) -> Written:
    try:
        sent = decoder.decode(body)
        once(shape, body)
    except msgspec.ValidationError as error:
        if (
            len(body) > EXPLAINED or mistake(shape, body) is None
        ):  # Chroma decodes base64 when it has read the whole body
            _check_base64(body)
        raise mistake(shape, body, error) or error from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise mistake(shape, body, error) or error from None
    adding = shape is payloads.ADD
    if not _one_kind(sent.embeddings) or not _fit(sent.metadatas, adding):
        raise mistake(shape, body) or Refused(422, "the body is of another shape")
    faults: dict[str, str | None] = {}
    metadatas = sent.metadatas
    try:
        if metadatas is not None:
            metadatas, faults["metadatas"] = _metadatas(metadatas, adding)
    except OverflowError:  # an integer that no float holds: msgspec reads it, Chroma's parser does not
        found = mistake(shape, body, OverflowError("number out of range"))
        assert found
        raise found from None
    rows = _rows(sent.embeddings)
    if found := joined({"embeddings": rows.fault} | faults):
        raise found
    if rows.ragged:
        raise Refused(400, _RAGGED)
    for column in (sent.embeddings, sent.documents, sent.uris, metadatas):
        if column is not None and len(column) != len(sent.ids):
            raise Refused(400, _LENGTHS)
    if "" in sent.ids:
        raise Refused(400, _NO_ID)
    return Written(sent.ids, rows.vectors, rows.given, sent.documents, sent.uris, metadatas)


def _one_kind(rows: list[Row] | None) -> bool:
    """Base64 or numbers, not both."""
    return rows is None or len({type(row) for row in rows} - {type(None)}) < 2


def _fit(metadatas: list[Metadata | None] | None, adding: bool) -> bool:
    if metadatas is None:
        return True
    fits = fits_record if adding else fits_update
    scalars = (str, float, bool, int)
    return all(type(value) in scalars or fits(value) for given in metadatas if given for value in given.values())


def _metadatas(given: list[Metadata | None], adding: bool) -> tuple[list[Metadata | None], str | None]:
    kept: list[Metadata | None] = []
    for index, one in enumerate(given):
        try:
            found = of_record(one)
        except Invalid:
            return given, f"Invalid metadata at index {index}"
        if adding and found and None in found.values():
            found = {key: value for key, value in found.items() if value is not None}
        kept.append(found)
    return kept, None


class _Rows(msgspec.Struct):
    """Embeddings as one array, and what is wrong with them."""

    vectors: Vectors | None = None
    given: NDArray[np.bool_] | None = None
    ragged: bool = False
    fault: str | None = None


def _rows(sent: list[Row] | None) -> _Rows:
    if sent is None:
        return _Rows()
    rows = [row for row in sent if row is not None]
    if not rows:
        return _Rows(None if sent else np.empty((0, 0), np.float32))
    given = None if len(rows) == len(sent) else np.array([row is not None for row in sent], np.bool_)
    sizes = {len(row) for row in rows}
    coded = isinstance(rows[0], bytes)
    if coded and (len(sizes) > 1 or next(iter(sizes)) % 4):
        for row in rows:
            _floats(row)
    if 0 in sizes:
        return _Rows(fault=_SHORT)
    if coded:
        flat = np.frombuffer(b"".join(rows), "<f4")  # type: ignore[arg-type]
    else:
        with np.errstate(over="ignore"):
            flat = np.fromiter(chain.from_iterable(rows), np.float64, sum(map(len, rows))).astype(np.float32)
    if not np.isfinite(flat).all():
        for row in rows if coded else ():
            _floats(row)
        return _Rows(fault=_ENDLESS)
    if len(sizes) > 1:
        return _Rows(ragged=True)
    vectors = flat.reshape(len(rows), -1)
    if given is not None:
        all_rows = np.zeros((len(sent), vectors.shape[1]), np.float32)
        all_rows[given] = vectors
        vectors = all_rows
    return _Rows(vectors, given)


def _floats(row: Any) -> None:
    """Raises ``Refused`` for what is no finite floats in base64."""
    if len(row) % 4:
        raise Refused(
            400,
            f"Invalid byte length: {len(row)} bytes cannot be converted to f32 values (must be divisible by 4)",
        )
    values = np.frombuffer(row, "<f4")
    endless = np.flatnonzero(~np.isfinite(values))
    if len(endless):
        index = int(endless[0])
        value = "NaN" if np.isnan(values[index]) else "inf" if values[index] > 0 else "-inf"
        raise Refused(400, f"Non-finite float value at embedding index {index}: {value}")


def _check_base64(body: bytes) -> None:
    """Raises ``Refused`` if texts that are no base64 are all that may be wrong with the embeddings of a body."""
    try:
        sent = _TEXTS.decode(body).embeddings or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    for text in sent:
        if isinstance(text, str) and (fault := fault_of_base64(text)):
            raise Refused(400, f"Invalid base64 string: {fault}")


def fault_of_base64(text: str) -> str | None:
    """What Rust's decoder says of it."""
    sent = text.encode()
    bare = sent[:-2] if sent.endswith(b"==") else sent[:-1] if sent.endswith(b"=") else sent
    match = _SYMBOLS.match(bare.decode("latin-1"))
    end = match.end() if match else 0
    if end < len(bare):
        return f"Invalid symbol {bare[end]}, offset {end}."
    if len(bare) % 4 == 1:
        return f"Invalid input length: {len(sent)}"
    if len(sent) % 4:
        return "Invalid padding"
    return None


def vectors(rows: list[list[float]]) -> Vectors:
    """The vectors of a query. Raises ``Refused``."""
    sizes = {len(row) for row in rows}
    if len(sizes) > 1:
        raise Refused(400, _RAGGED)
    with np.errstate(over="ignore"):
        found = np.array(rows, np.float64).astype(np.float32).reshape(len(rows), -1)
    if not np.isfinite(found).all():
        raise Refused(400, f"Validation error: query_embeddings: {_ENDLESS}")
    return found
