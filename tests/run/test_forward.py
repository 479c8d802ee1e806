"""Instances that know each other's doors: a write is taken at any of them, done by one, and acknowledged by that one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.server import free_port
from chromakeep.errors import ServerAnswered
from chromakeep.operations.elsewhere import Forwarding
from chromakeep.operations.keyring import create as create_key
from chromakeep.operations.key_places import InRepository
from chromakeep.repository import Repository
from chromakeep.repository.lease import holder
from chromakeep.server.front import open_door
from chromakeep.store.local import LocalStore
from run.running import DATABASE, Running, add, create, eventually, kill, process, running
from run.test_standby import page, serving

SYNC: dict[str, Any] = {"every": 3600.0, "door": open_door, "durability": "sync"}


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    """The repository's folder."""
    path = tmp_path / "repository"
    path.mkdir()
    Repository.create(LocalStore(path))
    return path
