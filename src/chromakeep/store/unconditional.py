"""HeadThenPut: ``if_absent`` for a store whose own conditional put does not hold. Not atomic."""

from __future__ import annotations

from collections.abc import Iterator

from chromakeep.errors import ObjectExists, ObjectNotFound
from chromakeep.store.base import ObjectInfo, Store


class HeadThenPut:
    """A Store that looks whether a name is taken and then puts without a condition.

    Two writers of one name may both return, and the later bytes stay: it finds a mistake, it does not settle a race.
    Whoever needs one winner among several writers must not rely on ``if_absent`` here.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        if if_absent:
            try:
                self.inner.head(name)
            except ObjectNotFound:
                pass
            else:
                raise ObjectExists(name)
        self.inner.put(name, data)

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(name, start=start, length=length)

    def head(self, name: str) -> ObjectInfo:
        return self.inner.head(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self.inner.delete(name)
