"""Upkeep: the thread of an instance that gives collections the indexes that they have grown to need.

Of several instances one works on a collection at a time: it holds an advisory lock of its session, which goes with it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import psycopg

from chromakeep.engine import Indexed, Refused, Target
from chromakeep.events import Noted, Observer, ignore
from chromakeep.postgres import demand, locks, packing, segments
from chromakeep.postgres.catalog import held as held_of
from chromakeep.postgres.clauses import index_statements
from chromakeep.postgres.held import Held, Segment
from chromakeep.postgres.measures import measure
from chromakeep.postgres.pool import Pool
from chromakeep.postgres.refusals import Vanished, explained
from chromakeep.postgres.text import told

Connection = psycopg.Connection[Any]
EVERY = 2.0  # seconds between two looks at what has changed
REST = 30.0  # seconds without a write after which a collection is at rest
SHARE = 20  # so many times as long as one index of all took to make, none is made again: small writes would cost much
STALE = 0.1  # of a table changed since its last ANALYZE: it is due again
LOCK = 0x636B7570  # the class of our advisory locks
# What a build meets when its collection is dropped: a drop ends it (``catalog.drop_tables``), or PostgreSQL does
_GOING = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.QueryCanceled,
    psycopg.errors.DeadlockDetected,
)


class Seen(msgspec.Struct, frozen=True):
    """What the server counted of a table: rows ever written, rows alive, rows changed since the last ANALYZE; and by
    which keys it is filtered."""

    target: Target
    written: int
    alive: int
    modified: int
    ranged: tuple[str, ...] = ()


class Upkeep:
    """``start`` makes the thread, ``stop`` ends it; a build under way is given up, what is left of it swept later.

    ``look`` is one round, for those who want no thread.
    """

    def __init__(self, pool: Pool, *, every: float = EVERY, observer: Observer = ignore) -> None:
        self._pool, self._every, self._observer = pool, every, observer
        self._known: dict[str, tuple[Seen, float, bool]] = {}  # last seen, since when, whether nothing is left to do
        self._again: dict[str, float] = {}  # from when on one index may be made of all once more
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._working: Connection | None = None

    def start(self) -> None:
        """Once."""
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread is gone; twice is once."""
        self._ended.set()
        while self._thread is not None and self._thread.is_alive():
            if (working := self._working) is not None:
                with contextlib.suppress(psycopg.Error):
                    working.cancel()
            self._thread.join(0.2)

    def _run(self) -> None:
        told = ""
        while not self._ended.wait(self._every):
            said = ""
            try:
                self.look()
            except Exception as error:  # whatever it is, the next round may do better: answers do not depend on it
                said = f"an index could not be made: {explained(error)}".splitlines()[0]
            if said not in ("", told) and not self._ended.is_set():
                self._observer(Noted(said, "warning"))
            told = said

    def look(self) -> bool:
        """Do what is due in every collection that has changed. True: something was built. Raises the first trouble
        when all have had their turn; those that had some are due again."""
        built, now = False, time.monotonic()
        troubles: list[Exception] = []
        seen = {one.target.id: one for one in self._pool.run(_survey, write=False)}
        self._known = {name: known for name, known in self._known.items() if name in seen}
        self._again = {name: again for name, again in self._again.items() if name in seen}
        for name, one in seen.items():
            last, since, done = self._known.get(name, (None, now, False))
            if last is None or last.written != one.written:
                since, done = now, False
            elif last.ranged != one.ranged:
                done = False
            at_rest = now - since >= REST and now >= self._again.get(name, 0.0)
            if not done and not self._ended.is_set():
                begun = time.monotonic()
                try:
                    worked = self._tend(one, at_rest=at_rest)
                except Exception as error:  # whatever one has, the others have their turn; it is raised below
                    troubles.append(error)
                    worked = None
                if at_rest and worked:
                    self._again[name] = time.monotonic() + SHARE * (time.monotonic() - begun)
                built, done = built or bool(worked), at_rest and worked is False
            self._known[name] = (one, since, done)
        if troubles:
            raise troubles[0]
        return built

    def _tend(self, seen: Seen, *, at_rest: bool) -> bool | None:
        """Whether something was built; None: another instance is at it, or the collection is gone."""
        try:
            held = self._pool.run(lambda connection: held_of(connection, seen.target), write=False)
            if held.dimension is None:
                return False
            with working(self._pool, held) as connection:
                if connection is None:
                    return None
                self._working = connection
                try:
                    return tend(connection, held, seen, at_rest=at_rest)
                finally:
                    self._working = None
        except (Vanished, *_GOING):
            return None
        except Refused as refused:
            if refused.status == 404:
                return None
            raise


@contextlib.contextmanager
def working(pool: Pool, held: Held, *, wait: bool = False) -> Iterator[Connection | None]:
    """A connection whose session alone builds indexes of this collection; None: another does, unless we ``wait``."""
    number = int(held.relation.split("_")[0][1:]) & 0x7FFFFFFF
    with pool.autocommit() as connection:
        if wait:
            locks.wait(connection, LOCK, number)
        elif not locks.taken(connection, LOCK, number):
            yield None
            return
        yield connection


