"""MemoryStore: objects in a dictionary, for tests and trials."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from chromakeep.errors import ObjectExists, ObjectNotFound
from chromakeep.store.base import ObjectInfo
from chromakeep.store.names import checked, checked_prefix


class MemoryStore:
    """A Store whose objects end with it. ``list`` shows the moment at which it was called."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        kept = (bytes(data), time.time())
        with self._lock:
            if if_absent and name in self._objects:
                raise ObjectExists(name)
            self._objects[checked(name)] = kept

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        data, _ = self._find(name)
        return data[start:] if length is None else data[start : start + length]

    def head(self, name: str) -> ObjectInfo:
        data, modified = self._find(name)
        return ObjectInfo(name, len(data), modified)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        checked_prefix(prefix)
        with self._lock:
            found = [ObjectInfo(n, len(d), t) for n, (d, t) in self._objects.items() if n.startswith(prefix)]
        return iter(sorted(found, key=lambda o: o.name))

    def delete(self, name: str) -> None:
        with self._lock:
            self._objects.pop(checked(name), None)

    def _find(self, name: str) -> tuple[bytes, float]:
        try:
            return self._objects[checked(name)]
        except KeyError:
            raise ObjectNotFound(name) from None
