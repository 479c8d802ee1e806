"""Nearest neighbours: one statement for each vector, answered from the indexes of the segments and what lies behind.

A statement unites, for each segment, the nearest by its index, and the nearest of the tail, measured one by one. Where
a filter leaves few records, all of these are measured and no index of vectors is used; where it leaves many, indexes
are read on until enough of what they give satisfies the filter, and where one gives up before it has enough, what it
would hold is measured after all: that others have enough says nothing of how near it is.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from operator import or_
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray

from chromakeep.engine import Refused, Rows, Vectors, Wanted
from chromakeep.filters import Filter
from chromakeep.postgres import packing, reading
from chromakeep.postgres.chosen import chosen
from chromakeep.postgres.estimates import Estimates
from chromakeep.postgres.held import Held
from chromakeep.postgres.measures import Measure, faint, measure, unindexable

Connection = psycopg.Connection[Any]
SEARCH = 2.0  # ef_search of pgvector over that of Chroma's index, for its recall at least: docs/design/nearest.md
WIDEST = 1_000  # pgvector's bound of ef_search
SCAN = 40_000  # entries of an index after which a search that a filter starves is given up
AGAIN = 4  # times as many as are asked for are measured again where the index holds less than the table

PROBED = 0.05  # of the lists of an index that is of lists
HALF = 65504.0  # the largest number of a halfvec

# Of a session; what it was told last is remembered, for hardly a query has other numbers than the one before it.
_SETTINGS = (
    "SELECT set_config('hnsw.ef_search', %s, false), set_config('ivfflat.probes', %s, false),"
    " set_config('hnsw.iterative_scan', 'strict_order', false),"
    f" set_config('hnsw.max_scan_tuples', '{SCAN}', false),"
    " set_config('ivfflat.iterative_scan', 'relaxed_order', false)"
)
# The planner may misjudge a filter, and read a whole table where an index of vectors would do
_FORCED, _RESTORED = (
    f"SELECT set_config('enable_seqscan', '{state}', false), set_config('enable_bitmapscan', '{state}', false),"
    f" set_config('enable_sort', '{state}', false)"
    for state in ("off", "on")
)
_tuned: WeakKeyDictionary[Connection, tuple[int, int]] = WeakKeyDictionary()
_estimates = Estimates()


class Scope(msgspec.Struct, frozen=True):
    """What is searched: the records of a condition in SQL, "" for all, by the indexes or one by one. ``measured``:
    segments (the first is bit 0) whose records are measured one by one although the others' indexes are asked."""

    condition: str = ""
    parameters: tuple[Any, ...] = ()
    exact: bool = False
    search: int = 100  # ef_search
    measured: int = 0


def query(
    connection: Connection,
    held: Held,
    vectors: Vectors,
    n_results: int,
    ids: Sequence[str] | None,
    where: Filter | None,
    wanted: Wanted,
) -> list[Rows]:
    """As ``Engine.query``. Raises ``Refused`` for vectors of another dimension than the collection's."""
    if len(vectors) and held.dimension is not None and vectors.shape[1] != held.dimension:
        raise Refused(400, f"Collection expecting embedding with dimension of {held.dimension}, got {vectors.shape[1]}")
    if held.dimension is None or n_results == 0 or (ids is not None and not ids):
        return [_nothing(held, wanted) for _ in vectors]
    scope = scope_of(connection, held, n_results, ids, where)
    if not scope.exact and measure(held).coarse and unindexable(vectors, halves=True, directed=True).any():
        scope = msgspec.structs.replace(scope, exact=True)
    found, short = _ask(connection, held, vectors, n_results, scope, wanted)
    again = [number for number, segments in enumerate(short) if segments]
    if again:  # a filter, or what was deleted, starved the indexes, or there are no more
        measured = reduce(or_, short)
        exact = measured == _all(held)
        scope = msgspec.structs.replace(scope, exact=exact, measured=measured)
        for number, one in zip(again, _ask(connection, held, vectors[again], n_results, scope, wanted)[0], strict=True):
            found[number] = one
    return found


def scope_of(
    connection: Connection,
    held: Held,
    n_results: int,
    ids: Sequence[str] | None,
    where: Filter | None,
) -> Scope:
    """What a filter and ids leave, and how that is best searched."""
    condition, parameters = chosen(connection, held, ids, where)
    exact = ids is not None or not held.segments or measure(held).index_kind is None or n_results > WIDEST // 2
    search = max(SEARCH * held.ef_search, 2.0 * n_results)
    if where is not None and not exact:
        estimate = _estimates.of(connection, held, where, condition, parameters)
        exact = estimate.few(n_results)
        search = max(search, estimate.candidates(n_results))
    return Scope(condition, tuple(parameters), exact, min(int(search), WIDEST))


def _ask(
    connection: Connection, held: Held, vectors: Vectors, n_results: int, scope: Scope, wanted: Wanted
) -> tuple[list[Rows], list[int]]:
    """What each vector's statement finds, and the segments whose indexes did not give as many as they were asked for,
    as bits; all statements go to the server at once."""
    how = measure(held)
    sql, repeated = statement(held, how, n_results, scope, wanted)
    if not scope.exact and _tuned.get(connection) != (tuning := (scope.search, _probes(held, scope))):
        _tuned.pop(connection, None)
        connection.execute(_SETTINGS, (str(tuning[0]), str(tuning[1])))
        if connection.autocommit:  # else an undone transaction takes them back
            _tuned[connection] = tuning
    forced = bool(scope.condition) and not scope.exact
    prepare = False if scope.condition else None  # see ``chosen.unprepared``
    cursors = []
    with nullcontext() if len(vectors) == 1 and not forced else connection.pipeline():
        if forced:
            connection.execute(_FORCED)
        try:
            for vector in vectors:
                cursor = connection.cursor(binary=True)
                if held.space == "cosine" and faint(vector[None])[0]:
                    cursor.execute(statement_of_zero(held, n_results, scope, wanted), scope.parameters, prepare=prepare)
                else:
                    cursor.execute(sql, (_packed(vector, held), *(scope.parameters * repeated)), prepare=prepare)
                cursors.append(cursor)
        finally:
            if forced:
                connection.execute(_RESTORED)
    return [_rows(cursor, held, wanted) for cursor in cursors], [_short(cursor, held, wanted) for cursor in cursors]


