"""Parquet that others wrote: whatever has an exact counterpart is read, the rest is an error of one line."""

from __future__ import annotations

from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chromakeep.batches import schema, vectors_of
from chromakeep.errors import ChromakeepError, SourceError, UnsupportedFormat, UsageError
from chromakeep.events import Event, Noted
from chromakeep.exchange import reading
from chromakeep.exchange.exact import exact, texts
from chromakeep.exchange.open import source_of
from chromakeep.exchange.parquet import ParquetFileSource
from chromakeep.exchange.reading import OLD_ARROW, Part
from chromakeep.testing.specimens import ordinary
from exchange.scenes import SAMPLE, at, read, written

IDS = ["a", "b", "c"]
VECTORS = [[1.0, 2.0], [0.5, -0.25], [3.0, 4.0]]


def foreign(folder: Path, **columns: Any) -> str:
    """A file with these columns; a list of vectors is one of lists of float32."""
    arrays = {
        name: value if isinstance(value, (pa.Array, pa.ChunkedArray)) else pa.array(value)
        for name, value in columns.items()
    }
    pq.write_table(pa.table(arrays), folder / "books.parquet")
    return at(folder, "books.parquet")


def refused(address: str) -> ChromakeepError:
    """The one line that reading it ends with."""
    with pytest.raises((SourceError, UsageError, UnsupportedFormat)) as raised:
        read(address)
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 400
    return raised.value


def test_two_columns_are_enough(tmp_path: Path) -> None:
    """The name is the file's, the dimension that of the data, everything else is null."""
    definition, (found,) = read(foreign(tmp_path, id=IDS, embedding=pa.array(VECTORS, pa.list_(pa.float32()))))
    assert (definition.name, definition.dimension, definition.count) == ("books", 2, 3)
    assert found.schema == schema(2)
    assert found.to_pylist() == [
        {"id": id_, "embedding": vector, "document": None, "uri": None, "metadata": None}
        for id_, vector in zip(IDS, VECTORS, strict=True)
    ]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    """Once, with what to do; of a file of ours none is: its other columns are made of the metadata."""
    noted: list[Event] = []
    more = {"source": ["x"] * 3, "title": ["y"] * 3, "part": [1, 2, 3]}
    address = foreign(tmp_path, id=IDS, embedding=VECTORS, document=IDS, **more)
    with closing(source_of(address, observer=noted.append)) as source:
        (definition,) = source.definitions()
        assert sum(len(some) for some, _ in source.batches(definition)) == 3
        source.definitions()
    (note,) = noted
    assert isinstance(note, Noted) and note.level == "warning"
    assert "3 columns are not read: source, title, part; " in note.message and "metadata" in note.message
    for columns, told in (
        ({}, []),
        ({"title": IDS}, ["1 column is not read: title; "]),
        ({f"c{n}": IDS for n in range(300)}, ["300 columns are not read: c0, ", "c19, ...; "]),
    ):
        noted.clear()
        with closing(source_of(foreign(tmp_path, id=IDS, embedding=VECTORS, **columns), observer=noted.append)) as one:
            one.definitions()
        assert all(words in note.message for words in told for note in noted if isinstance(note, Noted))
        assert len(noted) == bool(told)
    noted.clear()
    with closing(source_of(written(at(tmp_path, "ours.parquet"), SAMPLE, [ordinary(3)]), observer=noted.append)) as one:
        one.definitions()
    assert not noted


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), 2),
        pa.large_list(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float64(), 2),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
@pytest.mark.parametrize("bare", [False, True])
def test_vectors_of_any_list_of_numbers(kind: pa.DataType, bare: bool, tmp_path: Path) -> None:
    """Lists of fixed and other sizes, of floats that are exactly float32; records without a vector too."""
    if bare and OLD_ARROW and pa.types.is_fixed_size_list(kind):
        pytest.skip("this Arrow writes no such file")
    vectors: list[Any] = [VECTORS[0], None, VECTORS[2]] if bare else VECTORS
    as_type = pa.array([None if row is None else np.array(row, "f2") for row in vectors], pa.list_(pa.float16()))
    column = as_type if kind == pa.list_(pa.float16()) else pa.array(vectors, kind)
    _, (found,) = read(foreign(tmp_path, id=IDS, embedding=column))
    assert found.schema == schema(2)
    assert found.column("embedding").to_pylist() == vectors


