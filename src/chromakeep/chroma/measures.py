"""Measures of a live directory: records, rows of the queue, sizes of files. Cheap, and none of them exact in a rush."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

from chromakeep.errors import SourceBusy

MOST_COLLECTIONS = 100  # that are counted
BUSY = 1.0  # seconds to wait for a writer
_LINKS, _LEVEL0 = "link_lists.bin", "data_level0.bin"


class Measures(msgspec.Struct, frozen=True):
    """``records``: (tenant, database, collection, records) of a hundred of the ``collections``; ``queue``: rows."""

    records: tuple[tuple[str, str, str, int], ...]
    collections: int
    queue: int


def measure(database: Path) -> Measures:
    """Count. Each count is a transaction of its own, so that no writer waits longer than for one of them.

    Nobody in this process may hold a lock on the file (see ``locking``). Raises ``SourceBusy``.
    """
    address = f"file:{quote(str(database.absolute()))}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY, isolation_level=None)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            (collections,) = connection.execute("SELECT count(*) FROM collections").fetchone()
            rows = connection.execute(
                "SELECT d.tenant_id, d.name, c.name, s.id FROM collections c JOIN databases d ON d.id = c.database_id "
                "JOIN segments s ON s.collection = c.id WHERE s.scope = 'METADATA' ORDER BY c.id LIMIT ?",
                (MOST_COLLECTIONS,),
            ).fetchall()
            records = []
            for tenant, name, collection, segment in rows:
                counted = connection.execute("SELECT count(*) FROM embeddings WHERE segment_id = ?", (segment,))
                records.append((str(tenant), str(name), str(collection), int(counted.fetchone()[0])))
            (queue,) = connection.execute("SELECT count(*) FROM embeddings_queue").fetchone()
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise SourceBusy(f"{database}: {error}") from None
    return Measures(tuple(records), collections, queue)


def size_of(directory: Path) -> int:
    """Bytes of the files in a data directory and in its folders."""
    total = 0
    for path in (*directory.glob("*"), *directory.glob("*/*")):
        with suppress(OSError):
            if path.is_file():
                total += path.stat().st_size
    return total


def link_lists_ratio(directory: Path) -> float | None:
    """The largest share of ``link_lists.bin`` in ``data_level0.bin`` of any index; about 0.01 where all is well. None
    where there is no index."""
    found: list[float] = []
    for links in directory.glob(f"*/{_LINKS}"):
        with suppress(OSError):
            elements = links.with_name(_LEVEL0).stat().st_size
            if elements:
                found.append(links.stat().st_size / elements)
    return max(found, default=None)
