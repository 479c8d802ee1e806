"""A backend of plain sockets, doors in front of it, and clients of theirs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from chromakeep.server import Door
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
