"""The seam to object storage: five verbs over named, immutable byte strings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import msgspec


class ObjectInfo(msgspec.Struct, frozen=True):
    """What a listing tells of an object. ``modified`` is seconds since the epoch *by the store's own clock*."""

    name: str
    size: int
    modified: float


class Store(Protocol):
    """Objects by name: ``/``-separated segments of ASCII letters, digits and ``._-`` (``chromakeep.store.names``).

    Guarantees every implementation gives and ``chromakeep.testing.StoreSuite`` tests:

    * ``put`` is atomic: a reader sees the whole object or none; when it returns, the object is durable.
    * A finished ``put`` or ``delete`` is seen by every later call, ``list`` included.
    * All methods may be called from several threads.
    * Errors are of the ``StoreError`` family only: ``ObjectNotFound``, ``ObjectExists``, ``StoreDenied`` (no use
      trying again; bad names too), ``StoreUnavailable`` (may pass) - and ``DiskFull``, where the store is a disk.

    And what it does not give: after ``StoreUnavailable`` a ``put`` or ``delete`` may have happened, or may still
    happen. No name is at once an object and the folder of others (``a`` and ``a/b``): a file system cannot.
    """

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write an object. With ``if_absent`` raise ``ObjectExists`` and change nothing if the name is taken.

        Of several concurrent ``if_absent`` puts of one name exactly one returns, where the store can do that at all
        (``chromakeep.store.probe`` finds out).
        """

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read ``length`` bytes from ``start`` (to the end when None). Past the end there are simply fewer bytes."""

    def head(self, name: str) -> ObjectInfo:
        """Name, size and time of one object."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose name starts with ``prefix`` (any string, not only a folder), sorted by name.

        What is put or deleted while the listing is read may be in it or not. Foreign things whose names no object can
        have are left out.
        """

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is removed already."""


@runtime_checkable
class Brisk(Protocol):
    """A store that can be had with less patience."""

    def brisk(self) -> Store:
        """The same objects; a call that hangs or fails is given up within seconds. For small objects, of those who try
        again by themselves, or have to say that it fails.
        """


def brisk(store: Store) -> Store:
    """As ``Brisk.brisk``; the store itself where it has no patience to lose."""
    return store.brisk() if isinstance(store, Brisk) else store
