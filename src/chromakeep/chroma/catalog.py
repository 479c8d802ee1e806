"""Catalog: what chroma.sqlite3 says of tenants, databases, collections and their segments, in any version since 0.4.

The directory must be at rest. It is opened read-only and immutable; text and JSON in it are data of unknown origin.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import msgspec

from chromakeep.chroma.configuration import Configuration, configuration
from chromakeep.errors import NotAChromaDirectory, SourceBroken, SourceError, UsageError

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


class Entry(msgspec.Struct, frozen=True):
    """One collection. ``vector_seq`` and ``metadata_seq`` are the last queue rows its segments have applied."""

    id: str
    name: str
    tenant: str
    database: str
    dimension: int | None
    configuration: Configuration
    vector_segment: str | None
    metadata_segment: str | None
    vector_seq: int | None
    metadata_seq: int

    @property
    def space(self) -> str:
        """``l2``, ``cosine`` or ``ip``."""
        return self.configuration.space

    @property
    def topic(self) -> str:
        """The queue's name for the collection, whatever its tenant and database."""
        return f"persistent://default/default/{self.id}"


@contextmanager
def untrusted_rows() -> Iterator[None]:
    """SourceBroken for what damaged pages, and values of types that Chroma never stores, do to code that reads rows."""
    try:
        yield
    except sqlite3.Error as error:
        raise SourceBroken(f"{DATABASE} cannot be read: {error}") from error
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise SourceBroken(f"{DATABASE} has rows that make no sense ({error})") from error


def schema_of(database: Path | sqlite3.Connection) -> str:
    """Which of Chroma's migrations a database has had, in a few words: equal ones have equal tables."""
    if isinstance(database, Path):
        address = f"file:{quote(str(database.absolute()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            return schema_of(connection)
    steps = database.execute("SELECT dir, max(version) FROM migrations GROUP BY dir ORDER BY dir").fetchall()
    return " ".join(f"{name}:{version}" for name, version in steps)


def collection_count(database: Path) -> int:
    """How many collections there are, of a database that may be in use. Raises ``SourceBroken``."""
    address = f"file:{quote(str(database.absolute()))}?mode=ro"
    with untrusted_rows(), closing(sqlite3.connect(address, uri=True, timeout=5.0)) as connection:
        return int(connection.execute("SELECT count(*) FROM collections").fetchone()[0])


class Catalog:
    """The open database and its collections, in order of creation. A context manager; not for several threads."""

    def __init__(self, directory: Path) -> None:
        """Raises NotAChromaDirectory when there is no database of Chroma, SourceBroken when it cannot be read."""
        self.directory = directory
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.database = self._settled(directory / DATABASE)
        self.connection = sqlite3.connect(":memory:")
        try:
            with untrusted_rows():
                self.connection = self.connect()
                self._refuse_strangers()
                self.version = self._version()
                self.entries = self._entries()
        except SourceError:
            self.close()
            raise

    @classmethod
    def within(cls, directory: Path, connection: sqlite3.Connection) -> Catalog:
        """What a transaction sees that the caller holds, of a directory in use. Not to be closed, nor connected to."""
        self = cls.__new__(cls)
        self.directory, self.database, self.connection, self._scratch = (
            directory,
            directory / DATABASE,
            connection,
            None,
        )
        with untrusted_rows():
            self._refuse_strangers()
            self.version = self._version()
            self.entries = self._entries()
        return self

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
        """The database as its next reader sees it: a journal that a killed writer left is rolled back, in a copy."""
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
            if (kind != "table" or not page) and (kind != "missing" or table in TABLES):
                raise SourceBroken(f"{DATABASE}: {table} is {kind}" if kind == "missing" else f"{table} is no table")
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

    def entry(self, collection: str | Entry) -> Entry:
        """The collection of this id (or of that entry's id). Raises UsageError when there is none."""
        wanted = collection if isinstance(collection, str) else collection.id
        for entry in self.entries:
            if entry.id == wanted:
                return entry
        raise UsageError(f"there is no collection {wanted} in {self.directory}")

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
                "SELECT segment_id, key, str_value, int_value, float_value FROM segment_metadata "
                "WHERE key LIKE 'hnsw:%'"
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
            settings = configuration(schema_json, config_json, legacy.get(vector, {}))
            found.append(
                Entry(
                    id_,
                    str(name),
                    str(tenant),
                    str(database),
                    dimension,
                    settings,
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
