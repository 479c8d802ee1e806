"""Boot: what is decided, where a directory lies, and how one replaces another."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chromakeep.chroma.signature import signature
from chromakeep.errors import RefusedToServe
from chromakeep.operations.beside import Beside, Process, Swap, served
from chromakeep.operations.boot import DATA, EMPTY, HEADLESS, Evidence, decide, look
from chromakeep.operations.platform import describe, ignored_variables

SRC = Path(__file__).parents[2] / "src"
TABLE = [  # directory, repository, snapshots, restored -> outcome
    (DATA, False, None, None, "found"),
    (DATA, True, None, None, "found"),
    (DATA, True, True, None, "found"),
    (DATA, True, False, None, "found"),
    (EMPTY, False, None, None, "fresh"),
    (EMPTY, True, None, None, "refuse"),
    (EMPTY, True, False, None, "fresh"),
    (EMPTY, True, True, None, "restore"),
    (EMPTY, True, True, True, "restored"),
    (EMPTY, True, True, False, "refuse"),
    (HEADLESS, False, None, None, "refuse"),
    (HEADLESS, True, None, None, "refuse"),
    (HEADLESS, True, False, None, "refuse"),
    (HEADLESS, True, True, None, "restore"),
    (HEADLESS, True, True, True, "restored"),
    (HEADLESS, True, True, False, "refuse"),
]


@pytest.mark.parametrize(("directory", "repository", "snapshots", "restored", "outcome"), TABLE)
def test_the_decision_table(
    directory: str, repository: bool, snapshots: bool | None, restored: bool | None, outcome: str
) -> None:
    """Never fresh where the repository holds something or cannot be read, nor where index files lie headless."""
    assert decide(Evidence(directory, repository, snapshots, restored)) == outcome


def test_index_files_without_a_database_are_not_emptiness(tmp_path: Path) -> None:
    assert look(tmp_path / "none", served_before=False) == EMPTY
    (tmp_path / "lost+found").mkdir()
    assert look(tmp_path, served_before=False) == EMPTY
    segment = tmp_path / "d662b4cf-2668-40e9-9976-1a923d08971e"
    segment.mkdir()
    (segment / "data_level0.bin").write_bytes(b"x")
    assert look(tmp_path, served_before=False) == HEADLESS
    (tmp_path / "chroma.sqlite3").write_bytes(b"")
    assert look(tmp_path, served_before=False) == EMPTY  # what a killed first start leaves
    (tmp_path / "chroma.sqlite3").write_bytes(b"no database at all, yet somebody's bytes")
    assert look(tmp_path, served_before=False) == DATA


# -- the swap ---------------------------------------------------------------------------------------------------------


def directory(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "segment").mkdir()
    for name in ("chroma.sqlite3", "segment/header.bin"):
        (path / name).write_text(content)
    return path


def content(path: Path) -> str:
    texts = {(path / name).read_text() for name in ("chroma.sqlite3", "segment/header.bin")}
    assert len(texts) == 1, "a mixture"
    return texts.pop()


@pytest.mark.parametrize(("inside", "exchanges"), [(False, True), (False, False), (True, False)])
def test_a_swap_cut_off_anywhere_is_completed_at_the_next_boot(tmp_path: Path, inside: bool, exchanges: bool) -> None:
    """Whichever rename the process died before, afterwards the new directory is in place and the old one is kept."""
    renames = 0
    for dies_before in range(20):
        data = directory(tmp_path / str(dies_before) / "data", "old")
        beside = Beside(data)
        if inside:
            beside.inside, beside.root = True, data / ".chromakeep"
        beside.root.mkdir()
        new = directory(beside.root / "new", "new")
        code = f"""
import os, pathlib, sys
from chromakeep.operations import beside as module
from chromakeep.operations.beside import Beside
beside = Beside(pathlib.Path({str(data)!r}))
beside.inside, beside.root = {inside}, pathlib.Path({str(beside.root)!r})
left = {dies_before}
rename = os.rename
def dying(self, target):
    global left
    left -= 1
    if left < 0: os._exit(9)
    rename(self, target)
    return type(self)(target)
pathlib.Path.rename = dying
exchanging = module.exchange
def exchange(one, other):
    global left
    left -= 1
    if left < 0: os._exit(9)
    return {exchanges} and exchanging(one, other)
