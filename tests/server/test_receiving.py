"""The desk for directories: closed unless there is a token, deaf to whoever has none, and never in Chroma's way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from chromakeep.errors import DiskFull, LeaseLost, NotNow, RepositoryBusy, VerificationFailed
from chromakeep.events import Event
from chromakeep.operations import incoming, manifest
from chromakeep.operations.duty import EXCHANGING, SERVING
from chromakeep.operations.writes import Writes
from chromakeep.server import Door, Limits, Request, receiving
from chromakeep.server.front import DutyGate
from chromakeep.server.receiving import ReceivingDesk
from chromakeep.server.visit import Closed
from server.wires import GET, OK, Answer, Backend, Wire

TOKEN = "a-token-of-32-characters-or-so.."
ID = "0123456789abcdef0123456789abcdef"
Open = Callable[..., Door]
Knock = Callable[[Door], Wire]


class Told:
    """A receiver that says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.raises: Exception | None = None
        self.go = threading.Event()
        self.go.set()

    def __getattr__(self, name: str) -> Callable[..., object]:
        def ask(*arguments: object) -> object:
            assert self.go.wait(20)
            self.asked.append((name, *arguments))
            if self.raises:
                raise self.raises
            return {"done": name} if name != "put" else 7

        return ask


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def door(told: Told, open_door: Open) -> Door:
    return open_door(desk=ReceivingDesk(told, TOKEN))  # type: ignore[arg-type]


def request(method: str, path: str = "", body: bytes = b"", *, token: str | None = TOKEN, more: str = "") -> bytes:
    secret = "" if token is None else f"authorization: Bearer {token}\r\n"
    length = f"content-length: {len(body)}\r\n" if body or method in ("POST", "PUT") else ""
    return f"{method} /_keep/receive{path} HTTP/1.1\r\nhost: h\r\n{secret}{length}{more}\r\n".encode() + body


def ask(wire: Wire, *arguments: Any, **more: Any) -> Answer:
    wire.send(request(*arguments, **more))
    return wire.answer()


def test_each_route_asks_the_receiver(told: Told, door: Door, knock: Knock) -> None:
    """On one kept connection; what is none of them is 404."""
    wire = knock(door)
    for method, path, body, expected in (
        ("GET", "", b"", ("status",)),
        ("GET", f"/{ID}", b"", ("status", ID)),
        ("POST", "", b"m", ("offer", b"m", False)),
        ("POST", "?take_over=true", b"m", ("offer", b"m", True)),
        ("PUT", f"/{ID}/12", b"c", ("put", ID, 12, b"c", None)),
        ("POST", f"/{ID}/finish", b"{}", ("finish", ID, b"{}")),
        ("POST", "/rollback", b"{}", ("rollback", b"{}")),
    ):
        answer = ask(wire, method, path, body)
        assert (answer.status, told.asked.pop()) == (200, expected)
    answer = ask(wire, "PUT", f"/{ID}/3", b"part", more="content-range: bytes 100-103/900\r\n")
    assert told.asked.pop() == ("put", ID, 3, b"part", (100, 900))
    assert json.loads(answer.body) == {"have": 7}
    for method, path in (
        ("GET", "/rollback"), ("PUT", ""), ("POST", f"/{ID}"), ("GET", f"/{ID}/1"), ("PUT", f"/{ID}/x"),
        ("PUT", f"/{ID}/-1"), ("PUT", f"/{ID}/{'9' * 30}"), ("POST", "/../finish"), ("GET", f"/{ID.upper()}"),
        ("GET", "/"), ("DELETE", f"/{ID}"), ("GET", f"/{ID}/finish"), ("GET", "d"), ("PUT", f"/{ID}/%33"),
    ):  # fmt: skip
        assert ask(wire, method, path).status == 404, (method, path)
    assert not told.asked


def test_without_a_receiver_nothing_is_there(backend: Backend, open_door: Open, knock: Knock) -> None:
    """404 to everything below the path, with the right token or none, at once; and Chroma is not asked."""
    wire = knock(open_door(desk=Closed()))
    for method in ("GET", "POST", "PUT", "DELETE"):
        for path in ("", "/", f"/{ID}", f"/{ID}/3", "/rollback", "?x=1", "d"):
            for token in (TOKEN, None):
                answer = ask(wire, method, path, b"x" if method in ("POST", "PUT") else b"", token=token)
                assert answer.status == 404
    assert backend.unasked()


