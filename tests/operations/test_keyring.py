"""Clients' keys where they lie: none is lost, none that was ended opens anything again, whoever writes or dies."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from chromakeep.access.keys import Key, mint, timestamp
from chromakeep.errors import ChromakeepError, RepositoryBusy, StoreUnavailable, UsageError, VerificationFailed
from chromakeep.events import Event, Noted
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.key_places import LARGEST, End
from chromakeep.operations.keyring import (
    DirectoryKeys,
    KeyPlace,
    RepositoryKeys,
    create,
    load,
    reload,
    revoke,
    rotate,
    shown,
)
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore, rollback
from chromakeep.repository import Repository
from chromakeep.repository.sealed import seal
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from repository.interleaving import Actor

Open = Callable[[], KeyPlace]


@pytest.fixture(params=["plain", "encrypted", "directory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same place again and again, as another process would."""
    if request.param == "directory":
        return lambda: DirectoryKeys(tmp_path / "data")
    store, password = MemoryStore(), "secret" if request.param == "encrypted" else None
    made = Repository.create(store, password=password)  # once: stretching a password takes its time
    return lambda: RepositoryKeys(Repository(store, made.config, made.keys))


def opens(place: KeyPlace, token: str, after: float = 0.0) -> bool:
    return load(place).find(token, time.time() + after) is not None


def test_what_was_created_is_found_by_another_process(opened: Open) -> None:
    key, token = create(opened(), "app", "writer", tenant="t", database="d", collections=("a*",), rate=2, lifetime=7200)
    other, foreign = create(opened(), "ops", "admin")
    assert set(load(opened()).keys) == {key, other}
    assert load(opened()).find(token, time.time()) == key
    assert load(opened()).find(foreign, time.time()) == other
    assert opens(opened(), token, after=3600)
    assert not opens(opened(), token, after=7300)
    assert (shown(key, time.time()).state, shown(key, time.time() + 7300).state) == ("valid", "expired")


def test_a_revoked_key_opens_nothing_and_frees_its_name(opened: Open) -> None:
    _, token = create(opened(), "app", "reader")
    with pytest.raises(UsageError, match="already"):
        create(opened(), "app", "reader")
    (gone,) = revoke(opened(), "app")
    assert not opens(opened(), token)
    assert shown(gone, time.time()).state == "revoked"
    assert [k.revoked for k in load(opened()).keys] == [gone.revoked]
    for act in (revoke, rotate):
        with pytest.raises(UsageError, match="no valid key"):
            act(opened(), "app")
    _, again = create(opened(), "app", "reader")
    assert opens(opened(), again)
    assert not opens(opened(), token)


def test_a_rotation_keeps_name_and_rights_and_the_old_secret_as_long_as_asked(opened: Open) -> None:
    old, first = create(opened(), "app", "writer", collections=("docs-*",), body=5, time=2.5, lifetime=86400)
    new, second, replaced = rotate(opened(), "app", overlap=3600)
    same = {f: getattr(new, f) for f in ("name", "role", "collections", "body", "time")}
    assert same == {f: getattr(old, f) for f in same}
    assert new.ends - time.time() == pytest.approx(86400, abs=3600)
    assert [k.id for k in replaced] == [old.id]
    assert [shown(k, time.time()).state for k in replaced] == ["replaced"]
    assert opens(opened(), first)
    assert opens(opened(), second)
    assert not opens(opened(), first, after=3700)
    assert opens(opened(), second, after=3700)
    _, third, _ = rotate(opened(), "app", overlap=3600)
    assert [opens(opened(), t) for t in (first, second, third)] == [True, True, True]
    assert len(revoke(opened(), "app")) == 3  # before the overlap is over
    assert [opens(opened(), t) for t in (first, second, third)] == [False, False, False]
    with pytest.raises(UsageError, match="30 days"):
        rotate(opened(), "app", overlap=31 * 86400)


