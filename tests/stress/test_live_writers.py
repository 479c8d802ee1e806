"""Snapshots under live writers are exact, all of them: a short run of what `make stress` does at length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT, SOURCE = Path(__file__).parent / "live_writers.py", Path(__file__).parents[2] / "src"


def prove(folder: Path, *options: str) -> None:
    path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, str(SCRIPT), *options], env=environment, check=False)
    assert done.returncode == 0, "see the table above; the evidence is kept where it says"


def test_a_few(tmp_path: Path) -> None:
    """10 captures under an embedded client, a server with four writer threads, and a database in WAL mode."""
    prove(tmp_path, "--snapshots", "10", "--only", "0", "1", "4", "--baseline", "0.3", "--seed", "11")


def test_a_few_with_writers_held(tmp_path: Path) -> None:
    """10 captures that do at once what the others do only when writers leave no gap: hold them and copy."""
    prove(tmp_path, "--snapshots", "10", "--only", "0", "1", "--baseline", "0.3", "--seed", "13", "--through", "held")


def test_a_few_through_a_repository(tmp_path: Path) -> None:
    """5 backups under the same writers, each restored and then compared."""
    prove(tmp_path, "--snapshots", "5", "--only", "0", "1", "--baseline", "0.3", "--seed", "12", "--through", "backup")
