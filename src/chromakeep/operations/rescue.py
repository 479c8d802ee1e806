"""Rescue: find what a crash has broken in a data directory, and put a whole one in its place.

A kill in the middle of an index's persist leaves a collection that Chroma never opens again; a torn index file may be
opened and give wrong vectors, or take the whole server down; a queue row that Chroma cannot read stops all writes. The
files are checked first, then a disposable server opens a copy (opening is a write) and reads every collection.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.client import Ref
from chromakeep.chroma.health import compactor_is_gone
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import (
    ChromakeepError,
    DiskFull,
    NotAChromaDirectory,
    RefusedToServe,
    ServerAnswered,
    ServerSilent,
    SourceBroken,
    SourceError,
)
from chromakeep.events import Noted, Observer, PhaseStarted, ignore
from chromakeep.operations.beside import DATABASE, Beside
from chromakeep.operations.rebuild import Rebuilt, copy_directory, rebuild

if TYPE_CHECKING:
    from chromakeep.repository import Repository

PATIENCE = 120.0  # seconds for one read of one collection: the first one replays its queue
SAMPLE = 20  # records whose vectors are read in the disposable server


class Broken(msgspec.Struct, frozen=True):
    """A collection that Chroma cannot serve. ``found_by`` is ``structure`` or ``opening``."""

    ref: Ref
    reason: str
    found_by: str


class Findings(msgspec.Struct, frozen=True):
    """``database`` says what is wrong with chroma.sqlite3 as a whole; nothing else is known then."""

    broken: tuple[Broken, ...] = ()
    database: str | None = None


class RescueReport(msgspec.Struct, frozen=True):
    """What was done. ``kept`` is the broken directory; ``lost_records`` the file with the records that lost a vector.

    ``database_from`` is the snapshot that replaced the whole directory because its database was broken.
    """

    kept: str
    collections: tuple[Rebuilt, ...]
    seconds: float
    database_from: str | None = None
    database_time: str | None = None
    lost_records: str | None = None

    def line(self) -> str:
        """The report in one line; ids are in ``rescue.json`` in the kept directory."""
        if self.database_from:
            return (
                f"{DATABASE} was broken: snapshot {self.database_from} was put in place; what was written after"
                f" {self.database_time} is missing; the broken directory is kept in {self.kept}"
            )
        parts = "; ".join(c.line() for c in self.collections)
        lost = f"; records without vector were taken out, they are in {self.lost_records}" if self.lost_records else ""
        return f"rebuilt {parts}{lost}; the broken directory is kept in {self.kept}, in {self.seconds:.1f} s"


def examine(beside: Beside, *, program: str | None, env: Mapping[str, str], observer: Observer = ignore) -> Findings:
    """Check every segment, by its structure and then by opening a copy. Nobody may be writing to the directory.

    ``Findings.database`` is set only where SQLite itself finds corruption: what we merely cannot read (a newer Chroma's
    schema) is left to Chroma with a warning, and a Chroma that does not start raises ``ServerFailed``. Neither may
    cost the directory its place.
    """
    data = beside.data
    observer(PhaseStarted("check"))
    try:
        problems = inspect(data, digests=False).problems
        with Catalog(data) as catalog:
            refs = {e.id: Ref(e.id, e.name, e.tenant, e.database) for e in catalog.entries}
    except NotAChromaDirectory:
        return Findings()  # nothing was ever written
    except (SourceBroken, sqlite3.DatabaseError) as error:
        return _unreadable(beside, str(error), observer)
    broken: dict[str, Broken] = {}
    for problem in problems:
        if problem.collection_id is None or problem.collection_id not in refs:
            return _unreadable(beside, problem.message, observer)
        broken.setdefault(problem.collection_id, Broken(refs[problem.collection_id], problem.message, "structure"))
    copy = beside.scratch("copy")
    try:
        copy_directory(data, copy)
        whole = [ref for ref in refs.values() if ref.id not in broken]
        for found in _open(copy, whole, program, env):
            broken[found.ref.id] = found
    except DiskFull as error:
        observer(Noted(f"{error.message}: only the structure of the files was checked", "warning"))
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return Findings(tuple(broken.values()))


def _unreadable(beside: Beside, reason: str, observer: Observer) -> Findings:
    if corruption := _corruption(beside):
        return Findings(database=corruption)
    observer(Noted(f"{beside.data} cannot be checked ({reason}): it is left to Chroma as it is", "warning"))
    return Findings()


def _corruption(beside: Beside) -> str | None:
    """What SQLite finds wrong with a copy of the database and its journal; None if nothing.

    Raises ``SourceError`` when it cannot be looked at: an unreadable file is no corrupt one.
    """
    copy = beside.scratch("copy")
    copy.mkdir()
    try:
        for suffix in ("", "-journal", "-wal"):
            if (path := beside.data / f"{DATABASE}{suffix}").exists():
                shutil.copyfile(path, copy / path.name)
        if not (copy / DATABASE).stat().st_size:
            return "it is empty"
        with closing(sqlite3.connect(copy / DATABASE)) as db:
            rows = [str(row[0]) for row in db.execute("PRAGMA quick_check(3)")]
        return None if rows == ["ok"] else "; ".join(rows)[:500]
    except (OSError, sqlite3.OperationalError) as error:
        raise SourceError(f"{beside.data / DATABASE} cannot be read: {error}") from None
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _open(copy: Path, refs: list[Ref], program: str | None, env: Mapping[str, str]) -> list[Broken]:
    """Read every collection in a disposable server; one that takes the server down costs a new server, and is asked
    once more: the system may have killed the first one for want of memory."""
    broken: list[Broken] = []
    waiting, suspects = list(refs), set[str]()
    while waiting:
        with ChromaServer(copy, env=env, program=program) as server:
            while waiting:
                ref = waiting.pop(0)
                reason, server_is_well = read(server, ref)
                if reason and not server_is_well and ref.id not in suspects:
                    suspects.add(ref.id)
                    waiting.append(ref)
                elif reason:
                    broken.append(Broken(ref, reason, "opening"))
                if not server_is_well:
                    server.kill()
                    break
    return broken


def read(server: ChromaServer, ref: Ref) -> tuple[str | None, bool]:
    """Count, a page with vectors, a query: what went wrong, and whether the server can be asked anything else."""
    try:
        server.client.count(ref, timeout=PATIENCE)
        if vectors := server.client.get_vectors(ref, limit=SAMPLE):
            server.client.query(ref, next(iter(vectors.values())), n=3)
    except ServerAnswered as error:
        return error.message, not compactor_is_gone(error)
    except ServerSilent as error:
        if error.timed_out:
            return f"reading it hangs: {error.message}", False
        server.exited.wait(5)
        return f"reading it ends the server ({server.ending})", False
    return None, True


def rescue(
    beside: Beside,
    findings: Findings,
    open_repository: Callable[[], Repository] | None,
    *,
    program: str | None,
    env: Mapping[str, str],
    observer: Observer = ignore,
) -> RescueReport:
    """Replace the directory by a copy in which the broken collections are rebuilt, or by the newest snapshot where the
    database itself is broken. The broken directory is kept.

    Raises ``RefusedToServe`` when that cannot be done without losing what might still be saved: the directory is then
    untouched.
    """
    started = time.monotonic()
    for found in findings.broken:
        observer(Noted(f"collection {found.ref.name!r} is broken: {found.reason}", "warning"))
    if findings.database:
        observer(Noted(f"{DATABASE} is broken: {findings.database}", "warning"))
        report = _from_snapshot(beside, findings.database, open_repository, observer)
    else:
        report = _rebuilt(beside, findings, open_repository, program, env, observer)
    report = replace(report, seconds=round(time.monotonic() - started, 3))
    (Path(report.kept) / "rescue.json").write_bytes(msgspec.json.encode(report))
    return report


def _from_snapshot(
    beside: Beside, reason: str, open_repository: Callable[[], Repository] | None, observer: Observer
) -> RescueReport:
    from chromakeep.operations.boot import newest_state
    from chromakeep.operations.restore import restore

    what = f"{beside.data / DATABASE} is broken ({reason})"
    if open_repository is None:
        raise RefusedToServe(
            f"{what} and there is no repository to restore it from",
            hint="try `sqlite3 chroma.sqlite3 .recover` on a copy; with --repository a snapshot takes its place",
        )
    try:
        repository = open_repository()
        way = newest_state(repository, str(beside.data))
        if way is None:
            raise RefusedToServe(f"{what} and the repository holds no snapshot", hint="restore it from another backup")
        new = beside.scratch("new")
        done = restore(repository, way, new, observer=observer)
    except RefusedToServe:
        raise
    except ChromakeepError as error:
        raise RefusedToServe(f"{what} and its snapshot cannot be restored: {error.message}", hint=error.hint) from None
    kept = beside.swap(new, "broken")
    return RescueReport(str(kept), (), 0.0, way.snapshot.id, done.moment or way.snapshot.time)


def _rebuilt(
    beside: Beside,
    findings: Findings,
    open_repository: Callable[[], Repository] | None,
    program: str | None,
    env: Mapping[str, str],
    observer: Observer,
) -> RescueReport:
    new = beside.scratch("new")
    observer(PhaseStarted("rebuild"))
    refs = [found.ref for found in findings.broken]
    collections, lost = rebuild(beside, new, refs, open_repository, program=program, env=env, observer=observer)
    for ref in refs:
        with ChromaServer(new, env=env, program=program) as server:
            reason, _ = read(server, ref)
        if reason:
            raise RefusedToServe(
                f"collection {ref.name!r} cannot be rebuilt: {reason}", hint="the directory is as it was; keep it"
            )
    lost_file = None
    if lost:
        place = beside.root if beside.inside else beside.data.parent
        lost_file = place / f"{beside.data.name}.lost-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.jsonl"
        lost_file.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in lost))
    kept = beside.swap(new, "broken")
    return RescueReport(str(kept), collections, 0.0, lost_records=str(lost_file) if lost_file else None)
