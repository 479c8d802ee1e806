"""Tail: what was committed to a live database since the last look, a whole number of commits at a time.

Everything that Chroma is told goes into ``embeddings_queue`` (records) or into the small tables of the catalog; all the
rest of the database follows from these by replay. With the purge held (``chroma.purge``) no row leaves the queue unseen
but with its collection. A look is one read transaction: a SHARED lock while new rows are read, and no longer.

A topic's row numbers only rise. Numbers are used again only when a collection is deleted whose rows are the last of
all: then the row where the last look ended is gone or another topic's, and all topics are looked through.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from chromakeep.changes import CREATED, DELETED, RENAMED, WROTE, Change, Moment, Row, Table
from chromakeep.chroma.catalog import schema_of
from chromakeep.chroma.locking import HotJournal, LiveDatabase
from chromakeep.chroma.queue import ADD, DELETE, UPDATE, UPSERT
from chromakeep.chroma.signature import Stamp, settled
from chromakeep.errors import SourceBusy, SourceError

TABLES = ("tenants", "databases", "collections", "collection_metadata", "segments", "segment_metadata")
TOPIC = "persistent://default/default/"
TICK = timedelta(milliseconds=1)
AT_ONCE = 8 << 20  # bytes of rows in one change: what a look holds in memory
BUSY = 30.0  # seconds to wait for the lock
_COLUMNS = "seq_id, created_at, operation, topic, CAST(id AS BLOB), vector, encoding, CAST(metadata AS BLOB)"

Rows = dict[int, tuple[Any, ...]]  # of a table, by row number
Tables = dict[str, tuple[tuple[str, ...], Rows]]  # columns and rows
Also = Callable[[sqlite3.Connection, tuple[Row, ...]], object]
"""Reads more in the transaction of a look, whose rows it is given."""


class Tail:
    """Looks at one database, which must be in rollback mode. Not for several threads."""

    def __init__(
        self,
        database: Path,
        applied: Mapping[str, int] | None = None,
        *,
        last: tuple[int, str] | None = None,
        since: datetime | None = None,
    ) -> None:
        """``applied`` gives by topic the last row that the other side has; of topics it does not name it has none.
        ``last``: number and topic of the last row of an earlier tail with the same ``applied`` (see ``position``): as
        long as it is there, nothing before it is read again.

        Times of changes rise from one to the next, whatever the clock does, and are after ``since``.
        The first change is ``whole``. Raises what ``LiveDatabase`` raises, and ``SourceError`` for WAL mode.
        """
        self._live = LiveDatabase(database.resolve())
        self._path = database
        try:
            self._refuse_wal()
            with self._live.shared(time.monotonic() + BUSY) as connection:
                self.schema = schema_of(connection)
        except BaseException as error:
            self._live.close()
            if isinstance(error, HotJournal):
                raise SourceBusy(f"{database}: its writer died in a transaction") from None
            raise
        self._seen = dict(applied or {})
        self._last = last
        self._tables: Tables = {}
        self._captured: deque[Tables] = deque()
        self._looked: tuple[Stamp | None, bytes] | None = None
        self._time, self._counter = since or datetime.fromtimestamp(0, timezone.utc), -1
        self._whole, self._more = True, False
        self._counts: Counter[tuple[str, int]] = Counter()  # rows of the changes that lead to the next state

    def close(self) -> None:
        """Let go of the database. Not while this process holds a lock on it elsewhere (see ``locking``)."""
        self._live.close()

    def changed(self) -> bool:
        """Whether anything may have been committed since the last look. Costs one ``fstat``."""
        return self._more or bool(self._captured) or self._looked is None or self._live.stamp() != self._looked

    def captured(self, catalog: Tables) -> bool:
        """Have the next look lead on from a state that was captured since the last but one, too: what came and went
        between two looks may be in it. False where that is so already. May be called from another thread."""
        if catalog == self._tables:
            return False
        self._captured.append(catalog)
        return True

    @property
    def replaced(self) -> bool:
        """Whether what lies at the path is another database now, or an earlier state of this one: no change leads
        there from what was read."""
        return self._live.moved() or int.from_bytes(self._live.stamp()[1], "big") < self._counter

    @property
    def position(self) -> tuple[dict[str, int], tuple[int, str] | None]:
        """``applied`` and ``last`` for a tail that is to go on behind the last look."""
        return dict(self._seen), self._last

    def look(self, *, final: bool = False, also: Also | None = None) -> Change | None:
        """The next change; None if there is none. After one with ``more`` look again at once.

        ``final``: a commit that changed nothing here still gives a change, so that its counter is known. ``also``: is
        called in the same transaction; what it raises comes through, and the look has not been.

        Raises ``SourceBusy`` (also while a writer that died left a transaction to be undone by the next one),
        ``SourceError`` (also once it is ``replaced``), ``SourceBroken``.
        """
        try:
            return self._look(final, also)
        except HotJournal:
            self._refuse_wal()
            raise SourceBusy(f"{self._path}: its writer died in a transaction") from None

    def _look(self, final: bool, also: Also | None) -> Change | None:
        with self._live.shared(time.monotonic() + BUSY) as connection:
            self._refuse_wal()
            if self.replaced:
                raise SourceError(f"{self._path} is not the database any more that was read")
            found = self._live.stamp()
            counter = int.from_bytes(found[1], "big")
            rows, more = self._rows(connection)
            if also is not None:
                also(connection, rows)
            self._counts.update((row.topic, row.operation) for row in rows)
            self._time = max(self._time + TICK, datetime.now(timezone.utc))
            moment = self._time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            change = Change(moment, counter, rows, more=True)
            captured = list(self._captured)
            if not more:
                tables, before = catalog_of(connection), self._tables
                change = Change(
                    change.time,
                    counter,
                    rows,
                    _differences([] if self._whole else [before, *captured], tables),
                    _moments(before, tables, self._counts),
                    whole=self._whole,
                )
        # A write within the clock's tick of this look need not move the file's time: then it is looked at once more.
        self._looked = found if found[0] and settled([found[0]]) else None
        self._more = more
        for row in rows:
            self._seen[row.topic] = row.seq
        if rows:
            self._last = rows[-1].seq, rows[-1].topic
        if not more:
            self._tables = tables
            for _ in captured:
                self._captured.popleft()
            alive = {TOPIC + str(row[0]) for row in tables["collections"][1].values()}
            self._seen = {topic: seq for topic, seq in self._seen.items() if topic in alive}
            still = not final or counter == self._counter
            nothing = not rows and not change.tables and not self._whole and still
            self._counter = counter
            self._whole = False
            self._counts.clear()
            if nothing:
                return None
        return change

    def _refuse_wal(self) -> None:
        if self._live.in_wal_mode():
            raise SourceError(
                f"{self._path} is in WAL mode, which log shipping does not follow",
                hint="sqlite3 chroma.sqlite3 'PRAGMA journal_mode=DELETE' while Chroma is stopped",
            )

    def _rows(self, connection: sqlite3.Connection) -> tuple[tuple[Row, ...], bool]:
        """New rows, some MiB at a time, and whether there are more."""
        found: list[Row] = []
        size = 0
        for values in connection.execute(*self._query(connection)):
            row = Row(*values)
            if row.seq <= self._seen.get(row.topic, 0):
                continue
            if size > AT_ONCE:
                return tuple(found), True
            found.append(row)
            size += len(row.id) + len(row.vector or b"") + len(row.metadata or b"") + 100
        return tuple(found), False

    def _query(self, connection: sqlite3.Connection) -> tuple[str, tuple[int, ...]]:
        if self._last:
            seq, topic = self._last
            at = connection.execute("SELECT topic FROM embeddings_queue WHERE seq_id = ?", (seq,)).fetchone()
            if at == (topic,):
                return f"SELECT {_COLUMNS} FROM embeddings_queue WHERE seq_id > ? ORDER BY seq_id", (seq,)
        return f"SELECT {_COLUMNS} FROM embeddings_queue ORDER BY seq_id", ()


def catalog_of(database: sqlite3.Connection | Path) -> Tables:
    """The tables of the catalog; of a path: of a copy that nobody writes to."""
    if isinstance(database, Path):
        with closing(
            sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=ro&immutable=1", uri=True)
        ) as opened:
            return catalog_of(opened)
    found = {}
    for name in TABLES:
        cursor = database.execute(f"SELECT rowid, * FROM {name}")
        columns = tuple(column[0] for column in cursor.description[1:])
        found[name] = columns, {row[0]: row[1:] for row in cursor}
    return found


def _moments(before: Tables, after: Tables, counts: Counter[tuple[str, int]]) -> tuple[Moment, ...]:
    had, have = _named(before), _named(after)
    found: list[Moment] = []
    if before:
        found += [Moment(CREATED, id_, *have[id_]) for id_ in have.keys() - had.keys()]
        found += [Moment(DELETED, id_, *had[id_]) for id_ in had.keys() - have.keys()]
        found += [Moment(RENAMED, id_, *have[id_]) for id_ in have.keys() & had.keys() if have[id_] != had[id_]]
    for topic in {topic for topic, _ in counts}:
        if names := have.get(id_ := topic.removeprefix(TOPIC)):
            added = counts[topic, ADD] + counts[topic, UPSERT]
            found.append(Moment(WROTE, id_, *names, added, counts[topic, UPDATE], counts[topic, DELETE]))
    return tuple(sorted(found))


def _named(tables: Tables) -> dict[str, tuple[str, str, str]]:
    """Tenant, database and name of each collection, by its id."""
    if not tables:
        return {}
    columns, rows = tables["databases"]
    where = [columns.index(name) for name in ("id", "tenant_id", "name")]
    databases = {row[where[0]]: (str(row[where[1]]), str(row[where[2]])) for row in rows.values()}
    columns, rows = tables["collections"]
    where = [columns.index(name) for name in ("id", "database_id", "name")]
    return {str(row[where[0]]): (*databases.get(row[where[1]], ("", "")), str(row[where[2]])) for row in rows.values()}


def _differences(states: Sequence[Tables], after: Tables) -> dict[str, Table]:
    """What leads from each of these states to the later one; from none of them: all of it."""
    found = {}
    for name, (columns, rows) in after.items():
        had = [state[name][1] for state in states]
        put = tuple((number, *row) for number, row in rows.items() if not had or any(h.get(number) != row for h in had))
        gone = tuple(sorted(set[int]().union(*had) - rows.keys()))
        if put or gone or not had:
            found[name] = Table(columns, put, gone)
    return found
