"""What a collection is, wherever it lives; the digest that proves two of them equal; the seams of the pump.

A ``Source`` reads collections, a ``Sink`` writes them; what passes between them are Arrow record batches of the one
schema that ``batches`` fixes. Whoever implements a place implements one or both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from chromakeep.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from chromakeep.conditions import Where


class Digest(msgspec.Struct, frozen=True):
    """Order-independent digests of a collection's records, each 32 hex digits.

    Two collections with equal digests hold the same ids with the same values, in whatever order and by whatever files.
    H(x) is BLAKE2b with 16 bytes of output and V(x) XXH3-128 (canonical bytes), each taken as two little-endian 64-bit
    words; products and sums are word by word modulo 2**64, and the two words of a sum are printed one after the other.

    * ``ids``: the sum of H(id) over all records, ids in UTF-8.
    * ``vectors``: the sum of H(id) * V(vector), vectors as the little-endian float32 that ``collection.get`` returns.
    * ``documents``: the sum of H(id) * V(document) over the documents that are not null, in UTF-8. An empty document
      counts, a missing one does not.
    * ``metadata``: the sum of H(id) * (H(key) | 1) * V(value) over all entries; a URI is an entry with the key
      ``chroma:uri``, other keys with that prefix are not content. A value is encoded as one letter and the value: ``s``
      text, ``i`` decimal integer, ``f`` little-endian float64 (minus zero as zero), ``b1`` or ``b0``, ``l`` and each
      item led by its length and a colon. So 1, 1.0, true and "1" differ. No metadata and ``{}`` are the same.

    Sums of products can be fed in any order and portion, which a digest of a stream could not: SQLite and the index
    hold records in different orders. They guard against damage, not against someone who picks records to collide.
    """

    ids: str
    vectors: str
    documents: str
    metadata: str


class Collection(msgspec.Struct, frozen=True):
    """One collection, by name and content. ``dimension`` is None until the first record fixed it."""

    id: str
    name: str
    tenant: str
    database: str
    count: int
    dimension: int | None = None
    space: str = "l2"
    model: str | None = None  # the embedding function and model the collection names; never built, only told
    digest: Digest | None = None


class Definition(msgspec.Struct, frozen=True):
    """What makes a collection, beside its records: as Chroma's HTTP API shows it, whatever place it is in.

    ``metadata``, ``configuration`` (``configuration_json``) and ``schema`` are plain JSON, carried as they are:
    nothing that they name is built or imported. ``count`` is None where the place cannot tell it without reading.
    """

    name: str
    id: str = ""
    tenant: str = "default_tenant"
    database: str = "default_database"
    dimension: int | None = None
    metadata: Mapping[str, Any] | None = None
    configuration: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = None
    count: int | None = None

    @property
    def space(self) -> str:
        """``l2``, ``cosine`` or ``ip``: in the configuration, or as the versions before 0.6 had it in the metadata."""
        settings = self.configuration or {}
        index = settings.get("hnsw") or settings.get("spann")
        told = index.get("space") if isinstance(index, Mapping) else None
        return str(told or (self.metadata or {}).get("hnsw:space") or "l2")

    @property
    def function(self) -> Mapping[str, Any]:
        """The embedding function that it names, with name, type and config; never built, only told."""
        found = (self.configuration or {}).get("embedding_function")
        return found if isinstance(found, Mapping) else {}

    @property
    def model(self) -> str | None:
        """The function's name and its model, as far as they are named."""
        config = self.function.get("config")
        model = config.get("model_name") or config.get("model") if isinstance(config, Mapping) else None
        name = self.function.get("name")
        return " ".join(str(part) for part in (name, model) if part) or None

    @property
    def place(self) -> tuple[str, str, str]:
        """Tenant, database and name: what one collection differs in from all others of a place."""
        return self.tenant, self.database, self.name


Mark = Any
"""How far something was read or written: plain JSON, made and understood by one source or sink."""


class Source(Protocol):
    """A place to read from. Not for several threads at a time, unless it says so."""

    def definitions(self) -> Sequence[Definition]:
        """The collections there are."""

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """All records of a collection that satisfy ``where``, each once, with the mark that leads behind each batch.

        Every batch has the schema ``batches.schema(definition.dimension)`` and at least one record, unless none of a
        part that was read satisfied ``where``. ``after``: a mark of an earlier reader of the same ``state()``; what is
        before it is not read again. Raises ``SourceError`` for a record that cannot be given exactly.
        """

    def state(self) -> str:
        """What is there, in one word: while it is the same, the marks lead on. Empty: they never do."""

    def close(self) -> None:
        """Let go of connections and files; twice is once."""


CONFLICTS = ("fail", "skip", "upsert", "replace")


def check_conflict(conflict: str) -> None:
    """Raises ``UsageError`` for what is none of ``CONFLICTS``."""
    if conflict not in CONFLICTS:
        raise UsageError(f"{conflict!r} is no way to deal with a conflict", hint=f"say {', '.join(CONFLICTS)}")


class Limits(msgspec.Struct, frozen=True):
    """What a sink takes. None: it says nothing of it."""

    writers: int = 1
    records: int = 2048


class Speed(msgspec.Struct, frozen=True):
    """How many records and bytes a second a sink takes, roughly, on the two cores of docs/benchmarks.md: whichever of
    the two takes longer. Only estimates rest on it."""

    records: float
    bytes: float


class Intake(Protocol):
    """One collection of a sink while it is written."""

    limits: Limits

    def write(self, batch: pa.RecordBatch) -> None:
        """Write records; when it returns they are accepted. The same ones again change nothing. Up to
        ``limits.writers`` threads call it at a time, with different batches."""

    def mark(self) -> Mark:
        """What an intake of a later process needs to go on behind all that was written; None: it needs nothing.
        What a mark tells of is durable."""

    def finish(self) -> None:
        """All was written: bring the collection into its final shape."""


class Sink(Protocol):
    """A place to write to. Nothing is visible under its final name before it is whole, where the place can do that.

    ``several``: whether it takes more than one collection.
    """

    several: bool
    speed: Speed

    def definitions(self) -> Sequence[Definition]:
        """The collections that are there already."""

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """Raise what ``collection`` would raise of this one, as far as that is known without writing anything.
        What is known from ``definitions`` need not be told again."""

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> Intake:
        """Begin one, or go on with one (``mark`` of an ``Intake`` that a killed process left). ``conflict`` is of
        ``CONFLICTS`` and says what happens if there is one of that name. Raises ``TargetNotEmpty``."""

    def publish(self) -> None:
        """All collections are finished: make them visible, in one step where the place can do that."""

    def close(self) -> None:
        """Let go. What was not published stays invisible and can be gone on with; twice is once."""
