"""Fixtures of the operations' tests: real directories, made once, and repositories that hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chromakeep.chroma.capture import capture
from chromakeep.operations.backup import backup
from chromakeep.repository import Repository
from chromakeep.store.memory import MemoryStore
from operations.directories import everything, write_generations
from operations.worlds import World


@pytest.fixture(scope="session")
def generations(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three directories that chromadb wrote, at rest, each some changes after the one before. Not to be written to."""
    return write_generations(tmp_path_factory.mktemp("generations"))


@pytest.fixture(scope="session")
def captured(generations: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """What a capture of each generation holds, file by file: what a restore must bring back."""
    folder = tmp_path_factory.mktemp("captured")
    return [everything(capture(g, folder / g.name).path) for g in generations]


@pytest.fixture(scope="session")
def plain_world(generations: list[Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    """A repository without a password that holds every kind of object. Its store is to be copied, never changed."""
    return World.build(generations, tmp_path_factory.mktemp("plain"), None)


@pytest.fixture(scope="session")
def encrypted_world(generations: list[Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same, encrypted with two passwords."""
    return World.build(generations, tmp_path_factory.mktemp("encrypted"), "first password")


@pytest.fixture
def backed_up(generations: list[Path]) -> Callable[..., Repository]:
    """Makes a repository in memory with one snapshot of each generation asked for."""

    def make(*numbers: int, password: str | None = None) -> Repository:
        repository = Repository.create(MemoryStore(), password=password)
        for number in numbers:
            backup(generations[number], repository)
        return repository

    return make
