"""Batches: nothing is lost on the way into them and out again, and sums over them are what ``records.Digest`` says."""

from __future__ import annotations

import json
import struct
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from chromakeep.batches import COLUMNS, batch, decode, encode, schema, vectors_of
from chromakeep.digests import Tally
from chromakeep.errors import UsageError
from chromakeep.records import Digest
from chromakeep.tallying import Adder, each_record

often = settings(deadline=None, max_examples=100)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WHOLE = st.integers(-(1 << 63), (1 << 63) - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
SCALARS: tuple[st.SearchStrategy[Any], ...] = (TEXT, WHOLE, REAL, st.booleans())
VALUE = st.one_of(*SCALARS, *[st.lists(kind, min_size=1, max_size=4) for kind in SCALARS])
METADATA = st.dictionaries(TEXT, VALUE, max_size=5)
FEW = st.sampled_from  # so that equal and nearly equal ones are drawn often


def told(value: Any) -> str:
    """A value with its kind: 1, 1.0, True and "1" differ, and so do 0.0 and -0.0."""
    return repr(sorted(value.items())) if isinstance(value, dict) else repr(value)


# -- metadata ---------------------------------------------------------------------------------------------------------


@often
@given(METADATA)
def test_metadata_is_read_as_it_was_written(metadata: dict[str, Any]) -> None:
    """Every value that Chroma holds comes back with its kind, floats and integers to the last bit."""
    text = encode(metadata)
    assert text is not None
    assert told(decode(text)) == told(decode(text.encode())) == told(metadata)


@often
@given(METADATA, st.randoms(use_true_random=False), st.booleans())
def test_any_json_of_it_becomes_the_same_bytes(metadata: dict[str, Any], random: Any, ascii_only: bool) -> None:
    """Order of keys, spaces and escapes make no difference; keys come sorted and without spaces."""
    keys = list(metadata)
    random.shuffle(keys)
    text = json.dumps({key: metadata[key] for key in keys}, indent=1, ensure_ascii=ascii_only)
    assert encode(decode(text)) == encode(metadata)
    assert list(decode(encode(metadata)) or {}) == sorted(metadata)


@often
@given(
    FEW([{"k": v} for v in (1, 1.0, True, "1", "true", 0, 0.0, False, "", [1], [1.0], ["1"], [True], [1, 1])]), VALUE
)
def test_different_metadata_has_different_bytes(metadata: dict[str, Any], value: Any) -> None:
    """Two values have the same bytes only if they are of one kind and equal."""
    assert (encode(metadata) == encode({"k": value})) == (told(metadata) == told({"k": value}))


def test_canonical_json_is_this() -> None:
    """The bytes are the format of an exchange file: they must not change."""
    metadata = {"b": [1.0, -2.5], "a": 'ü"\n\0', "c": True, "d": (1 << 63) - 1, "e": 1e16, "f": 1e-7, "é": 0.1, "": 0}
    assert encode(metadata) == (
        '{"":0,"a":"ü\\"\\n\\u0000","b":[1.0,-2.5],"c":true,"d":9223372036854775807,"e":1e16,"f":1e-7,"é":0.1}'
    )
    assert encode({}) == "{}" and encode(None) is None and decode(None) is None and decode("{}") == {}


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), [1.0, float("nan")]])
def test_what_json_has_no_number_for_is_refused(value: Any) -> None:
    """It is not written as null."""
    with pytest.raises(UsageError, match="'k'"):
        encode({"a": "null", "k": value})


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "1", '"a"', "{", '{"k":NaN}', '{"k":1}{}', '{"k":1},{"k":1}', '{"k":"\\ud800"}', '{"k":1e999}']
    + [f'{{"k":{v}}}' for v in ("null", "{}", "[]", "[1,2.5]", '[1,"1"]', "[true,1]", "[null]", "[[1]]", '[{"a":1}]')]
    + [f'{{"k":{v}}}' for v in ("9223372036854775808", "-9223372036854775809", "[1,18446744073709551616]")]
    + ['{"k":' + "[" * 100_000, b'{"k":"\xff"}'],
)
def test_what_chroma_could_not_hold_is_refused(text: str | bytes) -> None:
    """Other JSON than an object of text, numbers, true, false and lists of one kind; integers beyond 64 bits."""
    with pytest.raises(UsageError):
        decode(text)


# -- vectors ----------------------------------------------------------------------------------------------------------


def made(vectors: Any, dimension: int | None, *, first: int = 0) -> pa.RecordBatch:
    """A batch of these vectors."""
    nothing = [None] * len(vectors)
    return batch([f"id {first + n}" for n in range(len(vectors))], vectors, nothing, nothing, nothing, dimension)


def bits(dimension: int, n: int, seed: int) -> np.ndarray[Any, Any]:
    """Float32 of any bit pattern: subnormals, infinities and every sort of NaN too."""
    return np.random.default_rng(seed).integers(0, 1 << 32, (n, dimension), np.uint32).view("<f4")