@pytest.mark.parametrize(
    "secret",
    ["", "authorization: \r\n", "authorization: Bearer\r\n", "authorization: Bearer \r\n",
     f"authorization: Bearer {TOKEN}x\r\n", f"authorization: Bearer {TOKEN[:-1]}\r\n", f"authorization: {TOKEN}\r\n",
     f"authorization: Basic {TOKEN}\r\n", "authorization: Bearer \xff\xfe\r\n", f"x-authorization: Bearer {TOKEN}\r\n"],
)  # fmt: skip
def test_whoever_has_no_token_is_told_nothing(
    secret: str, told: Told, backend: Backend, door: Door, knock: Knock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """401, before a byte of the body is asked for; neither the receiver nor Chroma hears of it."""
    wire = knock(door)
    head = (
        f"PUT /_keep/receive/{ID}/0 HTTP/1.1\r\nhost: h\r\n{secret}content-length: 9999\r\nexpect: 100-continue\r\n\r\n"
    )
    wire.send(head.encode("latin-1"))
    answer = wire.answer()
    assert answer.status == 401
    assert TOKEN.encode() not in answer.body
    assert not told.asked
    assert backend.unasked()


def test_wrong_tokens_wait_longer_and_longer_and_one_after_the_other(
    told: Told, door: Door, knock: Knock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many connections guess, and however often the right one comes meanwhile; a right token never waits."""
    waits: list[float] = []
    real, holding = asyncio.sleep, 0
    go = threading.Event()
    go.set()

    async def sleep(seconds: float, *more: Any) -> Any:
        nonlocal holding
        if seconds < 0.1 or seconds == 0.5:  # the door's own
            return await real(seconds, *more)
        waits.append(seconds)
        holding += 1
        assert holding == 1
        await real(0.01)
        while not go.is_set():
            await real(0.01)
        holding -= 1
        return None

    monkeypatch.setattr(receiving.asyncio, "sleep", sleep)
    wires = [knock(door) for _ in range(6)]
    for _ in range(3):
        for wire in wires:
            wire.send(request("GET", token="wrong"))
        assert ask(knock(door), "GET").status == 200
        assert [wire.answer().status for wire in wires] == [401] * 6
    assert waits == sorted(waits)
    assert waits[0] < 0.5 and waits[-1] == receiving.SLOWEST
    go.clear()  # while they come nobody's wait ends, or there might never be too many at a time
    many = [knock(door) for _ in range(60)]
    for wire in many:
        wire.send(request("GET", token="wrong"))
    assert ask(knock(door), "GET").status == 200  # by now all have come
    go.set()
    statuses = [wire.answer().status for wire in many]
    assert set(statuses) == {401, 429}


def test_a_body_is_taken_up_to_what_a_route_needs(told: Told, door: Door, knock: Knock) -> None:
    """Counted or in chunks; more of it is 413, and it is not gathered."""
    wire = knock(door)
    assert ask(wire, "PUT", f"/{ID}/0", bytes(incoming.LARGEST)).status == 200
    assert len(told.asked.pop()[3]) == incoming.LARGEST  # type: ignore[arg-type]
    for method, limit in (("PUT", incoming.LARGEST), ("POST", manifest.LARGEST), ("GET", 0)):
        path = f"/{ID}/0" if method == "PUT" else ""
        one = knock(door)
        head = f"{method} /_keep/receive{path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {TOKEN}\r\n"
        one.send(f"{head}content-length: {limit + 1}\r\n\r\n".encode())
        assert one.answer().status == 413
        one = knock(door)
        one.send(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        one.send(b"%x\r\n" % (limit + 1) + bytes(limit + 1) + b"\r\n0\r\n\r\n")
        assert one.answer().status == 413
    one = knock(door)
    one.send(f"POST /_keep/receive HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {TOKEN}\r\n".encode())
    one.send(b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert one.answer().status == 200
    assert told.asked.pop() == ("offer", b"abcde", False)


@pytest.mark.parametrize("step", [1, 3, 64, 1000])
def test_requests_may_come_in_any_pieces(step: int, told: Told, door: Door, knock: Knock) -> None:
    """Several in a row on one connection, counted and in chunks, cut anywhere: each is answered in its turn."""
    head = f"POST /_keep/receive HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {TOKEN}\r\n".encode()
    chunked = head + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    data = request("PUT", f"/{ID}/0", bytes(range(256)) * 4) + chunked + request("GET") + request("POST", "", b"end")
    wire = knock(door)
    for at in range(0, len(data), step):
        wire.send(data[at : at + step])
    assert [wire.answer().status for _ in range(4)] == [200] * 4
    expected = [
        ("put", ID, 0, bytes(range(256)) * 4, None),
        ("offer", b"abcde", False),
        ("status",),
        ("offer", b"end", False),
    ]
    assert told.asked == expected


def test_what_the_receiver_raises_is_told(told: Told, door: Door, knock: Knock) -> None:
    """With a status that says whether to try again, its words, and how to make the same error of it."""
    wire = knock(door)
    for error, status in (
        (NotNow("one"), 503),
        (LeaseLost("two"), 503),
        (RepositoryBusy("three"), 409),
        (DiskFull("four", hint="more"), 507),
        (VerificationFailed("five"), 422),
    ):
        told.raises = error
        answer = ask(wire, "POST", "", b"x")
        assert answer.status == status
        assert ("retry-after" in answer.fields) == (status == 503)
        assert json.loads(answer.body)["failure"] == [type(error).__name__, error.message, error.hint]


def test_a_fault_of_ours_is_500_and_told_to_whoever_watches(told: Told, open_door: Open, knock: Knock) -> None:
    """The client learns nothing of it, and the connection goes on."""
    events: list[Event] = []
    wire = knock(open_door(desk=ReceivingDesk(told, TOKEN), observer=events.append))  # type: ignore[arg-type]
    told.raises = RuntimeError("secret detail")
    answer = ask(wire, "GET")
    assert answer.status == 500 and b"secret" not in answer.body
    assert "secret detail" in str(events)
    told.raises = None
    assert ask(wire, "GET").status == 200


def test_clients_of_chroma_do_not_wait_for_a_sender(told: Told, backend: Backend, door: Door, knock: Knock) -> None:
    """Receivers that are slow over their disk, and senders that are slow over their bodies, hold nobody up."""
    told.go.clear()
    busy = [knock(door) for _ in range(receiving.THREADS + 2)]
    for wire in busy:
        wire.send(request("PUT", f"/{ID}/0", b"x"))
    slow = knock(door)
    slow.send(request("PUT", f"/{ID}/0", b"x" * 100)[:-50])
    other = knock(door)
    other.send(GET)
    reads = backend.accept()
    reads.until()
    reads.send(OK)
    assert other.answer().body == b"ok"
    told.go.set()
    assert [wire.answer().status for wire in busy] == [200] * len(busy)
    slow.send(b"x" * 50)
    assert slow.answer().status == 200


def test_a_sender_that_goes_leaves_nothing(told: Told, door: Door, knock: Knock) -> None:
    """In the middle of a head, of a body, or of the receiver's work: what came is not taken for a chunk."""
    whole = request("PUT", f"/{ID}/0", b"x" * 1000)
    for end in (10, len(whole) - 1000, len(whole) - 1):
        for way in ("reset", "close"):
            wire = knock(door)
            wire.send(whole[:end])
            getattr(wire, way)()
    told.go.clear()
    wire = knock(door)
    wire.send(whole)
    wire.reset()
    told.go.set()
    assert ask(knock(door), "GET").status == 200
    assert len([asked for asked in told.asked if asked[0] == "put"]) <= 1


def test_a_body_that_does_not_come_is_408(told: Told, open_door: Open, knock: Knock) -> None:
    """A sender's rights do not make it free to hold a connection for ever."""
    limits = Limits(body=0.3, body_rate=1 << 30)
    wire = knock(open_door(desk=ReceivingDesk(told, TOKEN), limits=limits))  # type: ignore[arg-type]
    wire.send(request("PUT", f"/{ID}/0", b"x" * 100)[:-50])
    assert wire.answer().status == 408
    assert not told.asked


class Exchanging:
    """A duty whose directory is being replaced."""

    role, sync, writes, elsewhere = EXCHANGING, False, Writes(), None

    def refusal(self) -> NotNow | None:
        return NotNow("this instance is exchanging") if self.role == EXCHANGING else None

    def shipped(self) -> None:
        return None


@pytest.mark.parametrize("sync", [True, False])
def test_a_write_to_what_is_replaced_is_not_acknowledged(sync: bool) -> None:
    """It is refused at once, and not when the new directory, which has not got it, is served; a write that comes then
    may be held until that is so. Not with 503, upon which a proxy would make the write again at another door."""

    async def both() -> None:
        duty = Exchanging()
        duty.sync = sync
        gate = DutyGate(duty, 20.0)  # type: ignore[arg-type]
        request = Request("POST", "/x", True, (), "")
        refused = await asyncio.wait_for(gate.acknowledge(request), 10)
        assert refused and (refused.status, refused.retry_after) == (504, None)
        held = asyncio.create_task(gate.admit(request))
        await asyncio.sleep(0.1)
        assert not held.done()
        duty.role = SERVING
        assert await asyncio.wait_for(held, 10) is None

    asyncio.run(both())
