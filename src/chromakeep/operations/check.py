"""check: is everything there that the snapshots need, and is every byte what was written?"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import blake3
import msgspec

from chromakeep.errors import ChromakeepError, CorruptObject, MissingObject, ObjectNotFound
from chromakeep.events import Observer, PhaseStarted, Progressed, ignore
from chromakeep.operations.audit_objects import BEGINS, END
from chromakeep.operations.check_log import LogCheck
from chromakeep.operations.key_places import access_object
from chromakeep.repository.collector import verify
from chromakeep.repository.index import Index, IndexPart, PackInfo, Place
from chromakeep.repository.liveness import needs
from chromakeep.repository.packs import DATA, META, read_trailer
from chromakeep.repository.reader import SnapshotReader
from chromakeep.repository.repository import Repository, read_slot
from chromakeep.repository.sealed import unseal
from chromakeep.repository.snapshots import Snapshot

ATTEMPTS = 3  # before what is missing is believed to be missing, while prunes are at work
FOLDERS = (
    "access/",
    "audit/",
    "gc/",
    "index/",
    "keys/",
    "lease/",
    "log/",
    "meta/",
    "packs/",
    "sessions/",
    "snapshots/",
)


class ObjectProblem(msgspec.Struct, frozen=True):
    """An object that is damaged, missing or foreign, and the snapshots that cannot be restored without it."""

    object: str
    what: str
    snapshots: tuple[str, ...] = ()


class CheckReport(msgspec.Struct, frozen=True):
    """How much was looked at, and what is wrong. No problems: every snapshot can be restored."""

    snapshots: int
    objects: int
    bytes_read: int
    problems: tuple[ObjectProblem, ...]


def check(repository: Repository, *, read_data: bool = False, observer: Observer = ignore) -> CheckReport:
    """Read all small objects, and with ``read_data`` every pack and all of the log; never writes. A problem never stops
    the check.

    Where objects went while it looked at them, what it missed may only have been moved by a prune: it looks again.
    """
    for _ in range(ATTEMPTS):
        one = _Check(repository, read_data, observer)
        report = one.run()
        if not report.problems or one.names <= {o.name for o in repository.store.list()}:
            break
    return report


class _Check:
    def __init__(self, repository: Repository, read_data: bool, observer: Observer) -> None:
        self.repository, self.read_data, self.observer = repository, read_data, observer
        self.names: set[str] = set()  # of all objects, when it began
        self.problems: dict[str, str] = {}
        self.bytes_read = 0

    def run(self) -> CheckReport:
        self.observer(PhaseStarted("check objects"))
        # Before all else, which has what these need: a long listing is not of one moment.
        committed = self.repository.snapshot_names()
        listed = {o.name: o.size for o in self.repository.store.list()}
        self.names = {*listed, *committed}
        for name in listed:
            if name != "config" and not name.startswith(FOLDERS):
                self.problems[name] = "does not belong to a repository"
        snapshots = list(self._snapshots([n for n in committed if n in listed], listed))
        parts = self._parts(listed)
        self._others(listed)
        gone = {p.name for part in parts.values() for p in part.packs} - listed.keys()
        index = Index(parts.values(), avoid=gone | self._condemned())
        infos = {p.name: p for p in index.packs}
        for name, info in infos.items():
            if name in listed and listed[name] != info.size:
                self.problems[name] = f"has {listed[name]:,} bytes, {info.size:,} were written"
        log = LogCheck(self.repository, listed)
        log.run(read_data=self.read_data)
        self.problems.update(log.problems)
        self.bytes_read += log.bytes_read
        packs = [n for n in listed if n.startswith((f"{DATA}/", f"{META}/"))]
        if self.read_data:
            self._read_packs(packs, listed, infos)
        broken = self._needs(snapshots, index, listed)
        broken.update((n, [n.removeprefix("snapshots/")]) for n in self.problems if n.startswith("snapshots/"))
        problems = tuple(ObjectProblem(n, w, tuple(broken.get(n, ()))) for n, w in sorted(self.problems.items()))
        return CheckReport(len(snapshots), len(listed), self.bytes_read, problems)

    # -- small objects ------------------------------------------------------------------------------------------

    def _snapshots(self, names: list[str], listed: dict[str, int]) -> Iterator[Snapshot]:
        for name in names:
            self.bytes_read += listed[name]
            try:
                if found := self.repository.snapshot(name):
                    yield found
            except ChromakeepError as e:
                self._note(name, e)

    def _parts(self, listed: dict[str, int]) -> dict[str, IndexPart]:
        parts = {}
        for name in (n for n in listed if n.startswith("index/")):
            self.bytes_read += listed[name]
            try:
                parts[name] = IndexPart.decode(
                    name, unseal("I", name, self.repository.store.get(name), self.repository.keys)
                )
            except ChromakeepError as e:
                self._note(name, e)
        return parts

    def _others(self, listed: dict[str, int]) -> None:
        store, keys = self.repository.store, self.repository.keys
        for kind, prefix, opened in (("G", "gc/", keys), ("N", "sessions/", keys), ("U", "audit/", keys)):
            for name in (n for n in listed if n.startswith(prefix) and not n.endswith(".done")):
                try:
                    unseal(BEGINS if name.endswith(END) else kind, name, store.get(name), opened)
                except ObjectNotFound:
                    continue  # a session that ended meanwhile, or records of the audit log that were pruned
                except ChromakeepError as e:
                    self._note(name, e)
        for name in (n for n in listed if n.startswith("keys/")):
            try:
                read_slot(store, name)
            except ObjectNotFound:
                continue  # a password that was taken away meanwhile
            except ChromakeepError as e:
                self._note(name, e)
        for name in (n for n in listed if n.startswith("access/")):
            try:
                access_object(self.repository, name, listed[name])
            except ObjectNotFound:
                continue  # a client's key that was forgotten meanwhile
            except ChromakeepError as e:
                self._note(name, e)

    def _condemned(self) -> set[str]:
        try:
            return self.repository.condemned()
        except ChromakeepError as e:
            self._note("gc/", e)  # if _others did not
            return set()

    # -- packs --------------------------------------------------------------------------------------------------

    def _read_packs(self, packs: list[str], listed: dict[str, int], known: dict[str, PackInfo]) -> None:
        """Every pack whole: its trailer, its checksum where an index tells it, and every block in it."""
        done = 0
        self.observer(PhaseStarted("read packs", sum(listed[p] for p in packs)))

        def read(name: str) -> int:
            try:
                data = self.repository.store.get(name)
            except ObjectNotFound:
                return 0  # pruned meanwhile; if it is needed, _needs will say so
            info = known.get(name)
            try:
                if info and blake3.blake3(data).digest() != info.checksum:
                    self._first(name, "its bytes are not those that were written")
                for identity, place in read_trailer(name, data, self.repository.keys):
                    verify(self.repository, data[place.offset : place.offset + place.stored], identity, place)
            except ChromakeepError as e:
                self._note(name, e)
            return len(data)

        with ThreadPoolExecutor(2) as pool:
            for size in pool.map(read, packs):
                done += size
                self.observer(Progressed("read packs", done))
        self.bytes_read += done

    # -- what the snapshots need --------------------------------------------------------------------------------

    def _needs(self, snapshots: list[Snapshot], index: Index, listed: dict[str, int]) -> dict[str, list[str]]:
        """For each bad object, the snapshots that need it; notes what is missing on the way."""
        broken: dict[str, list[str]] = {}
        # A block that no index lists may be in any of the damaged ones.
        suspects = [n for n in self.problems if n.startswith("index/")]

        def blame(name: str, snapshot: Snapshot) -> None:
            for one in {name, *(suspects if name.startswith("block ") else ())}:
                broken.setdefault(one, []).append(snapshot.id)

        for snapshot in snapshots:
            reader = SnapshotReader(self.repository, index)
            try:
                needed = needs(reader, [snapshot])
            except (MissingObject, CorruptObject) as e:
                self._first(e.name, _what(e))
                blame(e.name, snapshot)
                continue
            finally:
                reader.close()
            used: dict[str, Place | None] = {}
            for identity in needed:
                place = index.find(identity)
                used[place.pack if place else f"block {identity.hex()[:16]}"] = place
            for name, place in used.items():
                if place is None or name not in listed:
                    self._first(name, "missing from the store")
                if name in self.problems:
                    blame(name, snapshot)
        return broken

    def _note(self, name: str, error: ChromakeepError) -> None:
        self._first(getattr(error, "name", name), _what(error))

    def _first(self, name: str, what: str) -> None:
        self.problems.setdefault(name, what)


def _what(error: ChromakeepError) -> str:
    return error.message.split(": ", 1)[-1]
