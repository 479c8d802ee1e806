"""The purge of Chroma's write-ahead queue, held off until a snapshot has what it would take away.

After a persist Chroma deletes the queue's rows that the index now holds (rust/log/src/sqlite_log.rs ``purge_logs``).
From then on vectors are in the index files alone, which the next persist rewrites in place: a kill in it can take the
only id map of records that no snapshot has yet. While the purge is held, whatever a kill does to an index, the last
snapshot's and the rows since make it again.

Chroma reads the switch, a JSON object in ``embeddings_queue_config``, before every purge, so it may be turned beside a
running server. Fields of ours in that object, which Chroma passes over, say who holds it and since which row. A reset
of Chroma makes the table anew, and lets go with that: ``holding`` tells whether it was held all the time.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from chromakeep.errors import DiskFull, SourceBusy, SourceError

SWITCH, KIND, SINCE, HOLD = "automatically_purge", "_type", "chromakeep_holds_after", "chromakeep_hold"
CHUNK = 200  # rows deleted in one transaction: it keeps writers waiting for some milliseconds
BUSY = 30.0  # seconds to wait for Chroma's own transactions
_MOST = 1 << 16  # bytes of configuration that are believed


def hold(database: Path) -> str | None:
    """Keep Chroma from purging its queue; which hold it is under now (see ``holding``).

    Nothing is changed where there is nothing to hold: None without a database, "" for a queue that Chroma never purges
    (of directories begun before 0.5.6). Holding twice is holding once. One short transaction; raises ``SourceBusy``,
    ``SourceError``.
    """
    if not database.exists():
        return None
    with _reading(database) as connection:
        if (held := holding(connection)) is not None:
            return held
    with _writing(database) as connection:
        if (held := holding(connection)) is not None:
            return held
        number, configuration = _read(connection) or (0, {})
        held = secrets.token_hex(8)
        (last,) = connection.execute("SELECT coalesce(max(seq_id), 0) FROM embeddings_queue").fetchone()
        _write(connection, number, {**configuration, SWITCH: False, SINCE: last, HOLD: held})
        return held


def release(database: Path) -> str:
    """Let Chroma purge again, if we held it; which hold that was, "" for none. One short transaction, none if there is
    nothing to do."""
    if not database.exists():
        return ""
    with _reading(database) as connection:
        if held_after(connection) is None:
            return ""
    with _writing(database) as connection:
        held = holding(connection) or ""
        return held if _release(connection) else ""


def release_copy(database: Path) -> None:
    """The same in a private copy of a database: not durable, and quick."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        if held_after(connection) is None:
            return
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY").fetchone()
        connection.execute("BEGIN")
        _release(connection)
        connection.execute("COMMIT")


def holding(connection: sqlite3.Connection) -> str | None:
    """Which hold the queue is under. Where it is the same as at an earlier look, only ``purge`` has taken rows between
    the two. "": Chroma never purges it; None: Chroma may."""
    found = _read(connection)
    if found is not None and found[1].get(SWITCH) is True:
        return None
    return "" if found is None or held_after(connection) is None else str(found[1].get(HOLD, "of an older version"))


def complete(connection: sqlite3.Connection) -> bool:
    """Whether the queue has every row since it was last empty: none of a collection that is there was purged."""
    count, last = connection.execute("SELECT count(*), coalesce(max(seq_id), 0) FROM embeddings_queue").fetchone()
    return bool(count == last)


def held_after(connection: sqlite3.Connection) -> int | None:
    """A number: of a topic whose rows are all younger none was ever purged. None where the purge is not held."""
    try:
        found = _read(connection)
    except sqlite3.DatabaseError:
        return None
    since = found[1].get(SINCE) if found else None
    return since if isinstance(since, int) and not isinstance(since, bool) and since >= 0 else None


