"""Snapshots under live writers are exact, all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT, SOURCE = Path(__file__).parent / "live_writers.py", Path(__file__).parents[2] / "src"


def prove(folder: Path, *options: str) -> None:
    path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, str(SCRIPT), *options], env=environment, check=False)
    assert done.returncode == 0, "see the table above; the evidence is kept where it says"


def test_a_few(tmp_path: Path) -> None:
    """20 captures under an embedded client, a server with four writer threads, and a database in WAL mode."""
    prove(tmp_path, "--snapshots", "20", "--only", "0", "1", "4", "--baseline", "0.3", "--seed", "11")


def test_a_few_through_a_repository(tmp_path: Path) -> None:
    """8 backups under the same writers, each restored and then compared."""
    prove(tmp_path, "--snapshots", "8", "--only", "0", "1", "--baseline", "0.3", "--seed", "12", "--through", "backup")


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("through", "snapshots"), [("capture", 500), ("backup", 100)])
def test_hundreds(tmp_path: Path, through: str, snapshots: int) -> None:
    """500 captures, and 100 backups with their restores, in all modes."""
    prove(tmp_path, "--snapshots", str(snapshots), "--seed", "1", "--through", through)
