"""The command line as a user runs it: a process of its own, in an empty directory, with a clean environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
BUILD = """
import sys
import chromadb
import pyarrow.parquet as pq
path, sample = sys.argv[1:]
client = chromadb.PersistentClient(path)
for name, count in (("books", 300), ("laws", 150)):
    rows = pq.read_table(f"{sample}/{name}.parquet").slice(0, count).to_pydict()
    metadatas = [{"source": s, "part": p} for s, p in zip(rows["source"], rows["part"])]
    client.create_collection(name, configuration={"hnsw": {"sync_threshold": 100}}).add(
        ids=rows["id"], embeddings=rows["embedding"], documents=rows["document"], metadatas=metadatas
    )
"""


class Cli:
    """Runs ``chromakeep`` in ``cwd``; ``environ`` is what every call gets beside a clean environment."""

    def __init__(self, cwd: Path, environ: Mapping[str, str]) -> None:
        self.cwd = cwd
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CHROMAKEEP_", "_CHROMAKEEP", "AWS_"))}
        self.environ = {**kept, "PYTHONPATH": str(ROOT / "src"), "HOME": str(cwd), "COLUMNS": "100", **environ}

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "chromakeep", *map(str, arguments)]

    def __call__(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, **extra: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.cwd,
            env={**self.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **extra,
        )

    def json(self, *arguments: str | Path, status: int = 0, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The one object on stdout of a command with ``--json`` that ends with ``status``."""
        done = self(*arguments, "--json", env=env)
        assert done.returncode == status, done.stderr
        assert done.stdout.count("\n") == 1, done.stdout
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def fails(self, status: int, *arguments: str | Path, env: Mapping[str, str] | None = None, **extra: Any) -> str:
        """Stderr of a command that must fail with ``status``: one line, and at most one hint, of ours."""
        done = self(*arguments, env=env, **extra)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert 1 <= len(lines) <= 2, done.stderr
        assert lines[0].startswith("chromakeep: ")
        assert all(line.startswith("  hint: ") for line in lines[1:])
        return done.stderr


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path, {})


@pytest.fixture(scope="session")
def chroma_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Chroma directory of 450 records, with HNSW files and a queue, that nobody has open. Do not write to it."""
    path = tmp_path_factory.mktemp("source") / "chroma"
    subprocess.run([sys.executable, "-c", BUILD, path, ROOT / "sample"], check=True, timeout=120)
    return path


@pytest.fixture
def chroma(chroma_source: Path, cli: Cli) -> Path:
    """A copy of that directory as ``./chroma``."""
    return Path(shutil.copytree(chroma_source, cli.cwd / "chroma"))


@pytest.fixture(scope="session")
def kept_source(tmp_path_factory: pytest.TempPathFactory, chroma_source: Path) -> Path:
    """A repository with one snapshot of that directory."""
    place = Cli(tmp_path_factory.mktemp("kept"), {})
    assert place("init", "keep").returncode == 0
    assert place("backup", chroma_source, "keep").returncode == 0
    return place.cwd / "keep"


@pytest.fixture
def kept(cli: Cli, chroma: Path, kept_source: Path) -> Path:
    """``./keep`` with one snapshot of ``./chroma``."""
    return Path(shutil.copytree(kept_source, cli.cwd / "keep"))
