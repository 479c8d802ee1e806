"""Chroma Cloud's quotas: what breaks one is named before it is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chromakeep.batches import batch, encode
from chromakeep.chroma.cloud import Quotas, check_definition, check_quotas
from chromakeep.errors import UsageError
from chromakeep.records import Definition

FINE: dict[str, Any] = {
    "id": "i" * 128,
    "document": "d" * 16_384,
    "uri": "u" * 256,
    "metadata": {"k" * 36: "v" * 8_182},
}


def records(*rows: dict[str, Any]) -> Any:
    full = [{**FINE, **row} for row in rows]
    metadatas = [encode(row["metadata"]) for row in full]
    columns = [[row[name] for row in full] for name in ("document", "uri")]
    return batch([row["id"] for row in full], np.ones((len(full), 2), "f4"), *columns, metadatas, 2)


def test_what_is_just_allowed() -> None:
    """All limits are reached, and nothing is said; nulls have no size."""
    keys = {f"key{n}": n for n in range(32)}
    check_quotas(records({}, {"metadata": keys}, {"document": None, "uri": None, "metadata": None}))
    check_quotas(records({}).slice(0, 0))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "ü" * 65}, "its id has 130 bytes, Chroma Cloud allows 128"),
        ({"document": "d" * 16_385}, "its document has 16,385 bytes"),
        ({"uri": "u" * 257}, "its uri has 257 bytes"),
        ({"metadata": {"k" * 37: 1}}, "a key of 37 bytes"),
        ({"metadata": {"k": "v" * 8_183}}, "a value of 8,183 bytes ('k')"),
        ({"metadata": {"k": ["x", "v" * 8_183]}}, "a value of 8,183 bytes ('k')"),
        ({"metadata": {f"key{n}": n for n in range(33)}}, "33 keys"),
    ],
)
def test_what_is_not_allowed(row: dict[str, Any], told: str) -> None:
    """The first record is named that breaks a quota, by whichever of its fields."""
    worse = {"id": "j" * 129, "document": "d" * 20_000}
    with pytest.raises(UsageError) as caught:
        check_quotas(records({}, row, worse))
    assert told in caught.value.message and repr(row.get("id", FINE["id"])[:80]) in caught.value.message
    check_quotas(records({}, row, worse), Quotas(id=1000, document=30_000, uri=1000, key=100, value=10_000, keys=99))


@pytest.mark.parametrize(
    "definition",
    [
        Definition("n" * 129),
        Definition("name", dimension=4097),
        Definition("name", metadata={"k" * 37: 1}),
        Definition("name", metadata={"k": "v" * 257}),
        Definition("name", metadata={f"key{n}": n for n in range(33)}),
    ],
)
def test_collections_that_are_not_allowed(definition: Definition) -> None:
    """By their name, dimension or own metadata."""
    check_definition(Definition("n" * 128, dimension=4096, metadata={"k" * 36: "v" * 256}))
    with pytest.raises(UsageError, match="Chroma Cloud allows"):
        check_definition(definition)
