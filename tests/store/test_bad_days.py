"""CloudStore and RetryingStore against a server behind a proxy that answers 500, 503, late, half or not at all."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from chromakeep.addresses import parse
from chromakeep.errors import ObjectExists, StoreDenied, StoreUnavailable
from chromakeep.events import Event, Retried
from chromakeep.store.base import Store
from chromakeep.store.cloud import CloudStore
from chromakeep.store.probe import conditional_put_holds
from chromakeep.store.retrying import RetryingStore
from servers.fault_proxy import SLOW_DOWN, Fault, FaultProxy
from servers.s3 import S3Server

BIG = bytes(range(256)) * 4096
FAULTS = {
    "500": (Fault(status=500), "the store answers 500"),
    "503 SlowDown": (Fault(status=503, body=SLOW_DOWN), "the store answers 503"),
    "429": (Fault(status=429), "the store answers 429"),
    "closed before": (Fault(unasked=True), "broke"),
    "closed after": (Fault(lost=True), "broke"),
    "cut off": (Fault(keep=9), "broke"),
}
VERBS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("new", BIG),
    "put if absent": lambda store: store.put("new", BIG, if_absent=True),
    "get": lambda store: store.get("old"),
    "get range": lambda store: store.get("old", start=1000, length=5000),
    "head": lambda store: store.head("old"),
    "list": lambda store: [info.name for info in store.list()],
    "delete": lambda store: store.delete("old"),
}
BODILESS = {"put", "put if absent", "head", "delete"}  # there is nothing of such an answer to cut off
fresh = (f"bad-day-{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(moto.endpoint)
    yield proxy
    proxy.stop()


@pytest.fixture
def store(moto: S3Server, proxy: FaultProxy) -> CloudStore:
    """Behind the proxy, holding one object."""
    address = replace(parse(moto.address("bad-days", next(fresh))), options=(("endpoint", proxy.endpoint),))
    proxy.plan([])
    store = CloudStore(address, options=moto.options)
    store.put("old", BIG)
    return store


CASES = [(fault, verb) for fault in FAULTS for verb in VERBS if fault != "cut off" or verb not in BODILESS]


@pytest.mark.parametrize(("fault", "verb"), CASES)
def test_a_fault_that_passes_is_got_through(store: CloudStore, proxy: FaultProxy, fault: str, verb: str) -> None:
    """Twice the same fault, then a good answer: the verb gives its result, and both attempts were reported."""
    expected = {"get": BIG, "get range": BIG[1000:6000], "list": ["old"]}
    events: list[Event] = []
    proxy.plan([FAULTS[fault][0]] * 2)
    result = VERBS[verb](RetryingStore(store, first_delay=0.001, observer=events.append))
    if verb in expected:
        assert result == expected[verb]
    assert len(events) == 2
    names = ["new", "old"] if verb.startswith("put") else [] if verb == "delete" else ["old"]
    assert {info.name: store.get(info.name) for info in store.list()} == dict.fromkeys(names, BIG)


@pytest.mark.parametrize(("fault", "verb"), CASES)
def test_a_fault_that_stays_is_told_in_one_line(store: CloudStore, proxy: FaultProxy, fault: str, verb: str) -> None:
    """CloudStore itself sends a request once and says what happened; it retries nothing behind our back."""
    planned, what = FAULTS[fault]
    proxy.plan([planned] * 5)
    with pytest.raises(StoreUnavailable) as caught:
        VERBS[verb](store)
    assert what in caught.value.message
    assert "\n" not in caught.value.message
    assert len(proxy.requests) == 1


def test_a_lost_answer_does_not_make_another_writers_object_ours(store: CloudStore, proxy: FaultProxy) -> None:
    """After a lost answer the object is compared: another's bytes are ObjectExists, as they would have been."""
    proxy.plan([Fault(lost=True)])
    with pytest.raises(ObjectExists):
        RetryingStore(store, first_delay=0.001).put("old", b"other", if_absent=True)
    assert store.get("old") == BIG


def test_a_refused_condition_is_not_a_refused_store(store: CloudStore, proxy: FaultProxy) -> None:
    """A server that answers 501 to the condition (older Swift) is denied at once, and the probe answers False."""
    proxy.plan([Fault(status=501)])
    with pytest.raises(StoreDenied, match="cannot do that"):
        RetryingStore(store).put("new", b"1", if_absent=True)
    assert len(proxy.requests) == 1
    proxy.plan([Fault(status=501)])
    assert not conditional_put_holds(store)
    proxy.plan([Fault(status=409)])  # some stores answer an existing name so, instead of with 412
    with pytest.raises(ObjectExists):
        store.put("old", b"other", if_absent=True)


def test_a_conflict_of_requests_is_no_answer(store: CloudStore, proxy: FaultProxy) -> None:
    """S3's 409 ConditionalRequestConflict means: somebody was writing, ask again."""
    conflict = Fault(status=409, body=b"<Error><Code>ConditionalRequestConflict</Code></Error>")
    proxy.plan([conflict])
    with pytest.raises(StoreUnavailable, match="another write"):
        store.put("new", b"1", if_absent=True)
    proxy.plan([conflict])
    RetryingStore(store, first_delay=0.001).put("new", b"1", if_absent=True)
    assert store.get("new") == b"1"


def test_a_slow_store_is_waited_for_as_long_as_was_said(moto: S3Server) -> None:
    """A request that takes longer than the timeout is given up, told and tried again. (Little is sent, for a busy
    machine has the same timeout; and by a proxy of its own, which may still hold a request that was given up.)"""
    proxy = FaultProxy(moto.endpoint)
    try:
        address = replace(parse(moto.address("slow-days", next(fresh))), options=(("endpoint", proxy.endpoint),))
        impatient, slow = CloudStore(address, options=moto.options, timeout=1.0), Fault(delay=120.0)
        patient = RetryingStore(impatient, first_delay=0.1, observer=(events := list[Event]()).append)
        patient.put("old", b"1")
        proxy.plan([slow])
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            impatient.get("old")
        for act in (lambda: patient.put("new", b"1"), lambda: patient.get("old")):
            events.clear()
            proxy.plan([slow])
            act()
            assert isinstance(events[0], Retried) and "did not answer in time" in events[0].error
    finally:
        proxy.stop()


@pytest.mark.parametrize("verb", VERBS)
def test_signals_are_handled_while_a_request_is_under_way(store: CloudStore, proxy: FaultProxy, verb: str) -> None:
    """SIGTERM's handler runs during a request of the main thread: here the answer waits for it to have run."""
    handled = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: handled.set())

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert handled.wait(20)

    try:
        proxy.plan([Fault(meanwhile=interrupt)])
        VERBS[verb](store)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled.is_set()
