"""The reader gives what ``collection.get`` gives, and the digest tells any difference."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma.conftest import Known
from chroma.directories import VERSIONS
from chroma.torn import SCENES
from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.hnsw import through_cosine
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.metadata import canonical
from chromakeep.chroma.reader import Portion, read_collection, read_vectors
from chromakeep.digests import Tally, encode_value, hashes, key_hash, row_hashes, value_hashes
from chromakeep.errors import UsageError
from chromakeep.records import Digest


def typed(value: Any) -> Any:
    """A value in which 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), value)


def joined(portions: list[Portion], field: str) -> list[Any]:
    return [value for portion in portions for value in getattr(portion, field)]


def digest_of(got: dict[str, Any]) -> Digest:
    """The digest by its definition, from what ``collection.get`` returns."""
    tally = Tally()
    for i, id_ in enumerate(got["ids"]):
        lanes = hashes([id_.encode()])[0]
        tally.ids += lanes
        tally.vectors += lanes * row_hashes(got["embeddings"][i : i + 1])[0]
        if got["documents"][i] is not None:
            tally.documents += lanes * value_hashes([got["documents"][i].encode()])[0]
        entries = dict(got["metadatas"][i] or {})
        if got["uris"][i] is not None:
            entries["chroma:uri"] = got["uris"][i]
        for key, value in entries.items():
            tally.metadata += lanes * key_hash(key.encode()) * value_hashes([encode_value(value)])[0]
    return tally.digest()


def test_records_are_those_of_chroma(random_directories: list[Known]) -> None:
    """Same ids in the same order, vectors bit for bit, documents, URIs and metadata with their types; same digest."""
    records = 0
    for known in random_directories:
        found = {collection.id: collection for collection in inspect(known.directory).collections}
        assert found.keys() == known.collections.keys()
        for collection_id, got in known.collections.items():
            portions = list(read_collection(known.directory, collection_id, portion=37))
            assert joined(portions, "ids") == got["ids"]
            assert joined(portions, "documents") == got["documents"]
            assert joined(portions, "uris") == got["uris"]
            assert typed(joined(portions, "metadatas")) == typed(got["metadatas"])
            vectors = np.array(joined(portions, "vectors"), np.float32)
            assert vectors.tobytes() == got["embeddings"].tobytes()
            assert (found[collection_id].count, found[collection_id].digest) == (len(got["ids"]), digest_of(got))
            records += len(got["ids"])
    assert records > 500


