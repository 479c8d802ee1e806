"""Specimens: Chroma holds every one of them, but for those of which it is said that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chromakeep.batches import batch, decode, encode, vectors_of
from chromakeep.testing.specimens import Record, assert_same, differences, ordinary, records_of, specimens


def through_chroma(records: Any, path: Path) -> dict[str, Record]:
    """What the installed Chroma gives back of records that it was given."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(path), settings=Settings(anonymized_telemetry=False))
    collection = client.create_collection("specimens", embedding_function=None)
    vectors, _ = vectors_of(records)
    metadatas = [decode(text) or None for text in records.column("metadata").to_pylist()]
    collection.add(
        ids=records.column("id").to_pylist(),
        embeddings=vectors,  # type: ignore[arg-type]
        documents=records.column("document").to_pylist(),
        uris=records.column("uri").to_pylist(),
        metadatas=metadatas,  # type: ignore[arg-type]
    )
    found: Any = collection.get(include=["embeddings", "documents", "metadatas", "uris"])
    client.close()
    rows = zip(*[found[name] for name in ("ids", "embeddings", "documents", "uris", "metadatas")], strict=True)
    return {
        id_: Record(np.asarray(vector, "<f4").tobytes(), document, uri, encode(metadata or None))
        for id_, vector, document, uri, metadata in rows
    }


def test_chroma_holds_every_specimen(tmp_path: Path) -> None:
    """To the bit: a source of Chroma's can be asked for all of them, a sink be given them."""
    records = specimens(bare=False, unrounded=False)
    assert len(records) > 60
    assert_same(records_of(records), through_chroma(records, tmp_path))


def test_chroma_changes_the_last_bit_of_some_numbers(tmp_path: Path) -> None:
    """It writes metadata into its queue as JSON, and reads that inexactly; what it made of a number it then keeps."""
    values = np.random.default_rng(1).random(1000)
    vectors = np.ones((len(values), 1), np.float32)
    nothing = [None] * len(values)

    def of(numbers: Any) -> Any:
        metadatas = [encode({"k": float(number)}) for number in numbers]
        return batch([str(n) for n in range(len(values))], vectors, nothing, nothing, metadatas, 1)

    once = through_chroma(of(values), tmp_path / "once")
    numbers = np.array([decode(once[str(n)].metadata)["k"] for n in range(len(values))])  # type: ignore[index]
    changed = numbers != values
    assert 10 < changed.sum() < 500
    assert np.all(np.abs(numbers - values) <= np.spacing(values))
    assert_same(once, through_chroma(of(numbers), tmp_path / "twice"))


def test_specimens_differ_and_come_as_they_are_wanted() -> None:
    """Each option leaves out records, and changes no other."""
    whole = records_of(specimens())
    assert len(set(whole.values())) > 40
    for option in ("nul", "bare", "unrounded"):
        some = records_of(specimens(**{option: False}))
        assert 0 < len(whole) - len(some) < 3
        assert_same({id_: whole[id_] for id_ in some}, some)


def test_ordinary_records_depend_on_their_number_alone() -> None:
    """A part of them is made as the whole is."""
    assert ordinary(20).slice(5).equals(ordinary(15, start=5))


@pytest.mark.parametrize("field", ["vector", "document", "uri", "metadata"])
def test_a_difference_is_named(field: str) -> None:
    """By id and field, and what was missing or never there."""
    one = records_of(ordinary(3))
    other = {**one, "id-000001": one["id-000001"]._replace(**{field: None})}
    lines = differences(one, other) if one["id-000001"] != other["id-000001"] else [field]
    assert field in lines[0]
    assert differences(one, {}) == [f"'id-{n:06}' is missing" for n in range(3)]
    assert differences({}, one) == [f"'id-{n:06}' was never there" for n in range(3)]
