"""Searching: Chroma's ``search``: a filter, a rank expression over nearest neighbours, groups, a page of the result.

Chroma's single node does not have it; what it means is what distributed Chroma does. Sparse vectors in metadata are
compared one by one, with all records that share an index with the query's: exact, and slow for millions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
import psycopg
from numpy.typing import NDArray

from chromakeep.engine import Refused, Rows, Search, Vectors, Wanted
from chromakeep.filters import Filter
from chromakeep.postgres import grouping, packing
from chromakeep.postgres.clauses import clause
from chromakeep.postgres.held import Held
from chromakeep.postgres.nearest import query
from chromakeep.postgres.ranking import Floats, Knn, Sparse, evaluate, knns
from chromakeep.postgres.reading import get
from chromakeep.postgres.text import held as held_text
from chromakeep.postgres.text import told

Connection = psycopg.Connection[Any]
DOCUMENT, EMBEDDING, METADATA, SCORE = "#document", "#embedding", "#metadata", "#score"
PREFILTER = 256  # indices of a sparse query up to which an index finds the records that share one


def search(connection: Connection, held: Held, searches: Sequence[Search]) -> list[Rows]:
    """As ``Engine.search``; a record that is changed or deleted meanwhile is told as it is then, or left out. Raises
    ``Refused``."""
    return [_search(connection, held, one) for one in searches]


def _search(connection: Connection, held: Held, asked: Search) -> Rows:
    grouped = grouping.read(asked.group_by)
    fields = {name for name in asked.select if not name.startswith("#")}
    wanted = Wanted(
        documents=DOCUMENT in asked.select,
        embeddings=EMBEDDING in asked.select,
        metadatas=METADATA in asked.select or bool(fields),
    )
    if asked.rank is None:
        if grouped is not None:
            raise Refused(400, "group_by requires rank expression to be specified")
        found = get(connection, held, None, asked.filter, asked.limit, asked.offset, wanted)
        scores = np.zeros(len(found.ids), np.float32)
    else:
        ids, scores = _ranked(connection, held, asked)
        if grouped is not None and ids:
            ids, scores = _grouped(connection, held, grouped, ids, scores)
        page = slice(asked.offset, None if asked.limit is None else asked.offset + asked.limit)
        ids, scores = ids[page], scores[page]
        found, stay = _in_order(get(connection, held, ids, None, None, 0, wanted), ids)
        scores = scores[stay]
    if fields and METADATA not in asked.select and found.metadatas is not None:
        found.metadatas = [_only(metadata, fields) for metadata in found.metadatas]
    found.scores = scores if SCORE in asked.select else None
    return found


def _ranked(connection: Connection, held: Held, asked: Search) -> tuple[list[str], Floats]:
    """The records that have a value, by it, then in the order in which they were added."""
    assert asked.rank is not None
    found = [_knn(connection, held, knn, asked.filter) for knn in knns(asked.rank)]
    everyone = list(dict.fromkeys(name for ids, _ in found for name in ids))
    ids = get(connection, held, everyone, None, None, 0, Wanted()).ids if everyone else []
    numbers = {name: number for number, name in enumerate(ids)}
    numbered = []
    for names, distances in found:
        there = [number for number, name in enumerate(names) if name in numbers]
        numbered.append((np.array([numbers[names[number]] for number in there], np.int64), distances[there]))
    result = evaluate(asked.rank, numbered, len(ids))
    order: NDArray[np.int64] = np.flatnonzero(result.there)
    order = order[np.argsort(result.values[order], kind="stable")]
    return [ids[number] for number in order], result.values[order]


def _knn(connection: Connection, held: Held, knn: Knn, where: Filter | None) -> tuple[list[str], Floats]:
    """Ids of the nearest, nearest first, and their distances."""
    if isinstance(knn.query, Sparse):
        return _sparse(connection, held, knn, knn.query, where)
    vectors: Vectors = np.array([knn.query], np.float32)
    (rows,) = query(connection, held, vectors, knn.limit, None, where, Wanted(distances=True))
    return rows.ids, np.zeros(0, np.float32) if rows.scores is None else rows.scores


def _sparse(
    connection: Connection, held: Held, knn: Knn, wanted: Sparse, where: Filter | None
) -> tuple[list[str], Floats]:
    """By 1 - the product of both; a record that shares no index is not found, as Chroma's index would not find it."""
    key = held_text(knn.key)
    condition, parameters = ["r.metadata ? %s"], [key]
    if len(wanted.indices) <= PREFILTER:
        shares = [orjson.dumps({key: {"indices": [index]}}).decode() for index in wanted.indices]
        condition = ["(" + " OR ".join(["r.metadata @> %s::jsonb"] * len(shares)) + ")"] if shares else ["false"]
        parameters = shares
    if where is not None:
        also, values = clause(where, held, trgm=packing.server(connection).trgm)
        condition.append(f"({also})")
        parameters = [*parameters, *values]
    sql = f"SELECT r.id, (r.metadata -> %s)::text FROM {held.table} r WHERE {' AND '.join(condition)} ORDER BY r.seq"
    weights = dict(zip(wanted.indices, wanted.values, strict=True))
    ids: list[str] = []
    distances: list[float] = []
    for name, text in connection.execute(sql, (key, *parameters), prepare=False).fetchall():
        value = orjson.loads(text)
        if not isinstance(value, dict) or value.get("#type") != "sparse_vector":
            continue
        pairs = [(weights[i], v) for i, v in zip(value["indices"], value["values"], strict=False) if i in weights]
        if pairs:
            ids.append(told(name))
            distances.append(1.0 - sum(one * other for one, other in pairs))
    with np.errstate(over="ignore"):
        scores = np.array(distances, np.float32)
    nearest = np.argsort(scores, kind="stable")[: knn.limit]
    return [ids[number] for number in nearest], scores[nearest]


def _grouped(
    connection: Connection, held: Held, grouped: grouping.Grouping, ids: list[str], scores: Floats
) -> tuple[list[str], Floats]:
    rows, there = _in_order(get(connection, held, ids, None, None, 0, Wanted(metadatas=True)), ids)
    scores = scores[there]
    metadatas = [orjson.loads(metadata) if metadata else {} for metadata in rows.metadatas or ()]
    stay = grouping.kept(grouped, scores.tolist(), metadatas)
    return [rows.ids[number] for number in stay], scores[stay]


def _in_order(rows: Rows, ids: Sequence[str]) -> tuple[Rows, list[int]]:
    """The rows in the order of ``ids``, and which of these are there: others were deleted a moment ago."""
    numbers = {name: number for number, name in enumerate(rows.ids)}
    stay = [number for number, name in enumerate(ids) if name in numbers]
    order = [numbers[ids[number]] for number in stay]
    changes: dict[str, Any] = {"ids": [ids[number] for number in stay]}
    for member in ("documents", "metadatas", "uris"):
        if (values := getattr(rows, member)) is not None:
            changes[member] = [values[number] for number in order]
    if rows.embeddings is not None:
        changes["embeddings"] = rows.embeddings[order]
    return msgspec.structs.replace(rows, **changes), stay


def _only(metadata: bytes | None, fields: set[str]) -> bytes | None:
    """Of a metadata object the members that were asked for; None where there are none."""
    chosen = {key: value for key, value in orjson.loads(metadata or b"{}").items() if key in fields}
    return orjson.dumps(chosen) if chosen else None
