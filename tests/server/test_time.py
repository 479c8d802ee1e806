"""A key whose requests may take so long: whatever a request waits for, it is answered then; nothing of it goes on."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from math import inf

import pytest

from chromakeep.access.keys import Keyring, mint
from chromakeep.server import Door, Page
from chromakeep.server.access_log import line_of
from chromakeep.server.admission import Admission
from chromakeep.server.guard import Account, Looking, Plain, Ruling
from chromakeep.server.metrics import Metrics
from chromakeep.server.request_head import RequestHead
from chromakeep.waiting import waiting
from server.wires import OK, Backend, C, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]
TIME = 4.0  # seconds: long enough for all that a test does before, on a machine with much to do
KEY, TOKEN = mint("brief", "admin", time=TIME)
PATIENT, OTHER = mint("patient", "admin")
MINE, THEIRS = (f"authorization: Bearer {token}\r\n" for token in (TOKEN, OTHER))
NOTHING, UNKNOWN = "nothing was done", "a write may or may not have been done"


def guard() -> Admission:
    return Admission(lambda: Keyring([KEY, PATIENT]), time.time)


def get(fields: str) -> bytes:
    return f"GET /api/v2/version HTTP/1.1\r\nhost: h\r\n{fields}\r\n".encode()


def late(wire: Wire) -> str:
    """What a client is told whose time is over."""
    answer = wire.answer("POST")
    assert answer.status == 504 and "retry-after" not in answer.fields
    return str(json.loads(answer.body)["message"])


def test_whatever_it_waits_for(backend: Backend, open_door: Open, knock: Knock) -> None:
    """An answer, the rest of a body, the rest of an answer; another key's request waits on, and so does the backend."""
    ended: list[Account] = []
    metrics, told = Metrics(), threading.Condition()

    class Kept(Plain):
        def begun(self, account: Account) -> None:
            metrics.begun(account)

        def ended(self, account: Account, now: float) -> None:
            metrics.ended(account, now)
            with told:
                ended.append(account)
                told.notify_all()

    door = open_door(guard=guard(), ledger=Kept())
    patient, whole, half, cut = (knock(door) for _ in range(4))
    patient.send(get(THEIRS))
    others = backend.accept()
    others.until()
    whole.send(post(path=f"{C}/get", more=MINE))
    first = backend.accept()
    first.until(b"{}")
    head = f"POST {C}/get HTTP/1.1\r\nhost: h\r\ncontent-length: 20\r\n{MINE}\r\n"
    half.send(head.encode() + b"0123456789")
    second = backend.accept()
    second.until(b"9")
    cut.send(get(MINE))
    third = backend.accept()
    third.until()
    third.send(OK[:-1])
    assert cut.until(b"\r\n\r\no")
    assert UNKNOWN in late(whole) and NOTHING in late(half)
    with pytest.raises(ConnectionResetError):
        cut.rest()
    assert first.gone() and second.gone() and third.gone()
    with told:
        assert told.wait_for(lambda: len(ended) == 3, 20)
    assert sorted((one.status, one.key) for one in ended) == [(200, "brief"), (504, "brief"), (504, "brief")]
    counted = {(status, key): count for (_, _, status, key), count in metrics.requests.items()}
    assert counted == {(504, "brief"): 2, (200, "brief"): 1} and metrics.in_flight == 1
    assert {json.loads(line_of(0, one, TIME))["status"] for one in ended} == {504, 200}
    others.send(OK)
    assert patient.answer().body == b"ok"
    whole.send(get(MINE))  # on the same connections, here and behind
    others.until()
    others.send(OK)
    assert whole.answer().body == b"ok"


@pytest.mark.parametrize("question", ["admit", "acknowledge"])
def test_a_write_that_is_held(backend: Backend, open_door: Open, knock: Knock, question: str) -> None:
    """It does not go on when the gate opens after all."""
    gate = Scripted(holds=question)
    door = open_door(guard=guard(), gate=gate)
    client = knock(door)
    client.send(post(more=MINE))
    if question == "acknowledge":
        behind = backend.accept()
        behind.until(b"{}")
        behind.send(OK)
    assert gate.asked.wait(20)
    assert (NOTHING if question == "admit" else UNKNOWN) in late(client)
    gate.go.set()
    client.send(get(THEIRS))
    behind = backend.accept()
    assert behind.until().startswith(b"GET /api/v2/version ")
    behind.send(OK)
    assert client.answer().body == b"ok" and gate.cancelled == [question]


def test_a_lookup_that_hangs(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Of a collection by its UUID, and of a list."""
    key, token = mint("bound", "reader", tenant="t", database="d", collections=("docs-*",), time=TIME)
    door = open_door(guard=Admission(lambda: Keyring([key]), time.time))
    clients = [knock(door) for _ in range(2)]
    for client, path in zip(
        clients, ("collections/11111111-1111-4111-8111-111111111111/count", "collections"), strict=True
    ):
        client.send(
            f"GET /api/v2/tenants/t/databases/d/{path} HTTP/1.1\r\nhost: h\r\nx-chroma-token: {token}\r\n\r\n".encode()
        )
        assert backend.accept().until()
    assert all(NOTHING in late(client) for client in clients)


def test_who_is_not_stopped_by_it_goes_no_further(backend: Backend, open_door: Open, knock: Knock) -> None:
    """A lookup that ends at that very moment, as if nobody had cancelled it: what was told to be not done is not."""
    swallowed = threading.Event()

    class Stubborn(Plain):
        def rule(self, head: RequestHead, account: Account) -> Ruling | Looking:
            async def look() -> Ruling:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    swallowed.set()
                return None

            if head.method == "GET":
                return None
            account.until = account.begun + 0.05
            return look

    client = knock(open_door(guard=Stubborn(), gate=Scripted()))
    client.send(post())
    assert NOTHING in late(client) and swallowed.wait(20)
    client.send(get(""))
    behind = backend.accept()
    assert behind.until().startswith(b"GET ")
    behind.send(OK)
    assert client.answer().body == b"ok" and backend.unasked()


def test_an_engine_is_told_until_when(open_door: Open, knock: Knock) -> None:
    """So that it stops, too; of what it says then nothing is heard."""
    told: list[float] = []
    begun, go = threading.Event(), threading.Event()

    def answering(method: str, target: str, body: bytes, kind: str | None) -> Page:
        told.append(waiting().left + time.monotonic())
        begun.set()
        assert go.wait(20)
        return Page(b"{}")

    before = time.monotonic()
    client = knock(open_door(guard=guard(), answering=answering))
    client.send(post(path=f"{C}/get", more=MINE))
    assert begun.wait(20)
    assert before + TIME - 0.1 <= told[0] <= time.monotonic() + TIME + 0.1
    assert UNKNOWN in late(client)
    go.set()
    client.send(get(THEIRS))
    assert client.answer().body == b"{}" and told[1] == inf
