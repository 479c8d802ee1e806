"""A directory takes the place of another: whoever dies at whatever moment, both are there and can be swapped."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chromakeep.errors import SnapshotNotFound
from chromakeep.operations import place
from chromakeep.operations.beside import Beside
from chromakeep.operations.keyring import DirectoryKeys, create, revoke
from chromakeep.operations.restore import rollback


def directory(path: Path, text: str) -> Path:
    for name in ("chroma.sqlite3", "segment/header.bin"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def text(path: Path) -> str:
    found = {(path / name).read_text() for name in ("chroma.sqlite3", "segment/header.bin")}
    assert len(found) == 1, "a mixture"
    return found.pop()


def killed_at(n: int, after: bool, act: Callable[[], object]) -> bool:
    """Run ``act`` in a child that kills itself before or after its n-th rename; whether it came so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                nonlocal count
                count += 1
                if count == n and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                answer = real(*arguments)
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return answer

            return call

        Path.rename = counting(Path.rename)  # type: ignore[method-assign]
        place.exchange = counting(place.exchange)
        try:
            act()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("after", [False, True])
def test_a_replacement_killed_at_any_rename_loses_neither_content(tmp_path: Path, after: bool) -> None:
    """The target is always the whole old or the whole new directory; and when the new one is in place, the old one is
    found by rollback, also after the next replacement has swept up what the dead one left."""
    n = 0
    killed = True
    while killed:
        n += 1
        world = tmp_path / str(n)
        target = directory(world / "data", "old")

        def replace(word: str, target: Path = target) -> None:
            place.install(directory(place.beside(target, "restoring"), word), target)

        killed = killed_at(n, after, lambda replace=replace: replace("new"))  # type: ignore[misc]
        now = text(target)
        assert now in ("old", "new")
        place.beside(target, "restoring").rmdir()  # sweeps
        if now == "new":
            assert text(place.newest_old(target)) == "old"
            rollback(target)
            assert text(target) == "old"
        else:
            replace("newer")
            assert text(target) == "newer"
            rollback(target)
            assert text(target) == "old"
    assert n > 2


def test_without_an_atomic_exchange_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system cannot exchange two names the replacement is the same; if the second rename fails, the
    old directory is back."""
    monkeypatch.setattr(place, "exchange", lambda one, other: False)
    target = directory(tmp_path / "data", "old")
    kept = place.install(directory(tmp_path / "fresh", "new"), target)
    assert kept and text(target) == "new" and text(kept) == "old"
    real, calls = Path.rename, 0

    def failing(self: Path, to: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(5, "Input/output error")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        place.install(directory(tmp_path / "fresh", "newer"), target)
    assert text(target) == "new"


def test_rollback_takes_what_was_kept_last_and_nothing_of_others(tmp_path: Path) -> None:
    """Twelve replacements within a second and somebody's own folder of a like name: rollback finds the twelfth."""
    target = directory(tmp_path / "data", "0")
    directory(tmp_path / "data.old-of-mine", "not ours")
    for n in range(1, 13):
        place.install(directory(tmp_path / "fresh", str(n)), target)
    rollback(target)
    assert text(target) == "11"
    rollback(target)
    assert text(target) == "12"
    assert text(tmp_path / "data.old-of-mine") == "not ours"
    with pytest.raises(SnapshotNotFound):
        place.newest_old(tmp_path / "data.old-of")


def test_hidden_files_of_the_user_survive(tmp_path: Path) -> None:
    """A target with nothing but hidden files counts as empty; these files are not deleted with it."""
    target = tmp_path / "data"
    target.mkdir()
    (target / ".secret").write_text("mine")
    place.install(directory(tmp_path / "fresh", "new"), target)
    assert text(target) == "new"
    assert [p.read_text() for p in tmp_path.glob("data*/.secret")] == ["mine"]


def keyed(path: Path, content: str) -> Path:
    (path / place.KEYS).write_text(content)
    return path


@pytest.mark.parametrize("after", [False, True])
def test_a_replacement_killed_at_any_rename_leaves_the_keys_that_clients_have(tmp_path: Path, after: bool) -> None:
    n = 0
    killed = True
    while killed:
        n += 1
        target = keyed(directory(tmp_path / str(n) / "data", "old"), "now")

        def replace(target: Path = target) -> None:
            place.install(keyed(directory(place.beside(target, "restoring"), "new"), "stale"), target)

        killed = killed_at(n, after, replace)
        assert (target / place.KEYS).read_text() == "now"
    assert n > 2


