"""MeteredStore: counts calls and bytes by verb, around any Store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from chromakeep.store.base import ObjectInfo, Store


class MeteredStore:
    """A Store that counts what passes. ``calls`` counts attempts by verb (``put``, ``get``, ...), failed ones included;
    ``sent`` and ``received`` count the bytes of objects that were put and got. Thread-safe.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()
        self.sent = 0
        self.received = 0
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self._count("put")
        self.inner.put(name, data, if_absent=if_absent)
        self._count(sent=len(data))

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._count("get")
        data = self.inner.get(name, start=start, length=length)
        self._count(received=len(data))
        return data

    def head(self, name: str) -> ObjectInfo:
        self._count("head")
        return self.inner.head(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._count("list")
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self._count("delete")
        self.inner.delete(name)

    def _count(self, verb: str | None = None, *, sent: int = 0, received: int = 0) -> None:
        with self._lock:
            if verb:
                self.calls[verb] += 1
            self.sent += sent
            self.received += received
