"""Catalog: what chroma.sqlite3 says of tenants, databases, collections and their segments, in any version since 0.4.

The directory must be at rest. It is opened read-only and immutable; text and JSON in it are data of unknown origin.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from chromakeep.errors import NotAChromaDirectory, SourceBroken

DATABASE = "chroma.sqlite3"
TABLES = (
    "migrations",
    "tenants",
    "databases",
    "collections",
    "segments",
    "embeddings",
    "embedding_metadata",
    "max_seq_id",
    "embeddings_queue",
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_CACHE_KIB = 8192

# types/src/hnsw_configuration.rs of Chroma 1.5: the defaults, and the legacy metadata key of each parameter
_DEFAULTS: dict[str, Any] = {
    "space": "l2",
    "ef_construction": 100,
    "ef_search": 100,
    "max_neighbors": 16,
    "resize_factor": 1.2,
    "sync_threshold": 1000,
    "batch_size": 100,
}
_LEGACY = {
    "hnsw:space": "space",
    "hnsw:construction_ef": "ef_construction",
    "hnsw:search_ef": "ef_search",
    "hnsw:M": "max_neighbors",
    "hnsw:resize_factor": "resize_factor",
    "hnsw:sync_threshold": "sync_threshold",
    "hnsw:batch_size": "batch_size",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One collection. ``vector_seq`` and ``metadata_seq`` are the last queue rows its segments have applied."""

    id: str
    name: str
    tenant: str
    database: str
    dimension: int | None
    space: str
    sync_threshold: int
    model: str | None
    vector_segment: str | None
    metadata_segment: str | None
    vector_seq: int | None
    metadata_seq: int

    @property
    def topic(self) -> str:
        """The queue's name for the collection, whatever its tenant and database."""
        return f"persistent://default/default/{self.id}"


