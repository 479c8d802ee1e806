"""Interleavings: actors that share a store, each of which goes on by so many steps at a time, or dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from chromakeep.store.base import ObjectInfo, Store
from chromakeep.testing.faults import Died

PATIENCE = 60.0  # seconds for an actor to come to its next step


class Stepping:
    """A store that is told before each call of another one."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    def _step(self) -> None:
        raise NotImplementedError("a subclass says what is done then")

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        self._step()
        self.inner.put(name, data, if_absent=if_absent)

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._step()
        return self.inner.get(name, start=start, length=length)

    def head(self, name: str) -> ObjectInfo:
        self._step()
        return self.inner.head(name)

    def delete(self, name: str) -> None:
        self._step()
        self.inner.delete(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._step()
        return self.inner.list(prefix)


class Actor(Stepping):
    """Runs ``work`` with a store of its own, in a thread, and stops before each step until it is told to go on.

    A step is a call of the store, and each further ``page`` of so many objects of a listing: a long one is not of one
    moment. ``result`` is what ``work`` returned, ``error`` what it raised.
    """

    def __init__(self, store: Store, work: Callable[[Store], object], *, page: int = 1000) -> None:
        super().__init__(store)
        self.page = page
        self.done, self.dead, self.steps = False, False, 0
        self.result: object = None
        self.error: BaseException | None = None
        self._work, self._allowed, self._waiting = work, 0, 0
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def go(self, steps: int | None = None) -> bool:
        """Go on by so many steps (None: to the end); whether it has ended."""
        with self._turn:
            self._allowed = 1 << 30 if steps is None else steps
            if self._thread.ident is None:
                self._thread.start()
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self.done or (self._waiting and not self._allowed), PATIENCE)
            return self.done

    def die(self) -> None:
        """It makes no further step."""
        with self._turn:
            self.dead = True
            self._turn.notify_all()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            self.result = self._work(self)
        except BaseException as error:
            self.error = error
        with self._turn:
            self.done = True
            self._turn.notify_all()

    def _step(self) -> None:
        with self._turn:
            self._waiting += 1
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._allowed or self.dead, PATIENCE)
            self._waiting -= 1
            if self.dead:
                raise Died
            self._allowed -= 1
            self.steps += 1
            self._turn.notify_all()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._step()
        found = list(self.inner.list(prefix))
        while page := found[: self.page]:
            yield from page
            if len(page) < len(found):
                self._step()
                found = [o for o in self.inner.list(prefix) if o.name > page[-1].name]
            else:
                break