def test_an_old_arrow_reads_words_and_lists_that_are_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a null among lists of fixed size for damage, whatever stands beside them: they are read as others are,
    and what the file holds as a dictionary stays one."""
    monkeypatch.setattr(reading, "OLD_ARROW", True)
    address = foreign(tmp_path, id=IDS, embedding=pa.array(VECTORS, pa.list_(pa.float32(), 2)))
    assert read(address)[1][0].column("embedding").to_pylist() == VECTORS
    with closing(Part(tmp_path / "books.parquet")) as part:
        (batch,) = part._read(0, ["id", "embedding"])
    assert pa.types.is_dictionary(batch.column("id").type) and pa.types.is_list(batch.column("embedding").type)


def test_integers_are_vectors_where_they_are_exact(tmp_path: Path) -> None:
    """Up to 2**24, beyond which two of them may be one float32."""
    _, (found,) = read(foreign(tmp_path, id=["a"], embedding=[[1, 1 << 24]]))
    assert found.column("embedding").to_pylist() == [[1.0, 16777216.0]]
    assert "'a'" in str(refused(foreign(tmp_path, id=["a"], embedding=[[1, (1 << 24) + 1]])))


def test_float64_that_is_no_float32(tmp_path: Path) -> None:
    """It names the record; nothing is rounded on the quiet."""
    error = refused(foreign(tmp_path, id=IDS, embedding=[[1.0, 2.0], None, [0.1, 1.0]]))
    assert isinstance(error, SourceError) and "'c'" in str(error) and error.hint
    assert "'b'" in str(refused(foreign(tmp_path, id=IDS, embedding=[[1.0], [1e300], [2.0]])))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()], ids=str)
def test_text_of_any_type(kind: pa.DataType, tmp_path: Path) -> None:
    """Large, dictionary-encoded, or binary that is UTF-8."""

    def column(*values: str | None) -> pa.Array:
        plain = pa.array(values, pa.string())
        return plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)

    address = foreign(
        tmp_path,
        id=column("ä", "b", "c"),
        embedding=pa.array(VECTORS, pa.list_(pa.float32())),
        document=column("x", None, "x"),
        uri=column(None, "", "u"),
        metadata=column('{"b": 1, "a": 1.0}', None, "{}"),
    )
    _, (found,) = read(address)
    assert found.schema == schema(2)
    assert found.column("id").to_pylist() == ["ä", "b", "c"]
    assert found.column("document").to_pylist() == ["x", None, "x"]
    assert found.column("uri").to_pylist() == [None, "", "u"]
    assert found.column("metadata").to_pylist() == ['{"a":1.0,"b":1}', None, "{}"]


def test_metadata_as_a_struct(tmp_path: Path) -> None:
    """As pandas writes dictionaries: a null is a key that is not there."""
    rows = [{"n": 1, "s": "x", "l": [1.5]}, {"n": None, "s": "", "l": None}, None]
    _, (found,) = read(foreign(tmp_path, id=IDS, embedding=VECTORS, metadata=rows))
    assert found.column("metadata").to_pylist() == ['{"l":[1.5],"n":1,"s":"x"}', '{"s":""}', None]


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "x",
        "[]",
        "1",
        '{"a":null}',
        '{"a":{}}',
        '{"a":[]}',
        '{"a":[1,2.5]}',
        '{"a":1e999}',
        '{"a":9223372036854775808}',
        '{"a":' + "[" * 100_000,
        '{"a":"\\ud800"}',
        '{"a":[1,18446744073709551616]}',
        '{"a":1}{"b":2}',
    ],
)
def test_metadata_that_chroma_could_not_hold(metadata: str, tmp_path: Path) -> None:
    """It names the record."""
    vectors = pa.array(VECTORS, pa.list_(pa.float32()))
    error = refused(foreign(tmp_path, id=IDS, embedding=vectors, metadata=["{}", metadata, None]))
    assert isinstance(error, SourceError) and "'b'" in str(error)


@pytest.mark.parametrize(
    "value",
    [date(2020, 1, 1), b"x", {"b": 1}, float("nan"), [{"b": 1}], [date(2020, 1, 1)], [float("inf")], [None]],
    ids=str,
)
def test_structs_of_what_metadata_cannot_be(value: Any, tmp_path: Path) -> None:
    """Dates, bytes, nested structs: nothing is turned into text that was none."""
    assert "'a'" in str(refused(foreign(tmp_path, id=["a"], embedding=[[1.0]], metadata=[{"a": value}])))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"embedding": VECTORS}, "no columns 'id'"),
        ({"id": IDS}, "no columns 'embedding'"),
        ({"id": [1, 2, 3], "embedding": VECTORS}, "int64"),
        ({"id": ["a", None, "c"], "embedding": VECTORS}, "row 2 has no id"),
        ({"id": ["a", "b", ""], "embedding": VECTORS}, "row 3 has no id"),
        ({"id": IDS, "embedding": [[1.0, 2.0], [1.0], [1.0, 2.0]]}, "'b' has 1 dimensions"),
        ({"id": IDS, "embedding": [[1.0, 2.0], [], [1.0, 2.0]]}, "'b' has 0 dimensions"),
        ({"id": IDS, "embedding": [[], [], []]}, "0 dimensions"),
        ({"id": IDS, "embedding": [[1.0, 2.0], [None, 1.0], None]}, "'b' has a vector with a null"),
        ({"id": IDS, "embedding": [None, [1.0, float("nan")], [1.0, 2.0]]}, "'b' has a vector with NaN"),
        ({"id": IDS, "embedding": [[1.0], [2.0], [float("-inf")]]}, "'c' has a vector with NaN"),
        ({"id": IDS, "embedding": [["x"], ["y"], ["z"]]}, "string"),
        ({"id": IDS, "embedding": [1.0, 2.0, 3.0]}, "double"),
        ({"id": IDS, "embedding": [b"1234"] * 3}, "binary"),
        ({"id": IDS, "embedding": VECTORS, "document": [1, 2, 3]}, "document"),
        ({"id": IDS, "embedding": VECTORS, "uri": [[""], [""], [""]]}, "uri"),
        ({"id": IDS, "embedding": VECTORS, "metadata": [1, 2, 3]}, "metadata"),
        ({"id": [b"a", b"\xff", b"c"], "embedding": VECTORS}, "no text"),
        ({"id": IDS, "embedding": [[0.0] * 65_537] * 3}, "65537 dimensions"),
    ],
)
def test_what_has_no_counterpart(columns: dict[str, Any], told: str, tmp_path: Path) -> None:
    """An error that says which record, or which column."""
    assert told in str(refused(foreign(tmp_path, **columns)))


def test_numbers_of_rows_count_through_the_file(tmp_path: Path) -> None:
    """Over batches and row groups."""
    ids = [f"id {n}" for n in range(9000)]
    ids[8765] = ""
    table = pa.table({"id": ids, "embedding": pa.array([[1.0]] * 9000, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=5000)
    assert "row 8766 has no id" in str(refused(at(tmp_path, "x.parquet")))


def test_an_id_that_comes_twice(tmp_path: Path) -> None:
    """Is told with both its rows, before anything is read: Chroma would keep one of the two."""
    ids = [f"id-{n}" for n in range(9000)]
    ids[8765] = ids[4321]
    table = pa.table({"id": ids, "embedding": pa.array([[1.0]] * len(ids), pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=5000)
    assert "row 8766 has the id 'id-4321', which is in row 4322" in str(refused(at(tmp_path, "x.parquet")))


def test_other_columns_are_not_looked_at(tmp_path: Path) -> None:
    """Whatever is in them, and also where their names begin like ours."""
    vectors = pa.array(VECTORS, pa.list_(pa.float32()))
    address = foreign(
        tmp_path,
        **{"metadata.year": [1, 2, 3], "id": IDS, "m_x": [{"a": 1}] * 3, "embedding": vectors, "ID": [1, 2, 3]},
    )
    _, (found,) = read(address)
    assert found.schema == schema(2) and found.column("id").to_pylist() == IDS


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    """Which one is meant cannot be known."""
    table = pa.table([pa.array(IDS), pa.array(IDS), pa.array(VECTORS)], names=["id", "id", "embedding"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert "2 columns 'id'" in str(refused(at(tmp_path, "x.parquet")))


def test_a_sliced_batch_is_read_by_its_own_rows() -> None:
    """Offsets into buffers that are shared with other rows are heeded, for every sort of list."""
    rows: list[Any] = [[9.0, 9.0], [1.0, 2.0], None, [3.0, 4.0]]
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float32()), pa.large_list(pa.float64())):
        records = pa.record_batch({"id": ["z", "a", "b", "c"], "embedding": pa.array(rows, kind)}).slice(1, 3)
        found = exact(records, 2, "here", 1)
        found.validate(full=True)
        assert found.column("embedding").to_pylist() == rows[1:]
        vectors, present = vectors_of(found)
        assert vectors[present].tolist() == [[1.0, 2.0], [3.0, 4.0]] and present.tolist() == [True, False, True]


def test_a_dictionary_does_not_unfold_beyond_bounds() -> None:
    """A few bytes that stand for gigabytes."""
    word = pa.array(["x" * (1 << 20)])
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int8)), word)
    with pytest.raises(SourceError, match="unfold"):
        texts(many, "here")


def test_a_footer_of_a_newer_version(tmp_path: Path) -> None:
    """It says what to do."""
    table = pa.table({"id": IDS, "embedding": VECTORS})
    for footer, kind in (
        ('{"version":2,"more":1}', UnsupportedFormat),
        ('{"version":1}', SourceError),
        ("x", SourceError),
        ('{"version":1,"definition":{"name":""},"count":3}', SourceError),
        ('{"version":1,"definition":{"name":"x","dimension":0},"count":3}', SourceError),
        ('{"version":1,"definition":{"name":"x"},"count":4}', SourceError),
    ):
        pq.write_table(table.replace_schema_metadata({"chromakeep": footer}), tmp_path / "x.parquet")
        assert isinstance(refused(at(tmp_path, "x.parquet")), kind)


def test_a_footer_with_another_dimension(tmp_path: Path) -> None:
    """What it says and what is there must be one."""
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [])
    columns = {"id": IDS, "embedding": pa.array(VECTORS, pa.list_(pa.float32(), 2))}
    table = pa.table({**columns, **{name: pa.nulls(3, pa.string()) for name in ("document", "uri", "metadata")}})
    footer = pq.read_metadata(address).metadata[b"chromakeep"].replace(b'"count":0', b'"count":3')
    pq.write_table(table.replace_schema_metadata({b"chromakeep": footer}), address)
    assert "says 3 dimensions, and has 2" in str(refused(address))


def test_a_file_of_ours_that_was_changed(tmp_path: Path) -> None:
    """By another program: it is a foreign one, unless that kept our footer, which then does not fit."""
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [ordinary(20)])
    with pq.ParquetFile(address) as file:
        table = file.read()
    assert b"chromakeep" in table.schema.metadata
    pq.write_table(table.slice(0, 5), address)
    assert "changed by another program" in str(refused(address))
    pq.write_table(table.drop_columns(["uri"]), address)
    assert "changed by another program" in str(refused(address))
    pq.write_table(table.slice(0, 5).replace_schema_metadata(None), address)
    definition, (found,) = read(address)
    assert (definition.name, len(found)) == ("x", 5)
    assert found.column("metadata").to_pylist() == ordinary(5).column("metadata").to_pylist()


def test_another_collection_is_asked_for(tmp_path: Path) -> None:
    """Not the one that is there."""
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [])
    with pytest.raises(UsageError, match="no collection"):
        source_of(address).batches(SAMPLE.__class__("other"))


@pytest.mark.parametrize("how", ["words", "beginnings", "vectors", "metadata"])
def test_what_unfolds_is_read_in_portions(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few kilobytes in which one long value comes two thousand times."""
    monkeypatch.setattr("chromakeep.exchange.reading.BATCH_BYTES", 1 << 20)
    monkeypatch.setattr("chromakeep.exchange.reading.FOLDED_BYTES", 1 << 20)
    count, long, plain = 2000, "x" * 100_000, [[1.0]] * 2000
    columns: dict[str, Any] = {
        "id": [f"i{n}" for n in range(count)],
        "embedding": pa.array([[0.5] * 4096] * count if how == "vectors" else plain, pa.list_(pa.float32())),
        "document": pa.array([None if how in ("vectors", "metadata") else long] * count, pa.string()),
    }
    if how == "metadata":
        columns["metadata"] = pa.array([{"k": long}] * count)
    coding: dict[str, Any] = {"use_dictionary": True}
    if how == "beginnings":
        coding = {"use_dictionary": False, "column_encoding": {"document": "DELTA_BYTE_ARRAY"}}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", dictionary_pagesize_limit=1 << 30, **coding)
    assert path.stat().st_size < 200_000
    with closing(ParquetFileSource(path)) as source:
        (definition,) = source.definitions()
        found = 0
        for records, mark in source.batches(definition):
            assert records.nbytes < 3 << 20
            assert mark == ([0, 0, found + len(records)] if found + len(records) < count else [0, 1, 0])
            found += len(records)
    assert found == count


def test_a_vector_longer_than_any_is_not_read(tmp_path: Path) -> None:
    """By what the file says of itself: an empty one and a large one, which takes no room in it."""
    path = tmp_path / "x.parquet"
    vectors = pa.ListArray.from_arrays(pa.array([0, 0, 200_000], pa.int32()), pa.array(np.zeros(200_000, np.float32)))
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": vectors}), path)
    with closing(ParquetFileSource(path)) as source, pytest.raises(SourceError, match="cannot have 100000 dimensions"):
        source.definitions()