class Catalog:
    """The open database and its collections, in order of creation. A context manager; not for several threads."""

    def __init__(self, directory: Path) -> None:
        """Raises NotAChromaDirectory when there is no database of Chroma, SourceBroken when it cannot be read."""
        self.directory = directory
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.database = self._settled(directory / DATABASE)
        self.connection = self.connect()
        try:
            self._refuse_strangers()
            self.version = self._version()
            self.entries = self._entries()
        except sqlite3.Error as error:
            self.close()
            raise SourceBroken(f"{DATABASE} cannot be read: {error}") from None
        except Exception:
            self.close()
            raise

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and remove the private copy, if one was needed."""
        self.connection.close()
        if self._scratch:
            self._scratch.cleanup()

    def connect(self) -> sqlite3.Connection:
        """Another connection to the same state."""
        connection = sqlite3.connect(
            f"file:{quote(str(self.database))}?mode=ro&immutable=1",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        for pragma in (f"cache_size=-{_CACHE_KIB}", "trusted_schema=OFF", "query_only=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _settled(self, database: Path) -> Path:
        """The database as its next reader would see it: a journal that a killed writer left is rolled back in a copy."""
        try:
            with database.open("rb") as file:
                magic = file.read(16)
        except (FileNotFoundError, NotADirectoryError):
            raise NotAChromaDirectory(
                f"{database.parent} holds no {DATABASE}",
                hint="give the directory that `chroma run --path` or PersistentClient uses",
            ) from None
        if magic != b"SQLite format 3\0":
            raise SourceBroken(f"{DATABASE} is no SQLite database" if magic else f"{DATABASE} is empty")
        left = [
            path
            for suffix in ("-journal", "-wal")
            if (path := Path(f"{database}{suffix}")).exists() and path.stat().st_size
        ]
        if not left:
            return database.absolute()
        self._scratch = tempfile.TemporaryDirectory(prefix="chromakeep-")
        copy = Path(self._scratch.name) / DATABASE
        for path in (database, *left):
            shutil.copyfile(path, copy.with_name(path.name))
        try:
            with sqlite3.connect(copy) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.close()
        except sqlite3.Error as error:
            self._scratch.cleanup()
            raise SourceBroken(f"{DATABASE} cannot be recovered from its journal: {error}") from None
        return copy

    def _refuse_strangers(self) -> None:
        """The names read here must be real tables: a view or a virtual table could compute anything."""
        found = {
            name: (kind, page)
            for name, kind, page in self.connection.execute("SELECT name, type, rootpage FROM sqlite_master")
        }
        if not {"collections", "segments"} & found.keys():
            raise NotAChromaDirectory(f"{DATABASE} is not Chroma's: it has no table of collections")
        for table in (*TABLES, "embedding_metadata_array", "collection_metadata", "segment_metadata"):
            kind, page = found.get(table, ("missing", 0))
            if kind != "table" or not page:
                if table in TABLES or kind != "missing":
                    raise SourceBroken(f"{DATABASE}: the table {table} is {'a ' if kind == 'view' else ''}{kind}")
        self.has_arrays = "embedding_metadata_array" in found

    def _version(self) -> str:
        """The newest release line whose migrations (rust/sqlite/migrations) have all been applied."""
        steps = dict(self.connection.execute("SELECT dir, max(version) FROM migrations GROUP BY dir"))
        queue, meta, system = (int(steps.get(name) or 0) for name in ("embeddings_queue", "metadb", "sysdb"))
        if meta > 6 or system > 10 or queue > 2:
            return "newer than 1.5"
        for version, needs in (
            ("1.5", (2, 6, 10)),
            ("1.2", (2, 5, 10)),
            ("1.0", (2, 5, 9)),
            ("0.6", (2, 4, 9)),
            ("0.5", (1, 3, 5)),
        ):
            if all(have >= need for have, need in zip((queue, meta, system), needs, strict=True)):
                return version
        return "0.4"

    def columns(self, table: str) -> set[str]:
        """The columns a table of this version has."""
        return {row[1] for row in self.connection.execute(f"PRAGMA table_info({table})")}

    def _entries(self) -> tuple[Entry, ...]:
        have = self.columns("collections")
        config, schema = (name if name in have else "NULL" for name in ("config_json_str", "schema_str"))
        rows = self.connection.execute(
            f"SELECT c.id, c.name, d.tenant_id, d.name, c.dimension, {config}, {schema} FROM collections c "
            "LEFT JOIN databases d ON d.id = c.database_id ORDER BY c.rowid"
        ).fetchall()
        segments: dict[tuple[Any, Any], str] = {}
        for segment, scope, collection in self.connection.execute(
            "SELECT id, scope, collection FROM segments ORDER BY rowid"
        ):
            segments.setdefault((collection, scope), segment)
        applied = dict(self.connection.execute("SELECT segment_id, seq_id FROM max_seq_id"))
        legacy: dict[Any, dict[str, Any]] = {}
        if "str_value" in self.columns("segment_metadata"):
            for segment, key, *values in self.connection.execute(
                "SELECT segment_id, key, str_value, int_value, float_value FROM segment_metadata WHERE key LIKE 'hnsw:%'"
            ):
                legacy.setdefault(segment, {})[key] = next((v for v in values if v is not None), None)
        found = []
        for id_, name, tenant, database, dimension, config_json, schema_json in rows:
            vector, metadata = segments.get((id_, "VECTOR")), segments.get((id_, "METADATA"))
            for uuid in (id_, vector, metadata):
                if uuid is not None and not (isinstance(uuid, str) and _UUID.fullmatch(uuid)):
                    raise SourceBroken(f"{DATABASE}: {uuid!r} is no identifier of a collection or segment")
            if dimension is not None and not (isinstance(dimension, int) and 0 < dimension < 1 << 22):
                raise SourceBroken(f"{DATABASE}: collection {name!r} has the dimension {dimension!r}")
            space, threshold, model = _configuration(schema_json, config_json, legacy.get(vector, {}))
            found.append(
                Entry(
                    id_,
                    str(name),
                    str(tenant),
                    str(database),
                    dimension,
                    space,
                    threshold,
                    model,
                    vector,
                    metadata,
                    _seq_id(applied.get(vector)),
                    _seq_id(applied.get(metadata)) or 0,
                )
            )
        return tuple(found)


def _seq_id(value: Any) -> int | None:
    """An INTEGER, or until migration metadb-5 a BLOB of eight bytes, big-endian."""
    if isinstance(value, bytes) and len(value) == 8:
        return int.from_bytes(value, "big")
    if value is None or isinstance(value, int):
        return value
    raise SourceBroken(f"{DATABASE}: {value!r} is no sequence number")


def _configuration(schema: Any, config: Any, legacy: dict[str, Any]) -> tuple[str, int, str | None]:
    """Space, sync threshold and model, by the rule of Chroma 1.5 (types/src/collection_schema.rs).

    The schema's vector index, else the configuration's; if that is all defaults, the segment's ``hnsw:*`` metadata.
    The key ``hnsw_configuration`` of 0.5 and 0.6 is not consulted, as 1.x does not.
    """
    index = _dig(_json(schema), "keys", "#embedding", "float_list", "vector_index", "config") or _dig(
        _json(schema), "defaults", "float_list", "vector_index", "config"
    )
    stored = _json(config)
    function = _dig(index, "embedding_function") or _dig(stored, "embedding_function")
    if index:
        chosen = {**_dig(index, "hnsw"), "space": index.get("space")}
    else:
        chosen = _dig(stored, "vector_index", "hnsw")
    given = {name: chosen[name] for name in _DEFAULTS if chosen.get(name) is not None}
    settings = {**_DEFAULTS, **given}
    if settings == _DEFAULTS:
        settings.update({_LEGACY[key]: value for key, value in legacy.items() if key in _LEGACY and value is not None})
    space, threshold = settings["space"], settings["sync_threshold"]
    if space not in ("l2", "cosine", "ip"):
        raise SourceBroken(f"{DATABASE}: a collection has the space {space!r}")
    return space, threshold if isinstance(threshold, int) and threshold > 0 else 1000, _model(function)


def _json(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        raise SourceBroken(f"{DATABASE}: a collection's configuration is no JSON") from None
    return value if isinstance(value, dict) else {}


def _dig(value: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _model(function: dict[str, Any]) -> str | None:
    """``name`` or ``name:model`` of an embedding function's configuration; only told, never built."""
    name, settings = function.get("name"), _dig(function, "config")
    if not isinstance(name, str):
        return None
    model = next(
        (settings[key] for key in ("model_name", "model", "model_id") if isinstance(settings.get(key), str)), None
    )
    told = f"{name}:{model}" if model else name
    return "".join(c for c in told if c.isprintable())[:200]
