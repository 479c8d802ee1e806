"""Collections in PostgreSQL as a source of records: one exact state of all of them, whatever is written meanwhile.

Records are read in pages by the order in which they were added, within one transaction that sees what was committed
before it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import psycopg
from msgspec.structs import replace

from chromakeep.batches import batch, encode
from chromakeep.errors import SourceError
from chromakeep.postgres.text import held, told
from chromakeep.records import Definition, Mark

if TYPE_CHECKING:
    import pyarrow as pa

    from chromakeep.conditions import Where

RECORDS = 2048  # of a page
SIZE = 16 << 20  # bytes of vectors of a page, which may have fewer records for it
_JSON = msgspec.json.Decoder(dict[str, Any])
_COLLECTIONS = """
    SELECT c.id::text, d.tenant, d.name, c.name, c.dimension, c.metadata, c.configuration, c.schema
    FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database
    WHERE d.tenant <> '' AND (%(tenant)s::text IS NULL OR d.tenant = %(tenant)s)
        AND (%(database)s::text IS NULL OR d.name = %(database)s) AND (%(name)s::text IS NULL OR c.name = %(name)s)
    ORDER BY d.tenant, d.name, c.name
"""
# What a copy has written and not published yet, as it is going to be.
_ARRIVING = """
    SELECT c.id::text, a.tenant, a.database, a.name, c.dimension, c.metadata, c.configuration, c.schema
    FROM chromakeep.arriving a JOIN chromakeep.collections c ON c.id = a.collection
    WHERE a.run = %s ORDER BY a.tenant, a.database, a.name
"""
# A row's xmin is the transaction that wrote it: what is added, changed or deleted changes one of the two.
_STATE = "SELECT count(*), coalesce(sum(xmin::text::bigint), 0) FROM {table}"
_PAGE = """
    SELECT seq, id, embedding::{vector}, document, uri, metadata FROM {table}
    WHERE seq > %s ORDER BY seq LIMIT %s
"""


def described(
    connection: psycopg.Connection[Any], tenant: str | None, database: str | None, name: str | None = None
) -> list[Definition]:
    """The collections of a tenant, database and name, or where these are None of all. Nothing is counted."""
    return [_definition(row) for row in connection.execute(_COLLECTIONS, _place(tenant, database, name))]


def _place(tenant: str | None, database: str | None, name: str | None = None) -> dict[str, str | None]:
    given = {"tenant": tenant, "database": database, "name": name}
    return {part: value if value is None else held(value) for part, value in given.items()}


def _definition(row: Sequence[Any]) -> Definition:
    identity, tenant, database, name, dimension, metadata, configuration, schema = row
    return Definition(
        name=told(name),
        id=identity,
        tenant=told(tenant),
        database=told(database),
        dimension=dimension,
        metadata=_object(metadata),
        configuration=_object(configuration),
        schema=_object(schema),
    )


class PostgresSource:
    """Collections of ``tenant`` and ``database``; where these are None, of all. For one thread at a time."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        tenant: str | None = None,
        database: str | None = None,
        *,
        run: str = "",
    ) -> None:
        """``connect``: a connection of its own. ``run``: with what this run of a copy has not published yet, in the
        place of what it is going to replace. Raises what ``connect`` raises, and ``SourceError``."""
        self._connection = connect()
        self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._connection.read_only = True
        arriving = [_definition(row) for row in self._rows(_ARRIVING, (run,))] if run else []
        places = {each.place for each in arriving}
        visible = [_definition(row) for row in self._rows(_COLLECTIONS, _place(tenant, database))]
        found = arriving + [each for each in visible if each.place not in places]
        self._tables = {
            identity: f'chromakeep."{relation}"'
            for identity, relation in self._rows("SELECT id::text, relation FROM chromakeep.collections")
        }
        self._definitions = [replace(each, count=self._count(each)) for each in found]

    def definitions(self) -> Sequence[Definition]:
        """See ``Source``; with their counts."""
        return self._definitions

    def _count(self, definition: Definition) -> int:
        ((count,),) = self._rows(f"SELECT count(*) FROM {self._tables[definition.id]}")
        return int(count)

    def state(self) -> str:
        """See ``Source``: of every collection what it is and the transactions that wrote its rows."""
        whole = blake2b(digest_size=16)
        for definition in self._definitions:
            rows = self._rows(_STATE.format(table=self._tables[definition.id]))
            whole.update(repr((msgspec.json.encode(definition), rows)).encode())
        return whole.hexdigest()

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """See ``Source``. A mark is the last record's place in the order of all."""
        dimension = definition.dimension
        page = _PAGE.format(table=self._tables[definition.id], vector=f"vector({dimension})" if dimension else "vector")
        size = max(1, min(RECORDS, SIZE // (4 * (dimension or 1))))
        last = -1 if after is None else int(after)
        while rows := self._rows(page, (last, size), binary=True):
            last = rows[-1][0]
            records = _records(rows, dimension, definition)
            yield (where.select(records) if where else records), last

    def _rows(self, query: str, parameters: Any = None, *, binary: bool = False) -> list[Any]:
        try:
            with self._connection.cursor(binary=binary) as cursor:
                return cursor.execute(query.encode(), parameters).fetchall()
        except psycopg.Error as error:
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise SourceError(f"PostgreSQL cannot be read: {said}", hint="run the command again") from None

    def close(self) -> None:
        """See ``Source``."""
        with suppress(psycopg.Error):
            self._connection.close()


def _records(rows: Sequence[Any], dimension: int | None, definition: Definition) -> pa.RecordBatch:
    vectors: Any = [row[2] for row in rows]
    if dimension is not None and None not in vectors:
        flat = np.frombuffer(b"".join(vector[4:] for vector in vectors), ">f4")
        vectors = flat.reshape(len(rows), dimension).astype("<f4")
    else:
        vectors = [None if vector is None else np.frombuffer(vector[4:], ">f4").tolist() for vector in vectors]
    try:
        return batch(
            [told(row[1]) for row in rows],
            vectors,
            [None if row[3] is None else told(row[3]) for row in rows],
            [None if row[4] is None else told(row[4]) for row in rows],
            [_canonical(row[5]) for row in rows],
            dimension,
        )
    except ValueError as error:
        raise SourceError(f"{definition.name}: a record cannot be read: {error}") from None


def _canonical(metadata: Any) -> str | None:
    if not metadata:
        return None
    return encode(_told(metadata))


def _told(value: Any) -> Any:
    if isinstance(value, str):
        return told(value)
    if isinstance(value, list):
        return [_told(item) for item in value]
    return {told(key): _told(item) for key, item in value.items()} if isinstance(value, dict) else value


def _object(text: str | None) -> dict[str, Any] | None:
    return None if text is None else _JSON.decode(text)
