"""Crowd: who has to go when there are as many connections as there may be, and another one comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Protocol, TypeVar


class Idle(Protocol):
    """A connection on which nothing is under way."""

    @property
    def peer(self) -> str:
        """Its address."""

    @property
    def since(self) -> float:
        """When that began, by the loop's clock."""


W = TypeVar("W", bound=Idle)


def first_to_go(waiting: Collection[W]) -> W | None:
    """Of the address that keeps most of them waiting, the one that has waited longest: so no address keeps the others
    out, and behind a balancer, where all have the same one, the oldest goes."""
    kept = Counter(one.peer for one in waiting)
    return min(waiting, key=lambda one: (-kept[one.peer], one.since), default=None)