def _rows(cursor: psycopg.Cursor[Any], held: Held, wanted: Wanted) -> Rows:
    found = reading.rows(cursor, held, wanted)
    if wanted.distances:
        result, column = cursor.pgresult, len(reading.names(wanted))
        assert result is not None
        packed = b"".join(result.get_value(row, column) or b"" for row in range(result.ntuples))
        found.scores = np.frombuffer(packed, ">f4").astype(np.float32)
    return found


def _short(cursor: psycopg.Cursor[Any], held: Held, wanted: Wanted) -> int:
    result, column = cursor.pgresult, len(reading.names(wanted)) + 1
    assert result is not None
    if result.nfields <= column:  # no index was asked
        return 0
    return int.from_bytes(result.get_value(0, column) or b"", "big") if result.ntuples else _all(held)


def _all(held: Held) -> int:
    """The bits of all segments."""
    return (1 << len(held.segments)) - 1


def _nothing(held: Held, wanted: Wanted) -> Rows:
    """No records, with an empty list of each member that is wanted."""
    return Rows(
        [],
        documents=[] if wanted.documents else None,
        metadatas=[] if wanted.metadatas else None,
        embeddings=np.zeros((0, held.dimension or 0), np.float32) if wanted.embeddings else None,
        uris=[] if wanted.uris else None,
        scores=np.zeros(0, np.float32) if wanted.distances else None,
    )


def _probes(held: Held, scope: Scope) -> int:
    """Lists that are searched where an index is of lists; with a filter the nearest lie in more of them."""
    part = PROBED * (3 if scope.condition else 1)
    return max((math.ceil(part * segment.lists) for segment in held.segments if segment.lists), default=1)


def _packed(vector: NDArray[np.float32], held: Held) -> packing.Packed:
    if held.storage == "halfvec":
        return packing.Packed(struct.pack(">hh", len(vector), 0) + vector.clip(-HALF, HALF).astype(">f2").tobytes())
    return packing.Packed(struct.pack(">hh", len(vector), 0) + vector.astype(">f4").tobytes())


def statement(held: Held, how: Measure, n_results: int, scope: Scope, wanted: Wanted) -> tuple[str, int]:
    """SQL, and how often the parameters of the scope occur in it, all of them after the vector. Where indexes are asked
    its last column is the segments that had fewer than they were asked for, as bits.

    The ranges of the segments stand in it as numbers: else the planner could not know that an index covers one.
    """
    query_vector = "(SELECT v FROM q)"
    each = f"SELECT r.ctid AS at, {how.distance(query_vector)} AS d FROM {held.table} r"
    vector = f"WITH q AS MATERIALIZED (SELECT %b::{how.kind} AS v)"
    ordered = f"JOIN {held.table} r ON r.ctid = t.at ORDER BY t.d, r.seq"
    if scope.exact:
        nearest = f"{each}{_where(scope)} ORDER BY d, r.seq LIMIT {n_results}"
        return f"{vector} SELECT {_columns(wanted)}, t.d::float4 FROM ({nearest}) t {ordered}", 1
    also = f" AND ({scope.condition})" if scope.condition else ""
    deep = n_results * (AGAIN if how.coarse else 1)
    branches, short = [], ["0"]
    for number, segment in enumerate(held.segments):
        within = f"{each} WHERE r.place > {segment.low} AND r.place <= {segment.high}{also}"
        if scope.measured >> number & 1:
            branches.append(f"{within} ORDER BY d LIMIT {n_results}")
        else:  # IS TRUE: a condition that no other index can be taken for
            branches.append(f"{within}{' IS TRUE' if also else ''} ORDER BY {how.near(query_vector)} LIMIT {deep}")
            short.append(f"((SELECT count(*) FROM s{number}) < {deep})::int * {1 << number}")
    branches.append(f"{each} WHERE r.place > {held.segments[-1].high}{also} ORDER BY d LIMIT {n_results}")
    parts = "".join(f", s{number} AS MATERIALIZED ({branch})" for number, branch in enumerate(branches))
    nearest = " UNION ALL ".join(f"SELECT * FROM s{number}" for number in range(len(branches)))
    return (
        f"{vector}{parts} SELECT {_columns(wanted)}, t.d::float4, {' | '.join(short)}"
        f" FROM (SELECT * FROM ({nearest}) u ORDER BY d LIMIT {n_results}) t {ordered}",
        len(branches),
    )


def statement_of_zero(held: Held, n_results: int, scope: Scope, wanted: Wanted) -> str:
    """For a vector of zeros, or a faint one, which under cosine is at a distance of 1 from all."""
    return f"SELECT {_columns(wanted)}, 1::float4 FROM {held.table} r{_where(scope)} ORDER BY r.seq LIMIT {n_results}"


def _columns(wanted: Wanted) -> str:
    return ", ".join(f"r.{name}" for name in reading.names(wanted))


def _where(scope: Scope) -> str:
    return f" WHERE {scope.condition}" if scope.condition else ""