def test_a_rotation_without_an_overlap_ends_what_earlier_ones_left_valid(opened: Open) -> None:
    """As after a leak: whichever token it was that got out, none of them opens anything now."""
    _, oldest = create(opened(), "app", "writer")
    _, older, (first,) = rotate(opened(), "app", overlap=86400.0)
    _, old, (second,) = rotate(opened(), "app", overlap=3600.0)
    assert all(opens(opened(), token) for token in (oldest, older, old))
    assert opens(opened(), oldest, 3700) and not opens(opened(), older, 3700)  # each as long as it was said of it
    fresh, token, replaced = rotate(opened(), "app")
    assert [opens(opened(), one) for one in (oldest, older, old, token)] == [False, False, False, True]
    assert [one.id for one in replaced][:2] == [first.id, second.id] and len(replaced) == 3
    now = time.time()
    assert [shown(one, now).state for one in load(opened()).keys if one.id != fresh.id] == ["revoked"] * 3
    assert {shown(one, now).state for one in replaced} == {"revoked"}


def test_many_writers_lose_no_key(opened: Open) -> None:
    create(opened(), "first", "admin")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: create(opened(), f"app-{n}", "reader"), range(24)))
    assert len(load(opened()).keys) == 25
    assert all(opens(opened(), token) for _, token in made)


def test_one_name_made_by_many_at_once_is_one_key_at_most(opened: Open) -> None:
    def make(n: int) -> str | None:
        try:
            return create(opened(), "app", "reader")[1]
        except (RepositoryBusy, UsageError):
            return None

    with ThreadPoolExecutor(8) as pool:
        tokens = [t for t in pool.map(make, range(8)) if t]
    assert len(tokens) <= 1
    assert len(load(opened()).holders("app", time.time())) == len(tokens)
    assert all(opens(opened(), t) for t in tokens)


class Between(MemoryStore):
    """Does something once, just before the first put of a key."""

    act: Callable[[], object] | None = None

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        if name.startswith("access/") and (act := self.act):
            self.act = None
            act()
        super().put(name, data, if_absent=if_absent)


@pytest.mark.parametrize("verb", ["create", "rotate"])
def test_who_comes_second_gives_way(verb: str) -> None:
    """Another instance takes the name between our look and our put: its key stays, ours was never told to anybody."""
    store = Between()
    Repository.create(store)
    place = RepositoryKeys(Repository.open(store))
    other: list[str] = []
    if verb == "create":
        store.act = lambda: other.append(create(RepositoryKeys(Repository.open(store)), "app", "reader")[1])
        with pytest.raises(RepositoryBusy):
            create(place, "app", "admin")
    else:
        create(place, "app", "reader")
        store.act = lambda: other.append(rotate(RepositoryKeys(Repository.open(store)), "app")[1])
        with pytest.raises(RepositoryBusy):
            rotate(place, "app")
    assert opens(place, other[0])
    assert len(load(place).holders("app", time.time())) == 1


