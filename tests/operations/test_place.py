"""A directory takes the place of another: whoever dies at whatever moment, both are there and can be swapped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chromakeep.errors import SnapshotNotFound
from chromakeep.operations import place
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
