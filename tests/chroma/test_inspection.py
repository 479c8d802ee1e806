"""Inspection: nothing is wrong with what Chroma can open, and what it cannot open is told with where and why."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from chroma.conftest import Known, spooled
from chroma.torn import SCENES, states
from chromakeep.chroma import inspection
from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.inspection import Inspection, check_structure
from chromakeep.chroma.layout import file_layouts
from chromakeep.chroma.problems import MAX_IDS
from chromakeep.chroma.reader import read_collection
from chromakeep.chroma.salvage import salvage_all
from chromakeep.errors import ChromakeepError, NotAChromaDirectory


@pytest.fixture
def known(random_directories: list[Known]) -> Known:
    """One whose largest collection is partly persisted."""
    return max(random_directories, key=lambda k: max(len(g["ids"]) for g in k.collections.values()))


@pytest.fixture
def copy(known: Known, tmp_path: Path) -> Path:
    """Its copy, to damage."""
    return Path(shutil.copytree(known.directory, tmp_path / "copy"))


def inspect(directory: Path, **options: bool) -> Inspection:
    """What is found; the same whether lists are in memory or spooled."""
    found = inspection.inspect(directory, **options)
    with spooled():
        assert inspection.inspect(directory, **options) == found
    return found


def change(directory: Path, statement: str, *values: object) -> int:
    """Change the database behind Chroma's back; returns how many rows changed."""
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as connection, connection:
        return connection.execute(statement, values).rowcount


def codes(found: Inspection) -> set[str]:
    return {problem.code for problem in found.problems}


def test_nothing_is_wrong_with_what_chroma_wrote(random_directories: list[Known]) -> None:
    """Random directories: no problem, no warning, and nothing beside or inside is touched."""
    for known in random_directories:
        before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in known.directory.rglob("*")}
        found = inspect(known.directory)
        assert (found.problems, found.warnings, found.version) == ((), (), "1.5")
        assert check_structure(known.directory) == ()
        assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in known.directory.rglob("*")} == before


