"""Addresses of exchange files."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from chromakeep.errors import UsageError
from chromakeep.exchange.archive import ParquetArchiveSource
from chromakeep.exchange.archive_sink import ParquetArchiveSink
from chromakeep.exchange.jsonl import JsonlSource, JsonlStream
from chromakeep.exchange.jsonl_sink import JsonlSink, JsonlStreamSink
from chromakeep.exchange.open import is_exchange, sink_of, source_of
from chromakeep.exchange.parquet import ParquetFileSource
from chromakeep.exchange.parquet_sink import ParquetFileSink
from exchange.scenes import SAMPLE, at, read, written

PLACES = {
    "x.parquet": (ParquetFileSource, ParquetFileSink),
    "X.PARQUET": (ParquetFileSource, ParquetFileSink),
    "d.parquet": (ParquetArchiveSource, ParquetArchiveSink),
    "new.parquet/": (ParquetArchiveSource, ParquetArchiveSink),
    "x.jsonl": (JsonlSource, JsonlSink),
    "x.jsonl.zst": (JsonlSource, JsonlSink),
    "x.JSONL.ZST": (JsonlSource, JsonlSink),
}


def test_what_an_address_is(tmp_path: Path) -> None:
    """By how it ends, and by what is there."""
    (tmp_path / "d.parquet").mkdir()
    for name, (source, sink) in PLACES.items():
        assert is_exchange(at(tmp_path, name)) and is_exchange(f"file://{tmp_path}/{name}")
        for address in (at(tmp_path, name), f"file://{tmp_path}/{name}"):
            assert type(source_of(address)) is source
            assert type(sink_of(address)) is sink
    stream = io.BytesIO()
    assert is_exchange("-")
    assert type(source_of("-", stream=stream)) is JsonlStream and type(sink_of("-", stream=stream)) is JsonlStreamSink


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x.json",
        "x.parquet.zst",
        "parquet",
        "x.jsonl/",
        "s3://bucket/x.parquet",
        "http://h:1/x.jsonl",
        "odd://x.parquet",
        "postgresql://h/x.parquet",
        "x.parquet@latest",
        "\0.parquet",
        "./-",
        "--",
    ],
)
def test_what_is_none(text: str) -> None:
    """Other names, and URLs; asking for it is an error with a hint."""
    assert not is_exchange(text)
    for ask in (source_of, sink_of):
        with pytest.raises(UsageError):
            ask(text)


def test_file_urls(tmp_path: Path) -> None:
    """Spaces and all."""
    address = written(f"file://{tmp_path}/a%20b.jsonl", SAMPLE)
    assert (tmp_path / "a b.jsonl").exists() and read(address)[0].name == "sample"


def test_asking_imports_nothing_heavy() -> None:
    """The command line asks of every address."""
    program = (
        "import sys; from chromakeep.exchange.open import is_exchange; is_exchange('x.parquet');"
        "assert not {'pyarrow', 'numpy', 'zstandard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


MEMORY = """
import resource, sys
from contextlib import closing
import numpy as np, pyarrow as pa
from chromakeep.batches import batch
from chromakeep.exchange.open import sink_of, source_of
from chromakeep.records import Definition

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def records(n):
    nothing = [None] * 500
    ids = [f"id {n} {m}" for m in range(500)]
    return batch(ids, np.full((500, 1024), n, np.float32), ["text"] * 500, nothing, ['{"a":1}'] * 500, 1024)

def copy(address, batches):
    with closing(sink_of(address)) as sink:
        intake = sink.collection(Definition("x", dimension=1024))
        for n in range(batches):
            intake.write(records(n))
        intake.finish()
        sink.publish()
    with closing(source_of(address)) as source:
        (definition,) = source.definitions()
        assert sum(len(found) for found, _ in source.batches(definition)) == 500 * batches

copy(sys.argv[1] + "small-" + sys.argv[2], 50)
before = peak()
copy(sys.argv[1] + "large-" + sys.argv[2], 100)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["x.parquet", "x.jsonl.zst"])
def test_memory_does_not_grow_with_the_collection(kind: str, tmp_path: Path) -> None:
    """200 MB through a process that has seen 100: it takes little more, and not 100. (Of 100 there are several row
    groups, of which the allocator keeps one or two for a moment, as it likes.)"""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, f"{tmp_path}/", kind], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 50