def purge(database: Path, applied: Mapping[str, int]) -> int:
    """Delete, by topic, the rows before the last one that both segments hold in a published snapshot; returns how many.

    As Chroma does, that last row stays: the numbers of a topic's rows then never fall, and its presence says that none
    after it was deleted. Does nothing where the purge is not held by us. Writers wait for a few milliseconds at a time.
    """
    with _reading(database) as connection:
        if held_after(connection) is None:
            return 0
        most = max(applied.values(), default=0)
        rows = connection.execute(
            "SELECT seq_id, topic FROM embeddings_queue WHERE seq_id < ? ORDER BY seq_id", (most,)
        )
        gone = [seq for seq, topic in rows if seq < applied.get(topic, 0)]
    for start in range(0, len(gone), CHUNK):
        some = gone[start : start + CHUNK]
        with _writing(database) as connection:
            found = _read(connection)
            since = held_after(connection)
            if found is None or since is None:
                return start
            _write(connection, found[0], {**found[1], SINCE: max(since, most)})
            # by topic again: a collection deleted meanwhile leaves its rows' numbers to others
            of = connection.execute(
                "SELECT seq_id, topic FROM embeddings_queue WHERE seq_id IN (SELECT value FROM json_each(?))",
                (json.dumps(some),),
            ).fetchall()
            old = [(seq,) for seq, topic in of if seq < applied.get(topic, 0)]
            connection.executemany("DELETE FROM embeddings_queue WHERE seq_id = ?", old)
    return len(gone)


def _read(connection: sqlite3.Connection) -> tuple[int, dict[str, Any]] | None:
    """Row number and object of the configuration that Chroma reads: the first row. None where it has none.

    A table without a row is one of a queue in which nothing was ever purged; Chroma decides at the first purge.
    """
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'embeddings_queue_config'").fetchone():
        return None
    row = connection.execute("SELECT rowid, config_json_str FROM embeddings_queue_config LIMIT 1").fetchone()
    if row is None:
        if connection.execute("SELECT 1 FROM embeddings_queue LIMIT 1").fetchone():
            return None  # Chroma will not purge what it finds there
        return 0, {SWITCH: True, KIND: "EmbeddingsQueueConfigurationInternal"}
    number, text = row
    try:
        configuration = json.loads(text) if isinstance(text, str) and len(text) <= _MOST else None
    except (ValueError, RecursionError):
        configuration = None
    return (number, configuration) if isinstance(configuration, dict) else None


def _write(connection: sqlite3.Connection, number: int, configuration: dict[str, Any]) -> None:
    text = json.dumps(configuration, separators=(",", ":"))
    if number:
        connection.execute("UPDATE embeddings_queue_config SET config_json_str = ? WHERE rowid = ?", (text, number))
    else:
        connection.execute("INSERT INTO embeddings_queue_config (config_json_str) VALUES (?)", (text,))


def _release(connection: sqlite3.Connection) -> bool:
    found = _read(connection)
    if not found or SINCE not in found[1]:
        return False
    configuration = {name: value for name, value in found[1].items() if name not in (SINCE, HOLD)}
    _write(connection, found[0], {**configuration, SWITCH: True})
    return True


def _connect(database: Path) -> sqlite3.Connection:
    # mode=rw: never make a database where there is none
    address = f"file:{quote(str(database.absolute()))}?mode=rw"
    return sqlite3.connect(address, uri=True, timeout=BUSY, isolation_level=None)


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection, its errors told in one line."""
    try:
        with closing(_connect(database)) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise SourceBusy(f"{database}: a writer kept the database locked for {BUSY:g} s") from None
        if "full" in str(error):
            raise DiskFull(f"{database}: {error}", hint="free some space") from None
        raise SourceError(f"{database}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise SourceError(f"{database}: {error}") from None


@contextmanager
def _writing(database: Path) -> Iterator[sqlite3.Connection]:
    """One transaction beside Chroma's own. BEGIN IMMEDIATE, so that it waits for its turn before it has read."""
    with _reading(database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