@often
@given(
    FEW([1, 2, 3, 17, 384, 1536, 4096]),
    st.integers(0, 6),
    st.integers(0, 1 << 32),
    st.integers(0, 6),
    st.integers(0, 6),
    FEW(["array", "strided", "rows", "sliced twice", "ipc"]),
)
def test_vectors_keep_every_bit(dimension: int, n: int, seed: int, low: int, length: int, how: str) -> None:
    """Of any dimension, from any memory, through any slice."""
    vectors = bits(dimension, n, seed)
    given: Any = vectors
    if how == "strided":
        given = np.asfortranarray(vectors)
    elif how == "rows":
        given = list(vectors)
    records = made(given, dimension)
    assert records.schema.equals(schema(dimension))
    if how == "sliced twice":
        records = records.slice(min(1, n)).slice(0)
        vectors = vectors[min(1, n) :]
    elif how == "ipc":
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, records.schema) as stream:
            stream.write_batch(records.slice(low, length))
        (records,) = pa.ipc.open_stream(sink.getvalue())
        vectors, low, length = vectors[low : low + length], 0, 6
    found, present = vectors_of(records.slice(low, length))
    assert present.all()
    assert found.shape == vectors[low : low + length].shape
    assert found.tobytes() == vectors[low : low + length].tobytes()


@often
@given(
    FEW([None, 1, 3, 300]),
    st.lists(st.booleans(), max_size=8),
    st.integers(0, 1 << 32),
    st.integers(0, 8),
    st.integers(0, 8),
)
def test_records_without_a_vector_are_told(
    dimension: int | None, has: list[bool], seed: int, low: int, length: int
) -> None:
    """Wherever they are, in any slice; the other vectors are not disturbed. Also where no dimension is fixed."""
    vectors = bits(dimension or 2, len(has), seed)
    records = made([vectors[n] if there else None for n, there in enumerate(has)], dimension).slice(low, length)
    found, present = vectors_of(records)
    assert present.tolist() == has[low : low + length]
    assert len(found) == len(records)
    assert found[present].tobytes() == vectors[low : low + length][present].tobytes()


def test_an_array_is_taken_and_given_without_a_copy() -> None:
    """A batch is a view of the vectors it was made from, and ``vectors_of`` a view of the batch."""
    vectors = np.ones((5, 3), np.float32)
    found, _ = vectors_of(made(vectors, 3).slice(2))
    assert np.shares_memory(found, vectors) and found.shape == (3, 3)


@pytest.mark.parametrize(
    ("vectors", "dimension"),
    [
        (np.zeros((4, 2), np.float32), 4),
        (np.zeros((2, 4), np.float32), 2),
        (np.zeros(4, np.float32), 2),
        ([[1.0], [1.0, 2.0]], 2),
        ([[1.0, None]], 2),
        ([None, [1.0, None]], None),
    ],
)
def test_vectors_of_another_dimension_are_refused(vectors: Any, dimension: int | None) -> None:
    """Numbers are never regrouped into other vectors, and a component that is missing is not made up."""
    nothing = [None] * 2
    with pytest.raises(UsageError):
        batch(["a", "b"][: len(vectors)], vectors, *[nothing[: len(vectors)]] * 3, dimension)


@pytest.mark.parametrize("vectors", [[[1.0], [1.0, 2.0]], [[], [1.0]], [[], None]])
def test_without_a_dimension_all_vectors_are_of_one(vectors: Any) -> None:
    """Which is more than none."""
    with pytest.raises(UsageError):
        vectors_of(made(vectors, None))


# -- sums -------------------------------------------------------------------------------------------------------------

Row = tuple[str, "tuple[float, ...] | None", "str | None", "str | None", "dict[str, Any] | None"]
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
DIMENSION = 3
CONTENT = st.tuples(
    st.none() | st.tuples(*[FLOAT32] * DIMENSION),
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | METADATA,
)
ROWS = st.dictionaries(TEXT.filter(bool), CONTENT, max_size=12).map(lambda rows: [(i, *c) for i, c in rows.items()])


def batch_of(rows: list[Row]) -> pa.RecordBatch:
    """These records as a batch."""
    ids, vectors, documents, uris, metadatas = zip(*rows, strict=True) if rows else [()] * 5
    return batch(ids, vectors, documents, uris, [encode(m) for m in metadatas], DIMENSION)


