"""FaultyStore: a Store that fails on purpose, at exactly the call it was told to. Deterministic."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from chromakeep.errors import StoreUnavailable
from chromakeep.store.base import ObjectInfo, Store


class Died(BaseException):
    """The process is dead as far as the store can tell. No ``except Exception`` of the code under test catches it."""


class Call(msgspec.Struct, frozen=True):
    """The ``number``-th call (from 1) that a FaultyStore received."""

    number: int
    verb: str
    name: str


Damage = Callable[[bytes], bytes]


def flipped(bit: int) -> Damage:
    """Flip one bit, counted from the start or, if negative, from the end of the object; an empty object stays so."""

    def damage(data: bytes) -> bytes:
        if not data:
            return data
        at = bit % (8 * len(data))
        changed = bytearray(data)
        changed[at // 8] ^= 1 << (at % 8)
        return bytes(changed)

    return damage


def truncated(keep: int) -> Damage:
    """Keep the first ``keep`` bytes; if negative, all but the last ``-keep``."""
    return lambda data: data[:keep]


class FaultyStore:
    """Wraps a Store. Counts every call and keeps it in ``calls``, so a test can first count them in a clean run and
    then fail at each one in turn::

        clean = FaultyStore(MemoryStore()); operate(clean)
        for n in range(1, len(clean.calls) + 1):
            store = FaultyStore(inner := MemoryStore(), die_at=n)
            with pytest.raises(Died): operate(store)
            # whatever is in `inner` now is what a killed process leaves

    ``fail_at``: that call raises ``error``; ``die_at``: that call raises Died, and so does every later one. With
    ``after=True`` the call is performed first, and only its answer is lost. ``unavailable``: the first so many calls
    raise StoreUnavailable, unperformed. ``delay``: seconds before each call. ``ignore_if_absent``: a conditional put
    overwrites, as some S3 imitations do. ``damage(prefix, how)`` spoils what ``get`` returns of matching names; the
    stored object stays whole. A ``list`` is one call, made when it is asked for. Numbering is by arrival, so it is
    reproducible when the code under test calls in a fixed order.
    """

    def __init__(
        self,
        inner: Store,
        *,
        fail_at: int | None = None,
        error: Exception | None = None,
        die_at: int | None = None,
        after: bool = False,
        unavailable: int = 0,
        delay: float = 0.0,
        ignore_if_absent: bool = False,
    ) -> None:
        self.inner = inner
        self.calls: list[Call] = []
        self.dead = False
        self._fail_at, self._die_at, self._after = fail_at, die_at, after
        self._error = error or StoreUnavailable("injected fault")
        self._unavailable = unavailable
        self._delay = delay
        self._ignore_if_absent = ignore_if_absent
        self._damage: list[tuple[str, Damage]] = []
        self._lock = threading.Lock()

    def damage(self, prefix: str, how: Damage) -> None:
        """From now on, what is read of objects whose name starts with ``prefix`` is spoilt by ``how``."""
        self._damage.append((prefix, how))

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        with self._call("put-if-absent" if if_absent else "put", name):
            self.inner.put(name, data, if_absent=if_absent and not self._ignore_if_absent)

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        with self._call("get", name):
            damages = [how for prefix, how in self._damage if name.startswith(prefix)]
            if not damages:
                return self.inner.get(name, start=start, length=length)
            data = self.inner.get(name)  # the same damage to the object, whichever part of it is read
            for how in damages:
                data = how(data)
            return data[start : None if length is None else start + length]

    def head(self, name: str) -> ObjectInfo:
        with self._call("head", name):
            return self.inner.head(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._call("list", prefix):
            return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        with self._call("delete", name):
            self.inner.delete(name)

    @contextmanager
    def _call(self, verb: str, name: str) -> Iterator[None]:
        """One call: number it, and raise what was planned for it before or after its body."""
        with self._lock:
            if self.dead:
                raise Died
            call = Call(len(self.calls) + 1, verb, name)
            self.calls.append(call)
            fault: BaseException | None = None
            if call.number == self._die_at:
                fault = Died(call)
                self.dead = not self._after
            elif call.number == self._fail_at:
                fault = self._error
            elif call.number <= self._unavailable:
                raise StoreUnavailable(f"injected fault {call.number} of {self._unavailable}")
        if self._delay:
            time.sleep(self._delay)
        if fault is not None and not self._after:
            raise fault
        try:
            yield
        finally:
            if fault is not None:  # whatever the answer was, it is lost
                self.dead = isinstance(fault, Died)
                raise fault
