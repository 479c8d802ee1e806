"""Boot: decide what to serve from, and put it in place before anything is served.

| directory          | repository             | snapshots for it | outcome                                       |
|--------------------|------------------------|------------------|-----------------------------------------------|
| holds a database   | any, reachable or not  |                  | found                                         |
| empty              | none                   |                  | fresh                                         |
| empty              | given, cannot be read  | unknown          | refuse                                        |
| empty              | given                  | none             | fresh                                         |
| empty              | given                  | some             | restored; refuse if the restore fails         |
| index files only   | none, or none for it   |                  | refuse: a fresh start would hide the loss     |
| index files only   | given                  | some             | restored, what is there kept aside            |

"Empty" is also a database without any collection that was never served here: what an image or a start without
repository leaves behind must not hide the snapshots. And a directory that another instance has overtaken: it is kept
aside.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from chromakeep.chroma.catalog import Catalog
from chromakeep.errors import ChromakeepError, RefusedToServe, RepositoryNotFound
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.beside import DATABASE, Beside
from chromakeep.records import Collection
from chromakeep.repository.lineage import lineage
from chromakeep.repository.log import Log
from chromakeep.repository.route import Route, latest, undisturbed

if TYPE_CHECKING:
    from chromakeep.repository import Repository, Snapshot

FOUND, FRESH, RESTORE, RESTORED, REFUSE = "found", "fresh", "restore", "restored", "refuse"
FOLLOWED = "followed"  # a standby's directory, exactly at the end of the log (``operations.standby``)
EMPTY, DATA, HEADLESS = "empty", "data", "index files only"


class Evidence(msgspec.Struct, frozen=True):
    """What is known at boot. ``snapshots``: None where the repository could not be read; ``restored``: None before."""

    directory: str
    repository: bool
    snapshots: bool | None = None
    restored: bool | None = None


def decide(evidence: Evidence) -> str:
    """One row of the table above; ``restore`` where the answer hangs on a restore that was not tried yet."""
    if evidence.directory == DATA:
        return FOUND
    if not evidence.repository:
        return REFUSE if evidence.directory == HEADLESS else FRESH
    if evidence.snapshots is None:
        return REFUSE
    if not evidence.snapshots:
        return REFUSE if evidence.directory == HEADLESS else FRESH
    return {None: RESTORE, True: RESTORED, False: REFUSE}[evidence.restored]


class Booted(msgspec.Struct, frozen=True):
    """``outcome`` is found, fresh or restored; ``kept`` is where an unusable directory was moved."""

    outcome: str
    collections: tuple[Collection, ...]
    seconds: float
    snapshot: str | None = None
    kept: str | None = None
    moment: str | None = None  # of the state that was restored
    way: Route | None = None  # how


def look(data: Path, *, served_before: bool) -> str:
    """``data``, ``empty`` or ``index files only``."""
    database = data / DATABASE
    if not database.exists():
        return HEADLESS if any(data.glob("*-*-*-*-*/data_level0.bin")) else EMPTY
    if served_before:
        return DATA
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return EMPTY
            blank = "collections" in tables and not connection.execute("SELECT 1 FROM collections LIMIT 1").fetchone()
            return EMPTY if blank else DATA
    except sqlite3.DatabaseError:
        return DATA  # something is there, and the check that follows will say what is wrong with it


def boot(
    beside: Beside,
    open_repository: Callable[[], Repository] | None,
    *,
    stale: bool = False,
    observer: Observer = ignore,
) -> Booted:
    """Put the directory in place. Raises ``RefusedToServe`` rather than start empty where it should not be.

    ``stale``: another instance has written to the repository since this directory was last served; it counts as
    empty, and what it holds is kept aside. So does a standby's (``State.following``), which is not kept. The
    directory must be this process's alone (``Beside.take``).
    """
    started = time.monotonic()
    following = beside.state.following
    found = EMPTY if stale or following else look(beside.data, served_before=beside.state.keeper is not None)
    evidence = Evidence(found, open_repository is not None)
    if decide(evidence) == FOUND:
        return Booted(FOUND, (), time.monotonic() - started)
    way: Route | None = None
    repository: Repository | None = None
    failure: ChromakeepError | None = None
    if open_repository is not None:
        try:
            repository = open_repository()
            way = newest_state(repository, str(beside.data))
            evidence = Evidence(evidence.directory, True, way is not None)
        except RepositoryNotFound as error:
            failure = error
            evidence = Evidence(evidence.directory, True, False)
            observer(
                Noted(
                    f"{error.message}; a repository is made there at the first snapshot, if that is the right place",
                    "warning",
                )
            )
        except RefusedToServe:
            raise
        except ChromakeepError as error:
            failure = error
    kept, moment, collections = None, None, tuple[Collection, ...]()
    if decide(evidence) == RESTORE:
        from chromakeep.operations.restore import restore

        assert repository is not None and way is not None
        try:
            done = restore(repository, way, beside.data, replace=True, discard_old=following, observer=observer)
            kept, collections, moment = done.old, done.collections, done.moment
            evidence = Evidence(evidence.directory, True, True, True)
        except ChromakeepError as error:
            failure = error
            evidence = Evidence(evidence.directory, True, True, False)
    outcome = decide(evidence)
    if outcome == REFUSE:
        raise _refusal(beside.data, evidence, failure)
    assert outcome in (FRESH, RESTORED)
    seconds = time.monotonic() - started
    return Booted(outcome, collections, seconds, way.snapshot.id if way else None, kept, moment, way)


def newest_state(repository: Repository, source: str) -> Route | None:
    """How the newest state for this directory is reached; None where there is none. Raises as ``candidates`` does."""
    return undisturbed(repository, lambda: latest(Log(repository), candidates(repository, source)))


def candidates(repository: Repository, source: str, *, collection: str | None = None) -> list[Snapshot]:
    """The snapshots from which this directory may be restored, or its collection of that id, oldest first.

    Where its log was handed from one directory to the next, up to this one or as far as there are any, all of these:
    it was one database. Else those of this directory; in a repository of one directory all, whatever its path was.

    Raises ``RefusedToServe`` where the repository holds several other directories: a guess could serve a stranger's.
    """
    snapshots = repository.snapshots()
    if collection:
        snapshots = [s for s in snapshots if any(c.id == collection for c in s.collections)]
    others = sorted({s.source for s in snapshots})
    if len(others) <= 1:
        return snapshots
    linked = lineage(Log(repository), snapshots)
    if source in linked or linked.issuperset(others):
        return [s for s in snapshots if s.source in linked]
    if own := [s for s in snapshots if s.source == source]:
        return own
    raise RefusedToServe(
        f"{source} is empty and the repository holds snapshots of {', '.join(others[:5])}, none of it",
        hint=f"choose one: chromakeep restore REPO@SNAPSHOT {source}",
    )


def _refusal(data: Path, evidence: Evidence, failure: ChromakeepError | None) -> RefusedToServe:
    why = failure.message if failure else None
    if evidence.directory == HEADLESS:
        return RefusedToServe(
            f"{data} holds index files but no {DATABASE}: served like this it would look empty"
            + (f" ({why})" if why else ""),
            hint="restore it from a backup, or move the directory away to start fresh",
        )
    if evidence.snapshots is None:
        return RefusedToServe(
            f"{data} is empty and the repository cannot be read: {why}",
            hint=(failure and failure.hint) or "make the repository reachable; without --repository it starts fresh",
        )
    return RefusedToServe(
        f"{data} is empty and its snapshot cannot be restored: {why}",
        hint="try an older one: chromakeep snapshots REPO, then chromakeep restore REPO@SNAPSHOT DATA",
    )


def contents(data: Path) -> tuple[Collection, ...]:
    """What the directory holds, counted in SQLite only: quick, and without rows that still wait in the queue."""
    with Catalog(data) as catalog:
        counts = dict(catalog.connection.execute("SELECT segment_id, count(*) FROM embeddings GROUP BY segment_id"))
        return tuple(
            Collection(
                e.id,
                e.name,
                e.tenant,
                e.database,
                counts.get(e.metadata_segment, 0),
                e.dimension,
                e.space,
                e.configuration.model,
            )
            for e in catalog.entries
        )


def summary(collections: tuple[Collection, ...]) -> str:
    """Records, collections and models in a few words."""
    total = sum(c.count for c in collections)
    if not collections:
        return "no collections"
    names = ", ".join(f"{c.name} {c.count:,}" for c in sorted(collections, key=lambda c: -c.count)[:5])
    more = f", and {len(collections) - 5} more" if len(collections) > 5 else ""
    models = ", ".join(sorted({c.model or "not named" for c in collections}))
    records = f"{total:,} record{'s' * (total != 1)}"
    return f"{records} in {len(collections)} collection{'s' * (len(collections) != 1)} ({names}{more}), model: {models}"
