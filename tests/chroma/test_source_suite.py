"""A data directory of the installed Chroma passes the shipped SourceSuite."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import chromadb
from chromadb.api.client import AdminClient
from chromadb.config import Settings
from chromadb.errors import ChromaError

from chromakeep.batches import decode, vectors_of
from chromakeep.chroma.directory_source import DirectorySource, state_of
from chromakeep.testing.records_suite import Contents, SourceSuite


class TestDirectory(SourceSuite):
    """``carried``: Chroma fills up a configuration and a schema, so these are tested where a directory is written."""

    bare = False
    unrounded = False
    carried = ("dimension", "metadata")

    def fill(self, tmp_path: Path, contents: Contents) -> None:
        with closing(client_of(tmp_path)) as client:
            admin = AdminClient.from_system(client._system)
            for definition, records in contents:
                with suppress(ChromaError):
                    admin.create_tenant(definition.tenant)
                with suppress(ChromaError):
                    admin.create_database(definition.database, definition.tenant)
                client.set_tenant(definition.tenant, definition.database)
                collection = client.create_collection(
                    definition.name, metadata=definition.metadata, embedding_function=None
                )
                for start in range(0, 0 if records is None else len(records), 2000):
                    add(collection, records.slice(start, 2000))

    def make_source(self, tmp_path: Path) -> DirectorySource:
        return DirectorySource(tmp_path / "chroma", state=state_of(tmp_path / "chroma"))

    def change(self, tmp_path: Path) -> None:
        with closing(client_of(tmp_path)) as client:
            collection = client.get_collection("sample", embedding_function=None)
            collection.update(ids=["id-000001"], metadatas=[{"n": -1}])


def client_of(tmp_path: Path) -> Any:
    """A client of the directory, in this process."""
    return chromadb.PersistentClient(str(tmp_path / "chroma"), settings=Settings(anonymized_telemetry=False))


def add(collection: Any, records: Any) -> None:
    """Add the records of a batch."""
    collection.add(
        ids=records.column("id").to_pylist(),
        embeddings=vectors_of(records)[0],
        documents=records.column("document").to_pylist(),
        uris=records.column("uri").to_pylist(),
        metadatas=[decode(text) or None for text in records.column("metadata").to_pylist()],
    )
