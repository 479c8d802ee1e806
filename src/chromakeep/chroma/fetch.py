"""Fetching: records of a server by their ids, several requests in flight, given in the order of the ids."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from chromakeep.batches import batch, decode, encode
from chromakeep.chroma.client import Ref
from chromakeep.chroma.connection import Connection
from chromakeep.chroma.portions import Portions
from chromakeep.chroma.wire import AnswerTooLarge
from chromakeep.errors import ServerAnswered, ServerFailed, ServerSilent, SourceError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

INCLUDE = ("embeddings", "documents", "metadatas", "uris")
START, MOST = 64, 4096  # records of a request
SIZE_AIM = 4 << 20  # bytes of an answer: parsed it is some four times as large, and several are in memory


class Answer(msgspec.Struct):
    """What ``get`` answers, parsed as far as it is of one shape for all records."""

    ids: list[str]
    embeddings: list[list[float] | None] | None = None
    documents: list[str | None] | None = None
    uris: list[str | None] | None = None
    metadatas: list[msgspec.Raw] | None = None


class _Measured:
    """Parses an answer and tells its size."""

    _decoder = msgspec.json.Decoder(Answer)

    def decode(self, data: bytes, /) -> tuple[Answer, int]:
        return self._decoder.decode(data), len(data)


Portion = list[tuple["pa.RecordBatch", int]]
"""Batches, each with how many ids it is the answer for."""

_MEASURED = _Measured()
_NULL = b"null"
# Chroma reads the metadata first and then the vectors; of a record that is deleted in between it has none.
_TORN = "Error finding id"
_TRIES, _PAUSE = 5, 0.05


class Fetcher:
    """Reads one collection. ``threads``: requests in flight; ``most``: records of one request."""

    def __init__(
        self,
        connection: Connection,
        ref: Ref,
        dimension: int | None,
        *,
        threads: int = 4,
        most: int = MOST,
        stop: threading.Event | None = None,
    ) -> None:
        self._connection, self._ref, self._dimension = connection, ref, dimension
        self._threads = threads
        self._portions = Portions(min(START, most), most, size_aim=SIZE_AIM)
        self._stop = stop or threading.Event()

    def fetch(self, lists: Iterator[list[str]], done: int = 0) -> Generator[tuple[pa.RecordBatch, int], None, None]:
        """The records of these ids that are there, each batch with the number of ids up to its end, counted from
        ``done``. As many requests as threads are under way while a batch waits to be taken. Raises ``SourceError`` for
        a record that cannot be given exactly."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="fetch")
        waiting: deque[Future[Portion]] = deque()
        ahead = 1  # until one answer has shown how large these records are
        try:
            portions = self._cut(lists)
            while True:
                while len(waiting) < ahead and (ids := next(portions, None)) is not None:
                    waiting.append(pool.submit(self._get, ids))
                if not waiting:
                    return
                for records, ids_of_it in waiting.popleft().result():
                    done += ids_of_it
                    if len(records):
                        yield records, done
                ahead = self._threads + 1
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def get(self, ids: list[str]) -> list[pa.RecordBatch]:
        """The records of these ids that are there, in the thread that asks."""
        found: list[pa.RecordBatch] = []
        while ids:
            portion, ids = ids[: self._portions.now], ids[self._portions.now :]
            found += [records for records, _ in self._get(portion) if len(records)]
        return found

    def _cut(self, lists: Iterator[list[str]]) -> Iterator[list[str]]:
        rest: list[str] = []
        for ids in lists:
            rest, at = rest + ids, 0
            while len(rest) - at >= (size := self._portions.now):
                yield rest[at : at + size]
                at += size
            rest = rest[at:]
        if rest:
            yield rest

    def _get(self, ids: list[str]) -> Portion:
        found = self._ask(ids)
        missing = self._missing(found, ids)
        while missing and any(map(len, found)):
            # Deleted, or is it a server that gives fewer than it is asked for?
            more = self._ask(missing)
            if not any(map(len, more)):
                break
            self._portions.cap(max(map(len, more)))
            found, missing = found + more, self._missing(more, missing)
        # Of ids that came in several parts a mark leads behind all of them, after the last one.
        return [*[(records, 0) for records in found[:-1]], (found[-1], len(ids))]

    def _ask(self, ids: list[str], tries: int = 1) -> list[pa.RecordBatch]:
        """The records of these ids that are there, or that a server gives at a time; at least one batch."""
        body = msgspec.json.encode({"ids": ids, "limit": len(ids), "include": INCLUDE})
        began = time.monotonic()
        try:
            answer, size = self._connection.request(
                "POST", f"{self._ref.path}/get", body, decoder=_MEASURED, patient=len(ids) == 1, stop=self._stop
            )
        except (AnswerTooLarge, ServerSilent, ServerAnswered) as error:
            if isinstance(error, ServerAnswered) and error.status == 500 and _TORN in error.message:
                if tries < _TRIES and not self._stop.wait(_PAUSE * tries):
                    return self._ask(ids, tries + 1)
                if len(ids) == 1:
                    raise SourceError(
                        f"the record {ids[0][:80]!r} has no vector at the server, only its metadata: {error.message}",
                        hint="delete it, or put its vector back; `chromakeep check` looks into the directory",
                    ) from None
            elif len(ids) == 1 or not self._portions.blame(error, len(ids)):
                raise
            step = max(1, min(len(ids) // 2, self._portions.now))
            return [each for at in range(0, len(ids), step) for each in self._ask(ids[at : at + step])]
        records = self._records(answer, ids)
        self._portions.went(len(ids), size, time.monotonic() - began)
        return [records]

    @staticmethod
    def _missing(found: list[pa.RecordBatch], ids: list[str]) -> list[str]:
        if sum(map(len, found)) == len(ids):
            return []
        there = {id_ for records in found for id_ in records.column("id").to_pylist()}
        return [id_ for id_ in ids if id_ not in there]

    def _records(self, answer: Answer, ids: list[str]) -> pa.RecordBatch:
        found = answer.ids
        columns: list[list[Any] | None] = [answer.embeddings, answer.documents, answer.uris, answer.metadatas]
        place = {id_: n for n, id_ in enumerate(found)}
        if any(column is None or len(column) != len(found) for column in columns) or len(place) != len(found):
            raise self._foreign("its columns are not of one length, or an id is there twice")
        if found != ids:
            order = [place[id_] for id_ in ids if id_ in place]
            if len(order) != len(found):
                raise self._foreign("it has ids that were not asked for")
            found = [found[n] for n in order]
            columns = [[column[n] for n in order] for column in columns if column is not None]
        embeddings, documents, uris, metadatas = columns
        assert embeddings is not None and documents is not None and uris is not None and metadatas is not None
        vectors = self._vectors(found, embeddings)
        return batch(found, vectors, documents, uris, _texts(found, metadatas), self._dimension)

    def _vectors(self, ids: list[str], rows: Sequence[Any]) -> Any:
        width = self._dimension
        for id_, row in zip(ids, rows, strict=True):
            if row is not None and width is not None and len(row) != width:
                raise SourceError(
                    f"the vector of {id_[:80]!r} has {len(row)} dimensions, that of its collection {width}",
                    hint="Chroma 1.5 lets one in where two writers begin a collection at once; delete that record",
                )
        if width is None or None in rows:
            return rows
        with np.errstate(over="ignore"):
            vectors = np.fromiter(chain.from_iterable(rows), np.float32, len(rows) * width).reshape(-1, width)
        if not np.isfinite(vectors).all():
            raise self._foreign("a vector has numbers that no float32 holds")
        return vectors

    def _foreign(self, what: str) -> ServerFailed:
        return ServerFailed(
            f"{self._connection.where}: its answer to POST get is none of Chroma's: {what}",
            hint="is this the address of a Chroma server, of version 1.0 or later?",
        )


def _texts(ids: Sequence[str], metadatas: Sequence[Any]) -> list[str | None]:
    """Metadata as canonical JSON. Raises ``SourceError`` for a value that is none of those that batches take."""
    texts: list[str | None] = []
    for id_, raw in zip(ids, metadatas, strict=True):
        data = bytes(raw)
        try:
            texts.append(None if data == _NULL else encode(decode(data)))
        except UsageError as error:
            raise SourceError(
                f"the record {id_[:80]!r}: {error.message}",
                hint="sparse vectors, which Chroma Cloud has, cannot be copied" if b"#type" in data else error.hint,
            ) from None
    return texts