@pytest.mark.parametrize(("space", "operations"), SCENES)
def test_a_kill_inside_a_persist_is_told(
    space: str, operations: str, torn_scene: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Killed at any file: a problem of that collection alone, unless replay brings everything right again."""
    scene = torn_scene(space, operations)
    whole = inspect(scene / "after")
    assert whole.problems == () and inspect(scene / "queued").collections == whole.collections
    for name, directory, broken in states(scene, tmp_path):
        found = inspect(directory)
        assert {problem.collection for problem in found.problems} == ({"torn"} if broken else set()), name
        assert bool(check_structure(directory)) == broken, name
        if not broken:
            assert found.collections == whole.collections, name


def test_lost_vectors_are_listed_by_id(copy: Path, known: Known) -> None:
    """Without index and queue rows every record of the collection is named; the list is capped, the count is not."""
    with Catalog(copy) as catalog:
        entry = max(catalog.entries, key=lambda e: len(known.collections[e.id]["ids"]))
    shutil.rmtree(copy / str(entry.vector_segment))
    change(copy, "DELETE FROM embeddings_queue WHERE topic = ?", entry.topic)
    [problem] = inspect(copy).problems
    ids = known.collections[entry.id]["ids"]
    assert (problem.code, problem.collection_id) == ("vector-missing", entry.id)
    assert problem.message.startswith(f"{len(ids)} records have no vector")
    assert sorted(problem.ids) == sorted(ids)[:MAX_IDS]


def test_lost_records_are_listed_by_id(copy: Path, known: Known) -> None:
    """A vector whose record is gone from SQLite is named."""
    lost = next(ids for got in known.collections.values() if len(ids := got["ids"]) > 5)[3]
    assert change(copy, "DELETE FROM embeddings WHERE embedding_id = ?", lost) >= 1
    found = inspect(copy)
    assert codes(found) == {"record-missing"}
    assert {problem.ids for problem in found.problems} == {(lost,)}


POISON = {
    '{"chroma:document": 5}': "its document is of the type integer",
    '{"chroma:document": null}': "its document is of the type null",
    '{"chroma:document": ["a"]}': "its document is of the type array",
    '{"a": NaN}': "its metadata is no JSON object",
    "[1]": "its metadata is no JSON object",
    '{"a": {"b": 1}}': "its metadata holds a value Chroma cannot parse (dict)",
    '{"a": [1, "b"]}': "its metadata holds a value Chroma cannot parse (list)",
}


@pytest.mark.parametrize("metadata", POISON)
def test_a_poisoned_write_is_told(metadata: str, copy: Path, known: Known) -> None:
    """A queued write that kills Chroma's one compactor (it parses all rows of a collection before it applies any)."""
    with Catalog(copy) as catalog:
        entry = next(e for e in catalog.entries if e.dimension)
    seq = 1_000_000
    change(
        copy,
        "INSERT INTO embeddings_queue (seq_id, operation, topic, id, vector, encoding, metadata) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        seq,
        0,
        entry.topic,
        "poisoned",
        bytes(4 * entry.dimension),
        "FLOAT32",
        metadata,
    )
    problems = [p for p in inspect(copy).problems if p.code == "queue"]
    assert [p.message for p in problems] == [f"queue row {seq} stops Chroma: {POISON[metadata]}"]
    assert problems[0].ids == ("poisoned",)


@pytest.mark.parametrize(
    ("operation", "vector", "encoding", "told"),
    [
        (9, 4, "FLOAT32", "unknown operation 9"),
        (0, 3, "FLOAT32", "not of 32-bit floats"),
        (0, 4, "INT32", "not of 32-bit floats"),
        (2, 4000, "FLOAT32", "not of the collection's dimension"),
    ],
)
def test_other_unreadable_writes_are_told(operation: int, vector: int, encoding: str, told: str, copy: Path) -> None:
    """Unknown operations and encodings panic Chroma; a vector of another length makes hnswlib read past its end."""
    with Catalog(copy) as catalog:
        entry = next(e for e in catalog.entries if e.dimension)
    change(
        copy,
        "INSERT INTO embeddings_queue (seq_id, operation, topic, id, vector, encoding) VALUES (?,?,?,?,?,?)",
        1_000_000,
        operation,
        entry.topic,
        "x",
        bytes(vector),
        encoding,
    )
    assert any(told in problem.message for problem in inspect(copy).problems)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # vectors that are none
def test_damaged_index_files_are_told_the_same_way(copy: Path) -> None:
    """Index files with random bytes changed, or rows of another index: ``inspect`` finds the same, spooled or not."""
    with Catalog(copy) as catalog:
        segment = max((copy / str(e.vector_segment) for e in catalog.entries), key=_elements)
    chance, told = random.Random(5), set[str]()
    for name in ("data_level0.bin", "index_metadata.pickle", "link_lists.bin", "length.bin"):
        data = (segment / name).read_bytes()
        for _ in range(15):
            damaged = bytearray(data)
            for _ in range(chance.choice([1, 5, 40])):
                damaged[chance.randrange(len(data))] = chance.choice([0, 1, 255, chance.randrange(256)])
            (segment / name).write_bytes(damaged)
            told |= {problem.message for problem in inspect(copy, quick_check=False).problems}
        (segment / name).write_bytes(data)
    assert len(told) > 10


def _inspect_spooled(directory: Path) -> None:
    with spooled():
        inspection.inspect(directory)


def _elements(segment: Path) -> int:
    path = segment / "data_level0.bin"
    return path.stat().st_size if path.exists() and (segment / "index_metadata.pickle").exists() else 0


def test_corrupt_pages_are_told(copy: Path) -> None:
    """A damaged page fails SQLite's check also where nothing else reads it: here that of an index."""
    with closing(sqlite3.connect(copy / "chroma.sqlite3")) as connection:
        [page] = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'embedding_metadata_int_value'"
        ).fetchone()
    with (copy / "chroma.sqlite3").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xab" * 4096)
    [problem] = inspect(copy).problems
    assert problem.code == "sqlite" and problem.message.startswith("quick_check: ")
    assert inspect(copy, quick_check=False).problems == ()


def test_damaged_bytes_are_never_a_traceback(copy: Path, known: Known) -> None:
    """Databases with random bytes changed, most of them near the schema: inspected, read and salvaged, or refused."""
    data, chance, refused = (copy / "chroma.sqlite3").read_bytes(), random.Random(4), 0
    collection = next(iter(known.collections))
    for _ in range(80):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 5, 40])):
            damaged[chance.randrange(chance.choice([len(data), 60 * 4096]))] = chance.choice(
                [0, 255, chance.randrange(256)]
            )
        (copy / "chroma.sqlite3").write_bytes(damaged)
        for look in (
            inspection.inspect,  # what is left of such a table depends on the way in which it is read
            _inspect_spooled,
            file_layouts,
            lambda path: salvage_all(path, collection),
            lambda path: list(read_collection(path, collection)),
        ):
            try:
                look(copy)
            except ChromakeepError:
                refused += 1
    assert refused > 20


