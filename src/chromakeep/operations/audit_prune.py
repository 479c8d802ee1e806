"""Prune an audit log in a repository: old records go, and the chain says where it begins.

What is to go is verified first: a chain that was tampered with stays whole, as evidence. Then the beginning is put,
then the objects are deleted, oldest first, then older beginnings. Whoever dies in between has left a chain that
verifies, and the next prune goes on. An instance that ships meanwhile only adds objects behind.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from chromakeep.errors import CorruptObject, ObjectNotFound, RepositoryBusy
from chromakeep.operations.audit_chain import Break, Chain, Link
from chromakeep.operations.audit_objects import Beginning, Shelf, begin, instances, lines_in, shelf_of
from chromakeep.store.base import ObjectInfo

if TYPE_CHECKING:
    from chromakeep.repository import Repository


class PrunedChain(msgspec.Struct, frozen=True):
    """One instance: records ``first`` to ``last`` are gone by this prune, ``hash`` is the last one's."""

    instance: str
    first: int
    last: int
    hash: str


class AuditPruneReport(msgspec.Struct, frozen=True):
    """What went, in objects and bytes as stored. ``problems``: chains of which nothing goes, for they do not verify."""

    chains: tuple[PrunedChain, ...]
    deleted_objects: int
    freed_bytes: int
    problems: tuple[Break, ...]
    dry_run: bool


def prune(
    repository: Repository, within: float, *, dry_run: bool = False, now: float | None = None
) -> AuditPruneReport:
    """Remove the objects that were put more than ``within`` seconds before ``now``: no younger record is in one.

    Raises ``RepositoryBusy`` where another prune takes the same objects away.
    """
    limit = (time.time() if now is None else now) - within
    chains: list[PrunedChain] = []
    problems: list[Break] = []
    objects = freed = 0
    for instance in instances(repository):
        shelf = shelf_of(repository, instance)
        gone = list(shelf.left)
        if old := _old(shelf, limit):
            chain, last = _verified(repository, instance, shelf, old)
            if chain.broken or last is None:
                problems.append(chain.broken or Break(old[0].name, 0, "holds no record"))
                old = []
            else:
                chains.append(PrunedChain(instance, shelf.begins.number, last.number, last.hash))
                if not dry_run:
                    begin(repository, instance, Beginning(last.number + 1, last.hash))
                gone += [*(one.name for one in old), *([shelf.mark] if shelf.mark else [])]
        objects, freed = objects + len(gone), freed + sum(one.size for one in old)
        if not dry_run:
            for name in gone:
                repository.store.delete(name)
    return AuditPruneReport(tuple(chains), objects, freed, tuple(problems), dry_run)


def _old(shelf: Shelf, limit: float) -> list[ObjectInfo]:
    """From the beginning on, up to the first that is young enough."""
    found: list[ObjectInfo] = []
    for one in shelf.objects:
        if one.modified >= limit:
            break
        found.append(one)
    return found


def _verified(repository: Repository, instance: str, shelf: Shelf, old: list[ObjectInfo]) -> tuple[Chain, Link | None]:
    """The chain of what is to go and of the first object that stays, and the last record of what is to go."""
    chain, last = Chain(instance, shelf.begins.number, shelf.begins.previous), None
    try:
        for one in shelf.objects[: len(old) + 1]:
            for number, line in enumerate(lines_in(repository, one.name), 1):
                chain.take(one.name, number, line)
            chain.end()
            if one is old[-1]:
                last = chain.last
    except CorruptObject as error:
        chain.broken = chain.broken or Break(error.name, 0, error.message)
    except ObjectNotFound:
        raise RepositoryBusy("another prune takes the audit log away", hint="let it finish") from None
    return chain, last
