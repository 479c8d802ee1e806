"""An engine in memory: exact, slow, and plain enough to be the model of what an engine does.

``search`` knows one nearest-neighbour expression and no groups; regular expressions are Python's.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from chromakeep.engine import (
    DATABASE,
    TENANT,
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
from chromakeep.filters import Among, Compare, Every, Filter, Holds, Matches, Named, Some
from chromakeep.postgres.schemas import changed, configuration_of, grown, schema_of

KINDS = {str: "string", bool: "bool", int: "int", float: "float"}
ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b, "$gte": lambda a, b: a >= b, "$lt": lambda a, b: a < b, "$lte": lambda a, b: a <= b,
}  # fmt: skip


class Record(msgspec.Struct):
    """One record; ``metadata`` None: none."""

    id: str
    vector: Vectors
    document: str | None = None
    uri: str | None = None
    metadata: dict[str, Any] | None = None


class Collection(msgspec.Struct):
    """What there is of a collection; ``records`` in the order in which they were added."""

    shown: CollectionShown
    schema: dict[str, Any]
    records: dict[str, Record]
    seen: set[tuple[str, str]]
    family: str


class MemoryEngine:
    """See ``chromakeep.engine.Engine``."""

    def __init__(self, *, allow_reset: bool = False) -> None:
        self._lock, self._allow_reset = threading.RLock(), allow_reset
        self._begin()

    def _begin(self) -> None:
        self._tenants: dict[str, str | None] = {TENANT: None}
        self._databases = {(TENANT, DATABASE): str(uuid.uuid4())}
        self._collections: dict[str, Collection] = {}

    def ready(self) -> bool:
        return True

    def close(self) -> None: ...

    def reset(self) -> None:
        if not self._allow_reset:
            raise Refused(403, "Reset is disabled by config")
        self._begin()

    def create_tenant(self, name: str) -> None:
        with self._lock:
            if name in self._tenants:
                raise Refused(409, f"Tenant [{name}] already exists")
            self._tenants[name] = None

    def tenant(self, name: str) -> str | None:
        if name not in self._tenants:
            raise Refused(404, f"Tenant [{name}] not found")
        return self._tenants[name]

    def update_tenant(self, name: str, resource_name: str) -> None:
        self.tenant(name)
        self._tenants[name] = resource_name

    def create_database(self, tenant: str, name: str) -> None:
        self.tenant(tenant)
        with self._lock:
            if (tenant, name) in self._databases:
                raise Refused(409, f"Database [{name}] already exists")
            self._databases[tenant, name] = str(uuid.uuid4())

    def databases(self, tenant: str, limit: int | None, offset: int) -> list[Database]:
        found = sorted((name, id) for (owner, name), id in self._databases.items() if owner == tenant)
        return [Database(id, name, tenant) for name, id in paged(found, limit, offset)]

    def database(self, tenant: str, name: str) -> Database:
        if (tenant, name) not in self._databases:
            raise Refused(404, f"Database [{name}] not found. Are you sure it exists?")
        return Database(self._databases[tenant, name], name, tenant)

    def drop_database(self, tenant: str, name: str) -> None:
        if self._databases.pop((tenant, name), None) is None:
            raise Refused(404, f"Database [{name}] not found")
        for one in self._in(tenant, name):
            self._collections.pop(one.shown.id)

    def _in(self, tenant: str, database: str) -> list[Collection]:
        place = (tenant, database)
        return [one for one in self._collections.values() if (one.shown.tenant, one.shown.database) == place]

    def create_collection(self, tenant: str, database: str, wanted: CollectionWanted) -> CollectionShown:
        schema = schema_of(wanted.metadata, wanted.configuration, wanted.schema)
        with self._lock:
            if (tenant, database) not in self._databases:
                raise Refused(400, f"Database [{database}] does not exist")
            for one in self._in(tenant, database):
                if one.shown.name == wanted.name:
                    if wanted.get_or_create:
                        return self._shown(one)
                    raise Refused(409, f"Collection [{wanted.name}] already exists")
            return self._made(tenant, database, wanted.name, wanted.metadata, schema)

    def _made(
        self, tenant: str, database: str, name: str, metadata: Mapping[str, Any] | None, schema: dict[str, Any]
    ) -> CollectionShown:
        shown = CollectionShown(
            str(uuid.uuid4()), name, configuration_of(schema), schema, metadata or None, None, tenant, database
        )
        self._collections[shown.id] = Collection(shown, schema, {}, set(), shown.id)
        return shown

    def _shown(self, one: Collection) -> CollectionShown:
        return msgspec.structs.replace(one.shown, schema=grown(one.schema, sorted(one.seen)))

    def collections(self, tenant: str, database: str, limit: int | None, offset: int) -> list[CollectionShown]:
        found = sorted(self._in(tenant, database), key=lambda one: one.shown.id)
        return [self._shown(one) for one in paged(found, limit, offset)]

    def count_collections(self, tenant: str, database: str) -> int:
        return len(self._in(tenant, database))

    def collection(self, tenant: str, database: str, name: str) -> CollectionShown:
        for one in self._in(tenant, database):
            if one.shown.name == name:
                return self._shown(one)
        raise Refused(404, f"Collection [{name}] does not exist")

    def collection_by_id(self, target: Target) -> CollectionShown:
        return self._shown(self._at(target, "Collection [{}] does not exist"))

    def _at(self, target: Target, missing: str = "Collection [{}] does not exist.") -> Collection:
        found = self._collections.get(target.id)
        if not found or (found.shown.tenant, found.shown.database) != (target.tenant, target.database):
            raise Refused(404, missing.format(target.id))
        return found

    def modify(self, target: Target, change: Change) -> None:
        with self._lock:
            one = self._at(target)
            names = [other.shown.name for other in self._in(target.tenant, target.database) if other is not one]
            if change.name is not None and change.name in names:
                raise Refused(409, f"Collection [{change.name}] already exists")
            if change.configuration:
                one.schema = changed(one.schema, change.configuration)
            one.shown = msgspec.structs.replace(
                one.shown,
                name=one.shown.name if change.name is None else change.name,
                metadata=one.shown.metadata if change.metadata is None else (change.metadata or None),
                configuration_json=configuration_of(one.schema),
            )

    def drop_collection(self, tenant: str, database: str, name: str) -> None:
        self._collections.pop(self.collection(tenant, database, name).id)

    def fork(self, target: Target, new_name: str) -> CollectionShown:
        with self._lock:
            one = self._at(target)
            made = self.create_collection(target.tenant, target.database, CollectionWanted(new_name))
            new = self._collections[made.id]
            new.shown = msgspec.structs.replace(one.shown, id=made.id, name=new_name)
            new.schema, new.seen, new.family = one.schema, set(one.seen), one.family
            new.records = {name: msgspec.structs.replace(record) for name, record in one.records.items()}
            return self._shown(new)

    def count_forks(self, target: Target) -> int:
        family = self._at(target).family
        return sum(one.family == family for one in self._collections.values()) - 1

    def indexing_status(self, target: Target) -> Indexed:
        count = len(self._at(target).records)
        return Indexed(count, count)

    def add(self, target: Target, records: Written) -> None:
        self._write(target, records, lambda there: not there)

    def upsert(self, target: Target, records: Written) -> None:
        self._write(target, records, lambda there: True)

    def update(self, target: Target, records: Written) -> None:
        self._write(target, records, lambda there: there, update=True)

    def _write(self, target: Target, records: Written, takes: Callable[[bool], bool], *, update: bool = False) -> None:
        with self._lock:
            one = self._at(target)
            if records.embeddings is not None:
                self._dimension(one, records.embeddings.shape[1])
            for i, name in enumerate(records.ids):
                if not takes(name in one.records):
                    continue
                vector = None
                if records.embeddings is not None and (records.given is None or records.given[i]):
                    vector = records.embeddings[i]
                if name not in one.records:
                    assert vector is not None
                    one.records[name] = Record(name, vector)
                self._merge(one, one.records[name], vector, records, i)

    @staticmethod
    def _merge(one: Collection, record: Record, vector: Vectors | None, records: Written, i: int) -> None:
        if vector is not None:
            record.vector = vector
        if records.documents and records.documents[i] is not None:
            record.document = records.documents[i]
        if records.uris and records.uris[i] is not None:
            record.uri = records.uris[i]
        if records.metadatas and records.metadatas[i]:
            merged = {**(record.metadata or {}), **(records.metadatas[i] or {})}
            record.metadata = {key: value for key, value in merged.items() if value is not None} or None
            for key, value in (record.metadata or {}).items():
                kind = type(value[0] if isinstance(value, list) else value)
                if kind in KINDS:
                    one.seen.add((key, KINDS[kind]))

    def _dimension(self, one: Collection, dimension: int) -> None:
        if one.shown.dimension is None:
            one.shown = msgspec.structs.replace(one.shown, dimension=dimension)
        if one.shown.dimension != dimension:
            raise Refused(
                400, f"Collection expecting embedding with dimension of {one.shown.dimension}, got {dimension}"
            )

    def _found(self, one: Collection, ids: Sequence[str] | None, where: Filter | None) -> list[Record]:
        chosen = None if ids is None else set(ids)
        return [
            record
            for record in one.records.values()
            if (chosen is None or record.id in chosen) and (where is None or holds(where, record))
        ]

    def delete(self, target: Target, ids: Sequence[str] | None, where: Filter | None, limit: int | None) -> int:
        with self._lock:
            one = self._at(target)
            gone = paged(self._found(one, ids, where), limit, 0)
            for record in gone:
                one.records.pop(record.id)
            return len(gone)

    def count(self, target: Target) -> int:
        return len(self._at(target).records)

    def get(
        self,
        target: Target,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None,
        offset: int,
        wanted: Wanted,
    ) -> Rows:
        return rows(paged(self._found(self._at(target), ids, where), limit, offset), wanted)

    def query(
        self,
        target: Target,
        vectors: Vectors,
        n_results: int,
        ids: Sequence[str] | None,
        where: Filter | None,
        wanted: Wanted,
    ) -> list[Rows]:
        one = self._at(target)
        if one.shown.dimension is None:
            return [rows([], wanted) for _ in vectors]
        self._dimension(one, vectors.shape[1])
        found = self._found(one, ids, where)
        return [nearest(one, found, vector, n_results, wanted) for vector in vectors]

    def search(self, target: Target, searches: Sequence[Search]) -> list[Rows]:
        return [self._search(target, search) for search in searches]

    def _search(self, target: Target, search: Search) -> Rows:
        one = self._at(target)
        found = self._found(one, None, search.filter)
        names = {name for name in search.select if not name.startswith("#")}
        wanted = Wanted(
            "#document" in search.select, bool(names) or "#metadata" in search.select, "#embedding" in search.select
        )
        if search.rank is None:
            return rows(paged(found, search.limit, search.offset), wanted)
        asked = search.rank["$knn"]
        self._dimension(one, len(asked["query"]))
        vector = np.array(asked["query"], np.float32)
        return nearest(one, found, vector, min(asked.get("limit", 16), search.limit or 16), wanted)


def paged(found: Sequence[Any], limit: int | None, offset: int) -> Sequence[Any]:
    return found[offset : None if limit is None else offset + limit]


def nearest(one: Collection, found: list[Record], vector: Vectors, n_results: int, wanted: Wanted) -> Rows:
    space = one.shown.configuration_json["hnsw"]["space"]
    distances = np.array([distance(space, record.vector, vector) for record in found], np.float32)
    order = np.argsort(distances, kind="stable")[:n_results]
    made = rows([found[i] for i in order], wanted)
    made.scores = distances[order]
    return made


def distance(space: str, a: Vectors, b: Vectors) -> float:
    if space == "l2":
        return float(((a - b) ** 2).sum())
    if space == "ip":
        return float(1 - a @ b)
    sizes = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(1 - a @ b / sizes) if sizes else 1.0


def rows(found: Sequence[Record], wanted: Wanted) -> Rows:
    return Rows(
        [one.id for one in found],
        [one.document for one in found] if wanted.documents else None,
        [None if one.metadata is None else json.dumps(one.metadata).encode() for one in found]
        if wanted.metadatas
        else None,
        np.array([one.vector for one in found], np.float32) if wanted.embeddings else None,
        [one.uri for one in found] if wanted.uris else None,
    )


def equal(a: Any, b: Any) -> bool:
    numbers = (int, float)
    if type(a) in numbers and type(b) in numbers:
        return bool(a == b)
    return type(a) is type(b) and a == b


def holds(where: Filter, record: Record) -> bool:
    """Whether a record satisfies a filter."""
    metadata = record.metadata or {}
    if isinstance(where, Every):
        return all(holds(part, record) for part in where.parts)
    if isinstance(where, Some):
        return any(holds(part, record) for part in where.parts)
    if isinstance(where, Named):
        return (record.id in where.ids) != where.negated
    if isinstance(where, Matches):
        return matches(where, record.document)
    value = metadata.get(where.key)
    if isinstance(where, Among):
        return any(equal(value, item) for item in where.values) != where.negated
    if isinstance(where, Holds):
        has = isinstance(value, list) and any(type(i) is type(where.value) and i == where.value for i in value)
        return has != where.negated
    assert isinstance(where, Compare)
    if where.operator in ("$eq", "$ne"):
        return equal(value, where.value) == (where.operator == "$eq")
    return type(value) in (int, float) and ORDERED[where.operator](value, where.value)


def matches(where: Matches, document: str | None) -> bool:
    negated = where.operator.startswith("$not")
    if where.operator.endswith("contains"):
        found = document is not None and where.pattern in document
    else:
        try:
            found = document is not None and bool(re.search(where.pattern, document))
        except re.error as error:
            raise Refused(400, f"Regex syntax errror: {error}") from None
    return found != negated
