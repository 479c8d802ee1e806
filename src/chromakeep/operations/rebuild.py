"""Rebuild: a copy of a data directory in which Chroma itself builds the indexes of broken collections anew.

In the copy a broken collection's index files and its row in ``max_seq_id`` are removed: to Chroma the segment is then
uninitialised, and its records, documents and metadata are as they were. The vectors come back as upserts without
document and metadata, which leave both alone. Measured with 1.5.9, for indexes torn at every file of a persist.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from chromakeep.chroma.catalog import Catalog, Entry
from chromakeep.chroma.client import Ref, Vectors
from chromakeep.chroma.copying import clone
from chromakeep.chroma.creation import salvage_by_order
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.queue import Queue
from chromakeep.chroma.reader import read_vectors
from chromakeep.chroma.salvage import salvage
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ChromakeepError, DiskFull, RefusedToServe, RepositoryNotFound
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.beside import DATABASE, Beside

if TYPE_CHECKING:
    from chromakeep.repository import Repository

COSINE_TOLERANCE = 1e-5  # a cosine index keeps direction and length apart: what is read back is rounded once more

BATCH = 1000
WITNESSES = 4096  # vectors by which the order of creation is tested; the newest say most


class Rebuilt(msgspec.Struct, frozen=True):
    """One collection: how many vectors came from its own files and queue, and the ids for which they did not.

    ``from_snapshot`` may be older than the last write; ``lost`` were taken out; ``poisoned`` are queued writes that
    Chroma never acknowledged and could not read.
    """

    id: str
    name: str
    salvaged: int
    from_snapshot: tuple[str, ...] = ()
    snapshot: str | None = None
    lost: tuple[str, ...] = ()
    poisoned: tuple[str, ...] = ()

    def line(self) -> str:
        """In a few words, with the first ids."""
        parts = [f"{self.salvaged:,} vectors from its files and queue"]
        for ids, what in (
            (self.from_snapshot, f"from snapshot {self.snapshot}"),
            (self.lost, "lost"),
            (self.poisoned, "unreadable queued writes removed"),
        ):
            if ids:
                parts.append(f"{len(ids):,} {what} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})")
        return f"{self.name!r}: {', '.join(parts)}"


def copy_directory(source: Path, into: Path) -> None:
    """The database with a dead writer's journal, and the files of live VECTOR segments. Nobody may be writing.

    Raises ``DiskFull``.
    """
    with Catalog(source) as catalog:
        segments = [e.vector_segment for e in catalog.entries if e.vector_segment]
    try:
        _copy(source, into, segments)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"{into.parent}: no room for a copy of {source}", hint="free as much space as the directory takes"
        ) from None


def _copy(source: Path, into: Path, segments: list[str]) -> None:
    into.mkdir(parents=True)
    for name in (DATABASE, f"{DATABASE}-journal", f"{DATABASE}-wal"):
        if (source / name).exists():
            _copy_file(source / name, into / name)
    for segment in segments:
        for path in sorted((source / segment).glob("*")):
            if path.is_file():
                (into / segment).mkdir(exist_ok=True)
                _copy_file(path, into / segment / path.name)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        cloned = clone(reading.fileno(), writing.fileno())
    if not cloned:
        shutil.copyfile(source, target)
    shutil.copystat(source, target)


def rebuild(
    beside: Beside,
    new: Path,
    refs: list[Ref],
    open_repository: Callable[[], Repository] | None,
    *,
    program: str | None,
    env: Mapping[str, str],
    observer: Observer = ignore,
) -> tuple[tuple[Rebuilt, ...], list[dict[str, Any]]]:
    """Copy ``beside.data`` to ``new`` with the collections ``refs`` rebuilt; returns what came from where, and the
    records whose vectors nobody has any more.

    Verified before it returns: every vector is read back by Chroma and compared, nothing else has changed, and the
    result has no structural problem. Raises ``RefusedToServe`` otherwise.
    """
    data = beside.data
    copy_directory(data, new)
    with Catalog(data) as catalog:
        entries = {e.id: e for e in catalog.entries}
    poisoned = {ref.id: _empty(new, entries[ref.id]) for ref in refs}
    source = _Snapshots(beside, data, open_repository, observer)
    done: list[Rebuilt] = []
    lost_records: list[dict[str, Any]] = []
    with ChromaServer(new, env=env, program=program) as server:
        for ref in refs:
            one, records = _fill(server, data, ref, poisoned[ref.id], source)
            done.append(one)
            lost_records += records
    with ChromaServer(new, env=env, program=program) as server:
        for ref, one in zip(refs, done, strict=True):
            _compare(server, data, ref, one, source, cosine=entries[ref.id].space == "cosine")
    source.close()
    _nothing_else_changed(data, new, done)
    return tuple(done), lost_records


def _empty(new: Path, entry: Entry) -> tuple[str, ...]:
    """Make a collection's index uninitialised and take unreadable rows out of its queue; returns their ids."""
    with closing(sqlite3.connect(new / DATABASE)) as db, db:
        queue = Queue(db)
        rows = [row for row in queue.rows(queue.pending(entry.topic, 0)) if row.poison]
        db.executemany("DELETE FROM embeddings_queue WHERE seq_id = ?", [(row.seq,) for row in rows])
        # What both segments had applied would be purged at the next chance; replayed into an empty index it would
        # only put vectors there that the upserts replace. The last applied row stays: Chroma keeps it, so that a
        # new row's number is never below one already applied.
        db.execute("DELETE FROM embeddings_queue WHERE topic = ? AND seq_id < ?", (entry.topic, entry.metadata_seq))
        db.execute("DELETE FROM max_seq_id WHERE segment_id = ?", (entry.vector_segment,))
    if entry.vector_segment:
        shutil.rmtree(new / entry.vector_segment, ignore_errors=True)
    return tuple(row.id.decode("utf-8", "replace") for row in rows)