def tend(connection: Connection, held: Held, seen: Seen, *, at_rest: bool = False) -> bool:
    """All that is due in one collection, of whose indexes we are alone in charge. True: something was built."""
    built = bool(segments.sweep(connection, held))
    made = secondary(connection, held, seen.alive)
    if made or seen.modified > STALE * seen.alive:
        analyze(connection, held)  # after the indexes: they have statistics, too, without which ranges are guessed
    built |= made
    if measure(held).index_kind is None:
        return built
    while True:
        held = msgspec.structs.replace(held, segments=segments.read(connection, held.id))
        tail = segments.tail(connection, held, 1 << 62 if not held.segments else 100 * segments.TAIL)
        standing = segments.standings(connection, held)
        wanted = segments.plan(standing, tail, segments.new_high(connection) if tail else 0, at_rest=at_rest)
        if wanted is None:
            return built
        segments.memory(connection, held, seen.alive)
        segments.build(connection, held, wanted)
        analyze(connection, held)  # how much of a segment is alive is told by statistics, which may be of before it
        built = True


def analyze(connection: Connection, held: Held) -> None:
    """Let the planner know what is in the table."""
    connection.execute(f"ANALYZE {held.table}")


def secondary(connection: Connection, held: Held, alive: int, *, alone: bool = False) -> bool:
    """The indexes of filters, where the collection is large enough for them. True: one was made. ``alone``: see
    ``segments.build``."""
    if alive < segments.SECONDARY:
        return False
    before = _indexes(connection, held)
    for statement in index_statements(held, demand.ranged(held.relation), packing.server(connection).trgm):
        connection.execute(statement.replace(" CONCURRENTLY", "", 1) if alone else statement)
    return _indexes(connection, held) != before


def settle(pool: Pool, held: Held, *, quickly: bool = False, alone: bool = False) -> tuple[Segment, ...]:
    """Give a collection all its indexes now, one for all vectors, and return when they stand. For bulk loads.

    Others may read and write meanwhile, unless we are ``alone``, which is quicker. ``quickly``: an index of lists,
    which takes a tenth of the time, is half as quick to search, and gives way to a graph in the next round of upkeep.
    Returns the segments there are then.
    """
    with working(pool, held, wait=True) as connection:
        assert connection is not None
        segments.sweep(connection, held)
        held = msgspec.structs.replace(held, segments=segments.read(connection, held.id))
        row = connection.execute(f"SELECT count(*) FROM {held.table}").fetchone()
        alive = int(row[0]) if row else 0
        filters = partial(secondary, held=held, alive=alive, alone=alone)
        with ThreadPoolExecutor(1, "indexes") as threads:
            beside = threads.submit(_apart, pool, filters) if alone else None
            if beside is None:
                filters(connection)
            behind = segments.tail(connection, held, segments.TAIL)
            if measure(held).index_kind is not None and (behind >= segments.TAIL or len(held.segments) > 1):
                segments.memory(connection, held, alive)
                lists = max(1, math.isqrt(alive)) if quickly else 0
                wanted = segments.Range(0, segments.new_high(connection), held.segments, lists)
                segments.build(connection, held, wanted, alone=alone)
            if beside is not None:
                beside.result()
        analyze(connection, held)
        return segments.read(connection, held.id)


def _apart(pool: Pool, work: Callable[[Connection], object]) -> None:
    with pool.autocommit() as connection:
        work(connection)


def indexing_status(connection: Connection, held: Held) -> Indexed:
    """A tail that is short enough to be searched one by one counts as indexed: nothing more is going to be done."""
    row = connection.execute(f"SELECT count(*) FROM {held.table}").fetchone()
    total = int(row[0]) if row else 0
    if held.dimension is None or measure(held).index_kind is None:
        return Indexed(total, total)
    behind = segments.tail(connection, held, total)
    return Indexed(total, total if behind < segments.TAIL else total - behind)


def _survey(connection: Connection) -> list[Seen]:
    found = connection.execute(
        "SELECT c.relation, c.id::text, d.tenant, d.name, s.n_tup_ins + s.n_tup_upd + s.n_tup_del,"
        " greatest(s.n_live_tup, p.reltuples::bigint), s.n_mod_since_analyze"
        " FROM chromakeep.collections c JOIN chromakeep.databases d ON d.id = c.database"
        " JOIN pg_stat_user_tables s ON s.schemaname = 'chromakeep' AND s.relname = c.relation"
        " JOIN pg_class p ON p.oid = s.relid"
        " WHERE d.tenant <> '' AND c.dimension IS NOT NULL AND greatest(s.n_live_tup, p.reltuples::bigint) >= %s",
        (segments.SECONDARY,),
    ).fetchall()
    demand.keep({relation for relation, *_ in found})
    return [
        Seen(Target(told(tenant), told(database), number), written, alive, modified, tuple(demand.ranged(relation)))
        for relation, number, tenant, database, written, alive, modified in found
    ]


def _indexes(connection: Connection, held: Held) -> int:
    row = connection.execute("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (held.table,)).fetchone()
    return int(row[0]) if row else 0
