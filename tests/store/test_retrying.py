"""RetryingStore and MeteredStore around a store that fails to order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from chromakeep.addresses import parse
from chromakeep.errors import ObjectExists, ObjectNotFound, StoreDenied, StoreUnavailable
from chromakeep.events import Event, Retried
from chromakeep.store.base import ObjectInfo, brisk
from chromakeep.store.cloud import CloudStore
from chromakeep.store.memory import MemoryStore
from chromakeep.store.metered import MeteredStore
from chromakeep.store.retrying import RetryingStore
from chromakeep.testing.faults import FaultyStore

KEYS = {"access_key_id": "test", "secret_access_key": "test"}


class Watcher:
    """Keeps the Retried events."""

    def __init__(self) -> None:
        self.seen: list[Retried] = []

    def __call__(self, event: Event) -> None:
        assert isinstance(event, Retried)
        self.seen.append(event)


def test_every_verb_gets_through_passing_faults() -> None:
    """Three faults in a row are survived by each verb; each is reported with what, why, which attempt and the wait."""
    for verb in ("put", "put-if-absent", "get", "head", "list", "delete"):
        inner = MemoryStore()
        inner.put("a", b"1")
        watcher = Watcher()
        faulty = FaultyStore(inner, unavailable=3)
        store = RetryingStore(faulty, first_delay=0.001, observer=watcher)
        if verb == "put":
            store.put("b", b"2")
            assert inner.get("b") == b"2"
        elif verb == "put-if-absent":
            store.put("b", b"2", if_absent=True)
            assert inner.get("b") == b"2"
        elif verb == "get":
            assert store.get("a", start=0, length=1) == b"1"
        elif verb == "head":
            assert store.head("a").size == 1
        elif verb == "list":
            assert [o.name for o in store.list("a")] == ["a"]
        else:
            store.delete("a")
            assert list(inner.list()) == []
        assert [call.verb for call in faulty.calls] == [verb] * 4
        assert [event.attempt for event in watcher.seen] == [1, 2, 3]
        assert [event.error for event in watcher.seen] == [f"injected fault {n} of 3" for n in (1, 2, 3)]
        assert all(event.what.startswith(verb.split("-")[0]) for event in watcher.seen)


def test_waits_grow_and_are_bounded() -> None:
    """The n-th wait lies between half of first_delay * 2**(n-1) and that, cut at longest_delay."""
    watcher = Watcher()
    store = RetryingStore(
        FaultyStore(MemoryStore(), unavailable=6), first_delay=0.001, longest_delay=0.008, observer=watcher
    )
    store.put("a", b"1")
    for event, longest in zip(watcher.seen, (0.001, 0.002, 0.004, 0.008, 0.008, 0.008), strict=True):
        assert longest / 2 <= event.delay <= longest


def test_attempts_and_time_are_bounded() -> None:
    """The last error is raised when the attempts are used up, or the next wait would go beyond the total."""
    faulty = FaultyStore(MemoryStore(), unavailable=99)
    with pytest.raises(StoreUnavailable, match="injected fault 4 of 99"):
        RetryingStore(faulty, attempts=4, first_delay=0.001).get("a")
    watcher = Watcher()
    with pytest.raises(StoreUnavailable):
        RetryingStore(FaultyStore(MemoryStore(), unavailable=99), total=5.0, first_delay=20.0, observer=watcher).get(
            "a"
        )
    assert watcher.seen == []


def test_a_brisk_one_gives_up_soon() -> None:
    """Two attempts, whatever the patience of the store that it was made of; the store below is asked for less, too."""
    faulty = FaultyStore(MemoryStore(), unavailable=3)
    watcher = Watcher()
    with pytest.raises(StoreUnavailable):
        brisk(RetryingStore(faulty, attempts=8, observer=watcher)).put("a", b"1")
    assert len(watcher.seen) == 1
    cloud = CloudStore(parse("s3://bucket/there?endpoint=http://127.0.0.1:1&region=us-east-1"), options=KEYS)
    store = brisk(RetryingStore(cloud))
    assert isinstance(store, RetryingStore) and isinstance(store.inner, CloudStore) and store.inner is not cloud
    assert store.inner.address == cloud.address
    memory = MemoryStore()
    assert brisk(memory) is memory


def test_stop_ends_the_waiting() -> None:
    """When the caller is told to stop, no wait of an hour keeps it."""
    stop = threading.Event()
    stop.set()
    faulty = FaultyStore(MemoryStore(), unavailable=99)
    with pytest.raises(StoreUnavailable):
        RetryingStore(faulty, first_delay=3600, longest_delay=3600, total=9e9, stop=stop).get("a")
    assert len(faulty.calls) == 1


@pytest.mark.parametrize("error", [StoreDenied("no"), ObjectNotFound("a"), ObjectExists("a"), ValueError("bug")])
def test_what_will_not_pass_is_not_tried_again(error: Exception) -> None:
    """Anything but StoreUnavailable goes straight to the caller."""
    faulty = FaultyStore(MemoryStore(), fail_at=1, error=error)
    with pytest.raises(type(error)):
        RetryingStore(faulty).get("a")
    assert len(faulty.calls) == 1


def test_a_conditional_put_whose_answer_was_lost_has_succeeded() -> None:
    """The repeated put finds its own object: same bytes, so it is ours; other bytes are another writer's."""
    inner = MemoryStore()
    RetryingStore(FaultyStore(inner, fail_at=1, after=True), first_delay=0.001).put("a", b"mine", if_absent=True)
    assert inner.get("a") == b"mine"

    inner.put("b", b"theirs")
    with pytest.raises(ObjectExists):
        RetryingStore(FaultyStore(inner, fail_at=1), first_delay=0.001).put("b", b"mine", if_absent=True)
    with pytest.raises(ObjectExists):  # no answer was lost: equal bytes or not, somebody else was first
        RetryingStore(inner).put("b", b"theirs", if_absent=True)
    assert inner.get("b") == b"theirs"


