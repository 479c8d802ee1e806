"""The codecs of the format, by properties: what goes in comes out, and nonsense raises the errors it should."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chromakeep.errors import CorruptObject, UnsupportedFormat
from chromakeep.layout import FLOAT32, PLAIN, Column
from chromakeep.repository import snapshots
from chromakeep.repository.blocks import FLOATS, HEAD, LARGEST, RAW, ROWS, ZSTD, decode, encode, encode_like
from chromakeep.repository.index import ENTRY, Index, IndexPart, PackInfo, entry_rows
from chromakeep.repository.keys import Keys
from chromakeep.repository.packs import read_trailer
from chromakeep.repository.sealed import seal, unseal
from chromakeep.repository.spans import SpanMap, unit_length

CLEAR, ENCRYPTED = Keys(b"m" * 32, encrypted=False), Keys(b"m" * 32, encrypted=True)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PROPER = (ValueError, CorruptObject, UnsupportedFormat)  # what a decoder may raise

columns = st.one_of(
    st.integers(1, 5000).map(Column), st.integers(1, 400).map(lambda n: Column(4 * n, FLOAT32)), st.just(Column(4096))
)
content = st.one_of(
    st.binary(max_size=600),
    st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 3000)).map(lambda t: t[0] * t[1]),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 9000)).map(lambda t: np.random.default_rng(t[0]).bytes(t[1])),
    st.lists(st.floats(width=32), max_size=300).map(lambda values: np.array(values, "<f4").tobytes()),
)


@QUICK
@given(content, columns)
def test_blocks_come_back(data: bytes, column: Column) -> None:
    """Any bytes as any column, of any length: bit for bit (every NaN too), never five bytes longer than they were."""
    stored = encode(data, column)
    assert decode(stored, len(data)) == data
    assert len(stored) <= len(data) + HEAD
    again = encode_like(stored, data[: len(data) // 2])
    assert decode(again, len(data) // 2) == data[: len(data) // 2]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 63, 64, 4095, 4096, 4097, 8192, 1 << 20, (1 << 20) + 4])
@pytest.mark.parametrize("column", [Column(4), Column(64), Column(132), Column(4096), Column(1536, FLOAT32)], ids=str)
def test_blocks_of_every_length(column: Column, length: int) -> None:
    """The lengths at which something changes; compressible and not."""
    for data in (bytes(length), np.random.default_rng(length).bytes(length)):
        assert decode(encode(data, column), length) == data


def test_every_codec_is_used() -> None:
    """The four codecs of the format are what these properties went through."""
    vectors = np.random.default_rng(1).standard_normal(1000).astype("<f4").tobytes()
    rows = np.arange(4096, dtype="<u4").tobytes()
    noise = np.random.default_rng(1).bytes(4096)
    examples = (
        (noise, Column(4096)),
        (bytes(4096), Column(4096)),
        (rows, Column(128)),
        (vectors, Column(400, FLOAT32)),
    )
    assert [encode(data, column)[0] for data, column in examples] == [RAW, ZSTD, ROWS, FLOATS]


def properly_refused(decoder: Callable[[], object]) -> None:
    """Returns, or raises one of the errors a decoder may raise."""
    with suppress(*PROPER):
        decoder()


@QUICK
@given(st.binary(max_size=300), st.one_of(st.integers(-10, 5000), st.sampled_from([LARGEST, LARGEST + 1, 1 << 40])))
def test_random_bytes_are_no_blocks(data: bytes, length: int) -> None:
    """Random bytes as a block of any claimed length: the right number of bytes or a ValueError."""
    with suppress(ValueError):
        assert len(decode(data, length)) == length


@QUICK
@given(content.filter(len), columns, st.data())
def test_mutated_blocks(data: bytes, column: Column, draw: st.DataObject) -> None:
    """A stored block with bytes changed, cut or added decodes to the right number of bytes or raises ValueError."""
    stored = bytearray(encode(data, column))
    for _ in range(draw.draw(st.integers(1, 4))):
        stored[draw.draw(st.integers(0, len(stored) - 1))] = draw.draw(st.integers(0, 255))
    stored = stored[: draw.draw(st.integers(0, len(stored)))] if draw.draw(st.booleans()) else stored + b"tail"
    with suppress(ValueError):
        assert len(decode(bytes(stored), len(data))) == len(data)


@pytest.mark.parametrize("codec", [ZSTD, ROWS, FLOATS])
def test_a_frame_that_claims_a_terabyte(codec: int) -> None:
    """A zstd frame header that promises 2**40 bytes is believed by nobody."""
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    payload = bytes(3 * 64) + frame if codec == FLOATS else frame
    for length in (256, LARGEST, 1 << 40):
        with pytest.raises(ValueError, match=r"length|short|bounds"):
            decode(bytes((codec,)) + (64).to_bytes(4, "little") + payload, length)


maps = st.integers(0, 60).flatmap(
    lambda n: st.builds(
        lambda unit, short, names, hashes, numbers, slots: SpanMap(
            unit,
            max(n * unit - (short % unit), 0),
            names,
            np.array(hashes, "<u8"),
            np.array([number % len(names) for number in numbers], "<u2"),
            np.array(slots, "<u4"),
        ),
        st.integers(64, 4096),
        st.integers(0, 5000),
        st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5),
        *(st.lists(st.integers(0, most), min_size=n, max_size=n) for most in (2**64 - 1, 2**16 - 1, 2**31 - 1)),
    )
)


def same(one: SpanMap, other: SpanMap) -> bool:
    return (one.unit, one.length, one.blocks) == (other.unit, other.length, other.blocks) and all(
        np.array_equal(getattr(one, f), getattr(other, f)) for f in ("hashes", "block", "slot")
    )


@QUICK
@given(maps)
def test_span_maps_come_back(one: SpanMap) -> None:
    """Any map of any units, blocks, hashes and slots is what it was after encoding and decoding."""
    assert same(SpanMap.decode(one.encode()), one)


@QUICK
@given(maps, st.data())
def test_mutated_span_maps(one: SpanMap, draw: st.DataObject) -> None:
    """No change of any byte passes the map's checksum; nor does a cut."""
    stored = one.encode()
    at = draw.draw(st.integers(0, len(stored) - 1))
    changed = stored[:at] + bytes((stored[at] ^ draw.draw(st.integers(1, 255)),)) + stored[at + 1 :]
    for data in (changed, stored[:at], stored + b"\0"):
        with pytest.raises(ValueError, match=r"checksum|truncated"):
            SpanMap.decode(data)


