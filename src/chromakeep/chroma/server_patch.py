"""A patch: some records of a server's collection, changed in all but their vectors.

Chroma's update leaves what it is not given, so a key that is to go is sent as null. Nothing removes a document or a URI
but to delete the record, and that would take the vector too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from chromakeep.batches import decode
from chromakeep.chroma.client import Ref
from chromakeep.chroma.connection import ANYTHING, Connection
from chromakeep.chroma.fetch import Fetcher

if TYPE_CHECKING:
    import pyarrow as pa

BODY = 8 << 20  # bytes of a request, if it is of more than one record

Texts = tuple[str | None, str | None, str | None]  # document, URI and metadata as JSON


class _Ids(msgspec.Struct):
    ids: list[str]


_IDS = msgspec.json.Decoder(_Ids)


class ServerPatch:
    """``most``: ids of a request."""

    def __init__(
        self, connection: Connection, ref: Ref, fetcher: Fetcher, most: int, stop: threading.Event | None = None
    ) -> None:
        self._connection, self._ref, self._fetcher, self._most, self._stop = connection, ref, fetcher, most, stop

    def present(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are there."""
        found: set[str] = set()
        for at in range(0, len(ids), self._most):
            some = list(ids[at : at + self._most])
            body = msgspec.json.encode({"ids": some, "limit": len(some), "include": []})
            answer = self._connection.request(
                "POST", f"{self._ref.path}/get", body, decoder=_IDS, patient=True, stop=self._stop
            )
            found.update(answer.ids)
        return found

    def write(self, records: pa.RecordBatch) -> list[str]:
        """Change them, but those that are so already; the ids of those that cannot be."""
        stuck: list[str] = []
        for at in range(0, len(records), self._most):
            stuck += self._write(_texts(records.slice(at, self._most)))
        return stuck

    def _write(self, wanted: dict[str, Texts]) -> list[str]:
        there: dict[str, Texts] = {}
        for each in self._fetcher.get(list(wanted)):
            there.update(_texts(each))
        stuck, changes = [], []
        for id_, (document, uri, text) in wanted.items():
            had = there.get(id_)
            if had is None or (had[0] is not None and document is None) or (had[1] is not None and uri is None):
                stuck.append(id_)
            elif had != (document, uri, text):
                metadata: dict[str, Any] = decode(text) or {}
                absent = (decode(had[2]) or {}).keys() - metadata.keys()
                changes.append((id_, document, uri, {**metadata, **dict.fromkeys(absent)} or None))
        for body in _bodies(changes):
            self._connection.request(
                "POST",
                f"{self._ref.path}/update",
                body,
                decoder=ANYTHING,
                timeout=self._connection.slow,
                patient=True,
                stop=self._stop,
            )
        return stuck


def _texts(records: pa.RecordBatch) -> dict[str, Texts]:
    ids, *texts = (records.column(name).to_pylist() for name in ("id", "document", "uri", "metadata"))
    return dict(zip(ids, zip(*texts, strict=True), strict=True))


def _bodies(changes: list[tuple[Any, ...]]) -> Iterator[bytes]:
    if not changes:
        return
    ids, documents, uris, metadatas = (list(column) for column in zip(*changes, strict=True))
    columns = {"documents": documents, "uris": uris, "metadatas": metadatas}
    shown = {name: column for name, column in columns.items() if any(each is not None for each in column)}
    body = msgspec.json.encode({"ids": ids, **shown})
    if len(body) > BODY and len(changes) > 1:
        half = len(changes) // 2
        yield from _bodies(changes[:half])
        yield from _bodies(changes[half:])
    else:
        yield body
