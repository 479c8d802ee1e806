"""What Chroma makes of floats and of cosine vectors, foretold to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from chromakeep.batches import batch, decode, encode, vectors_of
from chromakeep.chroma.rounding import as_returned, through_json

EXTREME = [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1e300, 1e22, 1e23, 123456789012345680.0, -0.0]


def test_floats_of_metadata_and_cosine_vectors_are_foretold(tmp_path: Path) -> None:
    """Numbers of every size, alone and in lists, through a real Chroma: each comes back as it is said to."""
    import chromadb

    rng = np.random.default_rng(3)
    sized = rng.standard_normal(600) * 10.0 ** rng.integers(-300, 300, 600)
    plain = rng.random(600) * 10.0 ** rng.integers(1, 17, 600)  # a point after any of the digits, as in a time
    numbers = [*rng.random(1000), *sized, *plain, *np.float32(rng.random(400)).tolist(), *EXTREME]
    numbers = [float(number) for number in numbers]
    ids = [f"n{n}" for n in range(len(numbers))]
    vectors = rng.standard_normal((len(ids), 24)).astype(np.float32)
    collection = chromadb.PersistentClient(str(tmp_path)).create_collection(
        "numbers", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    collection.add(ids=ids, embeddings=vectors, metadatas=[{"k": n, "l": [n, n], "t": f"{n}"} for n in numbers])
    got = collection.get(ids=ids, include=["embeddings", "metadatas"])
    place = {id_: n for n, id_ in enumerate(got["ids"])}
    none = [None] * len(ids)
    given = batch(ids, vectors, none, none, [encode({"k": n, "l": [n, n], "t": f"{n}"}) for n in numbers], 24)
    told = as_returned(given, cosine=True)
    changed = 0
    for n, (id_, text) in enumerate(zip(ids, told.column("metadata").to_pylist(), strict=True)):
        assert decode(text) == got["metadatas"][place[id_]]
        changed += through_json(numbers[n]) != numbers[n]
    assert changed > 50
    found = np.array([got["embeddings"][place[id_]] for id_ in ids], np.float32)
    assert vectors_of(told)[0].tobytes() == found.tobytes()
    assert (found != vectors).any()


def test_what_is_not_rounded_is_the_same_batch() -> None:
    """No copy where there is nothing to do: floats of few digits, numbers in text, integers of any size."""
    metadatas = [encode({"a": 0.5, "b": 1 << 62, "c": "0.12345678901234567", "d": [1.25]}), None, encode({})]
    some = batch(["a", "b", "c"], np.ones((3, 2), np.float32), [None] * 3, [None] * 3, metadatas, 2)
    assert as_returned(some, cosine=False) is some
    assert as_returned(some, cosine=True).schema.equals(some.schema)
    empty = batch([], [], [], [], [], None)
    assert as_returned(empty, cosine=True).num_rows == 0
    assert isinstance(empty, pa.RecordBatch)
