"""Writing: records into the table of a collection, in the transaction of the connection that is given.

All rows of one call are locked, or inserted, in the order of their keys, so that two calls wait for each other and do
not lock each other out; what others insert meanwhile is met again, never lost. ``seq`` is given to a record when it is
inserted and stays; ``place`` is new whenever its vector is written. Everything raises ``Refused``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray

from chromakeep.engine import Refused, Vectors, Written
from chromakeep.filters import Filter
from chromakeep.postgres import packing, trigrams
from chromakeep.postgres.batch import Batch, gathered
from chromakeep.postgres.chosen import chosen, unprepared
from chromakeep.postgres.held import UNINDEXABLE, Held
from chromakeep.postgres.measures import WIDEST, measure, unindexable
from chromakeep.postgres.numbers import encoded

Connection = psycopg.Connection[Any]
BLOCK = 65_536  # positions that one nextval gives
_COPIED = 64  # new records from which on COPY is quicker than INSERT


def add(connection: Connection, held: Held, records: Written) -> None:
    """Insert those whose id is not there yet; of an id that is given twice the first."""
    for batch in _batches(connection, held, records, first=True):
        while batch.keys:
            batch = batch.but(_insert(connection, held, batch))
            # others are there: they stay so until the end, but for those that have just been deleted
            batch = batch.but(_lock(connection, held, batch.keys)) if batch.keys else batch


def upsert(connection: Connection, held: Held, records: Written) -> None:
    """Change those that are there as ``update`` does, insert the others."""
    for batch in _batches(connection, held, records):
        while batch.keys:
            there = _lock(connection, held, batch.keys)
            _update(connection, held, batch.those(there))
            batch = batch.but(there)
            # fewer than all where others inserted the same: those are there now
            batch = batch.but(_insert(connection, held, batch))


def update(connection: Connection, held: Held, records: Written) -> None:
    """Change what is given of those that are there: metadata key by key, a value None takes its key away."""
    for batch in _batches(connection, held, records):
        # Others are looked for again: whoever was waited for may have added them, and its write is met whole
        while batch.keys and (there := _lock(connection, held, batch.keys)):
            _update(connection, held, batch.those(there))
            batch = batch.but(there)


def delete(
    connection: Connection, held: Held, ids: Sequence[str] | None, where: Filter | None, limit: int | None
) -> int:
    """Delete those with these ids that satisfy the filter, with ``limit`` the first that were added. How many.

    Of a filter alone, without ``limit``, it is what was there at one moment: a write that others make meanwhile may be
    met in part.
    """
    if ids is None and where is None:
        return 0
    condition, parameters = chosen(connection, held, ids, where)
    those = f"SELECT r.key FROM {held.table} r WHERE {condition}"
    delete, prepare = f"DELETE FROM {held.table} t USING gone WHERE t.key = gone.key", unprepared(where)
    deleted = 0
    if limit is None:
        gone = f"WITH gone AS MATERIALIZED ({those} ORDER BY r.key FOR UPDATE)"
        while done := connection.execute(f"{gone} {delete}", parameters, prepare=prepare).rowcount:
            deleted += done
            if ids is None or deleted == len(set(ids)):  # else as in ``update``
                break
        return deleted
    statement = (
        f"WITH first AS MATERIALIZED ({those} ORDER BY r.seq LIMIT %s),"
        f" gone AS MATERIALIZED ({those} AND r.key IN (SELECT key FROM first) ORDER BY r.key FOR UPDATE),"
        f" done AS ({delete} RETURNING t.key) SELECT (SELECT count(*) FROM first), (SELECT count(*) FROM done)"
    )
    while True:
        values = [*parameters, limit - deleted, *parameters]
        row = connection.execute(statement, values, prepare=prepare).fetchone()
        assert row is not None
        deleted += int(row[1])
        if row[1] == row[0]:
            return deleted
        # others have deleted or changed some of the first meanwhile: then the next ones are


def fix_dimension(connection: Connection, held: Held, dimension: int) -> None:
    """Let the collection have this dimension from now on if it has none yet. 400 if it has another one, 404 if it is
    gone. Until the transaction ends nobody else can fix it."""
    if dimension > WIDEST:
        raise Refused(400, f"Embeddings of {dimension} dimensions: PostgreSQL holds at most {WIDEST}")
    fixed = held.dimension
    if fixed is None:
        connection.execute(
            "UPDATE chromakeep.collections SET dimension = %s WHERE id = %s AND dimension IS NULL",
            (dimension, held.id),
        )
        row = connection.execute("SELECT dimension FROM chromakeep.collections WHERE id = %s", (held.id,)).fetchone()
        if row is None:
            raise Refused(404, f"Collection [{held.id}] does not exist")
        fixed = row[0]
    if fixed != dimension:
        raise Refused(400, f"Collection expecting embedding with dimension of {fixed}, got {dimension}")


def _batches(connection: Connection, held: Held, records: Written, *, first: bool = False) -> Iterator[Batch]:
    """The records in pieces of a block; the dimension is fixed if there is a vector."""
    embeddings = records.embeddings
    if records.ids and embeddings is not None and (records.given is None or bool(records.given.any())):
        fix_dimension(connection, held, embeddings.shape[1])
    for start in range(0, len(records.ids), BLOCK):
        yield gathered(records, start, start + BLOCK, first=first)


def _lock(connection: Connection, held: Held, keys: list[bytes]) -> set[bytes]:
    """Which of them are there, and stay as they are until the transaction ends."""
    cursor = connection.cursor(binary=True)
    cursor.execute(
        f"SELECT r.key FROM {held.table} r WHERE r.key = ANY(%b::uuid[]) ORDER BY r.key FOR NO KEY UPDATE",
        (packing.uuids(keys),),
    )
    return _keys(cursor)


def _keys(cursor: psycopg.Cursor[Any]) -> set[bytes]:
    result = cursor.pgresult
    assert result is not None
    return {result.get_value(i, 0) or b"" for i in range(result.ntuples)}


def _insert(connection: Connection, held: Held, batch: Batch) -> set[bytes]:
    """Insert those that are not there. The keys of those that were inserted."""
    if len(batch.keys) < _COPIED:
        return _insert_few(connection, held, batch)
    cursor = connection.cursor(binary=True)
    cursor.execute(f"SELECT key FROM {held.table} WHERE key = ANY(%b::uuid[])", (packing.uuids(batch.keys),))
    batch = batch.but(_keys(cursor))
    if len(batch.keys) < _COPIED:
        return _insert_few(connection, held, batch)
    stream = _stream(connection, held, batch)
    try:
        with (
            connection.transaction(),
            cursor.copy(f"COPY {held.table} ({packing.COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.write(stream)
    except psycopg.errors.UniqueViolation:  # somebody has inserted one of them meanwhile
        return _insert_few(connection, held, batch)
    return set(batch.keys)


def _stream(connection: Connection, held: Held, batch: Batch) -> bytes:
    row = connection.execute("SELECT nextval('chromakeep.blocks')").fetchone()
    assert row is not None and batch.embeddings is not None
    nothing: list[None] = [None] * len(batch.keys)
    found = None
    if batch.documents is not None and not packing.server(connection).trgm:
        found = trigrams.of(batch.documents)
    numbers = places = [row[0] * BLOCK + i for i in batch.order]
    outside = _outside(held, batch.embeddings)
    if outside.any():
        places = [number + UNINDEXABLE * out for number, out in zip(numbers, outside.tolist(), strict=True)]
    return packing.rows(
        batch.keys,
        numbers,
        places,
        batch.utf8(batch.ids),
        batch.embeddings,
        nothing if batch.documents is None else batch.utf8(batch.documents),
        nothing if batch.uris is None else batch.utf8(batch.uris),
        nothing if batch.metadatas is None else [encoded(one) for one in batch.metadatas],
        found,
        half=held.storage == "halfvec",
    )


_Columns = dict[str, tuple[str, packing.Packed]]  # by name in the relation n: its type and its values


def _insert_few(connection: Connection, held: Held, batch: Batch) -> set[bytes]:
    """By one INSERT, which leaves those alone that are there."""
    if not batch.keys:
        return set()
    columns, flat = _columns(connection, held, batch, patch=False)
    columns["id"] = ("text[]", packing.texts(batch.utf8(batch.ids)))
    names: list[str] = [name for name in ("id", "embedding", "document", "uri", "metadata") if name in columns]
    values = [f"n.{name}" for name in names]
    if "start" in columns:
        names.append("trigrams")
        values.append(_TRIGRAMS)
    source, parameters = _source(columns, flat)
    cursor = connection.cursor(binary=True)
    cursor.execute(
        f"{_BASE} INSERT INTO {held.table} (key, seq, place, {', '.join(names)})"
        f" SELECT n.key, s.base + n.i, {_place(columns)}, {', '.join(values)} FROM {source}"
        " ON CONFLICT DO NOTHING RETURNING key",
        parameters,
    )
    return _keys(cursor)


def _update(connection: Connection, held: Held, batch: Batch) -> None:
    """Change those that are there; they are locked."""
    columns, flat = _columns(connection, held, batch, patch=True)
    sets = [f"{name} = coalesce(n.{name}, t.{name})" for name in ("embedding", "document", "uri") if name in columns]
    if "embedding" in columns:
        sets.append(f"place = CASE WHEN n.embedding IS NULL THEN {_kept(held)} ELSE {_place(columns)} END")
    elif held.segments:
        sets.append(f"place = {_kept(held)}")
    if "start" in columns:
        sets.append(f"trigrams = CASE WHEN n.document IS NULL THEN t.trigrams ELSE {_TRIGRAMS} END")
    if "metadata" in columns:
        sets.append(
            "metadata = CASE WHEN n.metadata IS NULL THEN t.metadata"
            " ELSE nullif(jsonb_strip_nulls(coalesce(t.metadata, '{}') || n.metadata), '{}') END"
        )
    if not batch.keys or not sets:
        return
    source, parameters = _source(columns, flat)
    connection.execute(
        f"{_BASE} UPDATE {held.table} t SET {', '.join(sets)} FROM {source} WHERE t.key = n.key", parameters
    )


def _place(columns: _Columns) -> str:
    """Of a new vector."""
    return f"s.base + n.i + n.outside * {UNINDEXABLE}" if "outside" in columns else "s.base + n.i"


def _outside(held: Held, embeddings: Vectors) -> NDArray[np.bool_]:
    """Which of them no index holds: zeros under cosine, and what is too large for one of halves."""
    half = measure(msgspec.structs.replace(held, dimension=embeddings.shape[1])).index_kind == "halfvec"
    return unindexable(embeddings, halves=half, directed=held.space == "cosine")


def _kept(held: Held) -> str:
    """The place of a record whose vector stays. Where indexes of vectors stand, a new version of a row in the place of
    the old one would go into them, which takes milliseconds; so it goes behind them, too."""
    return f"(t.place & {UNINDEXABLE}) + s.base + n.i" if held.segments else "t.place"


# One nextval for all rows. The hashes of all documents in one array, of which each record takes its part
_BASE = f"WITH s AS MATERIALIZED (SELECT nextval('chromakeep.blocks') * {BLOCK} AS base, %b::int4[] AS flat)"
_TRIGRAMS = "CASE WHEN n.document IS NOT NULL THEN s.flat[n.start + 1 : n.stop] END"


def _source(columns: _Columns, flat: packing.Packed) -> tuple[str, list[packing.Packed]]:
    """The relations s and n, with the parameters of the whole statement."""
    arrays = ", ".join(f"%b::{kind}" for kind, _ in columns.values())
    return f"s, unnest({arrays}) AS n({', '.join(columns)})", [flat, *(values for _, values in columns.values())]


def _columns(connection: Connection, held: Held, batch: Batch, *, patch: bool) -> tuple[_Columns, packing.Packed]:
    """What there is to write, and the hashes of all documents."""
    server = packing.server(connection)
    columns: _Columns = {
        "key": ("uuid[]", packing.uuids(batch.keys)),
        "i": ("int4[]", packing.integers(np.array(batch.order, np.int32))),
    }
    flat = packing.integers(np.zeros(0, np.int32))
    if batch.embeddings is not None and (batch.given is None or any(batch.given)):
        half = held.storage == "halfvec"
        element = server.halfvec if half else server.vector
        columns["embedding"] = (
            f"{held.storage}[]",
            packing.vectors(element, batch.embeddings, half=half, given=batch.given),
        )
        columns["outside"] = ("int4[]", packing.integers(_outside(held, batch.embeddings).astype(np.int32)))
    if batch.documents is not None:
        columns["document"] = ("text[]", packing.texts(batch.utf8(batch.documents)))
        if not server.trgm:
            hashes, offsets = trigrams.of(batch.documents)
            flat = packing.integers(hashes)
            columns["start"] = ("int4[]", packing.integers(offsets[:-1]))
            columns["stop"] = ("int4[]", packing.integers(offsets[1:]))
    if batch.uris is not None:
        columns["uri"] = ("text[]", packing.texts(batch.utf8(batch.uris)))
    if batch.metadatas is not None:
        columns["metadata"] = ("jsonb[]", packing.jsonbs([encoded(one, patch=patch) for one in batch.metadatas]))
    return columns, flat