@given(columns)
def test_units_are_within_what_a_map_may_say(column: Column) -> None:
    """The unit of every column there can be is one that the decoder believes."""
    unit = unit_length(column)
    assert 64 <= unit <= max(column.width, 4096) and unit % column.width == 0


ids = st.integers(0, 30).map(lambda n: bytes((n % 3,)) * 8 + bytes((n,)) * 24)  # many whose first eight bytes are alike
rows = st.lists(
    st.tuples(ids, st.integers(0, 2), st.integers(0, 900), st.integers(0, 90), st.integers(0, 5000)), max_size=40
)


def part(number: int, entries: list[tuple[bytes, int, int, int, int]]) -> IndexPart:
    return IndexPart([PackInfo(f"packs/{number}-{n}", 1000, bytes(32)) for n in range(3)], entry_rows(entries))


@QUICK
@given(st.lists(rows, max_size=4), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_an_index_finds_what_it_holds(
    groups: list[list[tuple[bytes, int, int, int, int]]], out: set[int], avoid: set[int]
) -> None:
    """Against a dictionary: the newest part wins, a pack to be avoided is the last choice, one left out is none; also
    after encoding and decoding, with ids that begin alike and ids that come many times."""
    parts = [IndexPart.decode("index/x", part(n, group).encode()) for n, group in enumerate(groups)]
    without = {f"packs/{n // 3}-{n % 3}" for n in out}
    last = {f"packs/{n // 3}-{n % 3}" for n in avoid} - without
    index = Index(parts, without=without, avoid=last)
    expected: dict[bytes, list[tuple[bool, int, int]]] = {}
    for number, group in enumerate(groups):
        for at, (identity, pack, *_) in enumerate(group):
            name = f"packs/{number}-{pack}"
            if name not in without:
                expected.setdefault(identity, []).append((name not in last, number, at))
    assert len(index) == sum(map(len, expected.values())) == len(list(index.entries()))
    for identity in {*expected, bytes(32), b"\xff" * 32}:
        place = index.find(identity)
        if identity not in expected:
            assert place is None and identity not in index
            continue
        best = max((preferred, number) for preferred, number, _ in expected[identity])
        assert place and int(place.pack.split("/")[1].split("-")[0]) == best[1] and (place.pack not in last) == best[0]
        _, number, at = max(expected[identity])
        _, pack, offset, stored, length = groups[number][at]
        if sum((p, n) == best for p, n, _ in expected[identity]) == 1:
            assert (place.pack, place.offset, place.stored, place.length) == (
                f"packs/{number}-{pack}", offset, stored, length,
            )  # fmt: skip


@QUICK
@given(rows, st.data())
def test_mutated_indexes(entries: list[tuple[bytes, int, int, int, int]], draw: st.DataObject) -> None:
    """Whatever is done to its payload: an index whose every entry lies within its pack, or CorruptObject."""
    payload = bytearray(part(0, entries).encode())
    for _ in range(draw.draw(st.integers(1, 6))):
        payload[draw.draw(st.integers(0, len(payload) - 1))] = draw.draw(st.integers(0, 255))
    try:
        found = IndexPart.decode("index/x", bytes(payload))
    except CorruptObject:
        return
    for _, place in Index([found]).entries():
        size = next(p.size for p in found.packs if p.name == place.pack)
        assert place.offset + place.stored <= max(size, *(p.size for p in found.packs)) and place.length <= LARGEST


@QUICK
@given(st.binary(max_size=2000), st.sampled_from("CSIGNKT"), st.booleans())
def test_sealed_objects_come_back(payload: bytes, kind: str, encrypted: bool) -> None:
    """Any payload; under another name, kind, key or without the key it does not open."""
    keys = ENCRYPTED if encrypted else CLEAR
    data = seal(kind, "a/name", payload, keys)
    assert unseal(kind, "a/name", data, keys) == payload
    others = [("a/other", kind, keys), ("a/name", "X", keys), ("a/name", kind, Keys(b"n" * 32, encrypted=encrypted)),
              ("a/name", kind, CLEAR if encrypted else ENCRYPTED), ("a/name", kind, None)]  # fmt: skip
    for name, other, key in others:
        with pytest.raises(CorruptObject):
            unseal(other, name, data, key)


@QUICK
@given(st.binary(max_size=300), st.booleans(), st.data())
def test_mutated_sealed_objects(payload: bytes, encrypted: bool, draw: st.DataObject) -> None:
    """No change and no cut of the envelope goes unnoticed."""
    keys = ENCRYPTED if encrypted else CLEAR
    data = seal("S", "a/name", payload, keys)
    at = draw.draw(st.integers(0, len(data) - 1))
    for changed in (data[:at], data[:at] + bytes((data[at] ^ draw.draw(st.integers(1, 255)),)) + data[at + 1 :]):
        with pytest.raises((CorruptObject, UnsupportedFormat)):
            unseal("S", "a/name", changed, keys)


@QUICK
@given(st.one_of(st.binary(max_size=400), st.binary(max_size=400).map(lambda b: b"CKEEPS\x01\x00" + b)))
def test_random_bytes_are_nothing(data: bytes) -> None:
    """Each decoder of the format, given random bytes, raises one of its errors and no other."""
    properly_refused(lambda: unseal("S", "a/name", data, CLEAR))
    properly_refused(lambda: SpanMap.decode(data))
    properly_refused(lambda: IndexPart.decode("index/x", data))
    properly_refused(lambda: snapshots.decode("snapshots/x", data))
    properly_refused(lambda: read_trailer("packs/x", b"CKPACK1\n" + data + b"CKPACK1\n", CLEAR))


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(st.sampled_from(["id", "time", "source", "parent", "collections", "files", "total_bytes"]), json)
def test_snapshots_of_any_json(field: str, value: object) -> None:
    """A snapshot with anything in any of its fields is a snapshot or CorruptObject."""
    entry = {"path": "f", "size": 1, "mtime_ns": 1, "layout": {"stride": 1, "columns": [{"width": 1, "kind": PLAIN}]},
             "spans": msgspec.to_builtins(bytes(32))}  # fmt: skip
    whole: dict[str, object] = {
        "id": "x", "time": "2026-01-01T00:00:00Z", "source": "", "hostname": "", "program_version": "",
        "chroma_version": "", "parent": None, "collections": [], "files": [entry], "total_bytes": 1, "new_bytes": 1,
        "seconds": 0.0,
    }  # fmt: skip
    assert snapshots.decode("snapshots/x", msgspec.json.encode(whole))
    properly_refused(lambda: snapshots.decode("snapshots/x", msgspec.json.encode({**whole, field: value})))
    if isinstance(value, dict):
        properly_refused(
            lambda: snapshots.decode("snapshots/x", msgspec.json.encode({**whole, "files": [{**entry, **value}]}))
        )


def test_an_entry_is_52_bytes() -> None:
    """As docs/format.md says."""
    assert ENTRY.itemsize == 52
