"""What a newer chromakeep wrote is told as such, with the way out; it is never guessed at."""

from __future__ import annotations

from pathlib import Path

import blake3
import msgspec
import pytest

from chromakeep.errors import CorruptObject, RepositoryNotFound, UnsupportedFormat
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.restore import restore
from chromakeep.repository import Repository
from chromakeep.repository.sealed import CHECKSUM, seal, unseal
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from operations.worlds import World, copied


def with_config(store: Store, **changes: object) -> Store:
    """A copy whose config says something else."""
    config = msgspec.json.decode(unseal("C", "config", store.get("config"), None))
    new = copied(store)
    new.put("config", seal("C", "config", msgspec.json.encode({**config, **changes}), None))
    return new


@pytest.mark.parametrize(
    "changes",
    [{"format": 2}, {"format": 10**30}, {"format": "1"}, {"format": None}, {"features": ["log-segments"]},
     {"format": 2, "id": 7, "created": []}],
    ids=str,
)  # fmt: skip
def test_a_future_repository(plain_world: World, changes: dict[str, object]) -> None:
    """A higher format or a feature flag that is not known here: UnsupportedFormat, exit status 14, and the upgrade as
    the hint - also when nothing else of the configuration can be understood."""
    with pytest.raises(UnsupportedFormat) as raised:
        Repository.open(with_config(plain_world.store, **changes))
    assert "upgrade" in (raised.value.hint or "") and raised.value.exit_status == 14


def test_fields_that_a_later_minor_version_added_are_passed_over(plain_world: World) -> None:
    """The same format with fields more than we know is read."""
    assert len(Repository.open(with_config(plain_world.store, colour="blue")).snapshots()) == 2


def of_version(data: bytes, version: int, name: str) -> bytes:
    """The envelope of another version, with a checksum after that version's own fashion."""
    body = data[:6] + bytes((version,)) + data[7:-CHECKSUM]
    return body + blake3.blake3(body + b"another fashion" + name.encode()).digest()


@pytest.mark.parametrize("kind", ["config", "snapshots/", "index/"])
def test_a_sealed_object_of_a_future_version(plain_world: World, tmp_path: Path, kind: str) -> None:
    """Version 2 of the envelope: opening, restoring and backing up raise UnsupportedFormat with the upgrade hint, or do
    without that object; check names it."""
    name = plain_world.names(kind)[-1] if kind != "snapshots/" else f"snapshots/{max(plain_world.expected)}"
    store = plain_world.with_object(name, of_version(plain_world.store.get(name), 2, name))
    with pytest.raises(UnsupportedFormat) as raised:
        restore(Repository.open(store), None, tmp_path / "out")
    assert "upgrade" in (raised.value.hint or "") and name in raised.value.message
    assert not (tmp_path / "out").exists()
    if kind != "config":
        assert name in {p.object for p in check(plain_world.reopened(store), read_data=True).problems}


def test_no_backup_into_a_repository_that_is_not_understood(plain_world: World, generations: list[Path]) -> None:
    """A writer needs every index: it does not go on beside one it cannot read, and leaves nothing behind."""
    name = plain_world.names("index/")[-1]
    store = plain_world.with_object(name, of_version(plain_world.store.get(name), 2, name))
    before = {o.name for o in store.list()}
    with pytest.raises(UnsupportedFormat):
        backup(generations[2], Repository.open(store))
    assert {o.name for o in store.list()} == before


def test_a_future_version_and_a_damaged_version_byte_are_told_apart(plain_world: World) -> None:
    """One flipped bit in the version byte is damage: no upgrade would help."""
    name = f"snapshots/{max(plain_world.expected)}"
    data = plain_world.store.get(name)
    for bit in range(8):
        flipped = data[:6] + bytes((data[6] ^ (1 << bit),)) + data[7:]
        with pytest.raises(CorruptObject, match=name):
            unseal("S", name, flipped, plain_world.repository.keys)


def test_no_repository(tmp_path: Path) -> None:
    """An empty place, and one with somebody's other objects, hold no repository; another's config is named."""
    with pytest.raises(RepositoryNotFound) as raised:
        Repository.open(MemoryStore())
    assert "init" in (raised.value.hint or "") and raised.value.exit_status == 10
    store = MemoryStore()
    store.put("data/0123", b"a restic repository, perhaps")
    with pytest.raises(RepositoryNotFound):
        Repository.open(store)
    store.put("config", b"[core]\n\trepositoryformatversion = 0\n" * 3)
    with pytest.raises(CorruptObject, match="config: not written by chromakeep"):
        Repository.open(store)
