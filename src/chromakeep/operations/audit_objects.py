"""The audit log's objects in a repository: ``audit/<instance>/<number of its first record>``, and where they begin.

``audit/<instance>/<number>.begin`` is put before anything is taken away: records before that number may be gone on
purpose, from it on each is there. It says the hash of the last one before, so the chain still has a beginning that can
be verified. It only moves on: of several the farthest counts.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from chromakeep.errors import CorruptObject, ObjectExists, ObjectNotFound, RepositoryBusy, VerificationFailed
from chromakeep.operations.audit_chain import NOTHING, Wrong, read
from chromakeep.repository.sealed import unseal
from chromakeep.store.base import ObjectInfo

if TYPE_CHECKING:
    from chromakeep.repository import Repository

FOLDER, KIND, BEGINS = "audit/", "U", "V"
END = ".begin"
TRIES = 4  # of reading what prunes take away
_NAME = re.compile(rf"{FOLDER}([0-9a-f]{{16}})/([0-9]{{10}})({re.escape(END)})?", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Beginning(msgspec.Struct, frozen=True):
    """The first record that is there, and the hash of the one before. ``START`` where nothing was ever removed."""

    number: int
    previous: str


START = Beginning(1, NOTHING)
_DECODER = msgspec.json.Decoder(Beginning)


class Shelf(msgspec.Struct, frozen=True):
    """One instance's objects in the order of their records. ``left``: what a prune that died has yet to delete."""

    begins: Beginning
    objects: tuple[ObjectInfo, ...]
    left: tuple[str, ...]
    mark: str | None  # the object that says where it begins

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.objects]


def name_of(instance: str, first: int) -> str:
    """The name of the object that begins with this record."""
    return f"{FOLDER}{instance}/{first:010d}"


def number_of(name: str) -> int:
    """The first record of the object of this name."""
    return int(name.removesuffix(END).rpartition("/")[2])


def instances(repository: Repository) -> list[str]:
    """All that have shipped anything. Foreign names are left out."""
    found = (_NAME.fullmatch(info.name) for info in repository.store.list(FOLDER))
    return list(dict.fromkeys(match[1] for match in found if match))


def shelf_of(repository: Repository, instance: str) -> Shelf:
    """What there is of one. Raises ``CorruptObject`` for a damaged beginning, ``RepositoryBusy``."""
    for _ in range(TRIES):
        objects: list[ObjectInfo] = []
        marks: list[str] = []
        for info in repository.store.list(f"{FOLDER}{instance}/"):
            match = _NAME.fullmatch(info.name)
            if match and match[3]:
                marks.append(info.name)
            elif match:
                objects.append(info)
        try:
            begins = beginning(repository, marks[-1]) if marks else START
        except ObjectNotFound:  # a prune has put a farther one meanwhile, and removed this
            continue
        kept = tuple(one for one in objects if number_of(one.name) >= begins.number)
        gone = [one.name for one in objects if number_of(one.name) < begins.number]
        return Shelf(begins, kept, (*gone, *marks[:-1]), marks[-1] if marks else None)
    raise RepositoryBusy("prunes take the audit log away", hint="let them finish")


def beginning(repository: Repository, name: str) -> Beginning:
    """What one of them says. Raises ``CorruptObject``, ``ObjectNotFound``."""
    payload = unseal(BEGINS, name, repository.store.get(name), repository.keys)
    try:
        found = _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptObject(name, f"is no beginning of an audit log ({error})") from None
    if found.number != number_of(name) or found.number < 2 or not _HASH.fullmatch(found.previous):
        raise CorruptObject(name, "says something else than its name")
    return found


def begin(repository: Repository, instance: str, begins: Beginning) -> None:
    """From now on nobody misses what is before it. Durable when this returns. Raises ``VerificationFailed`` where
    another one said so of another chain."""
    name = name_of(instance, begins.number) + END
    try:
        repository.put_sealed(BEGINS, name, msgspec.json.encode(begins))
    except ObjectExists:
        if beginning(repository, name) != begins:
            raise VerificationFailed(f"{name}: is the beginning of another audit log") from None


def lines_in(repository: Repository, name: str) -> list[bytes]:
    """The lines of an object, without their newlines. Raises ``CorruptObject``, ``ObjectNotFound``."""
    return unseal(KIND, name, repository.store.get(name), repository.keys).removesuffix(b"\n").split(b"\n")


def last_shipped(repository: Repository, instance: str) -> tuple[int, str]:
    """Number and hash of the last record that was ever there; 0 where there was none. Raises ``CorruptObject``."""
    for _ in range(TRIES):
        shelf = shelf_of(repository, instance)
        if not shelf.objects:
            return shelf.begins.number - 1, shelf.begins.previous
        try:
            lines = lines_in(repository, shelf.names[-1])
        except ObjectNotFound:  # a prune has taken it meanwhile
            continue
        for line in reversed(lines):
            with suppress(Wrong):
                link = read(line)
                return link.number, link.hash
        raise CorruptObject(shelf.names[-1], "holds no record")
    raise RepositoryBusy("prunes take the audit log away", hint="let them finish")
