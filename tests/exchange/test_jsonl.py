"""JSONL: what its lines are, what lines of others are taken for, and which are refused."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.batches import batch, schema
from chromakeep.errors import SourceError, StoreError, UsageError
from chromakeep.exchange import jsonl, lines
from chromakeep.exchange.jsonl_records import shortest
from chromakeep.exchange.open import sink_of, source_of
from chromakeep.records import Definition
from chromakeep.testing.specimens import assert_same, gathered, held, ordinary, records_of
from exchange.scenes import SAMPLE, at, cut, read, written

HEAD = b'{"collection":{"name":"x","dimension":1}}\n'


def file_of(folder: Path, *found: bytes | dict[str, Any], name: str = "books.jsonl") -> str:
    """A file of these lines."""
    texts = [each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in found]
    (folder / name).write_bytes(b"".join(texts))
    return at(folder, name)


def refused(address: str, kind: type[Exception] = SourceError) -> str:
    """The one line that reading it ends with."""
    with pytest.raises(kind) as raised:
        read(address)
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 400
    return str(raised.value)


def test_the_lines_are_these(tmp_path: Path) -> None:
    """Keys that a record has nothing for are absent; an empty document is not nothing."""
    records = batch(
        ["a", "é\0"], np.array([[0.1, -0.0], [1e-45, 3]], np.float32), ["", None], [None, "u"], ['{"n":1.0}', None], 2
    )
    definition = Definition("books", dimension=2)
    vector = base64.b64encode(struct.pack("<2f", 0.1, -0.0)).decode()
    head, one, two = Path(written(at(tmp_path, "x.jsonl"), definition, [records])).read_text().splitlines()
    assert json.loads(head)["collection"] == json.loads(json.dumps({**_as_json(definition)}))
    assert one == f'{{"id":"a","embedding":"{vector}","document":"","metadata":{{"n":1.0}}}}'
    assert json.loads(two).keys() == {"id", "embedding", "uri"}
    address = written(at(tmp_path, "y.jsonl"), definition, [records], vectors="decimal")
    lines_ = Path(address).read_text().splitlines()[1:]
    assert lines_[0] == '{"id":"a","embedding":[0.1,-0.0],"document":"","metadata":{"n":1.0}}'
    assert json.loads(lines_[1])["embedding"][1] == 3.0
    with pytest.raises(UsageError, match="hex"):
        sink_of(at(tmp_path, "z.jsonl"), vectors="hex")


def _as_json(definition: Definition) -> dict[str, Any]:
    return {name: getattr(definition, name) for name in definition.__struct_fields__}


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=50))
def test_decimals_give_the_same_float32(bits: list[int]) -> None:
    """Rounded to few digits where that is exact; NaN and infinity are left alone."""
    vectors = np.array([bits], np.uint32).view(np.float32)
    found = json.loads(json.dumps(shortest(vectors).tolist()))
    again = np.array(found, np.float64).astype(np.float32)
    finite = np.isfinite(vectors)
    assert again[finite].view(np.uint32).tolist() == vectors[finite].view(np.uint32).tolist()


@settings(deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=50), st.integers(0, 6))
def test_decimals_of_people_stay_as_they_were_typed(found: list[int], digits: int) -> None:
    """0.1 is 0.1, and not 0.10000000149011612."""
    typed = [number / 10**digits for number in found]
    if all(len(str(abs(number))) <= 6 for number in found):
        assert shortest(np.array([typed], np.float32)).tolist() == [typed]


def test_files_of_chromadb_data_pipes(tmp_path: Path) -> None:
    """``text_chunk`` is the document; the collection has the file's name and the dimension of the first vector."""
    address = file_of(
        tmp_path,
        {"text_chunk": "one", "embedding": [0.1, 2, -3.5], "metadata": {"b": 1, "a": 1.0}, "id": "a"},
        {"text_chunk": "two", "embedding": None, "metadata": None, "id": "b"},
        {"id": "c", "document": "three", "text_chunk": "not this", "embedding": [1e-45, 0.0, -0.0], "more": {"x": [1]}},
    )
    definition, (found,) = read(address)
    assert (definition.name, definition.dimension, definition.count) == ("books", 3, 3)
    assert found.schema == schema(3)
    assert found.column("document").to_pylist() == ["one", "two", "three"]
    assert found.column("metadata").to_pylist() == ['{"a":1.0,"b":1}', None, None]
    vectors = found.column("embedding").to_pylist()
    assert vectors[0] == np.array([0.1, 2, -3.5], np.float32).tolist() and vectors[1] is None
    assert np.array(vectors[2], np.float32).view(np.uint32).tolist() == [1, 0, 0x80000000]


