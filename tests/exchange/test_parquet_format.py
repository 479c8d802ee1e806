"""What a Parquet file of ours looks like to those who never heard of chromakeep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chromakeep.batches import batch, encode
from chromakeep.exchange.typed import MOST_KEYS, MOST_UNLISTED
from chromakeep.records import Definition
from chromakeep.testing.specimens import ordinary
from exchange.scenes import SAMPLE, at, cut, read, written

SCHEMA = """required group field_id=-1 schema {
  required binary field_id=-1 id (String);
  optional group field_id=-1 embedding (List) {
    repeated group field_id=-1 list {
      required float field_id=-1 element;
    }
  }
  optional binary field_id=-1 document (String);
  optional binary field_id=-1 uri (String);
  optional binary field_id=-1 metadata (JSON);
  optional double field_id=-1 m_half;
  optional binary field_id=-1 m_kind (String);
  optional int64 field_id=-1 m_n;
}"""


def with_metadata(*found: Any) -> pa.RecordBatch:
    """Records with this metadata."""
    nothing = [None] * len(found)
    vectors = np.ones((len(found), 3), np.float32)
    return batch([f"id {n}" for n in range(len(found))], vectors, nothing, nothing, [encode(each) for each in found], 3)


def columns_of(address: str) -> dict[str, list[Any]]:
    """The typed columns of a file."""
    table = pq.read_table(address)
    return {name: table.column(name).to_pylist() for name in table.column_names if name.startswith("m_")}


def footer_of(address: str) -> dict[str, Any]:
    """What its key-value metadata says of it."""
    found: dict[str, Any] = json.loads(pq.read_metadata(address).metadata[b"chromakeep"])
    return found


def test_the_schema_is_this(tmp_path: Path) -> None:
    """Byte for byte what other readers are told: a list that cannot hold nulls, JSON as such, one column per key."""
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [ordinary(20)])
    with pq.ParquetFile(address) as file:
        wanted = SCHEMA if hasattr(pa, "json_") else SCHEMA.replace("(JSON)", "(String)")
        assert str(file.schema).partition("\n")[2].strip() == wanted
        arrow = file.schema_arrow
        assert arrow.names == ["id", "embedding", "document", "uri", "metadata", "m_half", "m_kind", "m_n"]
        assert arrow.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 3)
        assert b"ARROW:schema" in file.metadata.metadata


def test_pyarrow_reads_it_without_us(tmp_path: Path) -> None:
    """Rows as anyone would write them down."""
    records = batch(
        ["a", "b"], np.array([[1, 2, 3], [4, 5, 6]], np.float32), ["x", None], [None, "u"], ['{"n":1}', None], 3
    )
    assert pq.read_table(written(at(tmp_path, "x.parquet"), SAMPLE, [records])).to_pylist() == [
        {"id": "a", "embedding": [1.0, 2.0, 3.0], "document": "x", "uri": None, "metadata": '{"n":1}', "m_n": 1},
        {"id": "b", "embedding": [4.0, 5.0, 6.0], "document": None, "uri": "u", "metadata": None, "m_n": None},
    ]


def test_how_columns_are_encoded(tmp_path: Path) -> None:
    """No dictionary for what hardly repeats, none of the statistics that only cost, checksums on; vectors plain."""
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [ordinary(200)])
    group = pq.read_metadata(address).row_group(0)
    found = {(each := group.column(n)).path_in_schema: each for n in range(group.num_columns)}
    assert {path for path, each in found.items() if each.has_dictionary_page} == {"m_kind"}
    assert found["embedding.list.element"].compression == "UNCOMPRESSED"
    assert {each.compression for path, each in found.items() if path != "embedding.list.element"} == {"ZSTD"}
    assert {path for path, each in found.items() if each.is_stats_set} == {"id", "m_half", "m_kind", "m_n"}
    compact = written(at(tmp_path, "y.parquet"), SAMPLE, [ordinary(200)], compact=True)
    vectors = pq.read_metadata(compact).row_group(0).column(1)
    assert vectors.compression == "ZSTD" and "BYTE_STREAM_SPLIT" in vectors.encodings


def test_a_damaged_page_is_told_of(tmp_path: Path) -> None:
    """Every page has a checksum: a single bit of a vector that changed is found."""
    address = Path(written(at(tmp_path, "x.parquet"), SAMPLE, [ordinary(20)]))
    data = bytearray(address.read_bytes())
    at_vector = data.index(ordinary(1).column("embedding").flatten().to_numpy().tobytes())
    data[at_vector] ^= 1
    address.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(address, page_checksum_verification=True)


def test_row_groups_are_bounded_by_bytes(tmp_path: Path) -> None:
    """At most 32 MiB each, however they come."""
    vectors = np.zeros((12_000, 2048), np.float32)
    nothing = [None] * len(vectors)
    records = batch([str(n) for n in range(len(vectors))], vectors, nothing, nothing, nothing, 2048)
    for size in (500, len(vectors)):
        address = written(
            at(tmp_path, "x.parquet"), Definition("x", dimension=2048), cut(records, size), conflict="replace"
        )
        found = pq.read_metadata(address)
        sizes = [found.row_group(n).total_byte_size for n in range(found.num_row_groups)]
        assert found.num_row_groups in (3, 4) and max(sizes) < 33 << 20


def test_the_footer_tells_of_the_collection(tmp_path: Path) -> None:
    """All that makes it, in JSON that needs no chromakeep to be read."""
    definition = Definition("books", "1f2e", "acme", "prod", 3, {"topic": 1}, {"hnsw": {"space": "ip"}}, {"keys": {}})
    address = written(at(tmp_path, "x.parquet"), definition, [ordinary(20)])
    assert footer_of(address) == {
        "version": 1,
        "definition": {
            "name": "books",
            "id": "1f2e",
            "tenant": "acme",
            "database": "prod",
            "dimension": 3,
            "metadata": {"topic": 1},
            "configuration": {"hnsw": {"space": "ip"}},
            "schema": {"keys": {}},
            "count": None,
        },
        "count": 20,
        "unlisted": [],
    }


# -- typed columns ----------------------------------------------------------------------------------------------------


def test_each_kind_has_its_column(tmp_path: Path) -> None:
    """Integers, floats, truth, text, and lists of each; null where a record has none."""
    address = written(
        at(tmp_path, "x.parquet"),
        SAMPLE,
        [
            with_metadata(
                {"i": 1, "f": 0.5, "b": True, "s": "x", "li": [1, 2], "lf": [1.5], "lb": [False], "ls": ["a", "b"]},
                None,
                {},
                {"i": -(1 << 63), "f": -0.0, "b": False, "s": "", "li": [0], "lf": [5e-324], "lb": [True], "ls": [""]},
            )
        ],
    )
    schema = pq.read_schema(address)
    assert {name[2:]: str(schema.field(name).type) for name in schema.names if name.startswith("m_")} == {
        "b": "bool",
        "f": "double",
        "i": "int64",
        "lb": "list<element: bool>",
        "lf": "list<element: double>",
        "li": "list<element: int64>",
        "ls": "list<element: string>",
        "s": "string",
    }
    found = columns_of(address)
    assert found["m_i"] == [1, None, None, -(1 << 63)] and found["m_ls"] == [["a", "b"], None, None, [""]]
    assert str(found["m_f"]) == "[0.5, None, None, -0.0]" and found["m_lb"] == [[False], None, None, [True]]
    assert footer_of(address)["unlisted"] == []


def test_kinds_that_differ(tmp_path: Path) -> None:
    """The most frequent kind has the column, integers are floats among floats where that is exact; what does not fit is
    null there, and its key is unlisted. The JSON has all of it."""
    metadata = [
        {"mixed": 1, "number": 1, "real": 1.5, "numbers": [1, 2]},
        {"mixed": 2, "number": 2.5, "real": 2.5, "numbers": [0.5]},
        {"mixed": "x", "number": (1 << 53) + 1, "real": 3.5, "numbers": [(1 << 53) + 1]},
        {"mixed": True, "number": "1", "real": 4.5, "numbers": ["x"]},
    ]
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [with_metadata(*metadata)])
    assert columns_of(address) == {
        "m_mixed": [1, 2, None, None],
        "m_number": [1.0, 2.5, None, None],
        "m_numbers": [[1.0, 2.0], [0.5], None, None],
        "m_real": [1.5, 2.5, 3.5, 4.5],
    }
    assert footer_of(address)["unlisted"] == ["mixed", "number", "numbers"]
    assert [json.loads(text) for text in read(address)[1][0].column("metadata").to_pylist()] == metadata


def test_kinds_are_decided_by_the_first_row_group(tmp_path: Path) -> None:
    """Which a mark ends too: keys and kinds that come later have no column, and are unlisted."""
    from chromakeep.exchange.open import sink_of

    address = at(tmp_path, "x.parquet")
    sink = sink_of(address)
    intake = sink.collection(SAMPLE)
    intake.mark()  # of nothing: decides nothing
    intake.write(with_metadata({"a": 1}))
    intake.mark()
    intake.write(with_metadata({"a": 1}, {"a": "text", "late": 1}).slice(1))
    intake.finish()
    sink.publish()
    sink.close()
    assert columns_of(address) == {"m_a": [1, None]}
    assert footer_of(address)["unlisted"] == ["a", "late"]


def test_keys_that_can_be_no_column_name(tmp_path: Path) -> None:
    """Control characters and very long names stay in the JSON; dots, slashes and forms of one letter are names."""
    strange = {
        "a.b": 1,
        "a/b": 2,
        "caf\u00e9": 3,
        "cafe\u0301": 4,
        "A": 5,
        "a": 6,
        " ": 7,
        "id": 8,
        "list.element": "x",
    }
    hidden = {"nul\0": 1, "line\n": 1, "": 1, "x" * 201: 1}
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [with_metadata(strange | hidden)])
    assert columns_of(address) == {f"m_{key}": [value] for key, value in strange.items()}
    assert footer_of(address)["unlisted"] == sorted(hidden)


def test_many_keys(tmp_path: Path) -> None:
    """The 128 most frequent ones have columns; of the others a bounded number is named."""
    metadata = [{"common": n, "often": n, f"rare {n:05}": n} for n in range(3000)]
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [with_metadata(*metadata)])
    found = pq.read_schema(address).names[5:]
    assert len(found) == MOST_KEYS and {"m_common", "m_often"} < set(found)
    assert len(footer_of(address)["unlisted"]) == MOST_UNLISTED


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb", "datasets"])
def test_other_libraries_read_it(library: str, tmp_path: Path) -> None:
    """Where they are installed; what they go by is in the tests above."""
    module = pytest.importorskip(library)
    address = written(at(tmp_path, "x.parquet"), SAMPLE, [ordinary(20)])
    if library == "duckdb":
        found = module.sql(f"SELECT id, m_n, metadata->>'kind' FROM '{address}' ORDER BY id LIMIT 1").fetchall()
        assert found == [("id-000000", 0, "kind 0")]
    elif library == "datasets":
        assert module.Dataset.from_parquet(address, cache_dir=str(tmp_path))[3]["m_n"] == 3
    else:
        assert list(module.read_parquet(address)["m_n"])[:3] == [0, 1, 2]