def test_an_object_deleted_between_the_answers_is_put_again() -> None:
    """If the object that a repeated put met is gone when it is read, the put is neither done nor refused: again."""

    class Vanishing(MemoryStore):
        def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
            self.delete(name)
            return super().get(name, start=start, length=length)

    inner = Vanishing()
    inner.put("a", b"theirs")
    store = RetryingStore(FaultyStore(inner, fail_at=1), first_delay=0.001)
    store.put("a", b"mine", if_absent=True)
    assert MemoryStore.get(inner, "a") == b"mine"


def test_a_listing_that_breaks_off_goes_on_where_it_was() -> None:
    """Each name is given once and in order, however often the listing below breaks off."""

    class Breaking(MemoryStore):
        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            for n, info in enumerate(super().list(prefix), 1):
                if n % 3 == 0 and info.name not in broke:
                    broke.add(info.name)
                    raise StoreUnavailable("the connection broke")
                yield info

    broke: set[str] = set()
    inner = Breaking()
    names = [f"{n:02d}" for n in range(20)]
    for name in names:
        inner.put(name, b"1")
    store = RetryingStore(inner, first_delay=0.001)
    assert [o.name for o in store.list()] == names
    assert len(broke) == 6


def test_calls_and_bytes_are_counted() -> None:
    """Calls are counted by verb, failed ones too; bytes only where they arrived."""
    store = MeteredStore(FaultyStore(MemoryStore(), fail_at=1))
    with pytest.raises(StoreUnavailable):
        store.put("a", b"12345")
    store.put("a", b"12345")
    store.get("a", start=1, length=2)
    with pytest.raises(ObjectNotFound):
        store.get("b")
    store.head("a")
    list(store.list())
    store.delete("a")
    assert store.calls == {"put": 2, "get": 2, "head": 1, "list": 1, "delete": 1}
    assert (store.sent, store.received) == (5, 2)
