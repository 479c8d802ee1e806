"""Follow: bring changes into a database that a running Chroma serves reads from.

Catalog and queue are written beside Chroma, in short transactions: it looks every collection up in the database, and
its rows keep their numbers, so that it can go on where the original was. Then a nudge makes Chroma replay them.

Two faults of that replay (1.5.9, rust/segment/src/local_hnsw.rs) are kept away from. One that finds nothing new
forgets how far the index is, and the next one applies once more all rows since the last persist, which is not always
the same again (an update of an id not yet there, then its add). So no collection is nudged without a new row; and the
first read, which replays on its own, is done here: at the start, and of a new collection before it has any row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from chromakeep.changes import Change, Row
from chromakeep.chroma.apply import put_catalog, put_rows
from chromakeep.chroma.catalog import DATABASE
from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.nudge import Nudge, remove
from chromakeep.chroma.subset import remove_segments
from chromakeep.chroma.tail import TOPIC
from chromakeep.errors import DiskFull, SourceBusy, VerificationFailed

BUSY = 30.0  # seconds to wait for Chroma's own transactions
REPLAY = 600.0  # seconds that a replay may take: a thousand wide vectors are some


class Follower:
    """Follows into one directory, through a server that nobody writes to. For the thread that made it only.

    Every method raises ``ServerFailed`` (Chroma does not replay), ``VerificationFailed`` (the change does not fit),
    ``SourceBusy`` or ``DiskFull``. After that the directory may be in the middle of a change: it is good for nothing
    more. Nothing is durable before ``finish``.
    """

    def __init__(self, directory: Path, client: ChromaClient) -> None:
        """The server must be running and not read from yet: returns when it has replayed all that waits."""
        self.known: dict[str, int] = {}  # by topic, the last row that is here
        self._directory, self._client = directory, client
        self._refs: dict[str, Ref] = {}  # by id
        self._unseen: set[str] = set()  # ids of collections with rows that Chroma has not replayed
        self._db = sqlite3.connect(directory / DATABASE, isolation_level=None, timeout=BUSY)
        try:
            with self._telling():
                self._db.execute("PRAGMA foreign_keys=OFF")
                self._db.execute("PRAGMA synchronous=OFF")
                self._nudge = Nudge(self._db)
                self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        collections = {i for (i,) in self._db.execute("SELECT id FROM collections")}
        for topic, last in self._db.execute("SELECT topic, max(seq_id) FROM embeddings_queue GROUP BY topic"):
            if topic.removeprefix(TOPIC) in collections:
                self.known[topic] = last
            elif topic.startswith(TOPIC):
                # Of a collection that came and went between two looks: the original has given its numbers away.
                self._db.execute("DELETE FROM embeddings_queue WHERE topic = ?", (topic,))
        applied = "SELECT collection, seq_id FROM max_seq_id JOIN segments ON segments.id = segment_id"
        for collection, seq in self._db.execute(applied):
            if isinstance(seq, int):
                self.known[TOPIC + collection] = max(seq, self.known.get(TOPIC + collection, 0))
        self._meet()

    def bring(self, last: Change, before: Iterable[Change] = ()) -> None:
        """Bring the state about that ``last`` completes; ``before`` are the changes that it continues.

        What is there already of it stays as it is. Reads show all of it after ``show``, some of it maybe before.
        """
        with self._telling():
            if last.tables:
                self._catalog(last)
            for change in chain(before, (last,)):
                self._unseen |= self._rows(change.rows)

    def show(self) -> None:
        """Return when reads show all that was brought. The cost is one request a collection, however much it was."""
        for id_ in sorted(self._unseen & self._refs.keys()):
            self._nudge.give(self._client, self._refs[id_], timeout=REPLAY)
        self._unseen.clear()

    def _catalog(self, change: Change) -> None:
        with self._transaction():
            gone = put_catalog(self._db, change)
        self._meet()
        remove_segments(self._directory, gone)

    def _meet(self) -> None:
        """Read every collection once that was not read before."""
        names = self._db.execute(
            "SELECT c.id, c.name, d.tenant_id, d.name FROM collections c JOIN databases d ON d.id = c.database_id"
        )
        now = {row[0]: Ref(*row) for row in names}
        for id_ in now.keys() - self._refs.keys():
            self._client.count(now[id_], timeout=REPLAY)
        self._refs = now
        alive = {TOPIC + id_ for id_ in now}
        self.known = {topic: last for topic, last in self.known.items() if topic in alive}

    def _rows(self, rows: tuple[Row, ...]) -> set[str]:
        """Put those into the queue that are new, of collections that are there; returns these collections."""
        new = [r for r in rows if r.topic.removeprefix(TOPIC) in self._refs and r.seq > self.known.get(r.topic, 0)]
        if not new:
            return set()
        taken = f"SELECT seq_id FROM embeddings_queue WHERE seq_id BETWEEN {new[0].seq} AND {new[-1].seq}"
        with self._transaction():
            numbers = {n for (n,) in self._db.execute(taken)}
            if clash := next((row.seq for row in new if row.seq in numbers), None):
                raise VerificationFailed(f"row {clash} of the log has a number that another row has here")
            put_rows(self._db, new)
        self.known.update((row.topic, row.seq) for row in new)
        return {row.topic.removeprefix(TOPIC) for row in new}

    def finish(self) -> None:
        """Leave a directory that may be written to, and make it durable. What was brought must have been shown."""
        assert not self._unseen
        with self._telling():
            self._db.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                remove(self._db)
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE, so that it waits for its turn before it has read. Chroma's reads go on until the commit.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            where = self._directory / DATABASE
            if "locked" in str(error) or "busy" in str(error):
                raise SourceBusy(f"{where}: Chroma kept the database locked for {BUSY:g} s") from None
            if "full" in str(error):
                raise DiskFull(f"{where}: the disk is full", hint="free some space") from None
            raise VerificationFailed(f"{where}: the log does not fit what is here ({error})") from None