def test_any_truncation_of_the_database_is_told(copy: Path) -> None:
    """Cut anywhere: problems, never a traceback."""
    size = (copy / "chroma.sqlite3").stat().st_size
    for part in range(20, 0, -1):
        os.truncate(copy / "chroma.sqlite3", size * part // 21 // 100 * 100)
        assert "sqlite" in codes(inspect(copy))


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE embeddings",
        "DROP TABLE embeddings; CREATE VIEW embeddings AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) "
        "SELECT i AS id, s.id AS segment_id, 'x' AS embedding_id FROM n, segments s",
        "UPDATE OR IGNORE segments SET id = '../../../etc' WHERE scope = 'VECTOR'",
        "UPDATE segments SET scope = 'NOTHING' WHERE scope = 'VECTOR'",
        "UPDATE OR IGNORE collections SET id = x'00ff'",
        "UPDATE collections SET dimension = 99999999999",
        "UPDATE collections SET dimension = 'many'",
        "UPDATE collections SET schema_str = '{'",
        'UPDATE collections SET schema_str = replace(schema_str, \'"space":"\', \'"space":"x\')',
        "UPDATE collections SET schema_str = replace(schema_str, '\"sync_threshold\":', '\"sync_threshold\":-')",
        "UPDATE max_seq_id SET seq_id = 'seven'",
        "UPDATE max_seq_id SET seq_id = 0.5",
        "UPDATE OR IGNORE embeddings SET embedding_id = CAST(x'ff' AS TEXT)",
        "UPDATE segments SET collection = 'nobody'",
    ],
)
def test_hostile_rows_are_told(statement: str, copy: Path) -> None:
    """Rows that make no sense or lead out of the directory: a problem, never a traceback nor an endless query."""
    with closing(sqlite3.connect(copy / "chroma.sqlite3")) as connection, connection:
        connection.executescript(statement)
    assert inspect(copy).problems
    check_structure(copy)


def test_directories_that_are_none_are_refused(tmp_path: Path) -> None:
    """Nothing there, a file, an empty directory, another database: one line with what to do."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    with closing(sqlite3.connect(tmp_path / "other" / "chroma.sqlite3")) as connection, connection:
        connection.execute("CREATE TABLE things (a)")
    for path in (tmp_path / "absent", tmp_path / "file", tmp_path, tmp_path / "other"):
        with pytest.raises(NotAChromaDirectory):
            inspect(path)
    for content in (b"", b"SQLite format 3\0", b"something else entirely"):
        (tmp_path / "chroma.sqlite3").write_bytes(content)
        try:
            assert codes(inspect(tmp_path)) == {"sqlite"}
        except ChromakeepError as refused:
            assert isinstance(refused, NotAChromaDirectory)


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_dead_writers_journal_is_respected(mode: str, copy: Path, known: Known, tmp_path: Path) -> None:
    """What a writer left uncommitted is not seen, what it committed is; the directory itself stays as it was."""
    with closing(sqlite3.connect(copy / "chroma.sqlite3", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("PRAGMA cache_size = 5")
        if mode == "WAL":
            connection.execute("UPDATE collections SET name = name || '-new'")
        connection.execute("BEGIN")
        connection.execute("UPDATE collections SET name = 'uncommitted-' || id")
        connection.execute("DELETE FROM embeddings")
        connection.execute("UPDATE embedding_metadata SET string_value = 'overwritten'")
        dead = Path(shutil.copytree(copy, tmp_path / "dead"))
    assert len(list(dead.glob("chroma.sqlite3-*"))) >= 1
    before = {p: p.read_bytes() for p in dead.rglob("*") if p.is_file()}
    found = inspect(dead)
    assert found.problems == ()
    suffix = "-new" if mode == "WAL" else ""
    assert {c.name for c in found.collections} == {got["name"] + suffix for got in known.collections.values()}
    assert {c.id: c.count for c in found.collections} == {i: len(got["ids"]) for i, got in known.collections.items()}
    assert {p: p.read_bytes() for p in dead.rglob("*") if p.is_file()} == before


def test_models_and_spaces_are_told(tmp_path: Path, copy: Path) -> None:
    """The embedding function and model a collection names are told as text, whatever they contain."""
    change(
        copy,
        """UPDATE collections SET schema_str = json_set(schema_str,
        '$.keys."#embedding".float_list.vector_index.config.embedding_function',
        json('{"type":"known","name":"sentence_transformer","config":{"model_name":"all-MiniLM-L6-v2\\n\\u001b[31m"}}'))""",
    )
    assert {c.model for c in inspect(copy).collections} == {"sentence_transformer:all-MiniLM-L6-v2[31m"}