def test_a_revocation_by_a_clock_that_is_ahead_counts_at_once(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is revoked when it must not open anything any more, not when it is that late here, too."""
    place = opened()
    if isinstance(place, DirectoryKeys):
        pytest.skip("there it is one clock")
    _, token = create(place, "app", "reader")
    ahead = time.time() + 3600
    monkeypatch.setattr("chromakeep.operations.keyring.clock.time", lambda: ahead)
    revoke(opened(), "app")
    monkeypatch.undo()
    assert not opens(place, token)


class Failing(MemoryStore):
    """Fails from the n-th put or delete of a key's object on."""

    left = 1 << 30

    def _spend(self, name: str) -> None:
        if name.startswith("access/"):
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailable("gone")

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self._spend(name)
        super().put(name, data, if_absent=if_absent)

    def delete(self, name: str) -> None:
        self._spend(name)
        super().delete(name)


@pytest.mark.parametrize("stopped", ["rotate", "revoke"])
@pytest.mark.parametrize("overlap", [0.0, 60.0])
def test_a_rotation_beside_a_revocation_leaves_no_key(stopped: str, overlap: float) -> None:
    """One is stopped at each of its steps while the other runs: whichever counts as first, the name opens nothing."""

    def rotated(store: Store) -> None:
        with suppress(RepositoryBusy, UsageError):
            rotate(RepositoryKeys(Repository.open(store)), "app", overlap=overlap)

    def revoked(store: Store) -> None:
        revoke(RepositoryKeys(Repository.open(store)), "app")

    first, second = (rotated, revoked) if stopped == "rotate" else (revoked, rotated)
    at, over = 0, False
    while not over:
        at += 1
        store = MemoryStore()
        place = RepositoryKeys(Repository.create(store))
        create(place, "app", "writer")
        actor = Actor(store, first)
        over = actor.go(at)
        second(store) if not over else None
        actor.go()
        assert actor.error is None
        assert over or not place.read().named("app", time.time() + 0.001), f"stopped at {at}"
    assert at > 5


def test_a_key_that_is_forgotten_while_it_is_listed_does_not_live_again() -> None:
    """The listing has the key, and its end not any more: a server that knew of the end goes on knowing."""
    store = MemoryStore()
    place = RepositoryKeys(Repository.create(store))
    key, _ = create(place, "app", "writer")
    revoke(place, "app")
    known: list[RepositoryKeys] = []

    def server(store: Store) -> tuple[Key, ...]:
        if not known:
            known.append(RepositoryKeys(Repository.open(store)))
        return known[0].read().named("app", time.time() + 0.001)

    at, over = 0, False
    while not over:
        at += 1
        slow = Actor(store, server, page=1)
        known.clear()
        known.append(RepositoryKeys(Repository.open(slow.inner)))
        known[0].read()
        known[0]._repository.store = slow
        over = slow.go(at)
        held = {name: store.get(name) for name in (f"access/{key.id}", f"access/{key.id}.revoked")}
        place.forget(key)
        slow.go()
        assert slow.result == (), f"stopped at {at}"
        for name, data in held.items():
            store.put(name, data)
    assert at > 1


def test_a_rotation_that_dies_leaves_a_token_that_works() -> None:
    """Whether it dies before its new key is there or after, the old token is valid; the next rotation ends it."""
    for n in range(2):
        store = Failing()
        Repository.create(store)
        place = RepositoryKeys(Repository.open(store))
        _, old = create(place, "app", "reader")
        store.left = n
        with pytest.raises(StoreUnavailable):
            rotate(place, "app")
        store.left = 1 << 30
        assert opens(place, old), n
        assert len(load(place).holders("app", time.time())) == n + 1
        _, new, replaced = rotate(place, "app")
        assert len(replaced) == n + 1
        assert not opens(place, old)
        assert opens(place, new)


def test_what_was_revoked_long_ago_is_forgotten_and_never_comes_back() -> None:
    """A store that fails at each step of it: the key opens nothing at any of them."""
    for n in range(4):
        store = Failing()
        Repository.create(store)
        place = RepositoryKeys(Repository.open(store))
        key, token = create(place, "app", "reader")
        place.end(key, timestamp(time.time() - 91 * 86400))
        store.left = n + 1  # the put of another key, and n deletes
        try:
            create(place, f"other-{n}", "reader")
        except StoreUnavailable:
            assert n < 3
        else:
            assert n == 3
        store.left = 1 << 30
        assert not opens(RepositoryKeys(Repository.open(store)), token), n
        create(place, "last", "reader")
        assert key.id not in {k.id for k in load(RepositoryKeys(Repository.open(store))).keys}


def test_expired_and_lately_revoked_keys_are_not_forgotten(opened: Open) -> None:
    place = opened()
    key, _ = create(place, "app", "reader", lifetime=0.001)
    revoke_me, _ = create(place, "other", "reader")
    place.end(revoke_me, timestamp(time.time() - 89 * 86400))
    ancient, _ = create(place, "third", "reader")
    place.end(ancient, timestamp(time.time() - 91 * 86400))
    create(place, "last", "reader")
    left = {k.id for k in load(opened()).keys}
    assert {key.id, revoke_me.id} <= left
    assert ancient.id not in left


class Counting(MemoryStore):
    gets = 0

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.gets += 1
        return super().get(name, start=start, length=length)


def test_a_key_that_would_never_be_valid_is_not_made(opened: Open) -> None:
    with pytest.raises(UsageError, match="at once"):
        create(opened(), "app", "reader", lifetime=0.0)
    assert opened().read().keys == ()


def test_a_server_learns_of_every_change_and_reads_nothing_without_one(opened: Open) -> None:
    place = opened()
    found = reload(place, None)
    assert found
    ring, mark = found
    assert ring.keys == ()
    for act in (
        lambda: create(opened(), "app", "reader"),
        lambda: rotate(opened(), "app", overlap=3600),
        lambda: revoke(opened(), "app"),
    ):
        assert reload(place, mark) is None
        act()
        found = reload(place, mark)
        assert found
        assert found[0].keys == load(opened()).keys
        mark = found[1]


def test_looking_for_changes_reads_no_object() -> None:
    store = Counting()
    Repository.create(store)
    place = RepositoryKeys(Repository.open(store))
    for n in range(5):
        create(place, f"app-{n}", "reader")
    found = reload(place, None)
    assert found
    before = store.gets
    assert reload(place, found[1]) is None
    assert store.gets == before
    create(RepositoryKeys(Repository.open(store)), "new", "reader")
    before = store.gets
    assert reload(place, found[1])
    assert store.gets == before + 1


# -- in a repository ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".revoked"])
@pytest.mark.parametrize("password", [None, "secret"])
def test_damage_of_any_byte_opens_nothing_and_shuts_nobody_else_out(password: str | None, suffix: str) -> None:
    store = MemoryStore()
    Repository.create(store, password=password)
    repository = Repository.open(store, password=password)
    key, token = create(RepositoryKeys(repository), "app", "reader")
    _, other = create(RepositoryKeys(repository), "other", "reader")
    if suffix:
        revoke(RepositoryKeys(repository), "app")
    name = f"access/{key.id}{suffix}"
    whole = store.get(name)
    for damaged in (b"", whole[:-1], whole + b"x", *(_flipped(whole, at) for at in range(len(whole)))):
        store.delete(name)
        store.put(name, damaged)
        told: list[Event] = []
        place = RepositoryKeys(repository, told.append)
        assert not opens(place, token)
        assert opens(place, other)
        assert [isinstance(e, Noted) and name in e.message for e in told] == [True]
    assert [p.object for p in check(repository).problems] == [name]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_objects_that_are_not_what_their_name_says_are_no_keys() -> None:
    store = MemoryStore()
    Repository.create(store)
    repository = Repository.open(store)
    key, token = mint("app", "admin")
    fields = msgspec.to_builtins(key)
    bad = {
        "access/" + "0" * 16: msgspec.json.encode(key),  # under another's name
        "access/" + "1" * 16: msgspec.json.encode({**fields, "id": "1" * 16, "role": "root"}),
        "access/" + "2" * 16: msgspec.json.encode({**fields, "id": "2" * 16, "more": 1}),
        "access/" + "3" * 16: b"[" * 50_000,
        "access/" + "4" * 16: b" " * (LARGEST + 1),  # a few bytes as they lie there
        "access/" + "5" * 16 + ".revoked": msgspec.json.encode(End("6" * 16, key.created)),
        "access/" + "7" * 16 + ".rotated": b'{"id": "7777777777777777", "time": "never"}',
        "access/notes": b"x",
        "access/" + "8" * 16 + ".old": msgspec.json.encode(key),
    }
    for name, payload in bad.items():
        store.put(name, seal("A", name, payload, repository.keys))
    huge = "access/" + "9" * 16
    store.put(huge, bytes(LARGEST + 1))
    foreign = f"access/{key.id}"
    store.put(foreign, seal("N", foreign, msgspec.json.encode(key), repository.keys))
    place = RepositoryKeys(repository)
    assert load(place).keys == ()
    assert load(place).find(token, time.time()) is None
    assert {p.object for p in check(repository).problems} == {*bad, huge, foreign}


def test_prune_leaves_keys_alone_and_check_knows_them(backed_up: Callable[..., Repository]) -> None:
    repository = backed_up(0, 1)
    place = RepositoryKeys(repository)
    _, token = create(place, "app", "reader")
    rotate(place, "app", overlap=3600)
    create(place, "other", "reader")
    revoke(place, "other")
    before = {o.name for o in repository.store.list("access/")}
    assert len(before) == 5
    prune(repository, Retention(last=1), wait=0)
    assert {o.name for o in repository.store.list("access/")} == before
    assert check(repository, read_data=True).problems == ()
    assert opens(place, token)


def test_a_key_that_was_repaired_opens_again_where_a_server_runs() -> None:
    """And one that is damaged meanwhile is told once."""
    told: list[Event] = []
    repository = Repository.create(MemoryStore())
    place = RepositoryKeys(repository)
    key, token = create(place, "app", "reader")
    create(place, "other", "reader")
    name = f"access/{key.id}"
    whole = repository.store.get(name)
    repository.store.delete(name)
    repository.store.put(name, b"damaged")
    server = RepositoryKeys(repository, told.append)
    found = reload(server, None)
    assert found and found[0].find(token, time.time()) is None and len(told) == 1
    assert reload(server, found[1]) is None
    repository.store.delete(name)
    repository.store.put(name, whole)
    again = reload(server, found[1])
    assert again and again[0].find(token, time.time()) and len(told) == 1


# -- in a data directory ----------------------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone_and_holds_no_secret(tmp_path: Path) -> None:
    place = DirectoryKeys(tmp_path / "data")
    _, token = create(place, "app", "reader")
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
    assert token[20:] not in place.path.read_text()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100, b"[" * 100_000, b'{"format": 9, "keys": []}'])
