"""Handlers: one function for each of Chroma's routes, by the names that ``access.rights`` gives them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from chromakeep.access.rights import Call
from chromakeep.engine import (
    DATABASE,
    MAX_BATCH,
    TENANT,
    Change,
    CollectionWanted,
    Engine,
    Refused,
    Target,
    Wanted,
    Written,
)
from chromakeep.server.api import payloads
from chromakeep.server.api.answers import (
    CREATED,
    EMPTY,
    collection,
    database,
    got,
    indexed,
    joined,
    queried,
    searched,
    shown,
)
from chromakeep.server.api.bodies import NO_JSON, loose
from chromakeep.server.api.configuration import check_configuration, fault_of_schema
from chromakeep.server.api.finding import read_delete, read_get, read_query, read_searches, wanted
from chromakeep.server.api.metadata import Invalid, Metadata, of_collection
from chromakeep.server.api.names import SHORT_DATABASE, fault_of_name, fault_of_tenant
from chromakeep.server.api.query_string import check_level, page
from chromakeep.server.api.records import added, updated, upserted
from chromakeep.server.gate import Page

_NO_UUID = "Collection ID is not a valid UUIDv4"
_NO_FUNCTIONS = (
    "Tonic error: code: 'Operation is not implemented or not supported', message: "
    '" Attached Function operations not yet implemented in SqliteSysDb"'
)
_NO_DETACHING = "Tonic error: code: 'Operation is not implemented or not supported', message: \"Not implemented\""


class Asked(msgspec.Struct, frozen=True):
    """One request: what it calls, what follows the ``?`` of its target, its body."""

    call: Call
    query: str
    body: bytes

    @property
    def tenant(self) -> str:
        return self.call.tenant or ""

    @property
    def database(self) -> str:
        """Raises ``Refused`` of a name that is too short to be one."""
        name = self.call.database or ""
        if len(name.encode()) < 3:
            raise Refused(400, SHORT_DATABASE)
        return name

    @property
    def name(self) -> str:
        """Of the collection."""
        return self.call.collection or ""

    @property
    def target(self) -> Target:
        """Raises ``Refused``."""
        database = self.database
        if self.call.id is None:
            raise Refused(400, _NO_UUID)
        return Target(self.tenant, database, self.call.id)


Handler = Callable[[Engine, Asked], Page]


def _heartbeat(engine: Engine, asked: Asked) -> Page:
    return shown({"nanosecond heartbeat": time.time_ns()})


def _healthcheck(engine: Engine, asked: Asked) -> Page:
    ready = engine.ready()
    return shown({"is_executor_ready": ready, "is_log_client_ready": ready}, 200 if ready else 503)


def _version(engine: Engine, asked: Asked) -> Page:
    return shown("1.0.0")


def _pre_flight(engine: Engine, asked: Asked) -> Page:
    return shown({"max_batch_size": MAX_BATCH, "supports_base64_encoding": True})


def _identity(engine: Engine, asked: Asked) -> Page:
    return shown({"user_id": "", "tenant": TENANT, "databases": [DATABASE]})


def _reset(engine: Engine, asked: Asked) -> Page:
    engine.reset()
    return shown(True)


def _create_tenant(engine: Engine, asked: Asked) -> Page:
    name = loose(payloads.TENANT, asked.body)["name"]
    _raise(joined({"name": fault_of_tenant(name)}))
    engine.create_tenant(name)
    return EMPTY


def _tenant(engine: Engine, asked: Asked) -> Page:
    return shown({"name": asked.tenant, "resource_name": engine.tenant(asked.tenant)})


def _update_tenant(engine: Engine, asked: Asked) -> Page:
    engine.update_tenant(asked.tenant, loose(payloads.TENANT_CHANGE, asked.body)["resource_name"])
    return EMPTY


def _create_database(engine: Engine, asked: Asked) -> Page:
    name = loose(payloads.DATABASE, asked.body)["name"]
    if fault := fault_of_name(name):
        raise Refused(400, fault)
    engine.create_database(asked.tenant, name)
    return EMPTY


def _databases(engine: Engine, asked: Asked) -> Page:
    limit, offset = page(asked.query)
    return shown([database(one) for one in engine.databases(asked.tenant, limit, offset)])


def _database(engine: Engine, asked: Asked) -> Page:
    return shown(database(engine.database(asked.tenant, asked.database)))


def _drop_database(engine: Engine, asked: Asked) -> Page:
    engine.drop_database(asked.tenant, asked.call.database or "")
    return EMPTY


def _create_collection(engine: Engine, asked: Asked) -> Page:
    sent = loose(payloads.CREATE, asked.body)
    check_configuration(sent.get("configuration"))
    database = asked.database
    faults: dict[str, str | None] = {"name": fault_of_name(sent["name"]), "schema": fault_of_schema(sent.get("schema"))}
    metadata = _metadata("metadata", sent.get("metadata"), faults)
    _raise(joined(faults))
    wanted = CollectionWanted(
        sent["name"], metadata, sent.get("configuration"), sent.get("schema"), bool(sent.get("get_or_create"))
    )
    return shown(collection(engine.create_collection(asked.tenant, database, wanted)))


def _collections(engine: Engine, asked: Asked) -> Page:
    limit, offset = page(asked.query)
    return shown([collection(one) for one in engine.collections(asked.tenant, asked.database, limit, offset)])


def _count_collections(engine: Engine, asked: Asked) -> Page:
    return shown(engine.count_collections(asked.tenant, asked.database))


def _collection(engine: Engine, asked: Asked) -> Page:
    return shown(collection(engine.collection(asked.tenant, asked.database, asked.name)))


def _collection_by_id(engine: Engine, asked: Asked) -> Page:
    database = asked.database
    if asked.call.id is None:
        raise Refused(400, "Validation error: collection_id: Invalid collection ID format, expected UUID")
    return shown(collection(engine.collection_by_id(Target(asked.tenant, database, asked.call.id))))


def _collection_by_crn(engine: Engine, asked: Asked) -> Page:
    if asked.call.tenant is None:
        raise Refused(
            400,
            "Validation error: crn: CRN must be in the format "
            "<tenant_resource_name>:<database_name>:<collection_name> with non-empty parts",
        )
    return shown(collection(engine.collection(asked.tenant, asked.call.database or "", asked.name)))


def _modify(engine: Engine, asked: Asked) -> Page:
    sent = loose(payloads.MODIFY, asked.body)
    target = asked.target
    check_configuration(sent.get("new_configuration"))
    name = sent.get("new_name")
    faults = {"new_name": None if name is None else fault_of_name(name)}
    metadata = _metadata("new_metadata", sent.get("new_metadata"), faults)
    _raise(joined(faults))
    engine.modify(target, Change(name, metadata, sent.get("new_configuration")))
    return EMPTY


def _drop_collection(engine: Engine, asked: Asked) -> Page:
    engine.drop_collection(asked.tenant, asked.database, asked.name)
    return EMPTY


def _write(engine: Engine, asked: Asked, records: Written, write: Callable[[Target, Written], None]) -> None:
    if records.ids:
        write(asked.target, records)
    else:  # nothing to write, but a collection that is not there is told
        _there(engine, asked)


def _add(engine: Engine, asked: Asked) -> Page:
    _write(engine, asked, added(asked.body), engine.add)
    return CREATED


def _upsert(engine: Engine, asked: Asked) -> Page:
    _write(engine, asked, upserted(asked.body), engine.upsert)
    return EMPTY


def _update(engine: Engine, asked: Asked) -> Page:
    _write(engine, asked, updated(asked.body), engine.update)
    return EMPTY


def _delete(engine: Engine, asked: Asked) -> Page:
    what = read_delete(asked.body)
    if what.ids is None and what.where is None:
        _there(engine, asked)
        return shown({"deleted": 0})
    return shown({"deleted": engine.delete(asked.target, what.ids, what.where, what.limit)})


def _count(engine: Engine, asked: Asked) -> Page:
    check_level(asked.query)
    return shown(engine.count(asked.target))


def _get(engine: Engine, asked: Asked) -> Page:
    what = read_get(asked.body)
    rows = engine.get(asked.target, what.ids, what.where, what.limit, what.offset, wanted(what.include))
    return got(rows, what.include)


def _query(engine: Engine, asked: Asked) -> Page:
    what = read_query(asked.body)
    if what.vectors is None:
        _there(engine, asked)
        return queried([], what.include)
    found = engine.query(asked.target, what.vectors, what.n_results, what.ids, what.where, wanted(what.include))
    return queried(found, what.include)


def _search(engine: Engine, asked: Asked) -> Page:
    searches = read_searches(asked.body)
    if not searches:
        _there(engine, asked)
    found = engine.search(asked.target, searches) if searches else []
    return searched(found, [search.select for search in searches])


def _indexing_status(engine: Engine, asked: Asked) -> Page:
    return shown(indexed(engine.indexing_status(asked.target)))


def _fork(engine: Engine, asked: Asked) -> Page:
    name = loose(payloads.FORK, asked.body)["new_name"]
    target = asked.target
    _raise(joined({"new_name": fault_of_name(name)}))
    return shown(collection(engine.fork(target, name)))


def _fork_count(engine: Engine, asked: Asked) -> Page:
    return shown({"count": engine.count_forks(asked.target)})


def _attach(engine: Engine, asked: Asked) -> Page:
    loose(payloads.ATTACH, asked.body)
    _there(engine, asked)
    raise Refused(501, _NO_FUNCTIONS)


def _function(engine: Engine, asked: Asked) -> Page:
    _there(engine, asked)
    raise Refused(404, "Attached function not found")


def _detach(engine: Engine, asked: Asked) -> Page:
    loose(payloads.DETACH, asked.body)
    _there(engine, asked)
    raise Refused(501, _NO_DETACHING)


def _there(engine: Engine, asked: Asked) -> None:
    """Raises ``Refused`` if the collection is not there."""
    engine.get(asked.target, [], None, 0, 0, Wanted())


def sooner(engine: Engine, asked: Asked, error: Refused) -> Refused:
    """What is told instead of a fault in what is asked of a collection: that this is not there, where it is not."""
    if error.status != 400 or asked.call.id is None or error.message.startswith(NO_JSON):
        return error
    try:
        _there(engine, asked)
    except Refused as missing:
        return missing if missing.status == 404 and asked.call.route != "collection.by_id" else error
    return error


def _metadata(member: str, given: Any, faults: dict[str, str | None]) -> Metadata | None:
    try:
        return of_collection(given)
    except Invalid as error:
        faults[member] = str(error)
        return None


def _raise(found: Refused | None) -> None:
    if found:
        raise found


HANDLERS: dict[str, Handler] = {
    "heartbeat": _heartbeat,
    "healthcheck": _healthcheck,
    "version": _version,
    "pre-flight-checks": _pre_flight,
    "identity": _identity,
    "reset": _reset,
    "tenants.create": _create_tenant,
    "tenant": _tenant,
    "tenant.update": _update_tenant,
    "databases.create": _create_database,
    "databases.list": _databases,
    "database": _database,
    "database.delete": _drop_database,
    "collections.create": _create_collection,
    "collections.list": _collections,
    "collections.count": _count_collections,
    "collection": _collection,
    "collection.by_id": _collection_by_id,
    "collection.by_crn": _collection_by_crn,
    "collection.modify": _modify,
    "collection.drop": _drop_collection,
    "collection.add": _add,
    "collection.update": _update,
    "collection.upsert": _upsert,
    "collection.delete": _delete,
    "collection.count": _count,
    "collection.get": _get,
    "collection.query": _query,
    "collection.search": _search,
    "collection.indexing_status": _indexing_status,
    "collection.fork": _fork,
    "collection.fork_count": _fork_count,
    "collection.attach_function": _attach,
    "collection.function": _function,
    "collection.detach_function": _detach,
}
WITH_JSON = frozenset({
    "tenants.create", "tenant.update", "databases.create", "collections.create", "collection.modify",
    "collection.add", "collection.update", "collection.upsert", "collection.delete", "collection.get",
    "collection.query", "collection.search", "collection.fork", "collection.attach_function",
    "collection.detach_function",
})  # fmt: skip
STREAMED = frozenset({
    "collection.add", "collection.update", "collection.upsert", "collection.query", "collection.search",
})  # fmt: skip
