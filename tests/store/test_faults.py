"""FaultyStore fails exactly as it was told to, or the tests that rely on it prove nothing."""

from __future__ import annotations

import pytest

from chromakeep.errors import ObjectExists, ObjectNotFound, StoreUnavailable
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from chromakeep.store.probe import conditional_put_holds
from chromakeep.testing.faults import Call, Died, FaultyStore, flipped, truncated


def work(store: Store) -> None:
    """One call of each verb."""
    store.put("a", b"1")
    store.put("b", b"2", if_absent=True)
    store.get("a")
    store.head("b")
    list(store.list())
    store.delete("a")


VERBS = ["put", "put-if-absent", "get", "head", "list", "delete"]


def test_calls_are_numbered_and_kept() -> None:
    """A clean run gives the number, verb and name of every call."""
    store = FaultyStore(MemoryStore())
    work(store)
    assert [call.verb for call in store.calls] == VERBS
    assert store.calls[0] == Call(1, "put", "a")
    assert [call.number for call in store.calls] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("n", range(1, 7))
def test_death_comes_at_the_nth_call_and_stays(n: int, after: bool) -> None:
    """Died is raised before or after call n is performed, no except Exception stops it, and every later call dies."""
    inner = MemoryStore()
    store = FaultyStore(inner, die_at=n, after=after)
    with pytest.raises(Died) as caught:
        work(store)
    assert not isinstance(caught.value, Exception)
    assert len(store.calls) == n
    done = n if after else n - 1
    expected = ([] if done in (0, 6) else ["a"]) + (["b"] if done >= 2 else [])
    assert [o.name for o in inner.list()] == expected
    with pytest.raises(Died):
        store.get("b")


@pytest.mark.parametrize("after", [False, True])
def test_one_call_fails_and_the_next_works(after: bool) -> None:
    """fail_at raises the given error once; with after=True the work is done and only the answer is lost."""
    inner = MemoryStore()
    store = FaultyStore(inner, fail_at=1, error=StoreUnavailable("gone"), after=after)
    with pytest.raises(StoreUnavailable, match="gone"):
        store.put("a", b"1", if_absent=True)
    assert [o.name for o in inner.list()] == (["a"] if after else [])
    if after:
        with pytest.raises(ObjectExists):
            store.put("a", b"1", if_absent=True)
    else:
        store.put("a", b"1", if_absent=True)


def test_a_lost_answer_hides_what_it_was() -> None:
    """The error of a call whose answer is lost is not seen either."""
    with pytest.raises(StoreUnavailable):
        FaultyStore(MemoryStore(), fail_at=1, after=True).get("absent")
    with pytest.raises(ObjectNotFound):
        FaultyStore(MemoryStore(), fail_at=2, after=True).get("absent")


def test_damage_is_the_same_whichever_part_is_read() -> None:
    """A flipped bit or a cut is seen in whole and ranged reads of matching names; the stored object stays whole."""
    inner = MemoryStore()
    inner.put("packs/a", b"\x00" * 10)
    inner.put("packs/empty", b"")
    inner.put("other", b"\x00" * 10)
    store = FaultyStore(inner)
    store.damage("packs/", flipped(8 * 4 + 1))
    assert store.get("packs/a") == b"\x00\x00\x00\x00\x02" + b"\x00" * 5
    assert store.get("packs/a", start=4, length=1) == b"\x02"
    assert store.get("packs/a", start=5) == b"\x00" * 5
    assert store.get("packs/empty") == b""
    assert store.get("other") == inner.get("packs/a") == b"\x00" * 10
    store.damage("packs/a", truncated(-3))
    assert store.get("packs/a", start=4, length=9) == b"\x02\x00\x00"
    assert flipped(-1)(b"\x00\x00") == b"\x00\x80"


def test_the_probe_sees_through_imitations() -> None:
    """A store that ignores if_absent, or refuses it, does not hold; one that cannot be reached raises."""
    inner = MemoryStore()
    assert conditional_put_holds(inner)
    assert conditional_put_holds(FaultyStore(inner, delay=0.001))
    assert not conditional_put_holds(FaultyStore(inner, ignore_if_absent=True))
    with pytest.raises(StoreUnavailable):
        conditional_put_holds(FaultyStore(inner, unavailable=1))
    assert list(inner.list()) == []