def test_a_file_that_is_no_keyring_is_told_and_never_written_over(tmp_path: Path, content: bytes) -> None:
    place = DirectoryKeys(tmp_path)
    place.path.write_bytes(content)
    for act in (load, lambda p: create(p, "app", "reader"), lambda p: revoke(p, "app")):
        with pytest.raises(VerificationFailed, match="no keys can be read"):
            act(place)
    assert place.path.read_bytes() == content


def test_a_file_that_is_a_directory_is_told(tmp_path: Path) -> None:
    place = DirectoryKeys(tmp_path)
    place.path.mkdir()
    with pytest.raises(ChromakeepError, match=r"chromakeep-keys\.json"):
        load(place)


def test_a_place_that_is_empty_all_at_once_takes_no_servers_keys_away(opened: Open) -> None:
    """A disk that is not mounted any more: nobody opens a door by taking keys away."""
    place = opened()
    create(place, "app", "reader")
    found = reload(place, None)
    assert found
    if isinstance(place, DirectoryKeys):
        place.path.unlink()
    else:
        assert isinstance(place, RepositoryKeys)
        for one in list(place._repository.store.list("access/")):
            place._repository.store.delete(one.name)
    with pytest.raises(VerificationFailed, match="some were"):
        reload(place, found[1])
    again = reload(opened(), None)  # of a server that has seen none
    assert again and again[0].keys == ()


