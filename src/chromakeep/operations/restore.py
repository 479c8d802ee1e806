"""restore: a snapshot into a directory, verified record by record, then put in place in one step; and rollback."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec

from chromakeep.chroma.apply import apply
from chromakeep.chroma.aside import ALL, Aside, aside
from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.inspection import Inspection, inspect
from chromakeep.chroma.subset import keep_only
from chromakeep.chroma.writers import writers
from chromakeep.errors import (
    ChromakeepError,
    DiskFull,
    NotAChromaDirectory,
    TargetNotEmpty,
    UsageError,
    VerificationFailed,
)
from chromakeep.events import Observer, PhaseStarted, Progressed, ignore
from chromakeep.operations import place
from chromakeep.records import Collection
from chromakeep.repository.log import Log
from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.repository import Repository
from chromakeep.repository.route import Route, find
from chromakeep.repository.sealed import MAGIC
from chromakeep.repository.snapshots import FileEntry, Snapshot

DATABASE = "chroma.sqlite3"
ELEMENTS = "/data_level0.bin"  # the largest files: the inspection reads all others first
HEADROOM = 16 << 20  # bytes of disk that a restore leaves free


class RestoreResult(msgspec.Struct, frozen=True):
    """What is in place now: ``snapshot`` with the log up to ``moment`` (RFC 3339), if there is one.

    ``old``: where the former content is kept; ``fetched_bytes``: read from the store, without the log.
    """

    snapshot: str
    moment: str
    target: str
    old: str | None
    total_bytes: int
    fetched_bytes: int
    seconds: float
    collections: tuple[Collection, ...]
    dry_run: bool


class RollbackResult(msgspec.Struct, frozen=True):
    """``restored`` is in place at ``target`` again (in a dry run: would be); what was there is ``kept``."""

    target: str
    restored: str
    kept: str
    dry_run: bool


def restore(
    repository: Repository,
    selector: str | Route | None,
    target: Path,
    *,
    collections: Sequence[str] | None = None,
    replace: bool = False,
    discard_old: bool = False,
    dry_run: bool = False,
    observer: Observer = ignore,
) -> RestoreResult:
    """Restore a snapshot, or the state at an instant, to ``target``. ``selector`` as in ``route.find``.

    The files are rebuilt in a fresh directory beside it, each byte verified against the snapshot; then the records of
    every collection are read from them and compared, by digest of ids, vectors, documents and metadata, with what was
    recorded at the backup; what the log has since is put into the queue, from which Chroma's first read replays it;
    all is synced; only then does the directory take its place, in one step. What was there is
    kept as ``NAME.old-TIME``. Bytes that the present content already holds are taken from there, not fetched. On any
    error ``target`` is as it was.

    Raises ``TargetNotEmpty`` without ``replace``, ``UsageError`` while a process writes to ``target``,
    ``SnapshotNotFound``, ``VerificationFailed`` on any difference, ``DiskFull``, ``StoreError``.
    """
    started = time.monotonic()
    target = target.resolve()  # a link stays a link: what it points to is replaced
    way = selector if isinstance(selector, Route) else find(repository, selector)
    snapshot, moment = way.snapshot, way.snapshot.time
    wanted = snapshot.collections
    if collections is not None:
        wanted = _wanted(way.collections(Log(repository)), collections)
    total = sum(f.size for f in snapshot.files)
    was_empty = _check_target(target, replace)
    if dry_run:
        old = None if was_empty or discard_old else str(place.kept_as(target))
        moment = way.until or moment
        return RestoreResult(snapshot.id, moment, str(target), old, total, 0, 0.0, wanted, dry_run=True)
    with _refusing_full_disk(target):
        _check_room(target, total)
        fresh = place.beside(target, "restoring")
        try:
            local = None if was_empty else target
            chosen = {c.id for c in wanted} if collections is not None else None
            recorded = tuple(c for c in snapshot.collections if chosen is None or c.id in chosen)
            # SQLite's quick check was done at the backup, and every byte is verified to be what it saw.
            with aside(fresh, quick_check=False) as inspecting, closing(SnapshotReader(repository)) as reader:
                _rebuild(reader, snapshot, fresh, local, recorded if chosen is not None else None, inspecting, observer)
                found = inspecting.result()
            compare(found, recorded)
            if way.legs:
                moment, wanted = _follow(fresh, way, Log(repository), chosen) or (moment, wanted)
            kept = place.install(fresh, target)
            was_chosen(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    if kept and discard_old:
        shutil.rmtree(kept)
        kept = None
    seconds = round(time.monotonic() - started, 3)
    return RestoreResult(
        snapshot.id,
        moment,
        str(target),
        str(kept) if kept else None,
        total,
        reader.fetched_bytes,
        seconds,
        wanted,
        dry_run=False,
    )


def rollback(target: Path, *, dry_run: bool = False) -> RollbackResult:
    """Swap back what the last restore replaced; what is there now is kept in its turn. Renames only: no copying."""
    target = target.resolve()
    old = place.newest_old(target)
    refuse_in_use(target)
    kept = place.kept_as(target) if dry_run else place.install(old, target)
    if not dry_run:
        was_chosen(target)
    return RollbackResult(str(target), str(old), str(kept) if kept else "", dry_run)


def compare(
    found: Inspection, recorded: Sequence[Collection], *, what: str = "the restored directory", by: str = "the snapshot"
) -> None:
    """Raise ``VerificationFailed`` unless just the collections recorded ``by`` were found, with just their records."""
    if found.problems:
        raise VerificationFailed(f"{what} is not whole: {found.problems[0].message}")
    have = {c.id: c for c in found.collections}
    for collection in recorded:
        other = have.pop(collection.id, None)
        if other is None:
            raise VerificationFailed(f"collection {collection.name!r} is missing from {what}")
        if other.count != collection.count:
            raise VerificationFailed(
                f"collection {collection.name!r} has {other.count:,} records, {by} {collection.count:,}"
            )
        if collection.digest and other.digest != collection.digest:
            assert other.digest
            parts = ("ids", "vectors", "documents", "metadata")
            differ = [p for p in parts if getattr(other.digest, p) != getattr(collection.digest, p)]
            raise VerificationFailed(f"collection {collection.name!r}: {', '.join(differ)} differ from {by}")
    if have:
        raise VerificationFailed(f"{what} holds {len(have)} collections that {by} does not")


def _follow(fresh: Path, way: Route, log: Log, chosen: set[str] | None) -> tuple[str, tuple[Collection, ...]] | None:
    """Bring a restored snapshot up by the log, and look that it is whole; the moment reached and what is there then.

    None where the log has nothing more.
    """
    last = apply(fresh, way.changes(log))
    if last is None:
        return None
    if chosen is not None:
        keep_only(fresh, chosen)
    found = inspect(fresh, digests=False, quick_check=False)
    if found.problems:
        raise VerificationFailed(f"the restored directory is not whole: {found.problems[0].message}")
    place.sync(fresh / DATABASE)
    return last.time, found.collections


def _wanted(there: Sequence[Collection], names: Sequence[str]) -> tuple[Collection, ...]:
    """Of these by name (or ``tenant/database/name`` where a name is used twice), or id."""
    if not names:
        raise UsageError("no collection is named", hint="name some, or leave the option out to restore all")
    chosen: dict[str, Collection] = {}
    for name in names:
        found = [c for c in there if name in (c.name, c.id, f"{c.tenant}/{c.database}/{c.name}")]
        if not found:
            known = ", ".join(sorted(c.name for c in there)[:20])
            raise UsageError(
                f"there is no collection {name!r} at that moment", hint=f"there are: {known}" if known else None
            )
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} collections are called {name!r}",
                hint="write one of: " + ", ".join(f"{c.tenant}/{c.database}/{c.name}" for c in found),
            )
        chosen[found[0].id] = found[0]
    return tuple(chosen.values())


def was_chosen(target: Path) -> None:
    """What a run remembers of the directory that was there is not said of this one."""
    if os.name == "posix":
        from chromakeep.operations.beside import forget

        forget(target)


def _check_target(target: Path, replace: bool) -> bool:
    """Whether the target is empty. Raises for one that must not be written to."""
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: is a file, and a directory is to be restored", hint="name a directory")
    was_empty = place.is_empty(target)
    if not was_empty and (repository := _repository_in(target)):
        raise UsageError(
            f"{target}: a chromakeep repository lies there ({repository}), and would be moved away with it",
            hint="restore elsewhere, or move the repository beside that directory first",
        )
    if not was_empty and not replace:
        raise TargetNotEmpty(
            f"{target}: is not empty", hint="restore elsewhere, or say --replace: what is there is kept as .old-TIME"
        )
    refuse_in_use(target)
    return was_empty


def _repository_in(target: Path) -> Path | None:
    """A repository that is this directory, or one in it."""
    for folder in (target, *(p for p in target.iterdir() if p.is_dir())):
        config = folder / "config"
        with suppress(OSError):
            if config.is_file():
                with config.open("rb") as file:
                    if file.read(len(MAGIC)) == MAGIC:
                        return folder
    return None


def refuse_in_use(target: Path) -> None:
    """Raise ``UsageError`` while another process has a directory open for writing, or another run serves it."""
    if os.name == "posix":
        from chromakeep.operations.beside import served

        if served(target):
            raise UsageError(
                f"{target}: another chromakeep serves it, perhaps in another container",
                hint="stop it first: it would go on writing into the files that were replaced",
            )
    if target.is_dir() and (found := writers(target)):
        raise UsageError(
            f"{target}: process {found[0].pid} ({found[0].command}) has it open for writing",
            hint="stop it first: it would go on writing into the files that were replaced",
        )


def _check_room(target: Path, total: int) -> None:
    where = target
    while not where.exists():
        where = where.absolute().parent
    free = shutil.disk_usage(where).free
    if free < total + HEADROOM:
        raise DiskFull(
            f"{target}: {total:,} bytes are to be restored, and there is room for {free:,}",
            hint="free some space, or restore to another disk; nothing was changed",
        )


@contextmanager
def _refusing_full_disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"{target}: {e.strerror} while restoring", hint="free some space; nothing was changed"
            ) from None
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise ChromakeepError(f"{e.filename or target}: {e.strerror}", hint="nothing was changed") from None
        raise


def _rebuild(
    reader: SnapshotReader,
    snapshot: Snapshot,
    fresh: Path,
    local: Path | None,
    wanted: tuple[Collection, ...] | None,
    inspecting: Aside,
    observer: Observer,
) -> None:
    """Write the files below ``fresh``, synced. ``local`` may hold some of their content already.

    The database comes first: of a part of the collections it names the segments, and the others are taken out of it;
    and its records are inspected while the index files are still being written, the large ones last.
    """
    observer(PhaseStarted("restore", sum(f.size for f in snapshot.files)))
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        observer(Progressed("restore", done))

    files = sorted(snapshot.files, key=lambda f: f.path != DATABASE)
    synced: list[Future[None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="sync") as syncing:

        def write(some: Sequence[FileEntry]) -> None:
            synced.extend(syncing.submit(_sync_file, _write(reader, file, fresh, local, count), file) for file in some)

        for file in files[:1]:
            _make(fresh, file)
        write(files[:1])
        if wanted is not None:
            synced[0].result()
            keep_only(fresh, {c.id for c in wanted})
            with Catalog(fresh) as catalog:
                segments = {entry.vector_segment for entry in catalog.entries}
            files = [f for f in files if f.path.split("/")[0] in segments | {DATABASE}]
        inspecting.go()
        for file in files[1:]:  # all of them in their sizes, which the inspection compares with each other
            _make(fresh, file)
        write([f for f in files[1:] if not f.path.endswith(ELEMENTS)])
        inspecting.go()
        write([f for f in files[1:] if f.path.endswith(ELEMENTS)])
        observer(PhaseStarted("verify"))
        inspecting.go(ALL)
        folders = {(fresh / f.path).parent for f in files} | {fresh}
        synced.extend(syncing.submit(place.sync, folder) for folder in folders)
        for one in synced:
            one.result()


def _write(
    reader: SnapshotReader, file: FileEntry, fresh: Path, local: Path | None, count: Callable[[int], None]
) -> Path:
    path = fresh / file.path
    with path.open("r+b", buffering=0) as out:
        reader.read(file, out, count, local / file.path if local else None)
        written = out.tell()
    if written != file.size:
        raise NotAChromaDirectory(f"{path}: {written} bytes were written, {file.size} belong there")
    return path


def _make(fresh: Path, file: FileEntry) -> None:
    """A new file of the snapshot's size, all zeros, and none of them on disk."""
    path = fresh / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        out.truncate(file.size)


def _sync_file(path: Path, file: FileEntry) -> None:
    """Make a file durable. Its mtime is the source's: Chroma and the capture judge a persist by the order of mtimes."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
        os.fsync(fd)
    finally:
        os.close(fd)