def test_several_collections_in_one_file(tmp_path: Path) -> None:
    """They follow each other; each reads its own records, from any mark in it."""
    names = ["one", "two", "three"]
    for name in ("x.jsonl", "x.jsonl.zst"):
        with closing(sink_of(at(tmp_path, name))) as sink:
            for n, each in enumerate(names):
                intake = sink.collection(Definition(each, dimension=3))
                intake.write(ordinary(2500, start=n * 1000))
                intake.finish()
            sink.publish()
        with closing(source_of(at(tmp_path, name))) as source:
            assert sorted((each.name, each.count) for each in source.definitions()) == [
                (each, 2500) for each in sorted(names)
            ]
            for definition in source.definitions():
                n = names.index(definition.name)
                wanted = records_of(ordinary(2500, start=n * 1000))
                assert_same(wanted, held(source, definition))
                before = {}
                for some, mark in list(source.batches(definition)):
                    before |= records_of(some)
                    assert_same(wanted, before | held(source, definition, after=mark))
            with pytest.raises(UsageError, match="no collection"):
                source.batches(Definition("four"))
            for mark in (5, [10**9, 1], [0, 1], [-1, 1], ["x", 1], [1.5, 1], [1]):
                with pytest.raises(UsageError):
                    source.batches(source.definitions()[1], after=mark)


def test_lines_of_any_editor(tmp_path: Path) -> None:
    """A byte order mark, CR LF, empty lines, spaces, escapes, and no end of the last line."""
    address = file_of(
        tmp_path,
        b"\xef\xbb\xbf" + b'{"collection": {"name": "x", "tenant": "t", "unknown": [1]}}\r\n',
        b"\r\n \n",
        b' {"id" : "\\u0061\\ud83d\\ude42", "embedding": [1] }\r\n\n',
        b'{"id":"b","embedding":[2.5]}',
    )
    definition, (found,) = read(address)
    assert (definition.name, definition.tenant, definition.dimension, definition.count) == ("x", "t", 1, 2)
    assert found.column("id").to_pylist() == ["a🙂", "b"]


def test_a_record_may_have_a_key_named_collection(tmp_path: Path) -> None:
    """Only an object begins one."""
    definition, (found,) = read(file_of(tmp_path, {"collection": "of mine", "id": "a", "embedding": [1.0]}))
    assert definition.name == "books" and len(found) == 1


def test_nothing_at_all(tmp_path: Path) -> None:
    """An empty file has no collections."""
    for name in ("x.jsonl", "x.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
        assert not source_of(at(tmp_path, name)).definitions()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"x", "line 3 is no record"),
        (b"{", "line 3 is no record"),
        (b"[]", "line 3 is no record"),
        (b"{}", "line 3 is no record"),
        (b'{"id":1}', "line 3 is no record"),
        (b'{"id":null}', "line 3 is no record"),
        (b'{"id":""}', "line 3 has an empty id"),
        (b'{"id":"b","embedding":["x"]}', "line 3 is no record"),
        (b'{"id":"b","embedding":[null]}', "line 3 is no record"),
        (b'{"id":"b","embedding":[NaN]}', "line 3 is no record"),
        (b'{"id":"b","embedding":[1e39]}', "'b' has a vector with NaN"),
        (b'{"id":"b","embedding":"AACAfw=="}', "'b' has a vector with NaN"),
        (b'{"id":"b","embedding":[1,2]}', "line 3: record 'b' has 2 dimensions"),
        (b'{"id":"b","embedding":[]}', "line 3: record 'b' has 0 dimensions"),
        (b'{"id":"b","embedding":""}', "line 3: record 'b' has 0 dimensions"),
        (b'{"id":"b","embedding":"AACA"}', "line 3: record 'b' has 0.75 dimensions"),
        (b'{"id":"b","embedding":"AACAPw="}', "line 3 is no record"),
        (b'{"id":"b","embedding":"AAC!Pw=="}', "line 3 is no record"),
        (b'{"id":"b","document":1}', "line 3 is no record"),
        (b'{"id":"\xff"}', "line 3 is no record"),
        (b'{"id":"\\ud800"}', "line 3 is no record"),
        (b'{"id":"b","metadata":[]}', "line 3: record 'b': metadata is no JSON object"),
        (b'{"id":"b","metadata":{"a":null}}', "line 3: record 'b': the metadata value of 'a' is null"),
        (b'{"id":"b","metadata":{"a":9223372036854775808}}', "more than 64 bits"),
        (b'{"id":"b","metadata":{"a":"\xff"}}', "line 3: record 'b'"),
        (b'{"id":"b","metadata":' + b"[" * 100_000 + b"}", "line 3 is no record"),
        (b'{"collection":{}}', "line 3: the definition"),
        (b'{"collection":{"name":""}}', "line 3: a collection has no name"),
        (b'{"collection":{"name":"y","dimension":100000}}', "line 3: a collection cannot have 100000"),
        (b'{"collection":{"name":"y","metadata":1}}', "line 3: the definition"),
        (b'{"collection":{"name":"x"}}', "two collections"),
    ],
)
def test_a_bad_line_is_told_by_its_number(line: bytes, told: str, tmp_path: Path) -> None:
    """In one line, with what is wrong."""
    message = refused(file_of(tmp_path, HEAD, b'{"id":"a","embedding":[1]}\n', line + b"\n", b'{"id":"c"}\n'))
    assert told in message and "books.jsonl" in message