def naive(rows: list[Row]) -> Digest:
    """``records.Digest`` as it is written there, number by number."""

    def words(data: bytes) -> tuple[int, int]:
        return struct.unpack("<QQ", data)

    def h(data: bytes) -> tuple[int, int]:
        return words(blake2b(data, digest_size=16).digest())

    def v(data: bytes) -> tuple[int, int]:
        return words(xxh3_128_digest(data))

    def value_bytes(value: Any) -> bytes:
        kind = type(value)
        if kind is str:
            return b"s" + value.encode()
        if kind is bool:
            return b"b1" if value else b"b0"
        if kind is int:
            return b"i" + str(value).encode()
        if kind is float:
            return b"f" + struct.pack("<d", 0.0 if value == 0 else value)
        return b"l" + b"".join(str(len(item)).encode() + b":" + item for item in map(value_bytes, value))

    sums = {name: [0, 0] for name in ("ids", "vectors", "documents", "metadata")}

    def add(name: str, *factors: tuple[int, int]) -> None:
        for word in (0, 1):
            product = 1
            for factor in factors:
                product *= factor[word]
            sums[name][word] = (sums[name][word] + product) % (1 << 64)

    def odd(pair: tuple[int, int]) -> tuple[int, int]:
        return pair[0] | 1, pair[1] | 1

    for id_, vector, document, uri, metadata in rows:
        one = h(id_.encode())
        add("ids", one)
        if vector is not None:
            add("vectors", one, v(struct.pack(f"<{DIMENSION}f", *vector)))
        if document is not None:
            add("documents", one, v(document.encode()))
        entries = dict(metadata or {}) if uri is None else {**(metadata or {}), "chroma:uri": uri}
        for key, value in entries.items():
            add("metadata", one, odd(h(key.encode())), v(value_bytes(value)))
    return Digest(**{name: "".join(f"{word:016x}" for word in pair) for name, pair in sums.items()})


@often
@given(ROWS, st.randoms(use_true_random=False), st.lists(st.integers(0, 12), max_size=4))
def test_sums_are_what_the_definition_says(rows: list[Row], random: Any, cuts: list[int]) -> None:
    """In any order of the records and however they are cut into batches, which may be empty."""
    wanted = naive(rows)
    random.shuffle(rows)
    whole = batch_of(rows)
    tally = Tally()
    adder = Adder(tally)
    for low, high in pairwise([0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]):
        adder.add(whole.slice(low, high - low))
    assert tally.digest() == wanted


def test_many_keys_are_forgotten_and_hashed_again() -> None:
    """A collection of ever new keys needs no ever growing memory, and has the same sums."""
    rows: list[Row] = [(f"id {n}", None, None, None, {f"key {n} {k}": k for k in range(50)}) for n in range(400)]
    tally = Tally()
    adder = Adder(tally)
    for n in range(0, len(rows), 50):
        adder.add(batch_of(rows[n : n + 50]))
    assert len(adder._keys) < 18_000
    adder.add(batch_of(rows[:1]))
    assert tally.digest() == naive([*rows, rows[0]])


SMALL = st.tuples(
    FEW(["a", "b", "ab"]),
    FEW([None, (0.0, 0.0, 0.0), (-0.0, 0.0, 0.0), (0.0, 0.0, 1e-45)]),
    FEW([None, "", "a", "b", "1", '{"k":1}']),
    FEW([None, "", "a", "b", "1"]),
    FEW([None, {}] + [{"k": v} for v in (1, 1.0, True, "1", 0.0, -0.0, "-0.0", [0.0], [-0.0], [1, 1], ["a"])])
    | FEW([{"kk": 1}, {"k": 1, "l": 2}, {"k": "-0.0", "l": -0.0}, {"k": "-0.0", "l": 0.0}, {"a": "a"}, {"b": "a"}]),
)


def compared(row: Row) -> str:
    """A record by what two of them differ in: as ``told``, but minus zero in metadata is zero and {} is None."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value + 0.0 if isinstance(value, float) else value

    *rest, metadata = row
    return repr(rest) + told({key: plain(value) for key, value in metadata.items()} if metadata else None)


@settings(often, max_examples=200)
@given(st.lists(SMALL, min_size=2, max_size=8))
def test_two_records_have_one_hash_only_if_nothing_differs(rows: list[Row]) -> None:
    """The first hash is that of the id, the second one of all that the record holds but the id."""
    found = each_record(batch_of(rows))
    assert found.shape == (len(rows), 2, 2) and found.dtype == np.uint64
    for n, one in enumerate(rows):
        for m, other in enumerate(rows):
            assert (found[n, 0].tolist() == found[m, 0].tolist()) == (one[0] == other[0])
            assert (found[n, 1].tolist() == found[m, 1].tolist()) == (
                compared(("", *one[1:])) == compared(("", *other[1:]))
            )


@often
@given(ROWS, st.integers(0, 12))
def test_a_records_hash_does_not_depend_on_its_batch(rows: list[Row], at: int) -> None:
    """Nor on how its metadata is written, in any slice, also an empty one."""
    whole = batch_of(rows)
    loose = [None if m is None else json.dumps(dict(reversed(m.items()))) for *_, m in rows]
    columns = [whole.column(name) for name in COLUMNS[:4]]
    again = pa.RecordBatch.from_arrays([*columns, pa.array(loose, pa.string())], schema=whole.schema)
    parts = [each_record(again.slice(0, at)), each_record(again.slice(at))]
    assert np.array_equal(np.concatenate(parts), each_record(whole))
