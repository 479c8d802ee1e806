"""Encryption: nothing of the content is seen in the store, and only a password opens it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import zstandard

from chromakeep.errors import CorruptObject, MissingObject, UsageError, WrongPassword
from chromakeep.operations import key
from chromakeep.repository import Repository
from chromakeep.repository.blocks import decode
from chromakeep.repository.keys import Keys, new_master, wrap
from chromakeep.repository.packs import read_trailer
from chromakeep.repository.sealed import HEAD, seal
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from operations.chroma_process import MARKER
from operations.worlds import World, copied

FRAME = b"\x28\xb5\x2f\xfd"  # magic of a zstd frame (RFC 8878)
SECRETS = (MARKER.encode(), b"document", b"chroma:document", b"cosine", b"chroma.sqlite3", b"first password")


def test_the_right_password_and_no_other(encrypted_world: World) -> None:
    """Either of two passwords opens it; another, a part of one or none at all raises WrongPassword with a hint."""
    for password in ("first password", "second password"):
        assert len(Repository.open(encrypted_world.store, password=password).snapshots()) == 2
    for wrong in ("second passwor", "", None):
        with pytest.raises(WrongPassword) as raised:
            Repository.open(encrypted_world.store, password=wrong)
        assert "CHROMAKEEP_PASSWORD" in (raised.value.hint or "")


def test_a_repository_in_the_clear_opens_with_any_password(plain_world: World) -> None:
    """A password set in the environment for other repositories does not get in the way."""
    assert len(Repository.open(plain_world.store, password="unused").snapshots()) == 2


def test_an_empty_password_is_refused() -> None:
    """An environment variable that is set and empty must not make a repository that looks encrypted."""
    store = MemoryStore()
    with pytest.raises(UsageError):
        Repository.create(store, password="")
    assert not list(store.list())


def seen(store: Store, keys: Keys) -> dict[bytes, set[str]]:
    """Which secrets can be seen in which kinds of object: in the bytes, in all zstd frames found in them, and in all
    blocks that decode without a key."""
    found: dict[bytes, set[str]] = {secret: set() for secret in SECRETS}
    for info in store.list():
        data = store.get(info.name)
        views = [data]
        for match in re.finditer(re.escape(FRAME), data):
            try:
                views.append(zstandard.ZstdDecompressor().decompressobj().decompress(data[match.start() :]))
            except zstandard.ZstdError:
                continue
        if info.name.startswith(("packs/", "meta/")):
            for _, place in read_trailer(info.name, data, keys):
                try:
                    views.append(decode(data[place.offset : place.offset + place.stored], place.length))
                except ValueError:
                    continue
        for view in views:
            for secret in SECRETS:
                if secret in view:
                    found[secret].add(info.name.split("/")[0])
    return found


def test_no_content_is_seen_in_an_encrypted_repository(plain_world: World, encrypted_world: World) -> None:
    """Documents, collection names, file names and the password: in no object's bytes, nor in anything that can be
    decompressed in them. The same search finds all but the password in the unencrypted twin."""
    clear = seen(plain_world.store, plain_world.repository.keys)
    assert {s for s, kinds in clear.items() if kinds} == set(SECRETS) - {b"first password"}
    assert {"packs", "snapshots"} <= clear[MARKER.encode()]
    hidden = seen(encrypted_world.store, encrypted_world.repository.keys)
    assert not any(hidden.values()), hidden


def test_equal_content_looks_different_in_two_repositories(plain_world: World, encrypted_world: World) -> None:
    """Ids of blocks are keyed: whoever knows a file cannot tell by names whether a repository holds it."""

    def ids(world: World) -> set[bytes]:
        packs = {name: world.store.get(name) for name in world.names("packs/")}
        return {i for name, data in packs.items() for i, _ in read_trailer(name, data, world.repository.keys)}

    assert ids(plain_world) and ids(encrypted_world) and not ids(plain_world) & ids(encrypted_world)


def test_a_header_tells_what_is_encrypted(encrypted_world: World) -> None:
    """Everything sealed under the repository's key says so in its flags; only config and the keys do not."""
    for info in encrypted_world.store.list():
        if info.size and not info.name.startswith(("packs/", "meta/")):
            flags = encrypted_world.store.get(info.name)[HEAD - 1]
            assert flags == (0 if info.name == "config" or info.name.startswith("keys/") else 1), info.name


def test_passwords_change_without_rewriting_data(encrypted_world: World, tmp_path: Path) -> None:
    """A second password is added, the first taken away: only objects under keys/ come and go, the removed one opens
    nothing any more, the other restores exactly. The last one cannot be removed."""
    store = copied(encrypted_world.store)
    before = {o.name: store.get(o.name) for o in store.list()}
    repository = Repository.open(store, password="first password")
    added = key.add(repository, "third password").added
    for slot in key.keys(repository).keys:
        if slot.id != added:
            key.remove(repository, slot.id)
    after = {o.name: store.get(o.name) for o in store.list()}
    assert {n: d for n, d in after.items() if not n.startswith("keys/")} == {
        n: d for n, d in before.items() if not n.startswith("keys/")
    }
    with pytest.raises(WrongPassword):
        Repository.open(store, password="first password")
    reopened = Repository.open(store, password="third password")
    encrypted_world.restores(reopened, max(encrypted_world.expected), tmp_path / "out")
    with pytest.raises(UsageError):
        key.remove(reopened, added or "")


def test_a_slot_of_another_repository_opens_nothing(encrypted_world: World) -> None:
    """Wrapped keys are bound to their repository: a slot that was put in place of ours does not open it, even when its
    password is known and its name is right."""
    name = next(o.name for o in encrypted_world.store.list("keys/"))
    slot = wrap(new_master(), "known", repository="another", created="")
    store = encrypted_world.with_object(name, seal("K", name, msgspec.json.encode(slot), None))
    with pytest.raises(WrongPassword):
        Repository.open(store, password="known")


def test_a_damaged_slot_locks_out_its_own_password_only(encrypted_world: World) -> None:
    """One of two keys is damaged: the other password opens the repository."""
    store = copied(encrypted_world.store)
    opened = 0
    for name in encrypted_world.names("keys/"):
        whole = store.get(name)
        store.put(name, whole[:-1] + bytes((whole[-1] ^ 1,)))
        for password in ("first password", "second password"):
            try:
                Repository.open(store, password=password)
                opened += 1
            except CorruptObject as error:
                assert error.name == name
        store.put(name, whole)
    assert opened == 2


def test_without_any_key_the_password_is_not_to_blame(encrypted_world: World) -> None:
    """When the objects under keys/ are gone, that is what is said."""
    store = copied(encrypted_world.store)
    for name in encrypted_world.names("keys/"):
        store.delete(name)
    with pytest.raises(MissingObject, match="keys/"):
        Repository.open(store, password="first password")
