"""PostgresEngine: all that Chroma's API asks, answered by a PostgreSQL with pgvector.

Any number of instances may share one database: what they know of it beyond a moment is that a collection has a table
and a dimension, which do not change, and which are looked up anew as soon as the table is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from chromakeep.engine import (
    Change,
    CollectionShown,
    CollectionWanted,
    Database,
    Indexed,
    Refused,
    Rows,
    Search,
    Target,
    Vectors,
    Wanted,
    Written,
)
from chromakeep.events import Observer, ignore
from chromakeep.filters import Filter
from chromakeep.postgres import catalog, forking, nearest, reading, searching, tenancy, upkeep, writing
from chromakeep.postgres.counts import Counts, counts
from chromakeep.postgres.held import Held
from chromakeep.postgres.migrating import migrate
from chromakeep.postgres.pool import SIZE, Connection, Pool
from chromakeep.postgres.refusals import Vanished

T = TypeVar("T")

FRESH = 1.0  # seconds for which segments, and the keys that records have had, are not looked up again
KNOWN = 4096  # collections of which that is kept
_GONE = "a table that this needs is gone from PostgreSQL; nothing was changed"
_KINDS = {str: "string", bool: "bool", int: "int", float: "float"}


class PostgresEngine:
    """See ``Engine``. ``storage`` is ``vector`` or ``halfvec``, for collections that are created from now on.

    Brings the tables up when it is made: raises as ``migrate`` does, and ``UsageError`` for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        size: int = SIZE,
        *,
        storage: str = "vector",
        allow_reset: bool = False,
        observer: Observer = ignore,
    ) -> None:
        self.server = migrate(url, observer)
        self.pool = Pool(url, size, observer=observer)
        self._storage, self._allow_reset = storage, allow_reset
        self._known: dict[Target, tuple[float, Held]] = {}
        self._lock = threading.Lock()
        self._drop(self._run(catalog.orphans))

    def create_tenant(self, name: str) -> None:
        """See ``Engine``."""
        self._run(tenancy.create_tenant, name)

    def tenant(self, name: str) -> str | None:
        """See ``Engine``."""
        return self._run(tenancy.tenant, name, write=False)

    def update_tenant(self, name: str, resource_name: str) -> None:
        """See ``Engine``."""
        self._run(tenancy.update_tenant, name, resource_name)

    def create_database(self, tenant: str, name: str) -> None:
        """See ``Engine``."""
        self._run(tenancy.create_database, tenant, name)

    def databases(self, tenant: str, limit: int | None, offset: int) -> list[Database]:
        """See ``Engine``."""
        return self._run(tenancy.databases, tenant, limit, offset, write=False)

    def database(self, tenant: str, name: str) -> Database:
        """See ``Engine``."""
        return self._run(tenancy.database, tenant, name, write=False)

    def drop_database(self, tenant: str, name: str) -> None:
        """See ``Engine``."""
        self._drop(self._run(tenancy.drop_database, tenant, name))

    def create_collection(self, tenant: str, database: str, wanted: CollectionWanted) -> CollectionShown:
        """See ``Engine``."""
        return self._run(catalog.create_collection, tenant, database, wanted, self._storage)

    def collections(self, tenant: str, database: str, limit: int | None, offset: int) -> list[CollectionShown]:
        """See ``Engine``."""
        return self._run(catalog.collections, tenant, database, limit, offset, write=False)

    def count_collections(self, tenant: str, database: str) -> int:
        """See ``Engine``."""
        return self._run(catalog.count_collections, tenant, database, write=False)

    def collection(self, tenant: str, database: str, name: str) -> CollectionShown:
        """See ``Engine``."""
        return self._run(catalog.collection, tenant, database, name, write=False)

    def collection_by_id(self, target: Target) -> CollectionShown:
        """See ``Engine``."""
        return self._run(catalog.collection_by_id, target, write=False)

    def modify(self, target: Target, change: Change) -> None:
        """See ``Engine``."""
        self._run(catalog.modify, target, change)
        self._forget(target)

    def drop_collection(self, tenant: str, database: str, name: str) -> None:
        """See ``Engine``."""
        self._forget(Target(tenant, database, self._run(catalog.drop_collection, tenant, database, name)))

    def add(self, target: Target, records: Written) -> None:
        """See ``Engine``."""
        self._write(target, writing.add, records)

    def upsert(self, target: Target, records: Written) -> None:
        """See ``Engine``."""
        self._write(target, writing.upsert, records)

    def update(self, target: Target, records: Written) -> None:
        """See ``Engine``."""
        self._write(target, writing.update, records)

    def delete(self, target: Target, ids: Sequence[str] | None, where: Filter | None, limit: int | None) -> int:
        """See ``Engine``."""
        return self._of(target, writing.delete, ids, where, limit, write=True)

    def count(self, target: Target) -> int:
        """See ``Engine``."""
        return self._of(target, reading.count)

    def get(
        self,
        target: Target,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None,
        offset: int,
        wanted: Wanted,
    ) -> Rows:
        """See ``Engine``."""
        return self._of(target, reading.get, ids, where, limit, offset, wanted)

    def query(
        self,
        target: Target,
        vectors: Vectors,
        n_results: int,
        ids: Sequence[str] | None,
        where: Filter | None,
        wanted: Wanted,
    ) -> list[Rows]:
        """See ``Engine``."""
        return self._of(target, nearest.query, vectors, n_results, ids, where, wanted)

    def search(self, target: Target, searches: Sequence[Search]) -> list[Rows]:
        """See ``Engine``."""
        return self._of(target, searching.search, searches)

    def fork(self, target: Target, new_name: str) -> CollectionShown:
        """See ``Engine``."""
        return self._of(target, forking.fork, new_name, write=True)

    def count_forks(self, target: Target) -> int:
        """See ``Engine``."""
        return self._of(target, forking.count_forks)

    def indexing_status(self, target: Target) -> Indexed:
        """See ``Engine``."""
        return self._of(target, upkeep.indexing_status)

    def reset(self) -> None:
        """See ``Engine``."""
        if not self._allow_reset:
            raise Refused(403, "Reset is disabled by config")
        self._drop(self._run(tenancy.reset))
        with self._lock:
            self._known.clear()

    def ready(self) -> bool:
        """See ``Engine``."""
        return self.trouble() is None

    def trouble(self) -> str | None:
        """Why it cannot answer now, as far as clients may know; None: it can."""
        try:
            self.pool.run(lambda connection: connection.execute("SELECT FROM chromakeep.version"), write=False)
        except Refused as refused:
            return refused.message
        except Vanished:
            return "the tables are gone"
        return None

    def counts(self) -> Counts:
        """How many records there are, about. Raises ``Refused``."""
        try:
            return counts(self.pool)
        except Vanished as vanished:
            raise Refused(503, _GONE, retry_after=1.0) from vanished

    def close(self) -> None:
        """See ``Engine``."""
        self.pool.close()

    def _run(self, function: Callable[..., T], *arguments: Any, write: bool = True) -> T:
        """A function of the catalog, in a transaction."""
        try:
            return self.pool.run(lambda connection: function(connection, *arguments), write=write)
        except Vanished as vanished:
            raise Refused(503, _GONE, retry_after=1.0) from vanished

    def _of(self, target: Target, function: Callable[..., T], *arguments: Any, write: bool = False) -> T:
        """A function of one collection, in a transaction; once more where its table has gone since it was looked up."""
        for _ in range(2):
            try:
                return self.pool.run(
                    lambda connection: function(connection, self._held(connection, target), *arguments), write=write
                )
            except Vanished:
                self._forget(target)
        raise catalog.no_collection(target)

    def _write(self, target: Target, function: Callable[[Connection, Held, Written], None], records: Written) -> None:
        keys = kinds(records.metadatas)

        def work(connection: Connection, held: Held) -> bool:
            if held.dimension is None:  # the table first, then the row in the catalog, as in ``catalog``
                connection.execute(f"LOCK TABLE {held.table} IN ROW EXCLUSIVE MODE".encode())
            function(connection, held, records)
            catalog.seen(connection, held, keys)
            return not keys <= held.keys

        if self._of(target, work, write=True):
            self._forget(target)

    def _held(self, connection: Connection, target: Target) -> Held:
        """The collection, at most ``FRESH`` old. One without a dimension is not kept: who trusts in that would not see
        the first records that another instance writes. Nor is what was known before the last connection was made: that
        may be to another server, which has not all that the one before had."""
        now = time.monotonic()
        known = self._known.get(target)
        if known is not None and now - known[0] < FRESH and known[0] > self.pool.connected:
            return known[1]
        held = catalog.held(connection, target)
        if held.dimension is not None:
            with self._lock:
                while len(self._known) >= KNOWN:
                    self._known.pop(next(iter(self._known)))
                self._known[target] = (now, held)
        return held

    def _forget(self, target: Target) -> None:
        with self._lock:
            self._known.pop(target, None)

    def _drop(self, relations: Sequence[str]) -> None:
        """Tables that the catalog does not know any more: it is done, whatever happens; the next start takes the rest
        away, and the operator hears of it."""
        with suppress(Refused):
            for start in range(0, len(relations), catalog.DROPPED):
                self._run(catalog.drop_tables, relations[start : start + catalog.DROPPED])


def kinds(metadatas: Sequence[Mapping[str, Any] | None] | None) -> set[tuple[str, str]]:
    """The (key, kind) of all values; of an array the kind of its items."""
    types: set[tuple[str, type]] = set()
    for metadata in metadatas or ():
        if metadata:
            for key, value in metadata.items():
                types.add((key, type(value[0] if type(value) is list and value else value)))
    return {(key, _KINDS[found]) for key, found in types if found in _KINDS}