class _Snapshots:
    """The newest snapshot with a collection, restored beside; only when something is missing."""

    def __init__(
        self, beside: Beside, data: Path, open_repository: Callable[[], Repository] | None, observer: Observer
    ) -> None:
        self._data, self._open, self._observer = data, open_repository, observer
        self._root = beside.scratch("snapshot")
        self._places: dict[str, tuple[str, Path]] = {}  # by the collection's id: snapshot and directory

    def fetch(self, ref: Ref) -> None:
        """Restore it, unless there is no repository, no snapshot, or none with the collection."""
        from chromakeep.operations.boot import candidates
        from chromakeep.operations.restore import restore

        if self._open is None or ref.id in self._places:
            return
        try:
            try:
                found = candidates(repository := self._open(), str(self._data), collection=ref.id)
            except RepositoryNotFound:
                return
            if not found:
                return
            snapshot = found[-1]
            place = self._root / ref.id
            self._observer(Noted(f"fetching what the files of {ref.name!r} lack from snapshot {snapshot.id}"))
            restore(repository, snapshot.id, place, collections=[ref.id], observer=self._observer)
        except ChromakeepError as error:
            raise RefusedToServe(
                f"collection {ref.name!r} is broken, and the snapshots that may have its vectors cannot be read:"
                f" {error.message}",
                hint=error.hint,
            ) from None
        self._places[ref.id] = (snapshot.id, place)

    def id(self, ref: Ref) -> str | None:
        """Which snapshot was fetched for a collection."""
        found = self._places.get(ref.id)
        return found[0] if found else None

    def place(self, ref: Ref) -> Path | None:
        """Where it was restored."""
        found = self._places.get(ref.id)
        return found[1] if found else None

    def close(self) -> None:
        """Remove what was fetched."""
        shutil.rmtree(self._root, ignore_errors=True)

    def vectors(self, ref: Ref) -> Iterator[tuple[list[str], Vectors]]:
        """Ids and vectors of the collection in what was fetched."""
        place = self.place(ref)
        if place:
            yield from read_vectors(place, ref.id)


def _fill(
    server: ChromaServer, data: Path, ref: Ref, poisoned: tuple[str, ...], source: _Snapshots
) -> tuple[Rebuilt, list[dict[str, Any]]]:
    """Give every record of the collection its vector back; take out those for which there is none."""
    client = server.client
    client.count(ref, timeout=300)  # replays what the records' segment has not applied yet
    missing = {i for page in client.ids(ref) for i in page}
    total = len(missing)
    for own in _own(data, ref, source):
        if missing:
            _upsert_from(server, ref, own(), missing)
    salvaged, before = total - len(missing), set(missing)
    _upsert_from(server, ref, source.vectors(ref), missing)
    fetched = before - missing
    lost = sorted(missing)
    records: list[dict[str, Any]] = []
    for start in range(0, len(lost), 1000):
        body = {"ids": lost[start : start + 1000], "include": ["documents", "metadatas", "uris"]}
        got = client.request("POST", f"{ref.path}/get", body)
        for i, document, metadata, uri in zip(got["ids"], got["documents"], got["metadatas"], got["uris"], strict=True):
            records.append({"collection": ref.name, "id": i, "document": document, "metadata": metadata, "uri": uri})
    client.delete(ref, lost)
    return (
        Rebuilt(
            ref.id,
            ref.name,
            salvaged,
            tuple(sorted(fetched)),
            source.id(ref) if fetched else None,
            tuple(lost),
            poisoned,
        ),
        records,
    )


