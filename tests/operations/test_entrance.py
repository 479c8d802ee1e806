"""Entrance: the keys of the moment, whatever becomes of the place where they lie."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from chromakeep.access.keys import Key, Keyring, mint
from chromakeep.errors import RefusedToServe, StoreUnavailable
from chromakeep.events import Event
from chromakeep.operations import entrance as module
from chromakeep.operations.entrance import Entrance


class Place:
    """A place of keys that tests break."""

    def __init__(self, *keys: Key) -> None:
        self.keys, self.looks = keys, 0
        self.error: Exception | None = None

    def mark(self) -> str:
        self.looks += 1
        if self.error:
            raise self.error
        return str(self.looks) if self.keys else ""

    def read(self) -> Keyring:
        return Keyring(self.keys)

    def put(self, key: Key) -> None: ...

    def end(self, key: Key, time: str, *, rotated: bool = False) -> None: ...

    def forget(self, key: Key) -> None: ...

    @contextmanager
    def changing(self, *, make: bool = False) -> Iterator[None]:
        yield


def until(what: object) -> None:
    deadline = time.monotonic() + 20
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a fault of ours"), OSError("disk")])
def test_keys_are_read_again_after_any_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Those read before stay meanwhile, it is told once, and a key that was revoked in between opens no more."""
    monkeypatch.setattr(module, "EVERY", 0.01)
    key, token = mint("a", "admin")
    place, told = Place(key), list[Event]()
    one = Entrance(lambda: place, "0.0.0.0", {}, accepted=False, observer=told.append)
    one.start()
    try:
        assert one.closed and one.ring and one.ring.find(token, time.time())
        place.error = error
        seen = place.looks
        until(lambda: place.looks > seen + 5)
        assert one.ring.find(token, time.time())
        assert len(told) == 1 and str(error) in str(told[0])
        place.keys, place.error = (replace(key, revoked="2001-01-01T00:00:00Z"),), None
        until(lambda: one.ring and not one.ring.find(token, time.time()))
    finally:
        one.stop()


def test_a_place_without_keys_on_an_open_address_is_refused() -> None:
    one = Entrance(Place, "0.0.0.0", {}, accepted=False, observer=lambda event: None)
    with pytest.raises(RefusedToServe):
        one.start()
    one.stop()


@pytest.mark.parametrize(("host", "who"), [("127.0.0.1", "this machine"), ("0.0.0.0", "0.0.0.0")])
def test_that_it_is_open_is_told(host: str, who: str) -> None:
    """The address of the keys may have been mistyped, and a proxy stand before this machine's own."""
    told = list[Event]()
    one = Entrance(Place, host, {}, accepted=who == host, observer=told.append)
    one.start()
    one.stop()
    assert who in str(told[0]) and "delete everything" in str(told[0])


@pytest.mark.parametrize("accepted", [False, True])
def test_of_keys_that_cannot_be_read_it_says_what_becomes_of_clients(accepted: bool) -> None:
    """Closed, also on this machine's own address; unless it was said that it is to be open."""
    place, told = Place(mint("a", "admin")[0]), list[Event]()
    place.error = StoreUnavailable("away")
    one = Entrance(lambda: place, "127.0.0.1", {}, accepted=accepted, observer=told.append)
    one.start()
    one.stop()
    assert ("it is open" if accepted else "nobody is let in") in str(told[0])
    assert one.ring is None or (accepted and not one.ring.keys)
