"""Files of collections, written and read in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from chromakeep.exchange.open import sink_of, source_of
from chromakeep.records import Definition

KINDS = ("x.parquet", "x.parquet/", "x.jsonl", "x.jsonl.zst")
"""One name for each kind of exchange file."""

SAMPLE = Definition("sample", dimension=3)


def at(folder: Path, name: str) -> str:
    """An address in a folder; the slash at its end stays."""
    return f"{folder}/{name}"


def written(
    address: str,
    definition: Definition,
    batches: Iterable[pa.RecordBatch] = (),
    *,
    conflict: str = "fail",
    **options: Any,
) -> str:
    """Write and publish one collection."""
    with closing(sink_of(address, **options)) as sink:
        intake = sink.collection(definition, conflict=conflict)
        for batch in batches:
            intake.write(batch)
        intake.finish()
        sink.publish()
    return address


def read(address: str) -> tuple[Definition, list[pa.RecordBatch]]:
    """The one collection of a file."""
    with closing(source_of(address)) as source:
        (definition,) = source.definitions()
        return definition, [records for records, _ in source.batches(definition)]


def cut(records: pa.RecordBatch, size: int) -> Sequence[pa.RecordBatch]:
    """Batches of this size."""
    return [records.slice(start, size) for start in range(0, len(records), size)]


def listing(folder: Path) -> list[str]:
    """All names below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