def _own(data: Path, ref: Ref, source: _Snapshots) -> tuple[Callable[[], Iterator[tuple[list[str], Vectors]]], ...]:
    """What the collection's own files and queue give, surest first; each is asked only for what is missing still."""

    def mapped() -> Iterator[tuple[list[str], Vectors]]:
        return salvage(data, ref.id)

    def mapped_by_snapshot() -> Iterator[tuple[list[str], Vectors]]:
        source.fetch(ref)
        return salvage(data, ref.id, older=source.place(ref)) if source.place(ref) else iter(())

    def ordered(
        others: Callable[[], Iterator[tuple[list[str], Vectors]]],
    ) -> Callable[[], Iterator[tuple[list[str], Vectors]]]:
        return lambda: salvage_by_order(data, ref.id, _newest(others()))

    return mapped, ordered(mapped), mapped_by_snapshot, ordered(mapped_by_snapshot)


def _newest(batches: Iterator[tuple[list[str], Vectors]]) -> dict[str, Vectors]:
    known: dict[str, Vectors] = {}
    for ids, vectors in batches:
        known.update(zip(ids[-WITNESSES:], vectors[-WITNESSES:], strict=True))
        while len(known) > WITNESSES:
            del known[next(iter(known))]
    return known


def _upsert_from(
    server: ChromaServer, ref: Ref, batches: Iterator[tuple[list[str], Vectors]], missing: set[str]
) -> None:
    """Write the vectors of missing ids, and take those ids out of ``missing``."""
    found: dict[str, Vectors] = {}
    for ids, vectors in batches:
        found.update((i, v) for i, v in zip(ids, vectors, strict=True) if i in missing and np.isfinite(v).all())
        if len(found) >= BATCH:
            server.client.upsert_vectors(ref, found)
            missing.difference_update(found)
            found.clear()
    server.client.upsert_vectors(ref, found)
    missing.difference_update(found)


def _compare(server: ChromaServer, data: Path, ref: Ref, one: Rebuilt, source: _Snapshots, *, cosine: bool) -> None:
    """Every vector as a fresh server reads it from the rebuilt index, against where it came from."""
    fetched, lost = set(one.from_snapshot), set(one.lost)
    left = {i for page in server.client.ids(ref) for i in page}
    if len(left) != one.salvaged + len(fetched) or left & lost:
        raise _failed(ref, f"it has {len(left)} records, expected {one.salvaged + len(fetched)}")
    sources = [(own, left - fetched) for own in _own(data, ref, source)]
    for batches, wanted in (*sources, (lambda: source.vectors(ref), fetched)):
        for ids, vectors in batches() if wanted & left else ():
            expected = {i: vectors[n] for n, i in enumerate(ids) if i in wanted and i in left}
            names = list(expected)
            for start in range(0, len(names), 1000):
                for i, got in server.client.get_vectors(ref, names[start : start + 1000]).items():
                    want = expected[i]
                    scale = float(np.abs(want).max()) or 1.0
                    same = np.abs(got - want).max() <= COSINE_TOLERANCE * scale if cosine else np.array_equal(got, want)
                    if not same:
                        raise _failed(ref, f"the vector of {i!r} differs")
                    left.discard(i)
    if left:
        raise _failed(ref, f"{len(left)} vectors could not be compared")


def _nothing_else_changed(data: Path, new: Path, done: list[Rebuilt]) -> None:
    after = inspect(new)
    if after.problems:
        raise RefusedToServe(
            f"the rebuilt directory is not whole: {after.problems[0].message}", hint="the directory is as it was"
        )
    have = {c.id: c.digest for c in after.collections}
    rebuilt = {one.id: one for one in done}
    for was in inspect(data).collections:
        now = have.get(was.id)
        if was.digest is None or now is None:
            raise _failed(Ref(was.id, was.name), "it is missing from the result")
        one = rebuilt.get(was.id)
        if one and (one.lost or one.poisoned):
            continue
        parts = ("ids", "documents", "metadata") if one else ("ids", "vectors", "documents", "metadata")
        if differ := [p for p in parts if getattr(now, p) != getattr(was.digest, p)]:
            raise _failed(Ref(was.id, was.name), f"{', '.join(differ)} changed")


def _failed(ref: Ref, what: str) -> RefusedToServe:
    message = f"collection {ref.name!r} is broken and could not be rebuilt: {what}"
    return RefusedToServe(message, hint="the directory is as it was; keep a copy of it")
