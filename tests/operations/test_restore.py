"""Restore: exact, beside, verified, then in place in one step; what was there is kept and can be swapped back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import (
    ChromakeepError,
    DiskFull,
    SnapshotNotFound,
    TargetNotEmpty,
    UsageError,
    VerificationFailed,
)
from chromakeep.events import Event, Progressed
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.restore import restore, rollback
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore
from operations.directories import everything
from operations.namespaces import fill, in_child, on_small_disk
from operations.worlds import World, copied


@pytest.fixture
def world(plain_world: World) -> World:
    return plain_world


def newest(world: World) -> dict[str, bytes]:
    return world.expected[max(world.expected)]


# -- what is there ----------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_empty_is_left_alone(world: World, tmp_path: Path) -> None:
    """Without replace: TargetNotEmpty, with a hint, and nothing changed. A file in its place is refused in any case."""
    target = tmp_path / "data"
    target.mkdir()
    (target / "note").write_text("mine")
    with pytest.raises(TargetNotEmpty) as raised:
        restore(world.repository, None, target)
    assert "--replace" in (raised.value.hint or "")
    for place in (target / "note", target / "note" / "below"):
        with pytest.raises(ChromakeepError):
            restore(world.repository, None, place, replace=True)
    assert everything(tmp_path) == {"data/note": b"mine"}


@pytest.mark.parametrize("where", [".", "keep"])
def test_a_repository_is_not_moved_away(generations: list[Path], tmp_path: Path, where: str) -> None:
    """The target is the repository itself, or has it in it: refused, where --discard-old would have removed it."""
    target = tmp_path / "data"
    (target / where).mkdir(parents=True)
    repository = Repository.create(LocalStore(target / where))
    backup(generations[0], repository)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="repository lies there"):
        restore(repository, None, target, replace=True, discard_old=True)
    assert everything(tmp_path) == before


def test_replace_keeps_what_was_there_and_rollback_swaps(world: World, tmp_path: Path) -> None:
    """The old content stands beside as NAME.old-TIME, complete; rollback swaps both, again and again."""
    target = tmp_path / "data"
    target.mkdir()
    (target / "note").write_text("mine")
    done = restore(world.repository, None, target, replace=True)
    assert done.old and Path(done.old).parent == tmp_path and Path(done.old).name.startswith("data.old-")
    assert everything(Path(done.old)) == {"note": b"mine"} and everything(target) == newest(world)
    for n in range(4):
        before = everything(tmp_path)
        told = rollback(target, dry_run=True)
        assert told.dry_run and everything(tmp_path) == before
        swapped = rollback(target)
        assert swapped.restored == told.restored
        assert everything(target) == (newest(world) if n % 2 else {"note": b"mine"})
        assert everything(Path(swapped.kept)) == ({"note": b"mine"} if n % 2 else newest(world))
    assert len(list(tmp_path.iterdir())) == 2


def test_discard_old(world: World, tmp_path: Path) -> None:
    target = tmp_path / "data"
    target.mkdir()
    (target / "note").write_text("mine")
    assert restore(world.repository, None, target, replace=True, discard_old=True).old is None
    assert [p.name for p in tmp_path.iterdir()] == ["data"] and everything(target) == newest(world)
    with pytest.raises(SnapshotNotFound):
        rollback(target)


def test_a_dry_run_changes_nothing(world: World, tmp_path: Path) -> None:
    """It names what would be restored and where the old content would be kept, and refuses what would be refused."""
    target = tmp_path / "data"
    target.mkdir()
    (target / "note").write_text("mine")
    told = restore(world.repository, "latest~1", target, replace=True, dry_run=True)
    assert told.dry_run and told.old and told.snapshot == min(world.expected) and told.fetched_bytes == 0
    with pytest.raises(TargetNotEmpty):
        restore(world.repository, None, target, dry_run=True)
    assert everything(tmp_path) == {"data/note": b"mine"}


def test_a_link_stays_a_link(world: World, tmp_path: Path) -> None:
    """A data directory that is a symbolic link to another disk: the content behind it is replaced and kept there."""
    real = tmp_path / "disk" / "data"
    real.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real)
    restore(world.repository, None, link)
    (real / "note").write_text("mine")
    done = restore(world.repository, None, link, replace=True)
    assert link.is_symlink() and everything(link) == newest(world)
    assert done.old and (Path(done.old) / "note").read_text() == "mine" and Path(done.old).parent == real.parent


def test_relative_targets(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``data``, ``.`` and ``deep/er/data`` are what they are to every other program."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    restore(world.repository, None, Path("data"))
    restore(world.repository, None, Path("deep/er/data"))
    assert everything(tmp_path / "here" / "data") == everything(tmp_path / "here" / "deep/er/data") == newest(world)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    restore(world.repository, None, Path())
    monkeypatch.chdir(tmp_path)
    assert everything(tmp_path / "empty") == newest(world)


# -- only what differs ------------------------------------------------------------------------------------------------


def test_what_is_there_already_is_not_fetched(world: World, tmp_path: Path) -> None:
    """Over itself next to nothing is fetched, over the previous generation less than into nothing. (Of a repository
    this small most lies within a gap that is cheaper to read than to ask again: tests/repository has the large one.)"""
    before, after = sorted(world.expected)
    full = restore(world.repository, after, tmp_path / "fresh").fetched_bytes
    target = tmp_path / "data"
    restore(world.repository, before, target)
    step = restore(world.repository, after, target, replace=True).fetched_bytes
    again = restore(world.repository, after, target, replace=True).fetched_bytes
    assert everything(target) == world.expected[after]
    assert again < 0.05 * full < step < 0.9 * full


def test_local_files_that_were_tampered_with(world: World, tmp_path: Path) -> None:
    """Bytes flipped, files cut, lengthened, exchanged, missing, turned into folders or links: the restore over them is
    exact, and takes nothing on trust, times and sizes least of all."""
    rng = random.Random(3)
    target = tmp_path / "data"
    names = sorted(newest(world))
    for round_ in range(5):
        restore(world.repository, None, target, replace=True, discard_old=True)
        for name in names:
            path, data = target / name, bytearray((target / name).read_bytes())
            stamp = path.stat().st_mtime_ns
            for _ in range(rng.randrange(1, 5)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            if round_ == 1:
                data = data[: rng.randrange(len(data) + 1)]
            elif round_ == 2:
                data += rng.randbytes(5000)
            elif round_ == 3:
                data = bytearray(rng.choice(list(newest(world).values())))
            path.write_bytes(data)
            os.utime(path, ns=(stamp, stamp))
            if round_ == 4:
                path.unlink()
                if rng.random() < 0.5:
                    path.mkdir()
                else:
                    path.symlink_to(target / rng.choice(names))
        restore(world.repository, None, target, replace=True, discard_old=True)
        assert everything(target) == newest(world)
        assert not any(p.is_symlink() for p in target.rglob("*"))


# -- who refuses ------------------------------------------------------------------------------------------------------


def forged(world: World, change: Callable[[dict[str, Any]], None]) -> Repository:
    """The newest snapshot with a change to what it records of its collections, sealed as it should be."""
    repository = world.reopened(copied(world.store, without=f"snapshots/{max(world.expected)}"))
    snapshot = msgspec.json.decode(
        msgspec.json.encode(world.repository.snapshot(f"snapshots/{max(world.expected)}")), type=dict[str, Any]
    )
    change(snapshot)
    repository.put_sealed("S", f"snapshots/{max(world.expected)}", msgspec.json.encode(snapshot))
    return repository


@pytest.mark.parametrize("part", ["ids", "vectors", "documents", "metadata", "count", "missing", "extra"])
def test_records_that_are_not_what_was_recorded(world: World, tmp_path: Path, part: str) -> None:
    """Every byte is right, and yet the records are not those the snapshot tells of: VerificationFailed names the
    collection and what differs, the target is untouched, nothing is left beside it."""

    def change(snapshot: dict[str, Any]) -> None:
        first = snapshot["collections"][0]
        if part == "missing":
            snapshot["collections"].append({**first, "id": "00000000-0000-4000-8000-000000000000", "name": "ghost"})
        elif part == "extra":
            snapshot["collections"].pop()
        elif part == "count":
            first["count"] += 1
        else:
            first["digest"][part] = first["digest"][part][::-1]

    target = tmp_path / "data"
    target.mkdir()
    (target / "note").write_text("mine")
    repository = forged(world, change)
    with pytest.raises(VerificationFailed) as raised:
        restore(repository, None, target, replace=True)
    assert {"missing": "ghost", "extra": "collections", "count": "records"}.get(part, part) in raised.value.message
    assert everything(tmp_path) == {"data/note": b"mine"} and len(list(tmp_path.iterdir())) == 1


def test_a_directory_in_use_is_refused(world: World, tmp_path: Path) -> None:
    """While `chroma run` serves the target, neither restore nor rollback touches it; afterwards both do."""
    target = tmp_path / "data"
    restore(world.repository, None, target)
    restore(world.repository, None, target, replace=True)
    with ChromaServer(target, env=dict(os.environ)) as server:
        served = everything(target)
        for act in (lambda: restore(world.repository, None, target, replace=True), lambda: rollback(target)):
            with pytest.raises(UsageError, match=str(server.pid)):
                act()
        assert everything(target) == served
    restore(world.repository, None, target, replace=True)
    rollback(target)


@pytest.mark.parametrize("selector", ["latest~9", "2001-01-01T00:00:00Z", "nonsense", "99999999T"])
def test_a_snapshot_that_is_not_there(world: World, tmp_path: Path, selector: str) -> None:
    with pytest.raises(SnapshotNotFound):
        restore(world.repository, selector, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_parent_that_may_not_be_written(world: World, tmp_path: Path) -> None:
    """Where neither the target nor its parent may be written, one clear error; where only the target may, its content
    is replaced in place. (In a child without root's power.)"""
    locked = tmp_path / "locked"
    (locked / "data").mkdir(parents=True)
    locked.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(locked / "data", 65534, 65534)
    else:
        locked.chmod(0o555)
    for ancestor in tmp_path.parents:
        if os.geteuid() == 0 and str(ancestor).startswith("/tmp/"):
            ancestor.chmod(ancestor.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)

    def act() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(ChromakeepError, match="ermission"):
            restore(world.repository, None, locked / "other")
        restore(world.repository, None, locked / "data")
        assert everything(locked / "data") == newest(world)
        restore(world.repository, min(world.expected), locked / "data", replace=True)
        rollback(locked / "data")
        assert {n: d for n, d in everything(locked / "data").items() if not n.startswith(".old-")} == newest(world)

    in_child(act)


# -- disks ------------------------------------------------------------------------------------------------------------


def test_a_mount_point_is_filled_in_place(world: World, tmp_path: Path) -> None:
    """A volume mounted at the target cannot be renamed: its content is replaced within it, and kept within it."""
    target = tmp_path / "volume"
    target.mkdir()

    def act() -> None:
        assert target.is_mount()
        (target / "lost+found").mkdir()
        restore(world.repository, min(world.expected), target)
        assert everything(target) == world.expected[min(world.expected)]
        done = restore(world.repository, None, target, replace=True)
        visible = {n: d for n, d in everything(target).items() if not n.startswith(".old-")}
        assert visible == newest(world)
        assert done.old and everything(Path(done.old)) == world.expected[min(world.expected)]
        for n in range(3):
            rollback(target)
            visible = {n: d for n, d in everything(target).items() if not n.startswith(".old-")}
            assert visible == world.expected[sorted(world.expected)[n % 2]]
        restore(world.repository, None, target, replace=True, discard_old=True)
        assert target.is_mount()

    on_small_disk(target, 64 << 20, act)
    assert list(target.iterdir()) == [], "the test wrote beside the volume"


def test_too_small_a_disk_is_found_out_before_anything_is_written(world: World, tmp_path: Path) -> None:
    def act() -> None:
        with pytest.raises(DiskFull, match="room for"):
            restore(world.repository, None, tmp_path / "disk" / "data")
        assert list((tmp_path / "disk").iterdir()) == []

    (tmp_path / "disk").mkdir()
    on_small_disk(tmp_path / "disk", 8 << 20, act)


@pytest.mark.parametrize("collections", [None, ["cosine"]])
@pytest.mark.parametrize("after", [0.1, 0.5, 0.999])
def test_a_disk_that_fills_while_restoring(
    world: World, tmp_path: Path, after: float, collections: list[str] | None
) -> None:
    """Somebody else takes the room when a part is restored: DiskFull, the old content is untouched and nothing is left
    beside it; with room again the restore succeeds."""
    database = len(newest(world)["chroma.sqlite3"])

    def act() -> None:
        disk = tmp_path / "disk"
        target = disk / "data"
        restore(world.repository, min(world.expected), target)
        before = everything(disk)
        filler: list[Path] = []

        def observer(event: Event) -> None:
            if isinstance(event, Progressed) and event.done_bytes >= after * database and not filler:
                filler.append(fill(disk))

        with pytest.raises(DiskFull):
            restore(world.repository, None, target, collections=collections, replace=True, observer=observer)
        filler[0].unlink()
        assert everything(disk) == before and [p.name for p in disk.iterdir()] == ["data"]
        restore(world.repository, None, target, replace=True)
        assert everything(target) == newest(world)

    (tmp_path / "disk").mkdir()
    on_small_disk(tmp_path / "disk", 40 << 20, act)


def test_a_repository_on_a_disk_that_is_full(generations: list[Path], tmp_path: Path) -> None:
    """A backup to a full disk is DiskFull; what the repository held is whole, and the next backup works."""

    def act() -> None:
        repository = Repository.create(LocalStore(tmp_path / "disk"))
        backup(generations[0], repository, stage=tmp_path / "stage")
        filler = fill(tmp_path / "disk")
        with pytest.raises(DiskFull):
            backup(generations[2], repository, stage=tmp_path / "stage")
        filler.unlink()
        assert len(repository.snapshots()) == 1 and not check(repository, read_data=True).problems
        backup(generations[2], repository, stage=tmp_path / "stage")
        assert len(repository.snapshots()) == 2 and not check(repository, read_data=True).problems

    (tmp_path / "disk").mkdir()
    on_small_disk(tmp_path / "disk", 24 << 20, act)