@pytest.mark.parametrize("name", ["books.jsonl", "books.jsonl.zst"])
def test_an_id_that_comes_twice_is_told_before_anything_is_read(tmp_path: Path, name: str) -> None:
    """With both its lines; Chroma would keep one of the two. In another collection it may be again."""
    lines_ = [HEAD, *({"id": f"id-{n}", "embedding": [n]} for n in range(3)), HEAD.replace(b"x", b"y")]
    address = file_of(tmp_path, *lines_, {"id": "id-1", "embedding": [1.0]}, name="plain.jsonl")
    with closing(source_of(address)) as source:
        assert [definition.count for definition in source.definitions()] == [3, 1]
    file_of(tmp_path, *lines_, *[b"\n", *[{"id": each, "embedding": [1.0]} for each in "aba"]], name="plain.jsonl")
    data = (tmp_path / "plain.jsonl").read_bytes()
    (tmp_path / name).write_bytes(zstandard.compress(data) if name.endswith("zst") else data)
    with closing(source_of(at(tmp_path, name))) as source, pytest.raises(SourceError, match=r"line 9 .*'a'.* line 7"):
        source.definitions()


def test_an_id_that_comes_twice_in_a_stream_is_told_at_its_end() -> None:
    """Before the copy is whole."""
    found = "\n".join(json.dumps({"id": f"{n % 5000}", "embedding": [n]}) for n in range(5003))
    source = source_of("-", stream=io.BytesIO(found.encode()))
    with pytest.raises(SourceError, match="3 ids are those of several"):
        held(source, source.definitions()[0])


def test_numbers_of_lines_after_a_mark(tmp_path: Path) -> None:
    """They count from the beginning of the file."""
    records = [{"id": f"id {n}", "embedding": [1.0]} for n in range(2500)]
    address = file_of(tmp_path, HEAD, *records, {"id": "x", "embedding": 5})
    with closing(source_of(address)) as source:
        (definition,) = source.definitions()
        _, mark = next(source.batches(definition))
        with pytest.raises(SourceError, match="line 2502 is no record"):
            next(source.batches(definition, after=mark))


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_a_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it goes on: 64 MiB, here less. Many lines in one piece are not one."""
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 20)
    long = b'{"id":"a","document":"' + b"x" * (1 << 20) + b'"}\n'
    assert "line 2 has more than 1 MiB" in refused(file_of(tmp_path, HEAD, long))
    packed = zstandard.compress(HEAD + long)
    assert "line 2 has more than" in refused(file_of(tmp_path, packed, name="x.jsonl.zst"))
    some = [{"id": f"{n}", "embedding": [1.0], "document": "x" * 1000} for n in range(3000)]
    assert read(file_of(tmp_path, HEAD, *some))[0].count == 3000


def test_a_bomb_is_not_unpacked_at_once(tmp_path: Path) -> None:
    """A few kilobytes of zstd that stand for 128 MiB without an end of a line."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    with (tmp_path / "x.jsonl.zst").open("wb") as file:
        for _ in range(64):
            file.write(compressor.compress(bytes(2 << 20)))
        file.write(compressor.flush())
    largest = 0
    with (tmp_path / "x.jsonl.zst").open("rb") as file:
        for piece in lines.content(file, "x"):
            largest = max(largest, len(piece))
    assert largest <= 33 << 20
    assert "line 1 has more than 64 MiB" in refused(at(tmp_path, "x.jsonl.zst"))