module.exchange = exchange
beside.swap(pathlib.Path({str(new)!r}), "broken")
"""
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SRC)}, check=False)
        beside.state = beside._read()
        assert beside.finish_swap() == (done.returncode == 9)
        assert content(data) == "new"
        kept = next((beside.root if inside else data.parent).glob("*broken-*"))
        assert content(kept) == "old"
        assert beside._read().swap is None
        if done.returncode == 0:
            renames = dies_before
            break
    assert renames == (4 if inside else 2 if exchanges else 3)


def test_a_state_file_that_is_damaged_is_an_unknown_directory(tmp_path: Path) -> None:
    """What cannot be read is not believed: the directory will be checked."""
    with Beside(tmp_path / "data") as beside:
        beside.take(0)
        beside.remember(verified="x", swap=Swap("a", "b"))
        (beside.root / "state.json").write_bytes(b'{"verified": 5}')
        assert beside._read().verified is None


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_a_second_keeper_is_refused(tmp_path: Path) -> None:
    """Two servers on one directory destroy it."""
    with Beside(tmp_path / "data") as first, Beside(tmp_path / "data") as second:
        first.take(0)
        first.remember(keeper=Process.of(os.getpid()))
        with pytest.raises(RefusedToServe, match=f"process {os.getpid()}"):
            second.take(0.1)
    with Beside(tmp_path / "data") as third:
        third.take(0)


def test_a_server_that_outlived_its_keeper_is_ended(tmp_path: Path) -> None:
    """It holds the lock by inheritance; the next keeper ends it, known by pid and start time, and takes over."""
    with Beside(tmp_path / "data") as first:
        lock = first.take(0)
        orphan = subprocess.Popen(["sleep", "600"], pass_fds=[lock])
        gone = subprocess.Popen(["true"])
        keeper = Process.of(gone.pid)
        gone.wait()
        first.remember(server=Process.of(orphan.pid), keeper=keeper)
    with Beside(tmp_path / "data") as second:
        started = time.monotonic()
        second.take(0.3)
        assert time.monotonic() - started >= 0.3  # it had its time to end by itself
    assert orphan.wait(60) == -9


def test_a_run_that_was_killed_when_the_disk_was_full_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written until what it has left half done is gone; then it is told that it serves no longer."""
    data = tmp_path / "data"
    with Beside(data) as first:
        first.take(0)
        first.remember(keeper=Process(1, 1), server=Process(7, 7))
        assert served(data)
        copy = first.scratch("copy")
        copy.mkdir()
    replaced = Path.replace

    def replace(self: Path, to: Path) -> Path:
        if copy.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return replaced(self, to)

    monkeypatch.setattr(Path, "replace", replace)
    with Beside(data) as second:
        second.take(0)
        second.tidy()
        assert second.state.server is None and not copy.exists() and not served(data)


def test_a_foreign_writer_is_refused_by_name(tmp_path: Path) -> None:
    """A process that has the database open for writing is named, and nothing is touched."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chroma.sqlite3").write_bytes(b"")
    code = f"f = open({str(tmp_path / 'data' / 'chroma.sqlite3')!r}, 'r+b'); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout and other.stdout.readline()
    before = signature(tmp_path / "data")
    with Beside(tmp_path / "data") as beside, pytest.raises(RefusedToServe, match=f"process {other.pid} "):
        beside.take(0.1)
    assert signature(tmp_path / "data") == before
    other.kill()
    other.wait()


# -- the platform -----------------------------------------------------------------------------------------------------

MOUNTS = """\
22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a
23 22 0:22 / /dev/shm rw - tmpfs tmpfs rw
24 22 8:1 / /data rw,relatime shared:1 - ext4 /dev/sda1 rw
25 24 0:30 / /data/with\\040space rw - nfs4 server:/x rw
26 22 0:31 / /bucket rw - fuse.gcsfuse bucket rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "filesystem", "point", "throw_away", "remote"),
    [
        ("/app/chroma", "overlay", "/", True, False),
        ("/dev/shm/x", "tmpfs", "/dev/shm", True, False),
        ("/data", "ext4", "/data", False, False),
        ("/data/chroma", "ext4", "/data", False, False),
        ("/database", "overlay", "/", True, False),
        ("/data/with space/c", "nfs4", "/data/with space", False, True),
        ("/bucket/c", "fuse.gcsfuse", "/bucket", False, True),
    ],
)
def test_a_path_is_found_in_the_mount_table(
    path: str, filesystem: str, point: str, throw_away: bool, remote: bool
) -> None:
    place = describe(Path(path), {}, MOUNTS)
    assert (place.filesystem, place.mount_point, bool(place.throw_away), place.remote) == (
        filesystem, point, throw_away, remote,
    )  # fmt: skip


def test_the_root_of_a_known_platform_is_thrown_away() -> None:
    """Fly.io's root is a plain ext4 that every deploy replaces; its volumes are mounts."""
    mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n24 22 8:1 / /data rw - ext4 /dev/vdb rw\n"
    assert describe(Path("/app"), {"FLY_APP_NAME": "x"}, mounts).throw_away
    assert not describe(Path("/data/x"), {"FLY_APP_NAME": "x"}, mounts).throw_away


def test_variables_of_the_old_server_are_told() -> None:
    """Chroma 1.x ignores them without a word; with a configuration file it reads those that are its keys."""
    env = {"IS_PERSISTENT": "1", "PERSIST_DIRECTORY": "/x", "CHROMA_SERVER_AUTHN_PROVIDER": "x", "CHROMA_PORT": "1",
           "CHROMA_OPEN_TELEMETRY__ENDPOINT": "x", "CHROMAKEEP_DATA": "x", "PATH": "x"}  # fmt: skip
    old = ["CHROMA_SERVER_AUTHN_PROVIDER", "IS_PERSISTENT", "PERSIST_DIRECTORY"]
    assert ignored_variables(env, with_config=True) == old
    assert set(ignored_variables(env, with_config=False)) == {*old, "CHROMA_PORT", "CHROMA_OPEN_TELEMETRY__ENDPOINT"}
