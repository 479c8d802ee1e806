"""Rows: records as a server takes them in a request, checked for what it would lose, refuse late or die of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.batches import decode, vectors_of
from chromakeep.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

_HIDDEN = "chroma:"  # its own keys: of some it dies, the others it does not show
_REFUSED = ("#", "$")


class Rows(msgspec.Struct, frozen=True, eq=False):
    """Position ``n`` is one record throughout; ``vectors`` is (n, dimension) float32, finite."""

    ids: list[str]
    vectors: NDArray[np.float32]
    documents: list[str | None]
    uris: list[str | None]
    metadatas: Sequence[Mapping[str, Any] | None]

    @classmethod
    def of(cls, records: pa.RecordBatch) -> Rows:
        """Those of a batch. Raises ``UsageError`` that names the first record which cannot be written."""
        ids: list[str] = records.column("id").to_pylist()
        vectors, present = vectors_of(records)
        if "" in ids:
            raise UsageError("a record has an empty id, which Chroma refuses")
        if not present.all():
            raise UsageError(
                f"the record {_short(ids[int(np.argmin(present))])} has no vector, and Chroma takes none without one",
                hint="leave such records out with --where",
            )
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise UsageError(
                f"the vector of {_short(ids[int(np.argmin(finite))])} has a number that is none, or infinite; Chroma"
                " refuses it",
                hint="leave such records out with --where",
            )
        metadatas = [
            _metadata(id_, text) for id_, text in zip(ids, records.column("metadata").to_pylist(), strict=True)
        ]
        return cls(ids, vectors, records.column("document").to_pylist(), records.column("uri").to_pylist(), metadatas)

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, count: int) -> Rows:
        """Some of them."""
        at = slice(start, start + count)
        return Rows(self.ids[at], self.vectors[at], self.documents[at], self.uris[at], self.metadatas[at])

    def only(self, chosen: Sequence[int], metadatas: Sequence[Mapping[str, Any] | None]) -> Rows:
        """Those at these positions, with other metadata: one for each that was chosen."""
        ids, documents, uris = ([column[n] for n in chosen] for column in (self.ids, self.documents, self.uris))
        return Rows(ids, self.vectors[list(chosen)], documents, uris, metadatas)  # type: ignore[arg-type]

    def body(self, *, base64: bool) -> bytes:
        """The request. ``base64``: vectors as the little-endian bytes they are; else as decimal numbers."""
        vectors = np.ascontiguousarray(self.vectors, "<f4")
        body: dict[str, Any] = {
            "ids": self.ids,
            "embeddings": [row.tobytes() for row in vectors] if base64 else vectors.tolist(),
        }
        columns = {"documents": self.documents, "uris": self.uris, "metadatas": self.metadatas}
        body.update((name, column) for name, column in columns.items() if any(each is not None for each in column))
        return msgspec.json.encode(body)  # bytes become base64


def _metadata(id_: str, text: str | None) -> dict[str, Any] | None:
    try:
        metadata = decode(text)
    except UsageError as error:
        raise UsageError(f"the record {_short(id_)}: {error.message}", hint=error.hint) from None
    for key in metadata or {}:
        if not key or key.startswith((_HIDDEN, *_REFUSED)):
            raise UsageError(
                f"the record {_short(id_)} has the metadata key {_short(key)}, which Chroma does not take",
                hint="keys are not empty and begin with none of # $ chroma:",
            )
    return metadata


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
