"""Fixtures with real data directories: of old versions, of random operations, and torn by a kill inside a persist."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from chroma import directories
from chromakeep.chroma import scan, spool
from chromakeep.chroma.server import ChromaServer

OLD = Path(__file__).parent.parent / "data" / "old-versions"


@contextmanager
def spooled(rows: int = 7) -> Iterator[None]:
    """Whatever the length of a list: in a file, and looked at ``rows`` rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY", 0)
        patch.setattr(spool, "AT_ONCE", rows)
        patch.setattr(scan, "RANGE", rows)
        patch.setattr(scan, "PORTION", max(1, rows // 2))
        yield


@pytest.fixture(scope="session")
def old_version(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """Of a version: a directory it wrote, not to be changed, and collection -> id -> [vector, document, metadata]."""
    root = tmp_path_factory.mktemp("old")

    def extract(version: str) -> tuple[Path, dict[str, Any]]:
        directory = root / f"chroma-{version}"
        if not directory.exists():
            with tarfile.open(OLD / f"chroma-{version}.tar.gz") as tar:
                tar.extractall(root)
        return directory, json.loads(gzip.decompress((OLD / f"chroma-{version}.expected.json.gz").read_bytes()))

    return extract


class Known(NamedTuple):
    """A directory, not to be changed, and what ``collection.get`` of a fresh process returns by collection id."""

    directory: Path
    collections: dict[str, dict[str, Any]]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder, not to be changed, that whichever of pytest's processes needs it first makes; others wait for it."""
    import fcntl

    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder, making = base / name, base / f"{name}.making"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make(making)
            making.rename(folder)
    return folder


@pytest.fixture(scope="session")
def random_directories(tmp_path_factory: pytest.TempPathFactory) -> list[Known]:
    """Fourteen directories of random operations, thresholds, spaces, dimensions and metadata types."""
    names = [str(seed) for seed in range(14)]

    def make(root: Path) -> None:
        made, copies = [root / name for name in names], [root / f"{name}-opened" for name in names]
        directories.run("make_random", *made)
        for path, copy in zip(made, copies, strict=True):
            shutil.copytree(path, copy)
        directories.run("read_all", root / "found", *copies)

    root = once(tmp_path_factory, "random", make)
    found = {Path(opened).name: known for opened, known in pickle.loads((root / "found").read_bytes()).items()}
    return [Known(root / name, found[f"{name}-opened"]) for name in names]


@pytest.fixture(scope="session")
def torn_scene(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """By space and kind of operations: ``queued`` and ``after``, directories around a persist; not to be changed."""

    def make(space: str, operations: str) -> Path:
        def scene(root: Path) -> None:
            directories.run("make_torn_scene", root, space, operations)

        return once(tmp_path_factory, f"torn-{space}-{operations}", scene)

    return make


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty server."""
    with ChromaServer(tmp_path_factory.mktemp("data"), env=dict(os.environ)) as server:
        yield f"http://127.0.0.1:{server.options.port}"
