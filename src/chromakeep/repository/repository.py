"""A repository: one store, its configuration and keys, and the view of what it holds.

Layout (``docs/format.md``): ``config``, ``keys/``, ``sessions/``, ``packs/``, ``meta/``, ``index/``, ``snapshots/``,
``gc/``, ``log/``, ``lease/``, ``access/``. All objects but leases are write-once. The one commit point of a backup is
the put of ``snapshots/<id>``.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import msgspec

from chromakeep.errors import (
    CorruptObject,
    MissingObject,
    ObjectExists,
    ObjectNotFound,
    RepositoryNotFound,
    SnapshotNotFound,
    UnsupportedFormat,
    UsageError,
    VerificationFailed,
    WrongPassword,
)
from chromakeep.repository import snapshots as snapshots_
from chromakeep.repository.blocks import decode
from chromakeep.repository.index import Index, IndexPart, Place
from chromakeep.repository.keys import SLOT, Keys, Slot, new_master, unwrap, wrap
from chromakeep.repository.packs import Stored, open_block
from chromakeep.repository.sealed import seal, unseal
from chromakeep.repository.snapshots import Snapshot, now, rfc3339, select
from chromakeep.repository.spans import SpanMap
from chromakeep.store.base import ObjectInfo, Store, brisk
from chromakeep.store.unconditional import HeadThenPut

FORMAT = 1
MERGED = "index/merged-"  # written by a prune in place of those it supersedes
RESCUED = "index/rescued-"  # by a prune, of what was condemned and turned out to be needed
FEATURES = frozenset[str]()  # features a reader must know; a repository that asks for another is refused


class Config(msgspec.Struct, frozen=True):
    """The object ``config``: what must be known before anything else can be read."""

    id: str
    format: int
    created: str
    conditional_put: bool
    encrypted: bool
    master: bytes | None = None  # the master key where there is no password: then names are all it protects
    features: tuple[str, ...] = ()


class Condemned(msgspec.Struct, frozen=True):
    """The object ``gc/<number>``: packs that will be deleted and index objects that no writer may read any more."""

    prune: str
    merged: str  # the index that takes their place: of merged ones, writers believe only those named here
    packs: tuple[str, ...]
    superseded: tuple[str, ...]


_CONFIG, _CONDEMNED = msgspec.json.Decoder(Config), msgspec.json.Decoder(Condemned)


class Repository:
    """An open repository. Methods may be called from several threads; what was read once is kept (it cannot change)."""

    def __init__(self, store: Store, config: Config, keys: Keys) -> None:
        # Where put-if-absent does not hold it is imitated: enough to notice a mistake, not to settle a race.
        self.store: Store = store if config.conditional_put else HeadThenPut(store)
        self.config, self.keys = config, keys
        self._parts: dict[str, IndexPart] = {}
        self.damaged: dict[str, VerificationFailed] = {}  # index objects that the last reading had to do without
        self._snapshots: dict[str, Snapshot | None] = {}

    @cached_property
    def brisk(self) -> Repository:
        """The same repository through a store that gives up soon (``store.base.Brisk``): for the log and the lease."""
        return Repository(brisk(self.store), self.config, self.keys)

    # -- open and create ----------------------------------------------------------------------------------------

    @staticmethod
    def create(store: Store, *, password: str | None = None) -> Repository:
        """Make a repository in an empty place. Raises ``UsageError`` where one is already.

        Probes whether the store's put-if-absent holds and records the answer; where it does not, prune deletes only
        after a day in which no writer can still be at work (see ``collector``).
        """
        from chromakeep.store.probe import conditional_put_holds

        if password == "":
            raise UsageError("the password is empty", hint="set CHROMAKEEP_PASSWORD to a real one or leave it unset")
        if _exists(store, "config"):
            raise UsageError("there is a repository already", hint="use it, or choose another prefix")
        master, created = new_master(), rfc3339(now())
        config = Config(
            id=secrets.token_hex(16),
            format=FORMAT,
            created=created,
            conditional_put=conditional_put_holds(store),
            encrypted=password is not None,
            master=None if password is not None else master,
        )
        slot = add_key(store, config, master, password) if password is not None else None
        try:
            store.put("config", seal("C", "config", msgspec.json.encode(config), None), if_absent=True)
        except ObjectExists:
            if slot:
                store.delete(slot)  # it opens nothing, and would count as a password
            raise UsageError("somebody else has just made a repository here", hint="use it") from None
        return Repository(store, config, Keys(master, encrypted=config.encrypted))

    @staticmethod
    def open(store: Store, *, password: str | None = None) -> Repository:
        """Open a repository. Raises ``RepositoryNotFound``, ``WrongPassword``, ``UnsupportedFormat``."""
        try:
            data = store.get("config")
        except ObjectNotFound:
            raise RepositoryNotFound(
                "there is no chromakeep repository", hint="make one: chromakeep init REPO, or check the address"
            ) from None
        payload = unseal("C", "config", data, None)
        try:
            version = msgspec.json.decode(payload, type=dict[str, object]).get("format")
            if not isinstance(version, int) or version > FORMAT:
                raise UnsupportedFormat(
                    f"the repository has format {version}, this chromakeep reads up to {FORMAT}",
                    hint="upgrade chromakeep: `pip install -U chromakeep`",
                )
            config = _CONFIG.decode(payload)
        except (msgspec.MsgspecError, ValueError) as e:
            raise CorruptObject("config", f"is not a configuration ({e})") from None
        if unknown := set(config.features) - FEATURES:
            raise UnsupportedFormat(
                f"the repository uses {', '.join(sorted(unknown))}, which this chromakeep does not know",
                hint="upgrade chromakeep: `pip install -U chromakeep`",
            )
        return Repository(store, config, Keys(_master(store, config, password), encrypted=config.encrypted))

    # -- snapshots ----------------------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first. A damaged one is raised as ``CorruptObject``; see ``readable_snapshots``."""
        names = self.snapshot_names()
        if len([n for n in names if n not in self._snapshots]) > 2:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(self.snapshot, names))
        return sorted((s for name in names if (s := self.snapshot(name))), key=lambda s: s.id)

    def readable_snapshots(self) -> tuple[list[Snapshot], list[CorruptObject]]:
        """The snapshots that can be read, oldest first, and what is wrong with the others."""
        found, damaged = [], []
        for name in self.snapshot_names():
            try:
                if one := self.snapshot(name):
                    found.append(one)
            except CorruptObject as e:
                damaged.append(e)
        return sorted(found, key=lambda s: s.id), damaged

    def snapshot_names(self) -> list[str]:
        """Names of the objects under ``snapshots/`` (tombstones of fenced sessions among them), oldest first."""
        return [o.name for o in self.store.list("snapshots/")]

    def committed(self) -> set[str]:
        """Ids of the sessions that committed and whose snapshot is still there."""
        found = self.store.list("snapshots/")
        return {o.name.removeprefix("snapshots/") for o in found if not self._may_be_tombstone(o)}

    def _may_be_tombstone(self, info: ObjectInfo) -> bool:
        if info.size > snapshots_.LARGEST_TOMBSTONE:
            return False
        try:
            return self.snapshot(info.name) is None
        except CorruptObject:
            return True  # `check` tells; here it only means that nothing is built on that session

    def snapshot(self, name: str) -> Snapshot | None:
        """One snapshot by its object's name; None when it is a tombstone or has just been pruned."""
        known = self._snapshots  # another thread may forget some meanwhile
        if name not in known:
            try:
                payload = unseal("S", name, self.store.get(name), self.keys)
            except ObjectNotFound:
                return None
            found = snapshots_.decode(name, payload)
            if found and f"snapshots/{found.id}" != name:
                raise CorruptObject(name, f"calls itself {found.id}")
            known[name] = found
        return known[name]

    def recent(self, count: int) -> list[str]:
        """Names of the last ``count`` objects under ``snapshots/``, oldest first. What was read of older snapshots is
        forgotten: who goes on making them for months shall not hold them all."""
        names = self.snapshot_names()
        last, there = names[-count:], set(names)
        kept = [(n, self._snapshots.get(n)) for n in list(self._snapshots) if n in there]
        self._snapshots = {n: found for n, found in kept if n in last or found is None}
        return last

    def find(self, selector: str | None) -> Snapshot:
        """The snapshot a selector means (``snapshots.select``). ``latest`` and a full id read one object only."""
        names = self.snapshot_names()
        if selector is None or selector == "latest":
            for name in reversed(names):
                if found := self.snapshot(name):
                    return found
        elif f"snapshots/{selector}" in names and (found := self.snapshot(f"snapshots/{selector}")):
            return found
        readable, damaged = self.readable_snapshots()
        try:
            return select(readable, selector)
        except SnapshotNotFound:
            if damaged:
                raise damaged[-1] from None  # perhaps it is that one
            raise

    # -- index --------------------------------------------------------------------------------------------------

    def collections(self) -> dict[str, Condemned]:
        """The collections of garbage that still matter, by the name of their object (``collector``): the last one that
        was done, and those begun since."""
        names = [o.name for o in self.store.list("gc/")]
        last = max((n.removesuffix(".done") for n in names if n.endswith(".done")), default="")
        found = {}
        for name in (n for n in names if n >= last and not n.endswith(".done")):
            try:
                found[name] = _CONDEMNED.decode(unseal("G", name, self.store.get(name), self.keys))
            except ObjectNotFound:
                continue  # finished and removed between the listing and now
            except (msgspec.MsgspecError, ValueError) as e:
                raise CorruptObject(name, f"is not a list of condemned packs ({e})") from None
        return found

    def unfinished(self) -> bool:
        """Whether the last collection that was begun has yet to be done again."""
        last = max((o.name for o in self.store.list("gc/")), default=".done")
        return not last.endswith(".done")

    def condemned(self) -> set[str]:
        """Packs that a collection may be deleting now, or has deleted."""
        return {p for c in self.collections().values() for p in c.packs}

    def parts(self, *, without_damaged: bool = False) -> dict[str, IndexPart]:
        """Every index object by name, new ones fetched, gone ones forgotten. Raises for a damaged one, or leaves it out
        and notes it in ``damaged``."""

        def fetch(name: str) -> IndexPart | None:
            try:
                return self._part(name)
            except VerificationFailed as e:
                if not without_damaged:
                    raise
                self.damaged[name] = e
                return None

        while True:
            self.damaged = {}
            names = [o.name for o in self.store.list("index/")]
            missing = [n for n in names if n not in self._parts]
            if len(missing) > 1:
                with ThreadPoolExecutor(8) as pool:
                    fetched = list(pool.map(fetch, missing))
            else:
                fetched = [fetch(n) for n in missing]
            found = {n: p for n, p in zip(missing, fetched, strict=True) if p}
            self._parts = {n: p for n in names if (p := self._parts.get(n) or found.get(n))}
            if len(self._parts) + len(self.damaged) == len(names):
                return self._parts
            # One was superseded and removed between the listing and now: its successor may be younger than the listing.

    def _part(self, name: str) -> IndexPart | None:
        try:
            return IndexPart.decode(name, unseal("I", name, self.store.get(name), self.keys))
        except ObjectNotFound:
            return None

    def index(self, *, writing: bool = False, avoid: Collection[str] = ()) -> Index:
        """The blocks to be found, in packs to ``avoid`` where nowhere else. For ``writing``, only those that no
        collection under way may take away.

        A damaged index object stops a writer; a reader goes on with the others, and is told of it where it misses a
        block. Of collections a reader needs nothing but a preference.
        """
        try:
            collections = self.collections().values()
        except VerificationFailed:
            if writing:
                raise
            return Index(self.parts(without_damaged=True).values(), avoid=avoid)
        superseded = {n for c in collections for n in c.superseded}
        condemned = {p for c in collections for p in c.packs}
        if not writing:
            return Index(self.parts(without_damaged=True).values(), avoid=condemned.union(avoid))
        parts = self.parts()
        # A session that did not commit may have relied on blocks that are gone: nobody builds on its index.
        trusted = {f"index/{i}" for i in self.committed()} | {c.merged for c in collections}
        return Index([p for n, p in parts.items() if n in trusted - superseded], without=condemned)

    # -- blocks -------------------------------------------------------------------------------------------------

    def stored(self, place: Place) -> bytes:
        """The stored bytes of one block."""
        try:
            data = self.store.get(place.pack, start=place.offset, length=place.stored)
        except ObjectNotFound:
            raise MissingObject(place.pack, hint="check the repository: chromakeep check REPO") from None
        if len(data) != place.stored:
            raise CorruptObject(place.pack, f"is truncated: {len(data)} of {place.stored} bytes at {place.offset}")
        return data

    def block(self, stored: Stored, identity: bytes, place: Place) -> bytes:
        """Plaintext of a block (or span list) out of its stored bytes, verified against its id."""
        data = self.plain(stored, identity, place)
        if self.keys.block_id(data) != identity:
            raise CorruptObject(place.pack, f"the block at byte {place.offset} holds other bytes than recorded")
        return data

    def span_map(self, stored: Stored, identity: bytes, place: Place) -> SpanMap:
        """A span map out of its stored bytes; its own checksum verifies it, its id is of the bytes it describes."""
        try:
            return SpanMap.decode(self.plain(stored, identity, place))
        except ValueError as e:
            raise CorruptObject(place.pack, f"the span map at byte {place.offset} is damaged ({e})") from None

    def plain(self, stored: Stored, identity: bytes, place: Place) -> bytes:
        """Plaintext of a block, for who verifies what becomes of it."""
        try:
            return decode(open_block(stored, place.pack, place.offset, identity, self.keys), place.length)
        except ValueError as e:
            raise CorruptObject(place.pack, f"the block at byte {place.offset} is damaged ({e})") from None

    # -- sealed objects -----------------------------------------------------------------------------------------

    def put_sealed(self, kind: str, name: str, payload: bytes, *, if_absent: bool = True) -> int:
        """Seal and put an object; its size in bytes."""
        data = seal(kind, name, payload, self.keys)
        self.store.put(name, data, if_absent=if_absent)
        return len(data)


