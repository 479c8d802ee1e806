"""Engine: who answers what Chroma's HTTP API asks, without the HTTP; the values that pass between the two.

An engine is asked by several threads at a time. What it raises for a caller's mistake is ``Refused``, with the status
and the words of Chroma 1.5.9. A call that returns is done and durable; one that raises with a status below 500 or 503
has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.filters import Filter

TENANT, DATABASE = "default_tenant", "default_database"
MAX_BATCH = 5461
Vectors = NDArray[np.float32]


class Refused(Exception):
    """No answer but this one. ``error`` is the name from which chromadb's client makes its exception."""

    def __init__(
        self, status: int, message: str, *, error: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
        self.error = error or _NAMES.get(status, "ChromaError")


@contextmanager
def within(until: float) -> Iterator[None]:
    """Whoever asks an engine meanwhile, in this thread, does not wait for what takes longer (by ``time.monotonic``)."""
    token = _UNTIL.set(until)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def time_left() -> float:
    """Seconds until nobody waits any more for what this thread does; ``inf``: that was not said."""
    return _UNTIL.get() - time.monotonic()


_UNTIL: ContextVar[float] = ContextVar("until", default=inf)
_NAMES = {400: "InvalidArgumentError", 404: "NotFoundError", 500: "InternalError"}


class Database(msgspec.Struct, frozen=True):
    """One database of a tenant; ``id`` is a UUID."""

    id: str
    name: str
    tenant: str


class CollectionShown(msgspec.Struct, frozen=True):
    """A collection as Chroma's API shows it: the members of its JSON, in Chroma's words."""

    id: str
    name: str
    configuration_json: Mapping[str, Any]
    schema: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None
    dimension: int | None
    tenant: str
    database: str
    log_position: int = 0
    version: int = 0


class CollectionWanted(msgspec.Struct, frozen=True):
    """What a collection should be, checked for form. ``configuration`` and ``schema`` are as they were sent."""

    name: str
    metadata: Mapping[str, Any] | None = None
    configuration: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = None
    get_or_create: bool = False


class Change(msgspec.Struct, frozen=True):
    """What shall change of a collection; None: nothing. ``metadata`` replaces all there was."""

    name: str | None = None
    metadata: Mapping[str, Any] | None = None
    configuration: Mapping[str, Any] | None = None


class Target(msgspec.Struct, frozen=True):
    """A collection as a request's path names it. One of another tenant or database is not there."""

    tenant: str
    database: str
    id: str


class Written(msgspec.Struct, frozen=True):
    """Records to write: lists of one length n. Ids may repeat: of ``add`` the first counts, else the later ones, too.

    ``embeddings``: (n, d); ``given`` tells which rows have one where not all have (of ``update``). ``metadatas``: a
    value None takes its key away (of ``update`` and ``upsert``). None of a document or URI leaves what there is.
    """

    ids: list[str]
    embeddings: Vectors | None = None
    given: NDArray[np.bool_] | None = None
    documents: list[str | None] | None = None
    uris: list[str | None] | None = None
    metadatas: list[Mapping[str, Any] | None] | None = None


class Wanted(msgspec.Struct, frozen=True):
    """Which members of records are asked for."""

    documents: bool = False
    metadatas: bool = False
    embeddings: bool = False
    uris: bool = False
    distances: bool = False


class Rows(msgspec.Struct):
    """Records that were found, in order; None for what was not asked for. ``metadatas`` are JSON objects as bytes.

    ``scores``: distances of ``query`` (float32), or the scores of ``search``.
    """

    ids: list[str]
    documents: list[str | None] | None = None
    metadatas: list[bytes | None] | None = None
    embeddings: Vectors | None = None
    uris: list[str | None] | None = None
    scores: NDArray[np.float32] | None = None


class Search(msgspec.Struct, frozen=True):
    """One of a ``search``'s searches, as decoded JSON but for the filter."""

    filter: Filter | None
    rank: Mapping[str, Any] | None
    group_by: Mapping[str, Any] | None
    offset: int
    limit: int | None
    select: tuple[str, ...]  # "#document", "#embedding", "#metadata", "#score", or names of metadata


class Indexed(msgspec.Struct, frozen=True):
    """How far the indexes of a collection are, in records."""

    total: int
    indexed: int

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.indexed / self.total if self.total else 1.0


class Engine(Protocol):
    """All that Chroma's API can ask. Raises ``Refused``."""

    def create_tenant(self, name: str) -> None: ...

    def tenant(self, name: str) -> str | None:
        """Its resource name. 404 where there is none of this name."""

    def update_tenant(self, name: str, resource_name: str) -> None: ...

    def create_database(self, tenant: str, name: str) -> None: ...

    def databases(self, tenant: str, limit: int | None, offset: int) -> list[Database]:
        """In the order of their names."""

    def database(self, tenant: str, name: str) -> Database: ...

    def drop_database(self, tenant: str, name: str) -> None:
        """With all that is in it."""

    def create_collection(self, tenant: str, database: str, wanted: CollectionWanted) -> CollectionShown: ...

    def collections(self, tenant: str, database: str, limit: int | None, offset: int) -> list[CollectionShown]:
        """In the order of their ids."""

    def count_collections(self, tenant: str, database: str) -> int: ...

    def collection(self, tenant: str, database: str, name: str) -> CollectionShown: ...

    def collection_by_id(self, target: Target) -> CollectionShown: ...

    def modify(self, target: Target, change: Change) -> None: ...

    def drop_collection(self, tenant: str, database: str, name: str) -> None: ...

    def add(self, target: Target, records: Written) -> None: ...

    def upsert(self, target: Target, records: Written) -> None: ...

    def update(self, target: Target, records: Written) -> None: ...

    def delete(self, target: Target, ids: Sequence[str] | None, where: Filter | None, limit: int | None) -> int:
        """How many there were and are gone."""

    def count(self, target: Target) -> int: ...

    def get(
        self,
        target: Target,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None,
        offset: int,
        wanted: Wanted,
    ) -> Rows:
        """In the order in which they were added."""

    def query(
        self,
        target: Target,
        vectors: Vectors,
        n_results: int,
        ids: Sequence[str] | None,
        where: Filter | None,
        wanted: Wanted,
    ) -> list[Rows]:
        """For each vector (m, d) the nearest records, nearest first, with their distances."""

    def search(self, target: Target, searches: Sequence[Search]) -> list[Rows]: ...

    def fork(self, target: Target, new_name: str) -> CollectionShown: ...

    def count_forks(self, target: Target) -> int: ...

    def indexing_status(self, target: Target) -> Indexed: ...

    def reset(self) -> None:
        """Everything is gone. 403 unless that is allowed."""

    def ready(self) -> bool:
        """Whether it can answer now."""

    def close(self) -> None:
        """Let go of all connections; twice is once."""
