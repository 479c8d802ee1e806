"""Finding: the bodies of get, query, delete and search, read into what an engine is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import orjson

from chromakeep.engine import Refused, Search, Vectors, Wanted
from chromakeep.filters import (
    DOCUMENT,
    Among,
    Compare,
    Every,
    Filter,
    Holds,
    Some,
    Unreadable,
    read_where,
    read_where_document,
)
from chromakeep.server.api import payloads
from chromakeep.server.api.answers import joined
from chromakeep.server.api.bodies import decoded, loose, mistake
from chromakeep.server.api.metadata import HIGH, LOW, Invalid, sparse
from chromakeep.server.api.records import vectors
from chromakeep.server.api.shapes import Shape

Included = Literal["distances", "documents", "embeddings", "metadatas", "uris"]
_NULL = msgspec.Raw(b"null")
_INVALID = "Invalid where clause"
_ONLY_FIELDS = "group_by keys must be metadata fields (cannot use #score, #document, #embedding, or #metadata)"
_ONLY_SCORE = "aggregate keys must be metadata fields or #score (cannot use #document, #embedding, or #metadata)"
_SELECTED = ("#document", "#embedding", "#metadata", "#score")  # in Chroma's order, before all others


class _Get(msgspec.Struct):
    ids: list[str] | None = None
    where: msgspec.Raw = _NULL
    where_document: msgspec.Raw = _NULL
    limit: int | float | None = None
    offset: int | float | None = None
    include: list[Included] = msgspec.field(default_factory=lambda: ["documents", "metadatas"])


class _Query(msgspec.Struct):
    query_embeddings: list[list[float]]
    ids: list[str] | None = None
    where: msgspec.Raw = _NULL
    where_document: msgspec.Raw = _NULL
    n_results: int | float | None = None
    include: list[Included] = msgspec.field(default_factory=lambda: ["documents", "metadatas", "distances"])


class _Delete(msgspec.Struct):
    ids: list[str] | None = None
    where: msgspec.Raw = _NULL
    where_document: msgspec.Raw = _NULL
    limit: int | float | None = None


_GET, _QUERY, _DELETE = msgspec.json.Decoder(_Get), msgspec.json.Decoder(_Query), msgspec.json.Decoder(_Delete)


class Get(msgspec.Struct, frozen=True):
    """What a get asks for."""

    ids: list[str] | None
    where: Filter | None
    limit: int | None
    offset: int
    include: Sequence[str]


class Query(msgspec.Struct, frozen=True):
    """What a query asks for. ``vectors`` None: there are none."""

    vectors: Vectors | None
    n_results: int
    ids: list[str] | None
    where: Filter | None
    include: Sequence[str]


class Delete(msgspec.Struct, frozen=True):
    """What is to be deleted; without ids and filter nothing is."""

    ids: list[str] | None
    where: Filter | None
    limit: int | None


def wanted(include: Sequence[str]) -> Wanted:
    return Wanted(
        documents="documents" in include,
        metadatas="metadatas" in include,
        embeddings="embeddings" in include,
        uris="uris" in include,
        distances="distances" in include,
    )


def read_get(body: bytes) -> Get:
    """Raises ``Refused``."""
    sent = decoded(payloads.GET, body, _GET.decode)
    limit, offset = (_u32(payloads.GET, body, number) for number in (sent.limit, sent.offset))
    return Get(sent.ids, _filter(payloads.GET, body, sent), limit, offset or 0, sent.include)


def read_query(body: bytes) -> Query:
    """Raises ``Refused``."""
    sent = decoded(payloads.QUERY, body, _QUERY.decode)
    count = _u32(payloads.QUERY, body, sent.n_results)
    where = _filter(payloads.QUERY, body, sent)
    asked = vectors(sent.query_embeddings) if sent.query_embeddings else None
    return Query(asked, 10 if count is None else count, sent.ids, where, sent.include)


def read_delete(body: bytes) -> Delete:
    """Raises ``Refused``."""
    sent = decoded(payloads.DELETE, body, _DELETE.decode)
    limit = _u32(payloads.DELETE, body, sent.limit)
    where = _filter(payloads.DELETE, body, sent)
    if where is None:
        if sent.ids == []:
            raise Refused(400, "Validation error: ids, where: Either ids or where must be specified")
        if limit is not None:
            raise Refused(
                400, "Validation error: limit, where: limit can only be specified when a where clause is provided"
            )
    return Delete(sent.ids, where, limit)


def _u32(shape: Shape, body: bytes, number: float | None) -> int | None:
    if number is None or (isinstance(number, int) and 0 <= number < 2**32):
        return number
    raise mistake(shape, body) or Refused(422, "a number is out of range")


def _filter(shape: Shape, body: bytes, sent: Any) -> Filter | None:
    """Of ``where`` and ``where_document``."""
    try:
        where, document = orjson.loads(bytes(sent.where)), orjson.loads(bytes(sent.where_document))
    except orjson.JSONDecodeError as error:
        raise mistake(shape, body, error) or Refused(400, str(error)) from None
    try:
        parts: list[Filter] = []
        if where is not None:
            parts.append(checked(read_where(where)))
        if document is not None:
            parts.append(read_where_document(document))
    except (Unreadable, RecursionError) as error:
        raise Refused(400, str(error) if isinstance(error, Unreadable) else _INVALID) from None
    return None if not parts else parts[0] if len(parts) == 1 else Every(tuple(parts))


def checked(read: Filter) -> Filter:
    """The same, if its numbers are such as records have, and documents are only asked for as such. Raises
    ``Unreadable`` and ``Refused``."""
    for part in _leaves(read):
        if isinstance(part, Compare | Holds | Among):
            values = part.values if isinstance(part, Among) else (part.value,)
            if any(type(value) is int and not LOW <= value <= HIGH for value in values):
                raise Unreadable(_INVALID)
            if part.key == DOCUMENT and isinstance(part, Holds):  # of a text that is another leaf
                raise Unreadable(_INVALID)
            if part.key == DOCUMENT and isinstance(values[0], str):
                raise Refused(
                    400, f"Cannot filter using metadata key '{DOCUMENT}' with type 'Str' because indexing is disabled"
                )
    return read


def _leaves(read: Filter) -> Iterator[Filter]:
    left = [read]
    while left:
        part = left.pop()
        if isinstance(part, Every | Some):
            left.extend(part.parts)
        else:
            yield part


def read_searches(body: bytes) -> list[Search]:
    """Raises ``Refused``."""
    sent = loose(payloads.SEARCH, body)["searches"]
    faults: dict[str, str | None] = {}
    for index, search in enumerate(sent):
        group = search.get("group_by") or {}
        faults[f"searches[{index}].rank"] = _fault_of_rank(search.get("rank"))
        faults[f"searches[{index}].group_by"] = _fault_of_group(group)
        if group.get("keys") and search.get("rank") is None:
            faults[f"searches[{index}].__all__"] = "group_by requires rank expression to be specified"
    if found := joined(faults):
        raise found
    return [_search(search) for search in sent]


def _search(sent: dict[str, Any]) -> Search:
    limit = sent.get("limit") or {}
    where, group = sent.get("filter"), sent.get("group_by") or {}
    try:
        read = checked(read_where(where, ids=True)) if where else None
    except Unreadable as error:
        raise Refused(400, str(error)) from None
    names = set((sent.get("select") or {}).get("keys") or ())
    return Search(
        filter=read,
        rank=sent.get("rank"),
        group_by=group if group.get("keys") else None,
        offset=limit.get("offset") or 0,
        limit=limit.get("limit"),
        select=tuple(name for name in _SELECTED if name in names) + tuple(sorted(names.difference(_SELECTED))),
    )


def _fault_of_rank(rank: Any) -> str | None:
    left = [rank]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left.extend(part)
        elif isinstance(part, dict):
            query = part.get("query") if "query" in part else None
            if isinstance(query, dict):
                try:
                    sparse(query)
                except Invalid as error:
                    return f"Invalid sparse vector in KNN query: {error}"
            elif query is None:
                left.extend(part.values())
    return None


def _fault_of_group(group: dict[str, Any]) -> str | None:
    keys, aggregate = group.get("keys") or [], group.get("aggregate")
    if bool(keys) != (aggregate is not None):
        return "group_by keys and aggregate must both be specified or both be omitted"
    if any(key in _SELECTED for key in keys):
        return _ONLY_FIELDS
    if aggregate is None:
        return None
    ((_, held),) = aggregate.items()
    if not held["keys"]:
        return "aggregate keys must not be empty"
    if not held["k"]:
        return "aggregate k must be greater than 0"
    return _ONLY_SCORE if any(key in _SELECTED[:3] for key in held["keys"]) else None