@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize("holds", [False, True])
def test_a_key_that_is_made_while_a_directory_is_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool, holds: bool
) -> None:
    """By who finds keys there already, or none: it waits, and is made in the directory that is there then."""
    target = directory(tmp_path / "data", "old")
    keys = DirectoryKeys(target)
    if holds:
        create(keys, "first", "reader")
    made: list[str] = []
    maker = threading.Thread(target=lambda: made.append(create(DirectoryKeys(target), "second", "reader")[1]))
    real = place.exchange

    def exchange(one: Path, other: Path) -> bool:
        maker.start()
        maker.join(0.5)
        return swaps and real(one, other)

    monkeypatch.setattr(place, "exchange", exchange)
    place.install(directory(place.beside(target, "restoring"), "new"), target)
    maker.join(20)
    assert text(target) == "new" and keys.read().find(made[0], time.time())
    assert [key.name for key in keys.read().keys] == (["first"] if holds else []) + ["second"]
    create(keys, "third", "reader")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_keys_and_directories_are_changed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As on Windows: a restore does not fail at its very end of what it can do without."""

    def flock(lock: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    target = directory(tmp_path / "data", "old")
    keys = DirectoryKeys(target)
    _, token = create(keys, "app", "reader")
    assert place.install(directory(tmp_path / "fresh", "new"), target)
    assert text(target) == "new" and keys.read().find(token, time.time())
    rollback(target)
    assert text(target) == "old" and keys.read().find(token, time.time())
    assert not [*tmp_path.rglob("*.chromakeep-keys.lock")]


def test_a_directory_in_which_nothing_may_be_written_is_replaced_with_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, in a folder of ours. Its keys are not changed without the lock that others hold."""
    target = directory(tmp_path / "data", "old")
    keys = DirectoryKeys(target)
    _, token = create(keys, "app", "reader")
    (target / place.KEYS_LOCK).unlink()
    real = Path.open

    def denied(self: Path, *how: Any, **more: Any) -> Any:
        if self == target / place.KEYS_LOCK:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, *how, **more)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PermissionError):
        revoke(keys, "app")
    assert place.install(directory(tmp_path / "fresh", "new"), target)
    assert text(target) == "new" and keys.read().find(token, time.time())


@pytest.mark.parametrize("inside", [False, True])
def test_a_key_revoked_before_a_replacement_is_completed_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """A run that was killed has decided on it; the next one does it, with the keys of then."""
    target = directory(tmp_path / "data", "old")
    keys = DirectoryKeys(target)
    _, token = create(keys, "app", "reader")
    root = target / ".chromakeep" if inside else tmp_path
    for completes in (False, True):
        with Beside(target) as beside:
            if inside:
                beside.inside, beside.root = True, root
            beside.take(1)
            if completes:
                beside.state = beside._read()
                beside.finish_swap()
            else:
                monkeypatch.setattr(Beside, "finish_swap", lambda beside: False)
                beside.replace(directory(root / "new", "new"), root / "kept")
                monkeypatch.undo()
                revoke(keys, "app")
                assert text(target) == "old"
    assert text(target) == "new" and keys.read().find(token, time.time()) is None
    assert text(root / "kept") == "old"


def test_keys_that_were_taken_away_do_not_come_back(tmp_path: Path) -> None:
    """With what an earlier restore has kept."""
    target = keyed(directory(tmp_path / "data", "old"), "1")
    place.install(directory(tmp_path / "fresh", "new"), target)
    (target / place.KEYS).unlink()
    rollback(target)
    assert text(target) == "old" and not (target / place.KEYS).exists()


@pytest.mark.parametrize("fixed", [False, True])
def test_keys_stay_in_the_place_whatever_is_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    """A directory or a mount point, with data or with nothing but keys; and back again."""
    monkeypatch.setattr(place, "is_fixed", lambda target: fixed)
    target = tmp_path / "data"
    target.mkdir()
    keyed(target, "1")
    assert place.is_empty(target)
    assert place.install(directory(tmp_path / "fresh", "a"), target) is None
    assert (text(target), (target / place.KEYS).read_text()) == ("a", "1")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    place.install(keyed(directory(tmp_path / "fresh", "b"), "stale"), target)
    keyed(target, "2")
    rollback(target)
    assert (text(target), (target / place.KEYS).read_text()) == ("a", "2")
    rollback(target)
    assert (text(target), (target / place.KEYS).read_text()) == ("b", "2")


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_run_puts_in_place_leaves_the_keys_too(tmp_path: Path, inside: bool) -> None:
    """A directory that was received, and the one before it again."""
    target = keyed(directory(tmp_path / "data", "old"), "1")
    with Beside(target) as beside:
        beside.inside = inside
        if inside:
            beside.root = target / ".chromakeep"
        beside.take(1)
        kept = (beside.root if inside else tmp_path) / "kept"
        new = (beside.root if inside else tmp_path) / "new"
        beside.replace(keyed(directory(new, "new"), "stale"), kept)
        assert (text(target), (target / place.KEYS).read_text()) == ("new", "1")
        keyed(target, "2")
        beside.replace(kept, new)
        assert (text(target), (target / place.KEYS).read_text()) == ("old", "2")


def test_a_replacement_that_cannot_be_written_down_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a full disk: a run serves on what it had, instead of ending over an exchange that nobody would complete."""
    target, new = directory(tmp_path / "data", "old"), directory(tmp_path / "fresh", "new")
    with Beside(target) as beside:
        beside.take(0)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", failing)
            with pytest.raises(OSError, match="No space"):
                beside.replace(new, tmp_path / "data.old-1")
        assert beside.state.swap is None
        assert text(target) == "old"
        assert beside.replace(new, tmp_path / "data.old-1")
    assert text(target) == "new"


def failing(self: Path, to: Path) -> Path:
    raise OSError(28, "No space left on device")
