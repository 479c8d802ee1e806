"""Damage to any object of the log, to a lease or a horizon is found and named, and never restored through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from chromakeep.changes import Change
from chromakeep.errors import VerificationFailed
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore
from chromakeep.repository import Repository, horizon
from chromakeep.repository.lease import Lease
from chromakeep.repository.log import Log, Segment, merged_name, name_of
from chromakeep.repository.merging import merge
from chromakeep.repository.snapshots import encode
from chromakeep.store.base import Store
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from operations.by_the_page import Page
from operations.directories import everything
from operations.test_damage import damaged
from operations.worlds import copied
from repository.logs import change, snapshot
from repository.test_collection import Interrupted

BASE = "20260801T120000000Z-0123456789abcdef"


def logged(repository: Repository, base: str, make: Callable[[int, bool], Change]) -> None:
    """Two epochs behind a snapshot: the first merged and ended, the second goes on from it. And a horizon."""
    log, number = Log(repository), 0
    for epoch in (1, 2):
        after = (lease := Lease.take(repository)).after
        for n in range(1, 9):
            number += 1
            first = n == 1
            segment = Segment(
                (make(number, first),), base=base if first and not after else None, after=after if first else None
            )
            log.append(epoch, n, segment)
        lease.renew(8)
    merge(repository, 1, least=2)
    horizon.declare(repository, (1, 1))


@pytest.fixture(params=[None, "secret"])
def repository(request: pytest.FixtureRequest) -> Repository:
    found = Repository.create(MemoryStore(), password=request.param)
    found.put_sealed("S", f"snapshots/{BASE}", encode(snapshot(BASE, 0)))
    logged(found, BASE, lambda n, first: change(n, n, whole=first))
    return found


def objects(repository: Repository) -> list[str]:
    return [o.name for prefix in ("log/", "lease/") for o in repository.store.list(prefix)]


def on(repository: Repository, store: Store) -> Repository:
    return Repository(store, repository.config, repository.keys)


def changed(repository: Repository, name: str, data: bytes | None) -> Repository:
    """A copy in which one object holds other bytes, or is missing."""
    store = copied(repository.store, without=name)
    if data is not None:
        store.put(name, data)
    return on(repository, store)


def named(repository: Repository, *, read_data: bool = True) -> dict[str, str]:
    return {p.object: p.what for p in check(repository, read_data=read_data).problems}


def test_a_whole_log_has_no_problems(repository: Repository) -> None:
    """Before and after a prune, which leaves gaps behind; and with what a dead prune or merge leaves."""
    assert objects(repository)[1:3] == [merged_name(1, 2, 7), name_of(1, 8)]
    for read_data in (False, True):
        report = check(repository, read_data=read_data)
        assert not report.problems
        sizes = [o.size for o in repository.store.list("log/0")]
        assert (report.bytes_read >= sum(sizes)) is read_data
    repository.put_sealed(
        "S", "snapshots/20260801T120015000Z-00000000000000aa",
        encode(snapshot("20260801T120015000Z-00000000000000aa", 15, epoch=2, counter=15, number=7)),
    )  # fmt: skip
    prune(repository, Retention(last=1), wait=0)
    assert not named(repository) and name_of(2, 2) not in objects(repository)


def test_the_page_tells_how_to_read_it(tmp_path: Path) -> None:
    """By docs/format.md alone: the same changes, merged or not, in the clear and encrypted."""
    for password in (None, "secret"):
        root = tmp_path / f"{password}"
        root.mkdir()
        kept = Repository.create(LocalStore(root), password=password)
        logged(kept, BASE, lambda n, first: change(n, n, whole=first))
        (root / "index").mkdir()
        found = Page(root, password).log()
        for epoch in (1, 2):
            ours = [msgspec.to_builtins(s, builtin_types=(bytes,)) for _, s in Log(kept).segments(epoch)]
            assert [s["changes"] for s in found[epoch]] == [listed(s["changes"]) for s in ours]
        assert found[1][0]["base"] == BASE and found[2][0]["after"] == [1, 8]


def listed(value: object) -> object:
    """Tuples as lists, which is what MessagePack has."""
    if isinstance(value, dict):
        return {k: listed(v) for k, v in value.items()}
    return [listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_any_flipped_bit(repository: Repository) -> None:
    """In each object of the log and each lease, at every byte of its head and checksum and at every third elsewhere."""
    for name in objects(repository):
        data = repository.store.get(name)
        for at in sorted({*range(9), *range(9, len(data), 3), *range(len(data) - 9, len(data))}):
            found = named(changed(repository, name, damaged(data, at, at % 8)))
            assert name in found, f"{name} at {at}: {found}"


def test_any_truncation_and_any_exchange(repository: Repository) -> None:
    """Cut anywhere, too long, the bytes of another object, or of the same one of another repository."""
    other = Repository.create(MemoryStore())
    logged(other, BASE, lambda n, first: change(n, n, whole=first))
    for name in objects(repository):
        data = repository.store.get(name)
        cut = [data[:n] for n in (0, 1, 6, 40, len(data) // 2, len(data) - 1)]
        exchanged = [repository.store.get(n) for n in [*objects(repository), f"snapshots/{BASE}"] if n != name]
        for bad in (*cut, data + b"\0", *exchanged, other.store.get(name)):
            assert name in named(changed(repository, name, bad)), name


def test_strange_names(repository: Repository) -> None:
    """What no object of a log can be called."""
    for name in ("log/readme", "log/1/2", "log/00000001/0000000007-0000000002", "lease/readme", "log/horizon/readme"):
        assert set(named(changed(repository, name, b"foreign"))) == {name}


def test_any_missing_object_that_a_restore_needs(repository: Repository) -> None:
    """A segment, first or last or merged; a tombstone; the snapshot that all builds on. Of the newest object of all the
    lease tells."""
    for name in [*objects(repository), f"snapshots/{BASE}"]:
        found = named(changed(repository, name, None), read_data=False)
        if name.startswith(("lease/", "log/horizon")):
            assert not found
        elif name == merged_name(1, 2, 7):
            assert found == {name_of(1, 2): "missing from the store, with all up to 7"}
        else:
            assert set(found) == {name} and "missing" in found[name]


def test_prunes_merges_and_takeovers_beside_a_check_are_no_damage(repository: Repository) -> None:
    """At each of its store calls."""
    late = "20260801T120015000Z-00000000000000aa"

    def prunes(store: Store) -> None:
        one = on(repository, store)
        one.put_sealed("S", f"snapshots/{late}", encode(snapshot(late, 15, epoch=2, counter=15, number=7)))
        prune(one, Retention(last=1), wait=0)

    def merges(store: Store) -> None:
        merge(on(repository, store), 2, least=2)

    def takes_over(store: Store) -> None:
        after = Lease.take(on(repository, store)).after
        Log(on(repository, store)).append(3, 1, Segment((change(20, 20, whole=True),), after=after))

    for other in (prunes, merges, takes_over):
        n = 0
        while True:
            n += 1
            store = copied(repository.store)
            between = Interrupted(store, n, lambda store=store, other=other: other(store))  # type: ignore[misc]
            assert not named(on(repository, between)), f"{other} at {n}"
            if between.calls < n:
                break


def test_a_restore_through_damage_is_refused_by_name(backed_up: Callable[..., Repository], tmp_path: Path) -> None:
    """A damaged or missing object on the way: its name, and the target as it was. What is off the way does no harm."""
    repository = backed_up(0)
    logged(repository, repository.snapshots()[0].id, lambda n, first: Change(f"2100-01-01T00:00:{n:02d}.000Z", n))
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("what was there before")
    before = everything(tmp_path)
    horizons = [n for n in objects(repository) if n.startswith("log/horizon")]
    for name in (
        name_of(1, 1),
        merged_name(1, 2, 7),
        name_of(1, 8),
        name_of(1, 9),
        name_of(2, 1),
        name_of(2, 5),
        *horizons,
    ):
        data = repository.store.get(name)
        for bad in (damaged(data, len(data) // 2, 3), data[:-1], repository.store.get(name_of(2, 2)), None):
            if bad is None and name in (name_of(1, 9), *horizons):
                continue  # not needed for this
            with pytest.raises(VerificationFailed) as raised:
                restore(changed(repository, name, bad), None, target, replace=True)
            told = name if bad or name != merged_name(1, 2, 7) else name_of(1, 2)
            assert told in str(raised.value)
            assert everything(tmp_path) == before and not list(tmp_path.glob(".*"))
    store = changed(repository, name_of(2, 5), None)
    assert restore(store, "2100-01-01T00:00:11Z", tmp_path / "before").moment == "2100-01-01T00:00:11.000Z"
    assert restore(changed(repository, "lease/00000001", b""), None, tmp_path / "whole").moment.endswith("16.000Z")
