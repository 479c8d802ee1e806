"""Collecting garbage while others write: nothing is deleted that a snapshot needs, or that a writer may come to need.

1. Mark: what the remaining snapshots need. Sessions under way are left alone with all they wrote.
2. Blocks of which little is needed are cut down (``compaction``), packs of which little is needed are rewritten, and
   one merged index is put that knows only what is needed.
3. ``gc/<number>`` is created (put-if-absent, numbers are never used again): it condemns packs and supersedes indexes.
   All before the last one that was done count for nothing, and are kept for a month for the sake of their names.
   A writer that starts from now on reads it and relies on neither. One that started before is waited for; if it is
   dead it is fenced (``sessions``). A writer announces itself *before* it lists ``gc/``, a collection lists sessions
   *after* it put its own: one of the two sees the other.
4. What snapshots committed meanwhile need is rescued from the condemned. The rest is deleted, then superseded indexes.

A collection that dies at any point leaves ``gc/<number>`` behind, which keeps every writer right, and is done again by
the next. If writers do not end in time, deleting is left to the next. Where put-if-absent does not hold, nobody is
fenced: a session counts as dead after a day, and writers do not commit after half of one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from chromakeep.errors import CorruptObject, MissingObject, ObjectExists, ObjectNotFound, RepositoryBusy
from chromakeep.repository.compaction import compact, sparse_blocks
from chromakeep.repository.index import Index, IndexPart, PackInfo, Place, entry_rows
from chromakeep.repository.liveness import Needs, needs
from chromakeep.repository.packs import DATA, META, PackWriter, Stored, open_block, session_of
from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.repository import MERGED, RESCUED, Condemned, Repository
from chromakeep.repository.sessions import Session, SessionInfo, fence, is_dead, open_sessions
from chromakeep.repository.snapshots import Snapshot
from chromakeep.repository.trimming import Trimming

STALE = 3600.0  # seconds without a sign of life after which a session is fenced
STALE_UNFENCED = 86400.0
TOMBSTONE_LIFE = 30 * 86400.0
WORTH_KEEPING = 0.5  # a pack of which less is needed is rewritten
MANY_INDEXES = 16


class Collected(msgspec.Struct, frozen=True):
    """Objects deleted, bytes they held, bytes written anew, and whether deleting was left to the next collection.

    ``log_objects`` is how many of them were of the log.
    """

    deleted_objects: int = 0
    freed_bytes: int = 0
    repacked_bytes: int = 0
    deferred: bool = False
    log_objects: int = 0


class _Plan(msgspec.Struct):
    condemned: dict[str, int] = msgspec.field(default_factory=dict)  # pack -> size
    moving: list[tuple[bytes, Place]] = msgspec.field(default_factory=list)
    staying: list[tuple[bytes, Place]] = msgspec.field(default_factory=list)
    packs: dict[str, PackInfo] = msgspec.field(default_factory=dict)
    superseded: list[str] = msgspec.field(default_factory=list)
    needed: Needs = msgspec.field(default_factory=Needs)
    sparse: set[bytes] = msgspec.field(default_factory=set)  # blocks to be cut down


def collect(
    repository: Repository,
    remove: Sequence[Snapshot],
    trimming: Trimming,
    *,
    wait: float,
    dry_run: bool = False,
) -> Collected:
    """Delete the snapshots ``remove`` and all that no remaining one needs, and of the log what ``trimming`` says.

    ``wait``: seconds to wait for writers.
    """
    if dry_run:
        log = trimming.doomed(time.time())
        plan = _plan(repository, {s.id for s in remove}, set(open_sessions(repository)))
        moved = sum(p.stored for _, p in plan.moving)  # what cutting blocks down will save is not known beforehand
        return Collected(
            len(plan.condemned) + len(remove) + len(log),
            sum(plan.condemned.values()) + sum(o.size for o in log) - moved,
            moved,
            log_objects=len(log),
        )
    session = Session.start(repository, "prune")
    try:
        return _Collection(repository, session, wait, trimming).run(remove)
    except MissingObject:
        if f"sessions/{session.id}" in {o.name for o in repository.store.list("sessions/")}:
            raise
        raise RepositoryBusy("another prune has taken over", hint="let it finish") from None
    finally:
        session.end()


class _Collection:
    """One run: the steps of the module's docstring, in their order."""

    def __init__(self, repository: Repository, session: Session, wait: float, trimming: Trimming) -> None:
        self.repository, self.session, self.wait, self.trimming = repository, session, wait, trimming
        self.store = repository.store
        try:
            self.now = self.store.head(f"sessions/{session.id}").modified  # by the store's clock, as all other times
        except ObjectNotFound:
            raise RepositoryBusy("another prune has taken over", hint="let it finish") from None

    def run(self, remove: Sequence[Snapshot]) -> Collected:
        busy = self._others()
        number = max((int(o.name[3:11]) for o in self.store.list("gc/") if o.name[3:11].isdigit()), default=0) + 1
        before = {s.id for s in self.repository.snapshots()}
        plan = _plan(self.repository, {s.id for s in remove}, set(busy))
        tidy = not plan.condemned and not plan.sparse and len(plan.superseded) < MANY_INDEXES
        if tidy and not self.repository.unfinished():
            log, freed = self._remove(remove)
            self._sweep_old()
            return Collected(len(remove) + log, freed, log_objects=log)
        repacked = self._publish_index(plan)
        self.session.confirm()
        # Not before: where damage stops a prune, an older snapshot may be the last whole one.
        log, freed = self._remove(remove)
        self._condemn(plan, number)
        if not self._writers_ended():
            return Collected(len(remove) + log, freed, repacked, deferred=True, log_objects=log)
        rescued = self._rescue(plan, before)
        doomed = {name: size for name, size in plan.condemned.items() if name not in rescued}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.store.delete, doomed))
            list(pool.map(self.store.delete, plan.superseded))
        self.store.put(f"gc/{number:08d}.done", b"")
        for info in list(self.store.list("gc/")):
            # Younger ones hold their names: a prune that slept while two others were made must find its own taken.
            if info.name < f"gc/{number:08d}" and self.now - info.modified > TOMBSTONE_LIFE:
                self.store.delete(info.name)
        self._sweep_old()
        freed += sum(doomed.values()) - repacked
        return Collected(len(remove) + len(doomed) + log, freed, repacked, log_objects=log)

    def _remove(self, snapshots: Sequence[Snapshot]) -> tuple[int, int]:
        """Snapshots and log; how many objects and bytes of the log went."""
        self.trimming.declare({s.id for s in snapshots})
        for snapshot in snapshots:
            self.store.delete(f"sessions/{snapshot.id}")  # left there by a writer that died right after its commit
            self.store.delete(f"snapshots/{snapshot.id}")
        return self.trimming.sweep(self.now)

    # -- other sessions -----------------------------------------------------------------------------------------

    def _others(self) -> dict[str, SessionInfo | None]:
        """Sessions under way besides this one, after fencing the dead. Raises if another prune is at work."""
        found = self._open()
        for info in found.values():
            if info and info.kind == "prune":
                raise RepositoryBusy(
                    f"another prune is under way on {info.hostname} since {info.started}",
                    hint="let it finish; if that process is gone: chromakeep unlock REPO",
                )
        return found

    def _open(self) -> dict[str, SessionInfo | None]:
        """Open sessions besides this one; those that show no life are fenced and forgotten."""
        found = open_sessions(self.repository)
        found.pop(self.session.id, None)
        if not found:
            return found
        seen = {o.name.removeprefix("sessions/"): o.modified for o in self.store.list("sessions/")}
        for folder in (DATA, META):
            for pack in self.store.list(f"{folder}/"):
                owner = session_of(pack.name)
                if owner in seen:
                    seen[owner] = max(seen[owner], pack.modified)
        for identity, info in list(found.items()):
            age = self.now - seen.get(identity, self.now)
            if self.repository.config.conditional_put:
                dead = (is_dead(info) or age > STALE) and fence(self.repository, identity)
            else:
                dead = age > STALE_UNFENCED  # a host's name and a process number are not proof enough
            if dead:
                self.store.delete(f"sessions/{identity}")
                del found[identity]
        return found

    def _writers_ended(self) -> bool:
        """Wait for the sessions that may not have seen what was condemned."""
        before, deadline = set(self._open()), time.monotonic() + self.wait
        while before:
            before &= set(self._open())
            if before and time.monotonic() > deadline:
                return False
            if before:
                time.sleep(min(0.2, self.wait))
        return True

    # -- steps --------------------------------------------------------------------------------------------------

    def _publish_index(self, plan: _Plan) -> int:
        """Rewrite what moves, put the merged index; bytes rewritten."""
        reader = SnapshotReader(self.repository)
        putting = ThreadPoolExecutor(2, thread_name_prefix="put")
        try:
            writers = {
                f: PackWriter(self.store, self.repository.keys, self.session.id, f, putting) for f in (DATA, META)
            }

            def move(stored: Stored, identity: bytes, place: Place) -> None:
                verify(self.repository, stored, identity, place)
                encoded = bytes(open_block(stored, place.pack, place.offset, identity, self.repository.keys))
                writers[place.pack.split("/", 1)[0]].add(identity, encoded, place.length)

            replaced = set(plan.sparse)
            if plan.sparse:
                replaced |= compact(reader, plan.needed, plan.sparse, writers[DATA].add, writers[META].add)
            moving = [(place, i) for i, place in plan.moving if i not in replaced]
            for at in range(0, len(moving), 256):
                reader.fetch_places(moving[at : at + 256], move)
            parts = [w.finish() for w in writers.values()]
            repacked = sum(w.bytes_put for w in writers.values())
        finally:
            reader.close()
            putting.shutdown(wait=True, cancel_futures=True)
        merged = _part([(i, p) for i, p in plan.staying if i not in replaced], plan.packs)
        for part in parts:
            rows = part.entries.copy()
            rows["pack"] += len(merged.packs)
            merged.packs.extend(part.packs)
            merged.entries = np.concatenate([merged.entries, rows])
        self.repository.put_sealed("I", f"{MERGED}{self.session.id}", merged.encode())
        return repacked

    def _condemn(self, plan: _Plan, number: int) -> None:
        """Publish what no writer may rely on any more. ``number`` was chosen before the mark: if this collection
        slept while another was made, the name is taken and nothing of this one counts."""
        merged = f"{MERGED}{self.session.id}"
        payload = msgspec.json.encode(Condemned(self.session.id, merged, tuple(plan.condemned), tuple(plan.superseded)))
        try:
            self.repository.put_sealed("G", f"gc/{number:08d}", payload)
        except ObjectExists:
            self.store.delete(merged)
            raise RepositoryBusy("another prune has taken over", hint="let it finish") from None

    def _rescue(self, plan: _Plan, before: set[str]) -> set[str]:
        """Packs that snapshots committed since the mark need after all; their blocks get an index of their own."""
        new = [s for s in self.repository.snapshots() if s.id not in before]
        if not new:
            return set()
        reader = SnapshotReader(self.repository)
        try:
            needed = needs(reader, new)
        finally:
            reader.close()
        safe = Index(
            (p for n, p in self.repository.parts().items() if n not in plan.superseded), without=plan.condemned
        )
        entries, packs = [], {}
        infos = {p.name: p for p in reader.index.packs}
        for identity in needed:
            if identity not in safe:
                place = reader.index.find(identity)
                if place is None:
                    raise MissingObject(f"block {identity.hex()[:16]}")
                entries.append((identity, place))
                packs[place.pack] = infos[place.pack]
        if entries:
            self.repository.put_sealed("I", f"{RESCUED}{self.session.id}", _part(entries, packs).encode())
        return set(packs)

    def _sweep_old(self) -> None:
        """Announcements of sessions that ended, and tombstones that have outlived every writer they could stop."""
        names = set()
        for info in list(self.store.list("snapshots/")):
            names.add(info.name.removeprefix("snapshots/"))
            if self.now - info.modified > TOMBSTONE_LIFE and self.repository.snapshot(info.name) is None:
                self.store.delete(info.name)
        for info in list(self.store.list("sessions/")):
            if info.name.removeprefix("sessions/") in names:
                self.store.delete(info.name)


