"""An inspection beside other work tells what ``inspect`` tells, in a process of its own and in a thread."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from chromakeep.chroma.aside import ALL, Forked, Spawned, Threaded
from chromakeep.chroma.inspection import inspect
from chromakeep.errors import NotAChromaDirectory, SourceError

MAKE = """
import sys, chromadb
client, small = chromadb.PersistentClient(sys.argv[1]), {"hnsw": {"sync_threshold": 100, "batch_size": 50}}
collection = client.create_collection("words", configuration=small)
collection.add(ids=[f"{n}" for n in range(300)], embeddings=[[n, 1, 2] for n in range(300)], documents=["é"] * 300)
"""
Way = type[Forked] | type[Spawned] | type[Threaded]
WAYS = [Threaded, Spawned, pytest.param(Forked, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "chroma"
    subprocess.run([sys.executable, "-c", MAKE, str(place)], check=True)
    return place


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()}


@pytest.mark.parametrize("way", WAYS)
def test_what_inspect_says(way: Way, made: Path) -> None:
    """Collections with their digests, no problems: the same object."""
    with way(made, quick_check=True) as beside:
        beside.go(ALL)
        assert beside.result() == inspect(made)
    assert inspect(made).collections[0].count == 300


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
def test_a_process_of_its_own_is_not_told_the_password(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads what others wrote, and opens no repository."""
    monkeypatch.setenv("CHROMAKEEP_PASSWORD", "correct horse")
    with Spawned(made, quick_check=True) as beside:
        environment = Path(f"/proc/{beside.pid}/environ").read_bytes()
        assert b"PYTHONPATH" in environment and b"CHROMAKEEP" not in environment and b"horse" not in environment
        beside.go(ALL)
        assert beside.result() == inspect(made)


@pytest.mark.parametrize("way", WAYS)
def test_problems_come_through(way: Way, made: Path, tmp_path: Path) -> None:
    """A damaged directory is described in the same words."""
    place = Path(shutil.copytree(made, tmp_path / "chroma"))
    with (place / "chroma.sqlite3").open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 4096 * 3)
    with way(place, quick_check=True) as beside:
        beside.go(ALL)
        found = beside.result()
    assert found.problems
    assert found == inspect(place)


@pytest.mark.parametrize("way", WAYS)
def test_errors_come_through(way: Way, tmp_path: Path) -> None:
    """With class, message and hint."""
    with pytest.raises(NotAChromaDirectory) as direct:
        inspect(tmp_path)
    with way(tmp_path, quick_check=False) as beside, pytest.raises(NotAChromaDirectory) as told:
        beside.go(ALL)
        beside.result()
    assert (told.value.message, told.value.hint) == (direct.value.message, direct.value.hint)


@pytest.mark.parametrize("way", WAYS)
def test_it_waits_for_what_comes(way: Way, made: Path, tmp_path: Path) -> None:
    """Nothing is read before the first ``go``, no segment before the second, no elements before the third."""
    place = tmp_path / "chroma"
    with way(place, quick_check=True) as beside:
        time.sleep(0.1)
        place.mkdir()
        shutil.copy2(made / "chroma.sqlite3", place)
        beside.go()
        time.sleep(0.3)
        for folder in (p for p in made.iterdir() if p.is_dir()):
            shutil.copytree(folder, place / folder.name, ignore=shutil.ignore_patterns("data_level0.bin"))
            with (place / folder.name / "data_level0.bin").open("xb") as file:  # its size must be right, not its bytes
                file.truncate((folder / "data_level0.bin").stat().st_size)
        beside.go()
        time.sleep(0.3)
        for folder in (p for p in made.iterdir() if p.is_dir()):
            shutil.copy2(folder / "data_level0.bin", place / folder.name)
        beside.go()
        assert beside.result() == inspect(made)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [0, 1, 2])
def test_left_early(way: Way, made: Path, times: int) -> None:
    """It ends when it is left, however far it came; no child stays, no descriptor either."""
    before, descriptors = children(), set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    threads = set(threading.enumerate())
    with way(made, quick_check=True) as beside:
        for _ in range(times):
            beside.go()
    assert children() == before
    assert set(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_process_that_dies(way: type[Forked] | type[Spawned], made: Path) -> None:
    """Killed (out of memory): an error in words, not an empty answer."""
    with way(made, quick_check=True) as beside, pytest.raises(SourceError, match="died"):
        assert beside.pid
        os.kill(beside.pid, signal.SIGKILL)
        beside.go()
        beside.result()


@pytest.mark.parametrize("way", ["Forked", "Spawned"])
def test_it_does_not_outlive_its_parent(way: str, made: Path) -> None:
    """The parent is gone, SIGKILL or not: the child sees the end of its pipe."""
    script = (
        f"import os, sys; from pathlib import Path; from chromakeep.chroma.aside import {way}\n"
        f"print({way}(Path(sys.argv[1]), quick_check=True).pid, flush=True); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(made)], capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fork_only_where_that_is_sound(made: Path) -> None:
    """Beside another thread of Python's, which might hold a lock, it is a process started anew; in a program that is
    not Python's own, a thread."""
    script = (
        "import sys, threading\nfrom pathlib import Path\nfrom chromakeep.chroma.aside import aside\n"
        "def way():\n    with aside(Path(sys.argv[1])) as beside:\n        return type(beside).__name__\n"
        "if __name__ == '__main__':\n    print(way())\n    done = threading.Event()\n"
        "    threading.Thread(target=done.wait).start()\n    print(way())\n"
        "    sys.executable = '/usr/sbin/uwsgi'\n    print(way())\n    done.set()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(made)], capture_output=True, text=True, check=True)
    first = "Forked" if sys.platform.startswith("linux") else "Spawned"
    assert done.stdout.split() == [first, "Spawned", "Threaded"]
