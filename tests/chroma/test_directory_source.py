"""A directory as a source: what Chroma would answer, from the files, and from any mark on."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chroma.conftest import Known
from chroma.directories import VERSIONS
from chromakeep.batches import decode, schema, vectors_of
from chromakeep.chroma import columns
from chromakeep.chroma.directory_source import DirectorySource, state_of
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.server import ChromaServer
from chromakeep.conditions import Where
from chromakeep.digests import Tally
from chromakeep.errors import NotAChromaDirectory, SourceBroken
from chromakeep.records import Definition
from chromakeep.tallying import Adder


def read(source: DirectorySource, definition: Definition, **how: Any) -> tuple[pa.Table, list[Any]]:
    pairs = list(source.batches(definition, **how))
    empty = schema(definition.dimension)
    return pa.Table.from_batches([some for some, _ in pairs], empty), [mark for _, mark in pairs]


def test_records_and_digests_are_those_of_chroma(random_directories: list[Known]) -> None:
    """Ids in order, values with their types, vectors bit for bit; the sums are those of an inspection."""
    for known in random_directories:
        digests = {c.id: c.digest for c in inspect(known.directory).collections}
        with closing(DirectorySource(known.directory)) as source:
            for definition in source.definitions():
                got = known.collections[definition.id]
                table, _ = read(source, definition)
                found = table.to_pydict()
                assert found["id"] == got["ids"]
                assert found["document"] == got["documents"]
                assert found["uri"] == got["uris"]
                assert [decode(text) for text in found["metadata"]] == got["metadatas"]
                tally = Tally()
                adder = Adder(tally)
                for some in table.to_batches():
                    adder.add(some)
                assert tally.digest() == digests[definition.id]


def test_a_mark_leads_on(random_directories: list[Known], monkeypatch: pytest.MonkeyPatch) -> None:
    """From every mark of every collection: just what is behind it, also among the records that only the queue has."""
    monkeypatch.setattr("chromakeep.chroma.directory_source.PORTION", 13)
    queued = 0
    for known in random_directories[:6]:
        with closing(DirectorySource(known.directory)) as source:
            for definition in source.definitions():
                whole, marks = read(source, definition)
                queued += sum(mark[1] > 0 for mark in marks)
                ids, at = whole.column("id").to_pylist(), 0
                for mark in marks:
                    at += 13 if mark[1] == 0 and at + 13 <= len(ids) else 0
                    rest, _ = read(source, definition, after=mark)
                    left = rest.column("id").to_pylist()
                    assert left == ids[len(ids) - len(left) :]
                assert not left if marks else not ids
    assert queued or random_directories


@pytest.mark.parametrize("sparse", [0, 1 << 20])
def test_rows_are_found_wherever_they_lie(
    random_directories: list[Known], monkeypatch: pytest.MonkeyPatch, sparse: int
) -> None:
    """By ranges and one by one: the same records."""
    monkeypatch.setattr(columns, "SPARSE", sparse)
    test_records_and_digests_are_those_of_chroma(random_directories[:3])


def test_a_condition_chooses(random_directories: list[Known]) -> None:
    """As Chroma's metadata says."""
    where = Where('{"s": {"$ne": "x"}}')
    with closing(DirectorySource(random_directories[0].directory)) as source:
        definition = source.definitions()[0]
        chosen, _ = read(source, definition, where=where)
        got = random_directories[0].collections[definition.id]
        wanted = [i for i, m in zip(got["ids"], got["metadatas"], strict=True) if where.matches(m)]
        assert chosen.column("id").to_pylist() == wanted


def test_definitions_are_what_the_api_shows(random_directories: list[Known], tmp_path: Path) -> None:
    """Name, dimension, metadata, configuration and schema, against a server on a copy; threads differ by machine."""
    for known in random_directories[:4]:
        copy = tmp_path / known.directory.name
        shutil.copytree(known.directory, copy)
        with closing(DirectorySource(known.directory)) as source:
            ours = {d.id: d for d in source.definitions()}
        with ChromaServer(copy, env=os.environ) as server:
            path = "/tenants/default_tenant/databases/default_database/collections"
            for shown in server.client.request("GET", path):
                mine = ours.pop(shown["id"])
                assert (mine.name, mine.tenant, mine.database) == (shown["name"], shown["tenant"], shown["database"])
                assert (mine.dimension, mine.metadata) == (shown["dimension"], shown["metadata"])
                assert mine.configuration == shown["configuration_json"]
                assert mine.schema == shown["schema"]
        assert not ours


@pytest.mark.parametrize("version", VERSIONS)
def test_old_versions(version: str, old_version: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    """Written by 0.4 to 1.0: the same ids, and the space whatever generation of settings says it."""
    directory, expected = old_version(version)
    with closing(DirectorySource(directory)) as source:
        definitions = source.definitions()
        assert {d.name: d.space for d in definitions} == {"colsync": "l2", "colcos": "cosine", "coldef": "l2"}
        for definition in definitions:
            table, _ = read(source, definition)
            assert sorted(table.column("id").to_pylist()) == sorted(expected[definition.name])
            vectors, present = vectors_of(table.combine_chunks().to_batches()[0])
            assert present.all()
            assert vectors.dtype == np.float32
            assert definition.count is not None


def test_a_state_is_another_after_a_write(random_directories: list[Known], tmp_path: Path) -> None:
    """Of a directory that nobody touches it is the same."""
    copy = tmp_path / "copy"
    shutil.copytree(random_directories[0].directory, copy)
    before = state_of(copy)
    assert state_of(copy) == before
    with closing(sqlite3.connect(copy / "chroma.sqlite3")) as database, database:
        database.execute("CREATE TABLE something(x)")
    assert state_of(copy) != before


def test_what_is_no_directory_and_what_is_broken(random_directories: list[Known], tmp_path: Path) -> None:
    """One line each, by the errors of the house; a value of a type that Chroma never stores is refused."""
    with pytest.raises(NotAChromaDirectory):
        DirectorySource(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(random_directories[0].directory, copy)
    with closing(sqlite3.connect(copy / "chroma.sqlite3")) as database, database:
        database.execute("DELETE FROM embeddings_queue")
        database.execute("DROP TABLE IF EXISTS embedding_metadata_array")
        rowid = database.execute("SELECT min(id) FROM embeddings").fetchone()[0]
        database.execute("INSERT INTO embedding_metadata(id, key, string_value) VALUES (?, 'odd', x'00ff')", (rowid,))
    with closing(DirectorySource(copy)) as source, pytest.raises(SourceBroken):
        for definition in source.definitions():
            read(source, definition)
