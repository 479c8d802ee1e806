"""The horizon: where the log begins. Before it segments may be gone, and no state is reached through them; from it on
each of them is there.

``log/horizon/<epoch>-<number>`` is put before anything is taken away, so a reader can tell what was removed on purpose
from what is missing. It only moves on: of several the farthest counts.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from chromakeep.errors import CorruptObject, MissingObject, ObjectExists, ObjectNotFound
from chromakeep.repository.repository import Repository
from chromakeep.repository.sealed import unseal

PREFIX = "log/horizon/"
TRIES = 4
Position = tuple[int, int]  # epoch, and number of the first segment that is needed
START: Position = (0, 0)


class Mark(msgspec.Struct, frozen=True):
    """The object. It says what its name says, so that a name alone is not believed."""

    epoch: int
    number: int


_DECODER = msgspec.json.Decoder(Mark)


def name_of(position: Position) -> str:
    """The name of a horizon's object."""
    return f"{PREFIX}{position[0]:08d}-{position[1]:010d}"


def read(repository: Repository) -> Position:
    """The horizon; ``START`` where nothing of the log was ever taken away. Raises ``CorruptObject``."""
    for _ in range(TRIES):
        found = [o.name for o in repository.store.list(PREFIX)]
        if not found:
            return START
        with suppress(ObjectNotFound):  # a prune put a farther one and removed this
            return read_one(repository, found[-1])
    raise MissingObject(found[-1], hint="check the repository: chromakeep check REPO")


def read_one(repository: Repository, name: str) -> Position:
    """What one object says. Raises ``CorruptObject``, ``ObjectNotFound``."""
    payload = unseal("R", name, repository.store.get(name), repository.keys)
    try:
        mark = _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptObject(name, f"is no horizon of the log ({error})") from None
    if name_of((mark.epoch, mark.number)) != name:
        raise CorruptObject(name, "says something else than its name")
    return mark.epoch, mark.number


def declare(repository: Repository, position: Position) -> None:
    """From now on nobody relies on what is before ``position``. Durable when this returns."""
    with suppress(ObjectExists):
        repository.put_sealed("R", name_of(position), msgspec.json.encode(Mark(*position)))