def verify(repository: Repository, stored: Stored, identity: bytes, place: Place) -> None:
    """Raise ``CorruptObject`` unless these bytes are the block, list or map they are indexed as."""
    try:
        repository.block(stored, identity, place)
    except CorruptObject:
        if not place.pack.startswith(META):
            raise
        repository.span_map(stored, identity, place)


def _plan(repository: Repository, removed: set[str], busy: set[str]) -> _Plan:
    """What to keep, move and condemn, with sessions ``busy`` and all they wrote left alone.

    The order of the listings matters: packs, (sessions: the caller), snapshots, indexes. A pack seen here that is in
    no index and of no open session belongs to a session that ended before, and would be in the index if it counted.
    """
    listed = {o.name: o.size for folder in (DATA, META) for o in repository.store.list(f"{folder}/")}
    busy = busy | set(open_sessions(repository))
    snapshots = [s for s in repository.snapshots() if s.id not in removed]
    reader = SnapshotReader(repository)
    try:
        needed = needs(reader, snapshots)
    finally:
        reader.close()
    parts = repository.parts()
    plan = _Plan(superseded=[n for n in parts if _owner(n) not in busy], needed=needed, sparse=sparse_blocks(needed))
    gone = [p for p in _all_packs(parts) if p not in listed]
    index = Index([parts[n] for n in plan.superseded], without=gone, avoid=repository.condemned())
    plan.packs = {p.name: p for p in index.packs}
    used: dict[str, int] = dict.fromkeys(plan.packs, 0)
    wanted: list[tuple[bytes, Place]] = []
    last = b""
    for identity, place in index.entries():
        if identity != last and identity in needed:
            used[place.pack] += place.stored * (identity not in plan.sparse)
            wanted.append((identity, place))
        last = identity
    for name in plan.packs:
        if name in listed and used[name] < WORTH_KEEPING * listed[name]:
            plan.condemned[name] = listed[name]
    for identity, place in wanted:
        (plan.moving if place.pack in plan.condemned else plan.staying).append((identity, place))
    indexed = _all_packs(parts)
    for name, size in listed.items():
        if name not in indexed and session_of(name) not in busy:
            plan.condemned[name] = size
    return plan


def _owner(index_name: str) -> str:
    return index_name.removeprefix(MERGED).removeprefix(RESCUED).removeprefix("index/")


def _all_packs(parts: dict[str, IndexPart]) -> set[str]:
    return {p.name for part in parts.values() for p in part.packs}


def _part(entries: Sequence[tuple[bytes, Place]], packs: dict[str, PackInfo]) -> IndexPart:
    """An index of some entries and the packs they lie in."""
    names = sorted({place.pack for _, place in entries})
    number = {name: i for i, name in enumerate(names)}
    rows = entry_rows((i, number[p.pack], p.offset, p.stored, p.length) for i, p in entries)
    return IndexPart([packs[n] for n in names], rows)
