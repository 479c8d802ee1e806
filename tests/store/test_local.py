"""LocalStore beyond the suite: the file system's own ways to fail."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromakeep.errors import DiskFull, ObjectNotFound, RepositoryNotFound, StoreDenied, StoreUnavailable, UsageError
from chromakeep.store.local import STALE_SECONDS, LocalStore
from chromakeep.store.memory import MemoryStore
from chromakeep.store.open import open_store
from chromakeep.store.probe import conditional_put_holds
from chromakeep.store.unconditional import HeadThenPut


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "root").mkdir()
    return LocalStore(tmp_path / "root")


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel lets this process write no file beyond 1 MiB (EFBIG; Python ignores the signal that goes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root: the mode of a directory counts."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_full_disk_leaves_what_was_there(store: LocalStore, small_files: None) -> None:
    """When the bytes do not fit, DiskFull is raised, the old object stays and no temporary file does."""
    store.put("packs/a", b"old")
    for if_absent in (False, True):
        with pytest.raises(DiskFull) as caught:
            store.put("packs/b" if if_absent else "packs/a", bytes(2 << 20), if_absent=if_absent)
        assert caught.value.hint
    assert store.get("packs/a") == b"old"
    assert files(store.root) == ["packs/a"]


def test_no_permission_is_told(tmp_path: Path, nobody: None) -> None:
    """A directory we may not write or read raises StoreDenied, with the path and what to look at."""
    with pytest.raises(StoreDenied, match="permission denied") as caught:
        LocalStore("/").put("not-allowed", b"1")
    assert "owner" in str(caught.value.hint)
    with pytest.raises(StoreDenied):
        LocalStore("/").put("etc/shadow", b"1")
    with pytest.raises(StoreDenied):
        LocalStore("/etc").get("shadow")
    with pytest.raises(StoreDenied, match="permission denied"):
        open_store("/not-allowed/repository", create=True)


def test_a_root_that_vanished_is_not_written_beside(store: LocalStore) -> None:
    """With the disk unmounted, no verb takes the missing directory for an empty store, nor makes it."""
    store.root.rmdir()
    with pytest.raises(StoreUnavailable, match="no such directory"):
        store.put("a/b", b"1")
    with pytest.raises(StoreUnavailable):
        store.get("a/b")
    with pytest.raises(StoreUnavailable):
        store.head("a")
    with pytest.raises(StoreUnavailable):
        list(store.list())
    with pytest.raises(StoreUnavailable):
        store.delete("a/b")
    assert not store.root.exists()


def test_temporary_files_are_unseen_and_swept_when_stale(store: LocalStore) -> None:
    """What a killed put left is in no listing; the listing that finds it an hour old removes it, and no fresh one."""
    store.put("a/b", b"1")
    fresh, stale = store.root / "a" / "~fresh", store.root / "a" / "~stale"
    fresh.write_bytes(b"x")
    stale.write_bytes(b"x")
    os.utime(stale, (0, time.time() - STALE_SECONDS - 1))
    assert [o.name for o in store.list()] == ["a/b"]
    assert files(store.root) == ["a/b", "a/~fresh"]


def test_foreign_files_are_left_alone(store: LocalStore) -> None:
    """Files whose names are no object's, pipes and dangling links are neither listed nor touched nor waited for."""
    store.put("a", b"1")
    (store.root / "a file").write_text("x")
    (store.root / "ümlaut").mkdir()
    (store.root / "ümlaut" / "x").write_text("x")
    (store.root / "dangling").symlink_to("nowhere")
    os.mkfifo(store.root / "pipe")
    assert [o.name for o in store.list()] == ["a"]
    for name in ("pipe", "dangling"):
        with pytest.raises(ObjectNotFound):
            store.get(name)
    with pytest.raises(ObjectNotFound):
        store.head("pipe")
    assert (store.root / "a file").read_text() == "x"


