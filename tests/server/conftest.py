"""A backend of plain sockets, doors in front of it, and clients of theirs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.engine import Engine
from chromakeep.server import Door
from chromakeep.server import door as door_module
from server.memory_engine import MemoryEngine
from server.wires import Backend, Wire


@pytest.fixture
def backend() -> Iterator[Backend]:
    one = Backend()
    yield one
    one.close()


@pytest.fixture
def open_door(backend: Backend) -> Iterator[Callable[..., Door]]:
    """Doors with the given options; stopped at the end."""
    made: list[Door] = []

    def make(**options: object) -> Door:
        door = Door("127.0.0.1", 0, backend.address, **options)  # type: ignore[arg-type]
        door.start()
        made.append(door)
        return door

    yield make
    for door in made:
        door.stop(0)


@pytest.fixture
def knock() -> Iterator[Callable[[Door], Wire]]:
    """New connections to a door."""
    made: list[Wire] = []

    def make(door: Door) -> Wire:
        made.append(Wire(socket.create_connection(("127.0.0.1", door.port))))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is not set no door looks at them: so a short one is not over before a test has done what it is for."""
    looked_at, expire = threading.Event(), door_module._expire
    monkeypatch.setattr(door_module, "_expire", lambda service: expire(service) if looked_at.is_set() else None)
    return looked_at


@pytest.fixture(scope="module", params=["memory", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The model in memory, and PostgreSQL."""
    if request.param == "memory":
        yield MemoryEngine()
        return
    from chromakeep.postgres.embedded import Embedded
    from chromakeep.postgres.engine import PostgresEngine

    server = Embedded(tmp_path_factory.mktemp("postgresql"), memory=1 << 30)
    server.start()
    made = PostgresEngine(server.url)
    yield made
    made.close()
    server.stop()


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Of the stock server, and of the door in front of another."""
    base = tmp_path_factory.mktemp("twins")
    env = dict(os.environ)
    with ChromaServer(base / "stock", env=env) as stock, ChromaServer(base / "behind", env=env) as behind:
        door = Door("127.0.0.1", 0, ("127.0.0.1", behind.options.port))
        door.start()
        yield stock.options.port, door.port
        door.stop(0)
