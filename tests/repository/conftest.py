"""Fixtures of the repository's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from repository.scenes import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Callable[[int], Scene]:
    """Makes scenes, each in a folder of its own."""

    def make(seed: int) -> Scene:
        folder = tmp_path / f"scene{seed}"
        folder.mkdir(exist_ok=True)
        return Scene(folder, seed)

    return make