def test_zstd_that_is_cut_off(tmp_path: Path) -> None:
    """Wherever it is: an error, never fewer records. Only between two frames it is a whole, shorter file."""
    with closing(sink_of(at(tmp_path, "x.jsonl.zst"))) as sink:
        intake = sink.collection(SAMPLE)
        ends = [intake.mark()]
        for some in cut(ordinary(30), 10):
            intake.write(some)
            ends.append(intake.mark())
        intake.finish()
        sink.publish()
    data = (tmp_path / "x.jsonl.zst").read_bytes()
    assert ends[-1] == len(data)
    for size in range(1, len(data)):
        address = file_of(tmp_path, data[:size], name="y.jsonl.zst")
        if size in ends:
            assert read(address)[0].count == 10 * ends.index(size)
        else:
            refused(address)
    assert "no zstd" in refused(file_of(tmp_path, data + b"garbage", name="y.jsonl.zst"))
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    refused(file_of(tmp_path, bytes(damaged), name="y.jsonl.zst"))


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe would be waited for, a directory cannot be read, nothing is there."""
    os.mkfifo(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").mkdir()
    for name in ("x.jsonl", "y.jsonl", "z.jsonl"):
        refused(at(tmp_path, name))


# -- streams ----------------------------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Gives what it has, in pieces of any size."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size, self.at = data, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.data[self.at : self.at + min(self.size, len(buffer))]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_from_one_stream_into_another(size: int, packed: bool) -> None:
    """As through a pipe; what is read may be packed."""
    out = io.BytesIO()
    with closing(sink_of("-", stream=out)) as sink:
        assert not sink.definitions()
        intake = sink.collection(SAMPLE)
        assert intake.mark() is None
        for some in cut(ordinary(50), 7):
            intake.write(some)
        with pytest.raises(UsageError):
            sink.collection(Definition("early"))
        intake.finish()
        sink.publish()
        with pytest.raises(UsageError):
            sink.reader()
        with pytest.raises(UsageError):
            sink.collection(SAMPLE, mark=0)
    data = zstandard.compress(out.getvalue()) if packed else out.getvalue()
    with closing(source_of("-", stream=io.BufferedReader(Pipe(data, size)))) as source:
        (definition,) = source.definitions()
        assert (definition.name, definition.dimension, definition.count) == ("sample", 3, None)
        assert source.state() == "" and source.definitions() == [definition]
        with pytest.raises(UsageError):
            source.batches(definition, after=[0, 0])
        assert_same(records_of(ordinary(50)), held(source, definition))
        with pytest.raises(UsageError, match="only once"):
            source.batches(definition)


def test_a_stream_of_others() -> None:
    """Without a collection line: it is looked ahead to the first vector, and nothing is lost by that."""
    found = [{"id": "a", "document": "no vector"}, {"id": "b", "embedding": [1.0, 2.0]}, {"id": "c"}]
    stream = io.BytesIO("\n".join(["", *map(json.dumps, found)]).encode())
    with closing(source_of("-", stream=stream)) as source:
        (definition,) = source.definitions()
        assert (definition.name, definition.dimension) == ("stdin", 2)
        records = gathered(some for some, _ in source.batches(definition))
        assert list(records) == ["a", "b", "c"]
    assert not source_of("-", stream=io.BytesIO(b"\n")).definitions()


def test_a_stream_without_any_vector_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked ahead for a while only; a vector after that is an error."""
    monkeypatch.setattr(jsonl, "AHEAD_RECORDS", 10)
    found = [json.dumps({"id": f"{n}"}) for n in range(100)]
    source = source_of("-", stream=io.BytesIO("\n".join(found).encode()))
    (definition,) = source.definitions()
    assert definition.dimension is None and len(held(source, definition)) == 100
    late = [*found, json.dumps({"id": "late", "embedding": [1.0]})]
    source = source_of("-", stream=io.BytesIO("\n".join(late).encode()))
    with pytest.raises(SourceError, match="line 101: record 'late' has 1 dimensions"):
        held(source, source.definitions()[0])


def test_a_stream_of_several_collections_is_refused() -> None:
    """When the second one begins; the first is not told as if it were all."""
    stream = io.BytesIO(HEAD + b'{"id":"a","embedding":[1]}\n' + HEAD.replace(b"x", b"y") + b'{"id":"b"}\n')
    source = source_of("-", stream=stream)
    with pytest.raises(SourceError, match="line 3 begins a second collection"):
        held(source, source.definitions()[0])


def test_a_stream_that_nobody_reads() -> None:
    """One line, as for a disk that fails."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(StoreError), os.fdopen(writer, "wb", buffering=0) as stream:
        sink_of("-", stream=stream).collection(SAMPLE)
