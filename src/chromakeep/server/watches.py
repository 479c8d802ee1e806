"""Watches of keys: what a body must not say with this one. See ``shield`` for what nobody's may."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chromakeep.server.fields import Malformed
from chromakeep.server.gathered import Gathered
from chromakeep.server.guard import Watch


class Sized:
    """Of a body whose length is not known before: no more than a key's may have."""

    records: int | None = None

    def __init__(self, most: int) -> None:
        self._left, self._most = most, most

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        """All of it, as long as there is not too much."""
        self._left -= len(payload)
        if self._left < 0:
            raise Malformed(f"a body of more than {self._most} bytes, which is what this key may send", 413)
        return payload


class _Names(msgspec.Struct):
    name: str | None = None
    new_name: str | None = None
    output_collection: str | None = None


_NAMES = msgspec.json.Decoder(_Names)


class Named(Gathered):
    """Of a body that names a collection: only one that the key may touch.

    What is not plainly an object with such a name in it is refused, although Chroma might read one there (it takes an
    array for an object, field by field). A name that stands there twice it refuses itself.
    """

    def __init__(self, member: str, permitted: Callable[[str], bool]) -> None:
        """``member`` of the JSON object is the name."""
        super().__init__()
        self._member, self._permitted = member, permitted

    def look(self, body: bytes) -> None:
        """Raises ``Malformed`` with 403."""
        name = getattr(_NAMES.decode(body), self._member)
        if name is not None and not self._permitted(name):
            raise Malformed(f"this key may not touch a collection named {name[:100]!r}", 403)


class Together:
    """Several, one after the other."""

    def __init__(self, watches: list[Watch]) -> None:
        self._watches = watches

    @property
    def records(self) -> int | None:
        """What one of them counted."""
        return next((w.records for w in self._watches if w.records is not None), None)

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        """What all let pass."""
        for watch in self._watches:
            payload = watch.feed(payload, last=last)
        return payload


def together(*watches: Watch | None) -> Watch | None:
    """One of those there are, None for none."""
    some = [watch for watch in watches if watch is not None]
    return Together(some) if len(some) > 1 else some[0] if some else None