def test_keys_of_which_none_can_be_read_are_not_none(opened: Open) -> None:
    place = opened()
    key, _ = create(place, "app", "reader")
    if isinstance(place, DirectoryKeys):
        place.path.write_text('{"format": 1, "keys": []}')
    else:
        assert isinstance(place, RepositoryKeys)
        place._repository.store.delete(f"access/{key.id}")
        place._repository.store.put(f"access/{key.id}", b"damaged")
    with pytest.raises(VerificationFailed, match="can be read"):
        reload(opened(), None)


def test_only_create_makes_a_directory(tmp_path: Path) -> None:
    place = DirectoryKeys(tmp_path / "no" / "data")
    for act in (revoke, rotate):
        with pytest.raises(UsageError, match="no such directory"):
            act(place, "app")
    with pytest.raises(UsageError, match="no such directory"):
        load(place)
    found = reload(place, None)  # to a server it may still come
    assert found and found[0].keys == ()
    assert not (tmp_path / "no").exists()
    create(place, "app", "reader")
    assert [k.name for k in load(place).keys] == ["app"]


def test_a_restore_and_a_rollback_keep_the_keys_of_now(generations: list[Path], tmp_path: Path) -> None:
    """Keys are there before the first restore, in no snapshot, and what was revoked since stays so."""
    repository = Repository.create(MemoryStore())
    data = tmp_path / "data"
    _, first = create(DirectoryKeys(data), "first", "admin")
    backup(generations[0], repository)
    restore(repository, None, data)  # the directory counts as empty
    assert opens(DirectoryKeys(data), first)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    snapshot = backup(data, repository)
    assert not [f.path for f in repository.find(snapshot.snapshot).files if "keys" in f.path]
    _, second = create(DirectoryKeys(data), "second", "reader")
    restore(repository, None, data, replace=True)
    assert opens(DirectoryKeys(data), first)
    assert opens(DirectoryKeys(data), second)
    revoke(DirectoryKeys(data), "first")
    rollback(data)
    assert not opens(DirectoryKeys(data), first)
    assert opens(DirectoryKeys(data), second)


def test_no_error_and_no_repr_shows_a_digest_or_secret(opened: Open) -> None:
    key, token = create(opened(), "app", "reader")
    said = repr(load(opened()).keys) + repr(key)
    for act in (lambda: create(opened(), "app", "reader"), lambda: revoke(opened(), token)):
        with pytest.raises(ChromakeepError) as failed:
            act()
        said += str(failed.value) + str(failed.value.hint)
    assert key.digest not in said
    assert isinstance(key, Key)
