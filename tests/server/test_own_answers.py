"""What the door answers itself is in its books like what it passes on, down to what was never a request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from chromakeep.server import Door, Limits, Page, Refusal, Request
from chromakeep.server.access_log import line_of
from chromakeep.server.auditing import Auditing
from chromakeep.server.cors import cors_of
from chromakeep.server.guard import Account, Plain
from chromakeep.server.ledgers import several
from chromakeep.server.metrics import OTHER, Metrics
from chromakeep.server.request_head import RequestHead
from server.wires import OK, PATIENCE, Backend, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]
PAGE = Page(b"a page of ours")


class Book:
    """A ledger that keeps what it was told."""

    def __init__(self) -> None:
        self.begins = 0
        self.accounts: list[Account] = []

    def begun(self, account: Account) -> None:
        self.begins += 1

    def ended(self, account: Account, now: float) -> None:
        assert now >= account.begun
        self.accounts.append(account)


class Porter(Plain):
    """Refuses, shows, or lets pass, by the path."""

    def rule(self, head: RequestHead, account: Account) -> Refusal | Page | None:
        shown = {"/refused": Refusal(403, "AuthError", "no"), "/listed": PAGE}
        return shown.get(head.target)


class Reception:
    """A desk that answers with a page."""

    def takes(self, path: str) -> bool:
        return path == "/desk"

    async def admit(self, request: Request, account: Account) -> Refusal | int:
        return 10

    async def answer(self, request: Request, body: bytearray) -> Page:
        return PAGE


def fails() -> Page:
    raise RuntimeError("of a page")


def line(method: str, target: str, more: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nhost: h\r\n{more}\r\n".encode()


def test_the_bytes_of_our_own_answers_are_counted(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Of each the body, and nothing where there is none."""
    book, gate = Book(), Scripted(on_admit=lambda: Refusal(503, "ChromaError", "a standby"))
    pages: dict[str, Callable[[], Page]] = {"/page": lambda: PAGE, "/fails": fails}
    cors = cors_of(["https://app.example"])
    door = open_door(ledger=book, guard=Porter(), gate=gate, pages=pages, desk=Reception(), cors=cors)
    asks = "access-control-request-method: POST\r\n"
    requests = [
        ("GET", line("GET", "/page")),
        ("HEAD", line("HEAD", "/page")),
        ("GET", line("GET", "/fails")),
        ("GET", line("GET", "/refused")),
        ("HEAD", line("HEAD", "/refused")),
        ("GET", line("GET", "/listed")),
        ("POST", post(b"12", "/desk")),
        ("POST", post(b"{}")),  # the gate says no
        ("OPTIONS", line("OPTIONS", "/x", f"origin: https://app.example\r\n{asks}")),
        ("OPTIONS", line("OPTIONS", "/x", f"origin: https://evil.example\r\n{asks}")),
        ("POST", post(b"x" * 100, "/desk")),  # more than it takes
    ]
    got = []
    for method, request in requests:
        client = knock(door)
        client.send(request)
        answer = client.answer(method)
        got.append((answer.status, len(answer.body)))
    door.stop(0)
    assert [(account.status, account.sent) for account in book.accounts] == got
    assert [status for status, _ in got] == [200, 200, 500, 403, 403, 200, 200, 503, 204, 403, 413]
    assert sum(sent for _, sent in got) > 300


def test_what_takes_the_place_of_a_cut_answer_is_counted_alone(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Not what the backend had said before it died: none of that has left."""
    book, gate = Book(), Scripted(holds="acknowledge")
    door = open_door(ledger=book, gate=gate, pages={"/page": lambda: PAGE})
    client, other = knock(door), knock(door)
    client.send(post())
    wire = backend.accept()
    wire.until()
    wire.exactly(2)
    wire.send(OK[:-1])
    wire.close()
    assert gate.asked.wait(20)
    other.send(line("GET", "/page"))
    assert other.answer().body == PAGE.body  # by now the door has seen the end
    gate.go.set()
    answer = client.answer()
    door.stop(0)
    assert answer.status == 502
    assert (book.accounts[-1].status, book.accounts[-1].sent) == (502, len(answer.body))


def in_the_loop(door: Door) -> bool:
    """Wait for a turn of the door's loop that looks at every connection."""
    turned = threading.Event()
    assert door._loop
    door._loop.call_soon_threadsafe(door._loop.call_later, 0.01, turned.set)
    return turned.wait(PATIENCE)


HOSTILE = [
    (b"GET /EVIL HTTP/9.9\r\nhost: h\r\n\r\n", 505),
    (b"GET /EVIL HTTP/1.1\nhost: EVIL\n\n", 400),
    (b"POST /EVIL HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\nEVIL", 400),
    (b"POST /EVIL HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\n", 413),
    (b"GET /EVIL HTTP/1.1\r\nhost: h\r\nx: " + b"EVIL" * 20_000 + b"\r\n\r\n", 431),
    (b"GET /EVIL HTTP/1.1\r\nhost: h\r\nEVIL", 408),
    (b"EVIL /EVIL HTTP/1.1\r\nhost: h\r\n\r\n", 501),
]


@pytest.mark.parametrize("before", [b"", post(b"12", "/desk")])
@pytest.mark.parametrize(("sent", "status"), HOSTILE)
def test_what_was_never_a_request_is_counted_and_none_of_it_is_written(
    sent: bytes, status: int, before: bytes, open_door: Open, knock: Knock, deadlines: threading.Event
) -> None:
    """Once, also behind a request on the same connection; under one label, and not as a write."""
    book, metrics, audited = Book(), Metrics(), list[dict[str, object]]()
    ledger = several(book, metrics, Auditing(audited.append))
    door = open_door(ledger=ledger, guard=Porter(), desk=Reception(), limits=Limits(head=0.0, body_bytes=500))
    client = knock(door)
    client.send(before + sent)
    if before:
        assert client.answer().status == 200
    if status == 408:
        for _ in range(2):
            assert in_the_loop(door)  # by then it has read what there is of the head
        deadlines.set()
    answer = client.answer()
    door.stop(0)
    account = book.accounts[-1]
    assert answer.status == account.status == status
    assert (account.sent, account.received, account.peer) == (len(answer.body), 0, "127.0.0.1")
    assert len(book.accounts) == book.begins == 1 + bool(before)
    assert metrics.in_flight == 0
    assert metrics.requests["unread", OTHER, status, ""] == 1
    assert metrics.received == len(b"12" if before else b"")
    told = json.loads(line_of(0.0, account, 0.0))
    assert (told["method"], told["path"], told["route"], told["status"]) == ("-", "-", "unread", status)
    assert "EVIL" not in json.dumps(told)
    assert len(audited) == bool(before)


def test_a_connection_too_many_is_counted(open_door: Open, knock: Knock) -> None:
    """It was answered, too."""
    book = Book()
    door = open_door(ledger=book, limits=Limits(connections=0))
    client = knock(door)
    assert client.answer().status == 503
    door.stop(0)
    assert [(account.route, account.status) for account in book.accounts] == [("unread", 503)]
