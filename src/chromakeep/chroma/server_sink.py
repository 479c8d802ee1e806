"""A Chroma server as a sink of records: any tenant and database, and Chroma Cloud.

A new collection is built under a name of its own (``NAME.new-1a2b3c4d``) and renamed when it is whole, so that nobody
meets half of it; one that it replaces is kept (``NAME.old-20260801T120000Z``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from chromakeep.chroma.api import Api, Found, Preflight, database_path, definition_of, tenant_path
from chromakeep.chroma.client import Ref
from chromakeep.chroma.cloud import CLOUD, Quotas, breaches, check_definition
from chromakeep.chroma.connection import ANYTHING, Connection
from chromakeep.chroma.fetch import MOST, Fetcher
from chromakeep.chroma.naming import LONGEST, check_name, is_left, settle, temporary
from chromakeep.chroma.outline import differences, outline, own_metadata, space_of
from chromakeep.chroma.server_intake import ADD, REPLACE, ServerIntake
from chromakeep.chroma.server_patch import ServerPatch
from chromakeep.errors import ServerAnswered, ServerFailed, TargetNotEmpty, UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.records import Definition, Mark, Speed, check_conflict

if TYPE_CHECKING:
    import pyarrow as pa

TENANT = "default_tenant"
IDS = 1000  # that are deleted in one request
_SETTINGS = ("configuration", "schema", "hnsw", "spann", "embedding_function", "metadata")


class ServerSink:
    """Collections go to ``tenant`` and ``database``, or where these are None to those of their definitions."""

    several = True
    speed = Speed(650, 8e6)  # one core of the server's indexes

    def __init__(
        self,
        connection: Connection,
        tenant: str | None = None,
        database: str | None = None,
        *,
        cloud: bool = False,
        quotas: Quotas = CLOUD,
        writers: int = 1,
        observer: Observer = ignore,
    ) -> None:
        """``cloud``: nothing but collections is created, and ``quotas`` hold. ``writers``: threads that may write one
        collection; with 1 its records keep their order (a local server indexes on one core, more gain nothing)."""
        self.connection, self.tenant, self.database = connection, tenant, database
        self._api, self._observer = Api(connection), observer
        self._quotas = quotas if cloud else None
        self._writers = quotas.writers if cloud else writers
        self._longest = quotas.name if cloud else LONGEST
        self._preflight: Preflight | None = None
        self._made: set[tuple[str, str]] = set()
        self._seen: set[tuple[str, str]] = set()
        self._before: dict[tuple[str, str], list[str]] = {}
        self._stop = threading.Event()

    def definitions(self) -> Sequence[Definition]:
        """The collections of the database; without one those of all databases of the tenant. Nothing is counted."""
        tenant = self.tenant or TENANT
        databases = [self.database] if self.database else self._api.databases(tenant)
        self._seen |= {(tenant, database) for database in databases}
        return [
            definition_of(each, tenant, database)
            for database in databases
            for each in self._api.collections(tenant, database)
        ]

    @property
    def databases(self) -> set[tuple[str, str]]:
        """Tenants and databases that were looked into, or collections begun in."""
        return set(self._seen)

    def find(self, place: tuple[str, str, str]) -> Definition | None:
        """The collection that is there of this tenant, database and name, if there is one."""
        tenant, database, name = self.tenant or place[0], self.database or place[1], place[2]
        self._seen.add((tenant, database))
        found = self._api.collection(tenant, database, name)
        return definition_of(found, tenant, database) if found else None

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """As of ``Sink``: a name that no server takes, what Chroma Cloud does not allow, and a database that is not
        there."""
        check_conflict(conflict)
        check_name(definition.name, self._longest)
        if self._quotas is not None:
            check_definition(definition, self._quotas)
            tenant, database = self._placed(definition).place[:2]
            if (tenant, database) not in self._made and not self._api.has(database_path(tenant, database)):
                raise UsageError(
                    f"there is no database {database!r} of tenant {tenant!r} that this key may use",
                    hint="create it at Chroma Cloud; chromakeep creates none there",
                )
            self._made.add((tenant, database))

    @property
    def examines(self) -> bool:
        """As of ``dry_run.Examines``."""
        return self._quotas is not None

    def refused(self, records: pa.RecordBatch) -> Sequence[str]:
        """As of ``dry_run.Examines``: those that break a quota."""
        return list(breaches(records, self._quotas)) if self._quotas is not None else []

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> ServerIntake:
        """Begin a collection, or go on with one.

        ``skip`` and ``upsert`` write into the one that is there, at once; else a new one is begun, and gets its name in
        ``finish``. Raises ``TargetNotEmpty``, ``UsageError`` (another dimension, a name or settings that no server
        takes), and ``ServerFailed`` if the server makes it with another space.
        """
        if mark is not None:
            return self._resumed(self._placed(definition), conflict, mark)
        self.check(definition, conflict=conflict)
        definition = self._placed(definition)
        self._seen.add((definition.tenant, definition.database))
        self._make_database(definition.tenant, definition.database)
        there = self._api.collection(definition.tenant, definition.database, definition.name)
        if there is None or conflict == "replace":
            space = outline(definition).space
            return self._intake(definition, self._created(definition), conflict, new=True, way=ADD, space=space)
        if conflict == "fail":
            raise TargetNotEmpty(
                f"{self.connection.where} has a collection {definition.name!r} already",
                hint="say what is to become of it: --on-conflict skip, upsert or replace",
            )
        self._must_fit(there, definition)
        ref = Ref(there.id, definition.name, definition.tenant, definition.database)
        way = ADD if conflict == "skip" else REPLACE
        return self._intake(definition, ref, conflict, new=False, way=way, space=_space(there))

    def finished(self, definition: Definition, mark: Mark, *, existed: bool) -> bool:
        """As of ``copy.Remembers``."""
        there = self.find(definition.place)
        return there is not None and there.id == mark["id"]

    def delete(self, definition: Definition, ids: Sequence[str]) -> None:
        """Take records away. When it returns they are gone; ids that are not there change nothing."""
        ref = Ref(definition.id, definition.name, definition.tenant, definition.database)
        most = self._quotas.records if self._quotas else IDS
        for at in range(0, len(ids), most):
            body = msgspec.json.encode({"ids": list(ids[at : at + most])})
            slow = self.connection.slow
            self.connection.request("POST", f"{ref.path}/delete", body, decoder=ANYTHING, timeout=slow, stop=self._stop)

    def present(self, definition: Definition, ids: Sequence[str]) -> set[str]:
        """Those of the ids that a collection has; ``definition`` is the sink's own."""
        return self._patch(definition).present(ids)

    def patch(self, definition: Definition, records: pa.RecordBatch) -> list[str]:
        """Make records what these are in all but their vectors; ``definition`` is the sink's own. The ids of those that
        it cannot: they are not there, or would lose a text. Twice is once."""
        return self._patch(definition).write(records)

    def _patch(self, definition: Definition) -> ServerPatch:
        ref = Ref(definition.id, definition.name, definition.tenant, definition.database)
        fetcher = Fetcher(self.connection, ref, definition.dimension, most=MOST, stop=self._stop)
        most = self._quotas.results if self._quotas else IDS
        return ServerPatch(self.connection, ref, fetcher, most, self._stop)

    def drop(self, definition: Definition) -> None:
        """Take a whole collection away; one of that name that was made since stays."""
        there = self._api.collection(definition.tenant, definition.database, definition.name)
        if there is not None and there.id == definition.id:
            self._api.drop(definition.tenant, definition.database, there.name)

    def publish(self) -> None:
        """Each collection got its name when it was finished: a server has no step for several."""

    def close(self) -> None:
        """Let go of the connections; what is not finished stays under its own name; twice is once."""
        self._stop.set()
        self.connection.close()

    # -- beginning and going on -----------------------------------------------------------------------------------

    def _placed(self, definition: Definition) -> Definition:
        return replace(
            definition, tenant=self.tenant or definition.tenant, database=self.database or definition.database
        )

    def _resumed(self, definition: Definition, conflict: str, mark: Mark) -> ServerIntake:
        try:
            id_, name, new = str(mark["id"]), str(mark["name"]), bool(mark["new"])
        except (KeyError, TypeError):
            raise UsageError("this is no mark of a collection at a server", hint="begin the copy anew") from None
        for candidate in (name, definition.name):
            found = self._api.collection(definition.tenant, definition.database, candidate)
            if found is not None and found.id == id_:
                self._made.add((definition.tenant, definition.database))
                ref = Ref(id_, candidate, definition.tenant, definition.database)
                # What came after the last mark may be there already, in an older state.
                way = ADD if conflict == "skip" and not new else REPLACE
                return self._intake(definition, ref, conflict, new=new, way=way, space=_space(found))
        raise UsageError(
            f"the collection {name!r} that the copy was writing is not there any more", hint="begin the copy anew"
        )

    def _intake(
        self, definition: Definition, ref: Ref, conflict: str, *, new: bool, way: str, space: str
    ) -> ServerIntake:
        if self._preflight is None:
            self._preflight = self._api.preflight()
        most = max(1, self._preflight.max_batch_size)
        results = self._quotas.results if self._quotas else MOST
        return ServerIntake(
            self._api,
            ref,
            way=way,
            fetcher=Fetcher(self.connection, ref, definition.dimension, most=results, stop=self._stop),
            cosine=space == "cosine",
            base64=self._preflight.supports_base64_encoding,
            most=min(most, self._quotas.records) if self._quotas else most,
            writers=self._writers,
            mark={"id": ref.id, "name": ref.name, "new": new},
            finish=lambda: self._finish(definition, ref, conflict) if new else None,
            stop=self._stop,
            quotas=self._quotas,
        )

    def _finish(self, definition: Definition, ref: Ref, conflict: str) -> None:
        found = self._api.collection(ref.tenant, ref.database, ref.name)
        metadata = own_metadata(definition)
        if found is not None and found.id == ref.id and metadata and found.metadata != metadata:
            self._api.change(ref, new_metadata=metadata)  # with what could not be there from the beginning
        replaces = conflict == "replace"
        settle(self._api, ref, definition.name, replace=replaces, observer=self._observer, longest=self._longest)

    def _must_fit(self, there: Found, definition: Definition) -> None:
        if None not in (there.dimension, definition.dimension) and there.dimension != definition.dimension:
            raise UsageError(
                f"{definition.name} has {there.dimension} dimensions there, and here {definition.dimension}",
                hint="give it another name (--rename A=B), or replace it (--on-conflict replace)",
            )
        if (have := _space(there)) != (wanted := outline(definition).space):
            self._note(f"{definition.name} is there with the space {have}, and stays so; here it is {wanted}")

    # -- creating -------------------------------------------------------------------------------------------------

    def _make_database(self, tenant: str, database: str) -> None:
        if (tenant, database) in self._made:
            return
        if not self._api.has(database_path(tenant, database)):
            if not self._api.has(tenant_path(tenant)):
                self._api.make("/tenants", tenant)
            self._api.make(f"{tenant_path(tenant)}/databases", database)
        self._made.add((tenant, database))

    def _created(self, definition: Definition) -> Ref:
        tenant, database, name = definition.place
        for other in self._names(tenant, database):
            if is_left(other, name, self._longest):
                self._note(f"{other} was left by a copy that did not finish; delete it if none is under way")
        wanted = outline(definition)
        own = temporary(name, self._longest)
        while True:
            try:
                found = self._api.create(tenant, database, own, wanted.body)
            except ServerAnswered as error:
                known = error.status in (400, 422, 501) and any(word in error.message for word in _SETTINGS)
                if known and wanted.without(error.message):
                    continue
                if not known or "schema" not in wanted.body:
                    raise ServerAnswered(
                        error.status, f"the collection {name} is refused: {error.message}", hint=error.hint
                    ) from None
            else:
                if "schema" not in wanted.body or found.schema is not None:
                    break
                self._withdraw(tenant, database, own)  # a server that does not know schemas
            self._note(f"{name}: the server does not take its schema, only its configuration")
            wanted = outline(definition, schemas=False)
        configuration = found.configuration_json or {}
        if space_of(configuration) != wanted.space:
            self._withdraw(tenant, database, own)
            raise ServerFailed(
                f"{name}: the server would make it with the space {space_of(configuration)}, not {wanted.space}"
            )
        told = [*[f"{each} is not taken" for each in wanted.dropped], *differences(wanted, configuration, found.schema)]
        if told:
            self._note(f"{name}: not all settings are the same at the server: {'; '.join(told[:6])}")
        return Ref(found.id, own, tenant, database)

    def _names(self, tenant: str, database: str) -> list[str]:
        """The collections that were there before this sink made any."""
        if (tenant, database) not in self._before:
            self._before[tenant, database] = [each.name for each in self._api.collections(tenant, database)]
        return self._before[tenant, database]

    def _withdraw(self, tenant: str, database: str, name: str) -> None:
        """Take back what was just created, as far as that goes."""
        with suppress(ServerFailed):
            self._api.drop(tenant, database, name)

    def _note(self, message: str) -> None:
        self._observer(Noted(message, "warning"))


def _space(found: Found) -> str:
    return space_of(definition_of(found, "", "").configuration)
