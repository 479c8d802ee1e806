"""What the door answers itself is in its books like what it passes on, down to what was never a request."""

from __future__ import annotations

from collections.abc import Callable

from chromakeep.server import Door, Page, Refusal, Request
from chromakeep.server.cors import cors_of
from chromakeep.server.guard import Account, Plain
from chromakeep.server.request_head import RequestHead
from server.wires import OK, Backend, Scripted, Wire, post

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
