"""Whatever a collection holds comes back out of every kind of file, to the last bit and in its order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.batches import batch, encode, schema, vectors_of
from chromakeep.exchange import jsonl, reading
from chromakeep.records import Definition
from chromakeep.testing.specimens import digest_of, ordinary
from exchange.scenes import KINDS, SAMPLE, at, cut, read, written

often = settings(deadline=None, max_examples=30)
quick = settings(deadline=None, max_examples=15)

STRANGE = [
    "\0",
    "\0\0",
    "é",
    "e\u0301",
    "🙂",
    "\U0010ffff",
    "a.b",
    "a/b",
    " ",
    "\n",
    "\r\n",
    '"',
    "\\",
    "null",
    "{",
    "\ufeff",
]
TEXT = st.one_of(st.sampled_from(STRANGE), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
WHOLE = st.one_of(st.sampled_from([0, 1, -1, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63)]), st.integers(-99, 99))
REAL = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1e300, 5e-324, 0.1, 1e16, 1.7976931348623157e308]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS: tuple[st.SearchStrategy[Any], ...] = (TEXT, WHOLE, REAL, st.booleans())
VALUE = st.one_of(*SCALARS, *[st.lists(kind, min_size=1, max_size=3) for kind in SCALARS])
METADATA = st.one_of(st.none(), st.dictionaries(TEXT, VALUE, max_size=5))
FLOAT32 = st.integers(0, (1 << 32) - 1).map(lambda bits: bits & ~0x40000000 if bits >> 23 & 255 == 255 else bits)

Row = tuple[list[int] | None, str | None, str | None, Any]


def rows(dimension: int | None, *, bare: bool = True) -> st.SearchStrategy[dict[str, Row]]:
    """Records by id; a vector is the bits of its components."""
    vector: st.SearchStrategy[list[int] | None] = st.none()
    if dimension is not None:
        vector = st.lists(FLOAT32, min_size=dimension, max_size=dimension)
        vector = st.one_of(vector, st.none()) if bare else vector
    row = st.tuples(vector, st.one_of(st.none(), TEXT), st.one_of(st.none(), TEXT), METADATA)
    return st.dictionaries(TEXT.filter(bool), row, max_size=12)


def made(found: dict[str, Row], dimension: int | None) -> pa.RecordBatch:
    """These records as one batch."""
    vectors = [None if row[0] is None else np.array(row[0], np.uint32).view(np.float32) for row in found.values()]
    documents, uris, metadata = ([row[n] for row in found.values()] for n in (1, 2, 3))
    return batch(list(found), vectors, documents, uris, [encode(each) for each in metadata], dimension)  # type: ignore[arg-type]


def assert_equal(wanted: pa.RecordBatch, found: Sequence[pa.RecordBatch]) -> None:
    """Column by column, in order; vectors by their bits, metadata by its text."""
    table = pa.Table.from_batches(found, wanted.schema)
    for name in ("id", "document", "uri", "metadata"):
        assert table.column(name).to_pylist() == wanted.column(name).to_pylist()
    (one,) = table.combine_chunks().to_batches() or [wanted.slice(0, 0)]
    (had, there), (has, here) = vectors_of(wanted), vectors_of(one)
    assert there.tolist() == here.tolist()
    had, has = np.ascontiguousarray(had), np.ascontiguousarray(has)
    assert had[there].view(np.uint32).tolist() == has[here].view(np.uint32).tolist()
    assert digest_of(found) == digest_of([wanted])


@contextmanager
def folder() -> Iterator[Path]:
    """In memory where there is such a place: hypothesis makes hundreds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("kind", KINDS)
@often
@given(st.data())
def test_records_come_back_as_they_were(kind: str, data: st.DataObject) -> None:
    """Any id, any float32, null and empty text apart, every kind of metadata with its kind; cut in any way."""
    dimension = data.draw(st.sampled_from([1, 2, 3, 5]))
    wanted = made(data.draw(rows(dimension)), dimension)
    size = data.draw(st.integers(1, 13))
    options = {"compact": data.draw(st.booleans())} if "parquet" in kind else {}
    if "jsonl" in kind:
        options = {"vectors": data.draw(st.sampled_from(["base64", "decimal"]))}
    with folder() as place:
        definition, found = read(
            written(at(place, kind), Definition("any name", dimension=dimension), cut(wanted, size), **options)
        )
    assert definition.dimension == dimension and definition.count == len(wanted)
    assert_equal(wanted, found)


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(rows(None))
def test_records_without_any_vector(kind: str, found: dict[str, Row]) -> None:
    """A collection of no dimension, with records or without, comes back without one."""
    wanted = made(found, None)
    with folder() as place:
        definition, batches = read(written(at(place, kind), Definition("none"), cut(wanted, 5)))
    assert definition.dimension is None and definition.count == len(wanted)
    assert_equal(wanted, batches)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [1, 2, 17, 768, 4096])
