"""What tests of a run start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    """The repository's folder."""
    path = tmp_path / "repository"
    path.mkdir()
    Repository.create(LocalStore(path))
    return path