def add_key(store: Store, config: Config, master: bytes, password: str) -> str:
    """Add a password; returns the name of its slot."""
    slot = wrap(master, password, repository=config.id, created=rfc3339(now()))
    name = f"keys/{secrets.token_hex(8)}"
    store.put(name, seal("K", name, msgspec.json.encode(slot), None), if_absent=True)
    return name


def slots(repository: Repository) -> Iterator[tuple[str, Slot]]:
    """The slots of the passwords that open this repository. Raises ``CorruptObject`` for a damaged one."""
    for info in repository.store.list("keys/"):
        slot = read_slot(repository.store, info.name)
        if slot.repository == repository.config.id:
            yield info.name, slot


def read_slot(store: Store, name: str) -> Slot:
    """One slot by its object's name."""
    try:
        return SLOT.decode(unseal("K", name, store.get(name), None))
    except (msgspec.MsgspecError, ValueError) as e:
        raise CorruptObject(name, f"is not a key ({e})") from None


def _master(store: Store, config: Config, password: str | None) -> bytes:
    if not config.encrypted:
        if config.master is None or len(config.master) != 32:
            raise CorruptObject("config", "holds no master key")
        return config.master
    if password is None:
        raise WrongPassword(
            "the repository is encrypted and no password was given",
            hint="set CHROMAKEEP_PASSWORD, or CHROMAKEEP_PASSWORD_FILE to a file that holds it",
        )
    names, unusable = [o.name for o in store.list("keys/")], []
    for name in names:
        try:
            slot = read_slot(store, name)
            if slot.repository == config.id:
                return unwrap(slot, password, repository=config.id)
        except WrongPassword:
            continue
        except (CorruptObject, UnsupportedFormat) as e:
            unusable.append(e)  # perhaps the password is another slot's
    if unusable:
        raise unusable[0]
    if not names:
        raise MissingObject("keys/", hint="without a key nobody can read this repository; put the objects back")
    raise WrongPassword(
        "the password opens none of the repository's keys", hint="check CHROMAKEEP_PASSWORD / CHROMAKEEP_PASSWORD_FILE"
    )


def _exists(store: Store, name: str) -> bool:
    try:
        store.head(name)
    except ObjectNotFound:
        return False
    return True