def test_vectors_of_any_dimension_and_any_bits(kind: str, dimension: int, tmp_path: Path) -> None:
    """Of 1 to 4096 dimensions: minus zero, subnormals and all other finite float32."""
    bits = np.random.default_rng(dimension).integers(0, 1 << 32, (50, dimension), np.uint32)
    bits[bits >> 23 & 255 == 255] &= ~np.uint32(0x40000000)
    bits[0], bits[1] = 0x80000000, 1
    nothing = [None] * 50
    wanted = batch([f"id {n}" for n in range(50)], bits.view(np.float32), nothing, nothing, nothing, dimension)
    for vectors in ("base64", "decimal") if "jsonl" in kind else ("",):
        options = {"vectors": vectors} if vectors else {}
        address = written(
            at(tmp_path, kind), Definition("x", dimension=dimension), [wanted], conflict="replace", **options
        )
        assert_equal(wanted, read(address)[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [None, 3])
def test_no_records_at_all(kind: str, dimension: int | None, tmp_path: Path) -> None:
    """A collection that was emptied keeps its dimension, one that never had a record has none."""
    given_ = Definition(
        "empty",
        "0f0e0d0c-1111-2222-3333-444455556666",
        "t",
        "d",
        dimension,
        {"a": 1, "b": 1.0},
        {"hnsw": {}},
        {"keys": {}},
    )
    definition, batches = read(written(at(tmp_path, kind), given_))
    assert not batches
    assert (definition.name, definition.id, definition.place) == (given_.name, given_.id, given_.place)
    assert (definition.dimension, definition.count) == (dimension, 0)
    assert repr(definition.metadata) == repr(given_.metadata)
    assert (definition.configuration, definition.schema) == (given_.configuration, given_.schema)


@pytest.mark.parametrize("kind", KINDS)
def test_a_collection_whose_definition_came_before_its_first_record(kind: str, tmp_path: Path) -> None:
    """No dimension was known when it was begun: the reader finds it in the data."""
    three = ordinary(30)
    flat = pa.list_(pa.field("item", pa.float32(), nullable=False))
    columns = [three.column("id"), three.column("embedding").cast(flat), *three.columns[2:]]
    definition, batches = read(
        written(at(tmp_path, kind), Definition("early"), [pa.RecordBatch.from_arrays(columns, schema=schema(None))])
    )
    assert definition.dimension == 3
    assert_equal(three, batches)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_copied_into_any_other_kind_is_the_same(kind: str, tmp_path: Path) -> None:
    """Batches as they come from one kind are taken by every other."""
    wanted = ordinary(2100, 7)
    for n, other in enumerate(KINDS):
        (tmp_path / f"{n}").mkdir()
        address = written(at(tmp_path / f"{n}", kind), Definition("x", dimension=7), cut(wanted, 777))
        definition, batches = read(address)
        copied = written(at(tmp_path / f"{n}", f"copy-{other}"), definition, batches)
        assert_equal(wanted, read(copied)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_bounded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has at most 2048 records, and fewer where they are long: of 64 MiB of Parquet, 32 MiB of lines; here of
    one."""
    _, batches = read(written(at(tmp_path, f"many-{kind}"), SAMPLE, [ordinary(2500)]))
    assert [len(found) for found in batches] == [2048, 452]
    monkeypatch.setattr(reading, "BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 1 << 20)
    text = [str(n) * 20_000 for n in range(100, 200)]
    wanted = batch(text, np.ones((100, 3), np.float32), text, [None] * 100, [None] * 100, 3)
    _, batches = read(written(at(tmp_path, kind), SAMPLE, cut(wanted, 50)))
    assert len(batches) > 5 and max(found.nbytes for found in batches) < 2 << 20
    assert_equal(wanted, batches)
