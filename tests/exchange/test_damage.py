"""Files that are cut off or damaged, or none at all: an error of one line, never a crash and never other records."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chromakeep.batches import batch, encode
from chromakeep.errors import ChromakeepError
from chromakeep.exchange.parquet import ParquetFileSource
from chromakeep.records import Definition
from chromakeep.testing.specimens import gathered, records_of
from exchange.scenes import KINDS, at, read, written

DEFINITION = Definition("sample", dimension=4, metadata={"a": 1}, configuration={"hnsw": {"space": "ip"}})


def sample() -> Any:
    """A few records, so that most bytes of a file matter."""
    vectors = np.random.default_rng(1).standard_normal((12, 4), np.float32)
    metadata = [encode({"n": n, "s": f"text {n % 3}"}) for n in range(12)]
    return batch(
        [f"id {n}" for n in range(12)], vectors, [f"document {n}" for n in range(12)], [None] * 12, metadata, 4
    )


def outcome(address: str) -> dict[str, Any] | None:
    """The records, or None for an error of one line."""
    try:
        return gathered(read(address)[1])
    except ChromakeepError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 600, str(error)
        return None


@pytest.mark.parametrize("kind", ["x.parquet", "x.jsonl", "x.jsonl.zst"])
def test_a_file_that_is_cut_off(kind: str, tmp_path: Path) -> None:
    """At every byte. Of JSONL without an end, what remains may be a file of fewer records, each as it was."""
    address = Path(written(at(tmp_path, kind), DEFINITION, [sample()]))
    data = address.read_bytes()
    wanted = records_of(sample())
    fewer = 0
    for size in range(len(data) - 1, -1, -(7 if kind == "x.parquet" else 3)):
        address.write_bytes(data[:size])
        try:
            found = outcome(str(address))
        except ValueError:  # no collection at all
            assert "jsonl" in kind and size == 0
            continue
        if found is not None:
            assert found == wanted or (kind == "x.jsonl" and found.items() < wanted.items())
            fewer += 1
    assert fewer == 0 or kind == "x.jsonl"


@pytest.mark.parametrize("kind", ["x.parquet", "x.jsonl.zst"])
def test_a_file_of_which_a_byte_is_another(kind: str, tmp_path: Path) -> None:
    """Anywhere: an error, or the records as they were, for not every byte says something. Checksums see to that."""
    address = Path(written(at(tmp_path, kind), DEFINITION, [sample()]))
    data = address.read_bytes()
    wanted = records_of(sample())
    chance = random.Random(3)
    errors = 0
    for place in chance.sample(range(len(data)), min(800, len(data))):
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        address.write_bytes(damaged)
        found = outcome(str(address))
        errors += found is None
        assert found is None or found == wanted, place
    assert errors > len(data) // 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1PAR1", b"\xff\xff\xff\x7fPAR1", b"rubbish" * 1000, bytes(10_000)]
)
def test_rubbish(kind: str, content: bytes, tmp_path: Path) -> None:
    """Whatever is under the name."""
    if kind.endswith("/"):
        (tmp_path / "x.parquet").mkdir()
        (tmp_path / "x.parquet/MANIFEST.json").write_bytes(content)
    else:
        (tmp_path / kind).write_bytes(content)
    if content or "jsonl" not in kind:
        assert outcome(at(tmp_path, kind)) is None


def test_verify_reads_all_pages(tmp_path: Path) -> None:
    """Of a single file; the number of records is told."""
    address = Path(written(at(tmp_path, "x.parquet"), DEFINITION, [sample()]))
    assert ParquetFileSource(address).verify() == 12
    data = bytearray(address.read_bytes())
    at_text = data.index(b"PAR1", 4) - 4 if b"PAR1" in data[4:-4] else 200
    data[at_text] ^= 0xFF
    address.write_bytes(data)
    assert outcome(str(address)) is None
