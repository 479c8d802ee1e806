"""The write-ahead queue: rows of ``embeddings_queue`` that a segment has not applied yet, and what applying them makes.

Rules of replay from Chroma 1.5 (rust/segment/src/local_hnsw.rs and sqlite_metadata.rs, rust/log/src/sqlite_log.rs).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma.spool import Spool

ADD, UPDATE, UPSERT, DELETE, BACKFILL = range(5)
DOCUMENT = "chroma:document"
_SLICE = 500
_ROW = """seq_id, operation, CAST(id AS BLOB), length(vector), encoding,
    CASE WHEN metadata IS NULL THEN NULL WHEN NOT json_valid(metadata) THEN 'invalid'
    WHEN json_type(metadata) <> 'object' THEN 'invalid' ELSE json_type(metadata, '$."chroma:document"') END"""


class Row(NamedTuple):
    """One queued write. ``floats`` is its vector's length (None: it has none), ``poison`` why replay dies of it."""

    seq: int
    operation: int
    id: bytes
    floats: int | None
    poison: str | None


class Queue:
    """All rows by topic, as numbers: twelve bytes a row, so that each topic's rows are found without another scan."""

    def __init__(self, connection: sqlite3.Connection, folder: Path | None = None) -> None:
        """``folder``: where the numbers are spooled if there are many (a queue that was never purged)."""
        self.connection = connection
        topics: dict[Any, int] = {}
        self._seqs, self._numbers = Spool(np.int64, folder), Spool(np.int32, folder)
        cursor = connection.execute("SELECT seq_id, topic FROM embeddings_queue ORDER BY seq_id")
        while rows := cursor.fetchmany(4096):
            self._seqs.add(np.array([row[0] for row in rows], np.int64))
            self._numbers.add(np.array([topics.setdefault(row[1], len(topics)) for row in rows], np.int32))
        self._topics = topics

    def pending(self, topic: str, after: int) -> NDArray[np.int64]:
        """Sequence numbers of a topic's rows after ``after``, ascending."""
        number = self._topics.get(topic, -1)
        found = [np.zeros(0, np.int64)]
        for seqs, numbers in zip(self._seqs.portions(), self._numbers.portions(), strict=True):
            found.append(seqs[(numbers == number) & (seqs > after)])
        return np.concatenate(found)

    def rows(self, seqs: NDArray[np.int64]) -> Iterator[Row]:
        """These rows in order, without their vectors and metadata."""
        for seq, operation, id_, floats, encoding, kind in self._fetch(seqs, _ROW):
            poison = None
            if kind not in (None, "text"):
                poison = (
                    "its metadata is no JSON object" if kind == "invalid" else f"its document is of the type {kind}"
                )
            elif operation not in (ADD, UPDATE, UPSERT, DELETE, BACKFILL):
                poison = f"it is of the unknown operation {operation}"
            elif floats is not None and (encoding not in (None, "FLOAT32") or floats % 4):
                poison = "its vector is not of 32-bit floats"
            yield Row(seq, operation, id_, None if floats is None or encoding is None else floats // 4, poison)

    def vectors(self, seqs: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """(sequence number, little-endian float32 bytes) of these rows."""
        yield from self._fetch(seqs, "seq_id, vector")

    def metadata(self, seqs: NDArray[np.int64]) -> Iterator[tuple[int, bytes, Any]]:
        """(operation, id, parsed metadata or None) of these rows."""
        for operation, id_, text in self._fetch(seqs, "operation, CAST(id AS BLOB), metadata"):
            yield operation, id_, None if text is None else json.loads(text)

    def _fetch(self, seqs: NDArray[np.int64], columns: str) -> Iterator[Any]:
        for at in range(0, len(seqs), _SLICE):
            some = json.dumps(seqs[at : at + _SLICE].tolist())
            yield from self.connection.execute(
                f"SELECT {columns} FROM embeddings_queue "
                "WHERE seq_id IN (SELECT value FROM json_each(?)) ORDER BY seq_id",
                (some,),
            )


class Replay(msgspec.Struct):
    """What pending rows make of the ids they name; other ids stay as they are.

    ``alive`` maps an id to the sequence number that gives its vector (0: the index has it still); ``dead`` are ids that
    existed and no longer do; ``labels`` counts the labels that Chroma will give out.
    """

    alive: dict[bytes, int] = msgspec.field(default_factory=dict)
    dead: set[bytes] = msgspec.field(default_factory=set)
    labels: int = 0

    @property
    def moved(self) -> set[bytes]:
        """Ids whose vector is not, or no longer, that of the index."""
        return self.dead | {id_ for id_, seq in self.alive.items() if seq}


def replay(rows: Iterable[Row], existing: set[bytes]) -> Replay:
    """Rows applied to a segment that holds, of the ids they name, ``existing``; poisoned rows are passed over."""
    result = Replay(dict.fromkeys(existing, 0))
    alive, dead = result.alive, result.dead
    for row in rows:
        if row.poison:
            continue
        present = row.id in alive
        if row.operation == DELETE:
            if present:
                del alive[row.id]
                dead.add(row.id)
        elif row.operation in (ADD, UPSERT) and not present:
            alive[row.id] = row.seq
            dead.discard(row.id)
            result.labels += 1
        elif row.operation == UPSERT or (row.operation == UPDATE and present and row.floats is not None):
            alive[row.id] = row.seq
    return result
