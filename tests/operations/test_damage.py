"""Damage to any object of a repository is found, named with the snapshots that need it, and never restored.

``DAMAGE_EVERY`` (3): of small objects every third byte is damaged, and with 1 every one, as in ``make stress``.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromakeep.errors import ChromakeepError, VerificationFailed
from chromakeep.operations.check import CheckReport, check
from chromakeep.operations.restore import restore
from chromakeep.repository import Repository
from chromakeep.store.base import Store
from operations.directories import everything
from operations.worlds import KINDS, World

SMALL = 2500  # bytes: objects up to this size are damaged all over
EVERY = int(os.environ.get("DAMAGE_EVERY", "3"))


@pytest.fixture(params=["plain", "encrypted"])
def world(request: pytest.FixtureRequest) -> World:
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found


def verdict(world: World, store: Store, *, read_data: bool = True) -> CheckReport | ChromakeepError:
    """What a check reports, or why the repository cannot even be opened."""
    try:
        if not same(world.store, store, "config"):  # else deriving the key again would take its time and tell nothing
            Repository.open(store, password=world.password)
        return check(world.reopened(store), read_data=read_data)
    except ChromakeepError as error:
        return error


def same(one: Store, other: Store, name: str) -> bool:
    try:
        return one.get(name) == other.get(name)
    except ChromakeepError:
        return False


def problems(world: World, store: Store, *, read_data: bool = True) -> dict[str, tuple[str, ...]]:
    """Objects named by check or by the error of opening, with the snapshots that need them."""
    found = verdict(world, store, read_data=read_data)
    if isinstance(found, CheckReport):
        return {p.object: p.snapshots for p in found.problems}
    assert isinstance(found, VerificationFailed), found
    return {getattr(found, "name", ""): tuple(world.expected)}


def positions(size: int, seed: int) -> list[int]:
    """All over a small object; of a large one the start, the middle, the end and some at random."""
    if size <= SMALL:
        return sorted({*range(0, size, EVERY), *range(min(size, 16)), *range(max(0, size - 16), size)})
    rng = random.Random(seed)
    edges = [*range(16), size // 2, *range(size - 60, size)]
    return sorted({*edges, *(rng.randrange(size) for _ in range(24))})


def damaged(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_and_named(world: World, kind: str) -> None:
    """One bit anywhere in any object, all over the small ones: check names that object; where it is no pack, a
    check that reads no packs does."""
    unfound, read_data = [], kind in ("packs/", "meta/")
    for name in world.names(kind):
        data = world.store.get(name)
        for at in positions(len(data), seed=1):
            found = problems(world, world.with_object(name, damaged(data, at, at % 8)), read_data=read_data)
            if name not in found:
                unfound.append((name, at, found))
    assert not unfound, f"{len(unfound)} flips unnoticed, first {unfound[:3]}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_object_is_found_and_named(world: World, kind: str) -> None:
    """Cut to nothing, to its first bytes, in the middle, before its last byte - and one byte too long."""
    for name in world.names(kind):
        data = world.store.get(name)
        for cut in (data[:0], data[:1], data[:6], data[:40], data[: len(data) // 2], data[:-1], data + b"\0"):
            assert name in problems(world, world.with_object(name, cut)), f"{name} cut to {len(cut)}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_under_another_name_is_found_and_named(world: World, kind: str) -> None:
    """The whole, valid bytes of one object under the name of another of its kind, or of any other kind."""
    sources = [world.names(k)[0] for k in KINDS if world.names(k)]
    for name in world.names(kind):
        for source in {*sources, *world.names(kind)} - {name}:
            found = problems(world, world.with_object(name, world.store.get(source)))
            assert name in found, f"{source} in place of {name}: {found}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_of_another_repository_is_found_and_named(world: World, kind: str, generations: list[Path]) -> None:
    """The same state in another repository, in the clear or not: none of its objects passes for one of ours, under
    its own name beside ours nor under one of ours."""
    foreign = World.build(generations, generations[0].parent / "foreign-stage", None)
    for source in foreign.names(kind):
        data = foreign.store.get(source)
        for name in {source, *world.names(kind)}:
            store = world.with_object(name, data)
            if name == "config":
                # The door itself was exchanged: it opens on a house in which no object is known.
                repository = Repository.open(store)
                assert {p.object for p in check(repository, read_data=True).problems} >= set(world.names("packs/"))
                continue
            assert name in problems(world, store), f"{source} as {name}"


def test_a_missing_object_is_named_with_the_snapshots_that_need_it(world: World, tmp_path: Path) -> None:
    """Each object taken away in turn. What no restore needs may go unnoticed; what one needs is named, and with it
    the very snapshots that cannot be restored."""
    for name in world.names():
        store = world.with_object(name, None)
        lost = set(unrestorable(world, store, tmp_path))
        found = verdict(world, store)
        if isinstance(found, ChromakeepError):
            continue  # config or the only key
        told = {s for p in found.problems for s in p.snapshots}
        if name.startswith("snapshots/"):
            assert len(world.reopened(store).snapshots()) <= 2
            continue
        assert lost == told, f"without {name}: lost {lost}, told {told}: {found.problems}"
        if lost and not name.startswith("index/"):
            assert name in {p.object for p in found.problems}


def unrestorable(world: World, store: Store, scratch: Path) -> Iterator[str]:
    """Snapshots that are listed and do not restore."""
    for snapshot in world.expected:
        if f"snapshots/{snapshot}" in {o.name for o in store.list("snapshots/")}:
            try:
                world.restores(world.reopened(store), snapshot, scratch / "probe")
            except VerificationFailed:
                yield snapshot
            finally:
                shutil.rmtree(scratch / "probe", ignore_errors=True)


def test_a_damaged_object_is_told_with_the_snapshots_that_need_it(world: World, tmp_path: Path) -> None:
    """The same for damage in the middle: whatever cannot be restored is told to be lost, by the name of its object."""
    for name in world.names():
        if name == "config" or name.startswith("keys/"):
            continue
        data = world.store.get(name)
        store = world.with_object(name, damaged(data, len(data) // 2, 3))
        found = check(world.reopened(store), read_data=True)
        told = {s for p in found.problems if p.object == name for s in p.snapshots}
        assert set(unrestorable(world, store, tmp_path)) <= told, f"{name}: {found.problems}"


@pytest.mark.parametrize("kind", ["config", "index/", "meta/", "packs/", "snapshots/", "gc/", "sessions/"])
def test_a_restore_from_damage_is_refused_by_name_or_exact(world: World, kind: str, tmp_path: Path) -> None:
    """Whatever bit is flipped: the restore gives the very bytes that were backed up, or raises VerificationFailed with
    the object's name, and leaves the target and its surroundings as they were."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("what was there before")
    latest = max(world.expected)
    refused = 0
    for name in world.names(kind)[-3:]:
        data = world.store.get(name)
        size = len(data)
        for at in (3, 6, 7, 40, size // 3, size // 2, size - 5):
            store = world.with_object(name, damaged(data, at, at % 8))
            before = everything(tmp_path)
            try:
                if name == "config":
                    Repository.open(store, password=world.password)
                world.restores(world.reopened(store), latest, tmp_path / "fresh")
            except VerificationFailed as error:
                refused += 1
                assert name in str(error), f"{name} at {at}: {error}"
                with pytest.raises(VerificationFailed):
                    restore(world.reopened(store), latest, target, replace=True) if name != "config" else None
                    Repository.open(store, password=world.password)
                assert everything(tmp_path) == before
                assert not list(tmp_path.glob(".*")), "something was left beside the target"
            else:
                shutil.rmtree(tmp_path / "fresh")
    assert refused or kind in ("gc/", "sessions/")
