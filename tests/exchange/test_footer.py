"""Footers taken apart and put together: a file written in many goes is one that any reader reads."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.exchange import footer, thrift
from chromakeep.exchange.open import sink_of
from chromakeep.exchange.thrift import Field, List
from chromakeep.testing.specimens import assert_same, gathered, ordinary, records_of
from exchange.scenes import SAMPLE, at, cut, read

NUMBER = st.integers(-(1 << 63), (1 << 63) - 1)
LEAF = st.one_of(
    st.tuples(st.sampled_from([thrift.I32, thrift.I64]), NUMBER),
    st.tuples(st.just(thrift.BINARY), st.binary(max_size=200)),
    st.tuples(st.just(thrift.DOUBLE), st.binary(min_size=8, max_size=8)),
    st.tuples(st.just(thrift.BYTE), st.binary(min_size=1, max_size=1)),
    st.tuples(st.sampled_from([thrift.TRUE, thrift.FALSE]), st.none()),
)


def fields(values: st.SearchStrategy[tuple[int, object]]) -> st.SearchStrategy[list[Field]]:
    """Structs, the numbers of whose fields grow."""
    return st.dictionaries(st.integers(1, 300), values, max_size=6).map(
        lambda found: [Field(id_, *found[id_]) for id_ in sorted(found)]
    )


STRUCT = st.recursive(
    fields(LEAF),
    lambda inner: fields(
        st.one_of(
            LEAF,
            st.tuples(st.just(thrift.STRUCT), inner),
            st.tuples(st.just(thrift.LIST), st.lists(inner, max_size=20).map(lambda v: List(thrift.STRUCT, v))),
            st.tuples(st.just(thrift.LIST), st.lists(NUMBER, max_size=20).map(lambda v: List(thrift.I64, v))),
            st.tuples(
                st.just(thrift.LIST), st.lists(st.sampled_from([1, 2]), max_size=20).map(lambda v: List(thrift.TRUE, v))
            ),
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(STRUCT)
def test_a_struct_is_read_as_it_was_written(struct: list[Field]) -> None:
    """Of any shape."""
    assert thrift.load(thrift.dump(struct)) == struct


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_struct(data: bytes) -> None:
    """A ValueError, or a struct: nothing else, and soon."""
    with suppress(ValueError):
        thrift.load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x18\xff\xff\xff\xff\x0f",  # a text of 4 GiB
        b"\x19\xf3\xff\xff\xff\xff\xff\xff\x7f",  # a list of more bytes than there are
        b"\x19\xf9" + b"\xff" * 100_000,  # a number without an end
        b"\x1c" * 100_000,  # structs in structs
        b"\x1b\x00",  # a map
    ],
    ids=range(6),
)
def test_bytes_that_pretend_to_be_large(data: bytes) -> None:
    """Sizes are not believed."""
    with pytest.raises(ValueError):
        thrift.load(data)


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_footers_of_arrow_come_out_byte_for_byte(compression: str) -> None:
    """With dictionaries, statistics, page indexes, and more than 15 row groups."""
    table = pa.table({"a": list(range(100)), "b": ["x", "y"] * 50, "c": [[1.5], None] * 50})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=5, compression=compression, write_page_index=True)
    found = footer.split(sink.getvalue().to_pybytes())
    assert thrift.dump(thrift.load(found)) == found
    for data in (b"", b"PAR1", b"\xff\xff\xff\xffPAR1", found):
        with pytest.raises(ValueError, match="no end"):
            footer.split(data)


@pytest.mark.parametrize("goes", [1, 2, 40])
def test_a_file_written_in_many_goes(goes: int, tmp_path: Path) -> None:
    """By as many processes: row groups in order, offsets and statistics right, also for reading single columns."""
    records = ordinary(1200)
    mark = None
    for n, some in enumerate(cut(records, 1200 // goes)):
        with closing(sink_of(at(tmp_path, "x.parquet"))) as sink:
            intake = sink.collection(SAMPLE, mark=mark)
            intake.write(some)
            mark = intake.mark()
            assert intake.mark() == mark
            if n == goes - 1:
                intake.finish()
                sink.publish()
    definition, batches = read(at(tmp_path, "x.parquet"))
    assert definition.count == 1200
    assert_same(records_of(records), gathered(batches))
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        assert file.num_row_groups == goes and file.metadata.num_rows == 1200
        assert file.read(["m_n"]).column("m_n").to_pylist() == [None if n % 7 == 6 else n for n in range(1200)]
        last = file.read_row_group(goes - 1, ["id"]).column("id").to_pylist()
        assert last == records.column("id").to_pylist()[-len(last) :]
        least = file.metadata.row_group(goes - 1).column(0).statistics.min
        assert least == min(last)
