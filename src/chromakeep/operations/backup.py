"""backup: an exact copy of a Chroma directory, validated, then published in one step."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

import chromakeep
from chromakeep.chroma.aside import ALL, Aside, aside
from chromakeep.chroma.capture import Capture, capture
from chromakeep.chroma.catalog import DATABASE, schema_of
from chromakeep.chroma.inspection import Inspection
from chromakeep.chroma.layout import file_layouts
from chromakeep.chroma.standstill import Standstill, standstill
from chromakeep.errors import (
    CorruptObject,
    DiskFull,
    NotAChromaDirectory,
    RepositoryBusy,
    SourceBroken,
    SourceError,
    StoreError,
)
from chromakeep.events import Noted, Observer, PhaseStarted, Progressed, ignore
from chromakeep.layout import Layout
from chromakeep.operations import place
from chromakeep.records import Collection
from chromakeep.repository.repository import Repository
from chromakeep.repository.sessions import Session
from chromakeep.repository.snapshots import Snapshot, now, rfc3339
from chromakeep.repository.writer import NOTHING, SnapshotWriter

ATTEMPTS = 3  # captures that are found inexact before the source is refused; sessions that are fenced before we give up
PATIENCE = 120.0  # seconds to wait for a whole state under writers that never rest; a broken one is told in seconds
RECENT = 8  # snapshots among which a parent is looked for


class BackupResult(msgspec.Struct, frozen=True):
    """A published snapshot. ``new_bytes``: packs and index; ``pause_seconds``: how long writers were held."""

    snapshot: str
    parent: str | None
    total_bytes: int
    new_bytes: int
    seconds: float
    pause_seconds: float
    collections: tuple[Collection, ...]


def backup(
    source: Path,
    repository: Repository,
    *,
    stage: Path | None = None,
    allow_empty: bool = False,
    line: tuple[int, int] | None = None,
    ready: Callable[[Path], None] | None = None,
    published: Callable[[Path, int], None] | None = None,
    observer: Observer = ignore,
) -> BackupResult:
    """Take a snapshot of ``source``, in use or not, and publish it in ``repository``.

    The directory is captured to ``stage`` (kept for the next time, which then copies only what differs) or to a
    temporary place beside it; without ``stage`` and ``published``, one that nobody has written to for a while is read
    where it lies. What is read is validated (SQLite quick check, every segment's structure, a vector for every id)
    while it is stored; only then is the snapshot created. Until that moment the repository shows nothing.
    ``ready`` is called with the copy right before that, and may raise to prevent it.
    ``published`` is called afterwards with the copy that is now a snapshot, while it is there, and SQLite's change
    counter of that state. ``line`` is the epoch and number of a segment of the log that is not younger than this call.

    Raises what ``capture`` raises; ``SourceBroken`` for a capture that does not validate; ``NotAChromaDirectory`` for
    a store without any collection unless ``allow_empty`` (an empty backup is found out when it is too late);
    ``StoreError``; ``RepositoryBusy`` if this writer was declared dead again and again.
    """
    started = time.monotonic()
    if stage is None and published is None and ready is None and (still := standstill(source)):
        with suppress(SourceError, OSError, RepositoryBusy), still, staging(source, None) as scratch:
            moment = rfc3339(now())
            with aside(source, scratch=scratch) as validating:
                validating.go(ALL)
                return _publish(
                    source, still, moment, repository, validating, allow_empty, line, None, started, observer
                )
    for attempt in range(1, ATTEMPTS + 1):
        with staging(source, stage) as into:
            captured = capture(source, into, timeout=PATIENCE, observer=observer)
            moment = rfc3339(now())
            try:
                with aside(captured.path) as validating:
                    validating.go(ALL)
                    done = _publish(
                        source, captured, moment, repository, validating, allow_empty, line, ready, started, observer
                    )
                if published:
                    published(captured.path, captured.counter)
                return done
            except RepositoryBusy as e:
                if attempt == ATTEMPTS:
                    raise
                observer(Noted(f"{e.message}; trying again", "warning"))
            except SourceBroken as e:
                if attempt == ATTEMPTS:
                    raise
                observer(Noted(f"the capture is not exact ({e.message}); capturing again", "warning"))
    raise AssertionError("unreachable")


def _publish(
    source: Path,
    read: Capture | Standstill,
    moment: str,
    repository: Repository,
    validating: Aside,
    allow_empty: bool,
    line: tuple[int, int] | None,
    ready: Callable[[Path], None] | None,
    started: float,
    observer: Observer,
) -> BackupResult:
    layouts = file_layouts(read.path)
    total = sum((read.path / name).stat().st_size for name in layouts)
    session = Session.start(repository)
    origin = str(source.resolve())
    writer: SnapshotWriter | None = None
    try:
        parent = _parent(repository, layouts, origin)
        writer = SnapshotWriter(repository, session, parent)
        observer(PhaseStarted("store", total))
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            observer(Progressed("store", done))

        blank = {DATABASE: read.blank()}
        files = tuple(
            writer.add_file(read.path / n, n, layout, count, blank=blank.get(n, NOTHING))
            for n, layout in layouts.items()
        )
        inspection, schema = validating.result(), schema_of(read.path / DATABASE)
        read.confirm()
        refuse_broken(source, inspection, allow_empty=allow_empty, observer=observer)
        new = writer.publish()
        snapshot = Snapshot(
            id=session.id,
            time=moment,
            source=origin,
            hostname=socket.gethostname(),
            program_version=chromakeep.__version__,
            chroma_version=inspection.version,
            parent=parent.id if parent else None,
            collections=inspection.collections,
            files=files,
            total_bytes=total,
            new_bytes=new,
            seconds=round(time.monotonic() - started, 3),
            pause_seconds=round(read.pause, 6),
            epoch=line[0] if line else None,
            counter=read.counter,
            log_number=line[1] if line else 0,
            schema=schema,
        )
        if ready:
            ready(read.path)
        session.commit(snapshot)
    except BaseException:
        _withdraw(session)
        raise
    finally:
        if writer:
            writer.close()
    return BackupResult(
        snapshot.id,
        snapshot.parent,
        total,
        new,
        round(time.monotonic() - started, 3),
        read.pause,
        snapshot.collections,
    )


def refuse_broken(source: Path, inspection: Inspection, *, allow_empty: bool, observer: Observer = ignore) -> None:
    """Raise for a capture that must not become a snapshot."""
    for warning in inspection.warnings:
        observer(Noted(f"{source}: {warning.message}", "warning"))
    if problems := inspection.problems:
        first = problems[0]
        where = f"collection {first.collection!r}: " if first.collection else ""
        more = f" (and {len(problems) - 1} more problems)" if problems[1:] else ""
        raise SourceBroken(
            f"{source}: {where}{first.message}{more}",
            hint=f"see all of it: chromakeep show {source}; `chromakeep run` rebuilds broken collections",
        )
    if not inspection.collections and not allow_empty:
        raise empty(source)


def empty(source: Path) -> NotAChromaDirectory:
    """What is said of a directory without any collection."""
    return NotAChromaDirectory(
        f"{source}: a Chroma database without any collection",
        hint="is this the directory that Chroma writes to? Look for the one with your data's size",
    )


def _parent(repository: Repository, layouts: dict[str, Layout], origin: str) -> Snapshot | None:
    """The newest recent snapshot that shares most segments with this directory, wherever it was taken."""
    best: tuple[int, int, Snapshot] | None = None
    for age, name in enumerate(reversed(repository.recent(RECENT))):
        try:
            candidate = repository.snapshot(name)
        except CorruptObject:
            continue  # `check` tells; what is stored anew because of it costs space only
        if candidate:
            shared = sum(f.path in layouts and f.path != "chroma.sqlite3" for f in candidate.files)
            score = (shared, int(candidate.source == origin) * 100 - age, candidate)
            best = max(best, score, key=lambda s: s[:2]) if best else score
    return best[2] if best else None


def _withdraw(session: Session) -> None:
    """A failed backup takes its announcement back, so that no prune waits for it; if it cannot, prune finds out."""
    with suppress(StoreError):  # the first error is the one to tell
        session.end()


@contextmanager
def staging(source: Path, stage: Path | None) -> Iterator[Path]:
    """Where to capture to: the given place, or a temporary one beside the source (same file system: reflinks), or
    in the system's if the source's parent cannot be written."""
    if stage is not None:
        stage.mkdir(parents=True, exist_ok=True)
        yield stage
        return
    prefix = f".{source.name}.capture-"
    try:
        into = place.temporary(source.absolute().parent, prefix)
    except OSError:
        try:
            into = place.temporary(Path(tempfile.gettempdir()), prefix)
        except OSError as e:
            raise DiskFull(f"no room for a temporary copy ({e.strerror})", hint="give one: --stage DIRECTORY") from None
    try:
        yield into
    finally:
        shutil.rmtree(into, ignore_errors=True)


__all__ = ["BackupResult", "backup", "refuse_broken", "staging"]