def test_an_object_is_no_folder(store: LocalStore) -> None:
    """Unlike a bucket, a directory cannot hold both a and a/b: the second put says so, the first object stays."""
    store.put("a", b"1")
    for if_absent in (False, True):
        with pytest.raises(StoreDenied, match="not a directory"):
            store.put("a/b", b"2", if_absent=if_absent)
    store.put("c/d", b"3")
    with pytest.raises(StoreDenied, match="is a directory"):
        store.put("c", b"4")
    assert {o.name: store.get(o.name) for o in store.list()} == {"a": b"1", "c/d": b"3"}


def test_without_hard_links_the_exclusive_put_is_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT and some FUSE mounts have no hard links: that is told, and the probe answers False."""

    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", source, None, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreDenied, match="no hard links"):
        store.put("a", b"1", if_absent=True)
    assert files(store.root) == []
    assert not conditional_put_holds(store)
    HeadThenPut(store).put("a", b"1", if_absent=True)
    assert store.get("a") == b"1"


def test_a_folder_is_synced_once_when_it_is_made(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put syncs its file and its folder; new folders above cost one sync each, and only the first time."""
    synced: list[int] = []
    fsync = os.fsync

    def counted(fd: int) -> None:
        synced.append(fd)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    store.put("a/b/c", b"1")
    assert len(synced) == 4  # root (for a), a (for b), the file, b (for the file)
    store.put("a/b/d", b"1")
    store.put("a/b/e", b"2", if_absent=True)
    assert len(synced) == 8


CHILD = """
import itertools, sys
from chromakeep.store.local import LocalStore
store = LocalStore(sys.argv[1])
for n in itertools.count():
    store.put(f"o/{n % 5}", bytes([n % 256]) * 3_000_000)
    store.put(f"once/{n}", bytes([n % 256]) * 1_000_000, if_absent=True)
    print("put", flush=True)
"""


def test_a_killed_writer_leaves_whole_objects(store: LocalStore) -> None:
    """SIGKILL while objects are being written: every name that is listed is a whole object."""
    for delay in (0.02, 0.05, 0.09, 0.14):
        child = subprocess.Popen([sys.executable, "-c", CHILD, store.root], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = list(store.list())
        assert found
        for info in found:
            data = store.get(info.name)
            assert len(data) == info.size == (3_000_000 if info.name.startswith("o/") else 1_000_000)
            assert data == data[:1] * len(data)
            if info.name.startswith("once/"):
                store.delete(info.name)


def test_opening_a_directory(tmp_path: Path) -> None:
    """A missing directory is told unless it may be made; a file is no directory."""
    address = f"{tmp_path}/new/repository"
    with pytest.raises(RepositoryNotFound) as caught:
        open_store(address)
    assert "chromakeep init" in str(caught.value.hint)
    open_store(address, create=True).put("a", b"1")
    assert open_store(f"file://{address}").get("a") == b"1"
    (tmp_path / "file").write_text("x")
    for create in (False, True):
        with pytest.raises(UsageError, match="is a file"):
            open_store(f"{tmp_path}/file", create=create)
    for server in ("http://localhost:8000", "chroma-cloud://tenant/database", "postgresql://app@db/chroma"):
        with pytest.raises(UsageError, match="is a server"):
            open_store(server)


def test_memory_is_shared_by_name() -> None:
    """memory://name is one store for the whole process; memory:// is a new one each time."""
    open_store("memory://shared/by-name").put("a", b"1")
    assert open_store("memory://shared/by-name").get("a") == b"1"
    assert list(open_store("memory://shared/other").list()) == []
    assert isinstance(open_store("memory://"), MemoryStore)
    assert open_store("memory://") is not open_store("memory://")


def test_a_local_store_starts_without_the_cloud() -> None:
    """Opening a directory imports neither obstore nor anything else that costs a tenth of a second."""
    code = "import sys; from chromakeep.store.open import open_store; open_store('.'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"obstore", "cryptography", "rich", "chromadb", "numpy", "asyncio"} & set(modules)
