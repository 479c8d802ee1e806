"""A Chroma server as a source of records: first the list of all ids, then the records by their ids.

Pages by offset lose records while others delete (100 of 3,000 as measured, and unseen); a list of ids that is read
backwards does not (``listing``). What is deleted after it was listed is absent, what was changed comes as it is when it
is fetched, what is added later does not come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromakeep.chroma.api import Api, database_path, definition_of, tenant_path
from chromakeep.chroma.client import Ref
from chromakeep.chroma.cloud import CLOUD
from chromakeep.chroma.connection import Connection
from chromakeep.chroma.fetch import MOST, Fetcher
from chromakeep.chroma.listing import Moved, backwards
from chromakeep.chroma.plan import Plan
from chromakeep.chroma.portions import Portions
from chromakeep.chroma.roll import Roll
from chromakeep.chroma.wire import AnswerTooLarge
from chromakeep.errors import ServerAnswered, ServerSilent, SourceBusy, SourceError, UsageError
from chromakeep.records import Definition, Mark

if TYPE_CHECKING:
    import pyarrow as pa

    from chromakeep.conditions import Where

TENANT, DATABASE = "default_tenant", "default_database"
PAGE = 10_000  # ids of a request
_LISTINGS = 5
_CAPPED = 3
_EXACT = 1 << 53  # integers beyond are compared as rounded floats by the server


class _Capped(Exception):
    """The server gives fewer ids at a time than were asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class ServerSource:
    """One database of a tenant, or all of them. Tenants cannot be listed over HTTP: None is the default one."""

    def __init__(
        self,
        connection: Connection,
        tenant: str | None = None,
        database: str | None = None,
        *,
        plan: Path | None = None,
        cloud: bool = False,
        page: int = PAGE,
    ) -> None:
        """``plan``: a directory in which the lists of ids are kept, so that a killed copy goes on exactly; without it
        no mark leads on. ``cloud``: begin with what Chroma Cloud allows, instead of being told by it."""
        self.connection, self.tenant, self.database = connection, tenant or TENANT, database
        self._api = Api(connection)
        self._plan = Plan(plan, f"{connection.where}/{self.tenant}/{database or ''}") if plan else None
        self._threads, self._most = (8, CLOUD.results) if cloud else (4, MOST)
        self._page = min(page, CLOUD.results) if cloud else page
        self._definitions: list[Definition] | None = None

    def definitions(self) -> Sequence[Definition]:
        """The collections there are, with the number of records each has now. Raises ``UsageError`` for a tenant or
        database that is not there."""
        databases = [self.database] if self.database else self._api.databases(self.tenant)
        if self.database or not databases:
            self._must_exist()
        found = []
        for database in databases:
            for each in self._api.collections(self.tenant, database):
                ref = Ref(each.id, each.name, self.tenant, database)
                try:
                    found.append(definition_of(each, self.tenant, database, self._api.count(ref)))
                except ServerAnswered as error:
                    if error.status != 404:  # deleted since it was listed
                        raise
        self._definitions = found
        return found

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """All records that the list of ids has and that are there still, in the order of their insertion. A mark is
        honoured if its list is in the plan, else everything is given."""
        ref = self._ref(definition)
        with closing(self._roll(ref, where)) as roll:
            done = after["at"] if isinstance(after, dict) and after.get("ids") == roll.word else 0
            fetcher = Fetcher(self.connection, ref, definition.dimension, threads=self._threads, most=self._most)
            with closing(fetcher.fetch(roll.read(done), done)) as fetched:
                for records, at in fetched:
                    yield (where.select(records) if where else records), {"ids": roll.word, "at": at}

    def state(self) -> str:
        """A word that stays while the plan does; empty without a plan."""
        if self._plan is None:
            return ""
        return self._plan.state(lambda: [(d.id, d.count or 0) for d in (self._definitions or self.definitions())])

    def close(self) -> None:
        """Let go of the connections; the plan stays."""
        self.connection.close()

    # -- lists of ids ---------------------------------------------------------------------------------------------

    def _roll(self, ref: Ref, where: Where | None) -> Roll:
        condition = where.json if where is not None and is_served(where.json) else None
        path = self._plan.roll(ref.id, condition) if self._plan else None
        found = Roll.open(path) if path else None
        if found is not None:
            return found
        if condition is not None:
            try:
                return self._listed(ref, condition, path)
            except ServerAnswered as error:
                if error.status not in (400, 422, 501):  # it will not, or not by this key
                    raise
        return self._listed(ref, None, path)

    def _listed(self, ref: Ref, where: Mapping[str, Any] | None, path: Path | None) -> Roll:
        size, moved, portions = self._page, 0, Portions(self._page, self._page)
        while True:
            top = 0 if where else self._api.count(ref)
            try:
                return Roll.write(backwards(self._pager(ref, where), top, size), path)
            except Moved:
                moved += 1
                if moved == _LISTINGS:
                    raise SourceBusy(
                        f"{ref.name}: records are deleted faster than their ids can be listed",
                        hint="copy it while nobody deletes many",
                    ) from None
            except _Capped as capped:
                if capped.size >= size:
                    raise self._foreign(ref) from None
                size = capped.size
            except (ServerAnswered, ServerSilent, AnswerTooLarge) as error:
                if size <= 2 or not portions.blame(error, size):
                    raise
                size = max(2, portions.now)

    def _pager(self, ref: Ref, where: Mapping[str, Any] | None) -> Any:
        def page(offset: int, limit: int) -> list[str]:
            for _ in range(_CAPPED):
                ids = list(self._api.ids(ref, offset, limit, where))
                if len(ids) > limit or "" in ids or len(set(ids)) != len(ids):
                    raise self._foreign(ref)
                if len(ids) == limit or not self._api.ids(ref, offset + len(ids), 1, where):
                    return ids
            raise _Capped(max(2, len(ids)))

        return page

    def _foreign(self, ref: Ref) -> SourceError:
        return SourceError(f"{self.connection.where}: its list of the ids of {ref.name} is none of Chroma's")

    # -- what is there --------------------------------------------------------------------------------------------

    def _must_exist(self) -> None:
        path = database_path(self.tenant, self.database) if self.database else tenant_path(self.tenant)
        if not self._api.has(path):
            what = (
                f"database {self.database!r} of tenant {self.tenant!r}" if self.database else f"tenant {self.tenant!r}"
            )
            raise UsageError(
                f"{self.connection.where} has no {what}",
                hint="write http://HOST:PORT/TENANT/DATABASE with names it has",
            )

    def _ref(self, definition: Definition) -> Ref:
        id_ = definition.id
        if not id_:
            found = self._api.collection(definition.tenant, definition.database, definition.name)
            if found is None:
                raise UsageError(f"{self.connection.where} has no collection {definition.name!r}")
            id_ = found.id
        return Ref(id_, definition.name, definition.tenant, definition.database)


def is_served(where: Any) -> bool:
    """Whether the server finds all that a condition chooses, and perhaps more: it compares integers with the whole
    part of a float only, and with a large integer as if that were a float."""
    if isinstance(where, Mapping):
        return all(is_served(value) for value in where.values())
    if isinstance(where, list):
        return all(is_served(value) for value in where)
    if isinstance(where, bool):
        return True
    return not isinstance(where, float) and not (isinstance(where, int) and abs(where) > _EXACT)