@pytest.mark.parametrize("version", VERSIONS)
def test_old_versions_are_read(version: str, old_version: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    """Directories of 0.4 to 1.0 before any migration: what their own version returned."""
    directory, expected = old_version(version)
    with Catalog(directory) as catalog:
        assert catalog.version == {"0.4.24": "0.4", "0.5.23": "0.6", "0.6.3": "0.6", "1.0.0": "1.0"}[version]
        entries = catalog.entries
    assert {entry.name: entry.space for entry in entries} == {"colsync": "l2", "colcos": "cosine", "coldef": "l2"}
    for entry in entries:
        portions = list(read_collection(directory, entry))
        told = expected[entry.name]
        assert sorted(joined(portions, "ids")) == sorted(told)
        for id_, vector, document, metadata in zip(
            joined(portions, "ids"),
            joined(portions, "vectors"),
            joined(portions, "documents"),
            joined(portions, "metadatas"),
            strict=True,
        ):
            want = np.array(told[id_][0], np.float32)
            # what 0.x had not persisted it returned as it was given; 1.x returns it by way of the index
            assert np.array_equal(vector, want) or (
                entry.space == "cosine" and version < "1" and np.array_equal(vector, through_cosine(want))
            )
            assert (document, typed(metadata)) == (told[id_][1], typed(told[id_][2]))


@pytest.mark.parametrize(("space", "operations"), SCENES)
def test_writes_no_segment_has_applied_are_replayed(
    space: str, operations: str, torn_scene: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Killed after the commit to the queue: the records are those that Chroma made of the same writes, in its order."""
    scene = torn_scene(space, operations)
    directory = Path(shutil.copytree(scene / "before", tmp_path / "copy"))
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection, connection:
        connection.execute("ATTACH ? AS later", (str(scene / "queued" / "chroma.sqlite3"),))
        connection.execute(
            "INSERT INTO embeddings_queue SELECT * FROM later.embeddings_queue "
            "WHERE seq_id > (SELECT max(seq_id) FROM main.embeddings_queue)"
        )
    expected, found = inspect(scene / "after"), inspect(directory)
    assert found.problems == () and found.collections == expected.collections
    for collection in expected.collections:
        told, read = (list(read_collection(path, collection.id, portion=77)) for path in (scene / "after", directory))
        for field in ("ids", "documents", "uris", "metadatas"):
            assert typed(joined(read, field)) == typed(joined(told, field)), field
        assert np.array_equal(joined(read, "vectors"), joined(told, "vectors"))


def test_vectors_alone(random_directories: list[Known]) -> None:
    """``read_vectors`` gives ids and vectors in the same order."""
    for collection_id, got in random_directories[0].collections.items():
        pairs = list(read_vectors(random_directories[0].directory, collection_id))
        assert [id_ for ids, _ in pairs for id_ in ids] == got["ids"]
        assert b"".join(vectors.tobytes() for _, vectors in pairs) == got["embeddings"].tobytes()


def test_an_unknown_collection_is_told(random_directories: list[Known]) -> None:
    """No such id: one line."""
    with pytest.raises(UsageError, match="no collection"):
        list(read_collection(random_directories[0].directory, "nobody"))


@pytest.mark.parametrize(
    ("queued", "shown"),
    [(1, 1), (1.0, 1.0), (True, True), ("", ""), (None, None), ([1, 2.5], [1.0, 2.5]), ([1, 2], [1, 2]), ([], None),
     ([True], [True]), (2**63 - 1, 2**63 - 1), (2**63, 2.0**63), ([2**63, 1], [2.0**63, 1.0])],
)  # fmt: skip
def test_queued_values_are_read_as_chroma_parses_them(queued: Any, shown: Any) -> None:
    """Mixed numbers and integers past 64 bits become floats, an empty list deletes its key like null."""
    assert typed(canonical(queued)) == typed(shown)


def test_values_of_different_types_have_different_bytes() -> None:
    """1, 1.0, True and "1" are four values; so are a list and its text, and lists cut differently."""
    values: list[Any] = [
        1,
        1.0,
        True,
        "1",
        "b1",
        "i1",
        [1],
        [1.0],
        [True],
        ["1"],
        ["a", "b"],
        ["ab"],
        ["a:", "b"],
        [],
        "",
        0,
        0.0,
        False,
        "[1]",
        2**62,
        float(2**62),
        -1,
    ]
    assert len({encode_value(value) for value in values}) == len(values)
    assert encode_value(-0.0) == encode_value(0.0)


def test_every_change_shows_in_its_own_part(random_directories: list[Known]) -> None:
    """Swapped vectors, documents or metadata, an empty document for none, a renamed id: the digest's part differs."""
    got = next(g for known in random_directories for g in known.collections.values() if len(g["ids"]) > 50)
    before = digest_of(got)

    def parts(**changed: Any) -> set[str]:
        after = digest_of({**got, **changed})
        return {
            part
            for part in ("ids", "vectors", "documents", "metadata")
            if getattr(after, part) != getattr(before, part)
        }

    order = np.random.default_rng(1).permutation(len(got["ids"]))
    moved = {
        field: got[field][order] if field == "embeddings" else [got[field][i] for i in order]
        for field in ("ids", "embeddings", "documents", "metadatas", "uris")
    }
    assert parts(**moved) == set()
    one_bit = got["embeddings"].copy()
    one_bit.view(np.uint32)[7, 1] ^= 1
    assert parts(embeddings=one_bit) == {"vectors"}
    assert parts(embeddings=got["embeddings"][::-1].copy()) == {"vectors"}
    for field, part in (("documents", "documents"), ("metadatas", "metadata"), ("uris", "metadata")):
        values = list(got[field])
        other = next(i for i, value in enumerate(values) if value != values[0])
        values[0], values[other] = values[other], values[0]
        assert parts(**{field: values}) == {part}
    empty = ["" if document is None else document for document in got["documents"]]
    assert parts(documents=empty) == {"documents"}
    assert parts(ids=["new", *got["ids"][1:]]) == {"ids", "vectors", "documents", "metadata"}
