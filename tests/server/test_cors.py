"""CORS: what pages in a browser may ask, and that Chroma is not asked about it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from chromakeep.errors import UsageError
from chromakeep.server import Door, Limits, Page, Refusal
from chromakeep.server.cors import cors_of
from chromakeep.server.guard import Account, Plain
from chromakeep.server.request_head import RequestHead
from server.wires import OK, Answer, Backend, Scripted, Wire, post

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]
APP = "https://app.example.com"
NAMED, ANY = cors_of([APP, "http://localhost:3000"]), cors_of(["*"])
SAYS = "access-control-allow-origin"


def ask(method: str = "GET", target: str = "/api/v2", **fields: str) -> bytes:
    """A request without a body; ``_`` in a field's name is ``-``."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {target} HTTP/1.1\r\nhost: h\r\n{lines}\r\n".encode()


def preflight(origin: str = APP, wanted: str = "content-type,x-chroma-token") -> bytes:
    return ask("OPTIONS", origin=origin, access_control_request_method="POST", access_control_request_headers=wanted)


def theirs(answer: Answer) -> set[str]:
    """The names of the fields of CORS in an answer."""
    return {name for name in answer.fields if name.startswith("access-control-")}


def test_a_preflight_is_answered_here(backend: Backend, open_door: Open, knock: Knock) -> None:
    """204 with what the page may do; the connection is kept, and the backend hears nothing."""
    client = knock(open_door(cors=NAMED, gate=Scripted()))
    client.send(preflight())
    head = client.until().decode()
    assert head.startswith("HTTP/1.1 204 ")
    assert "content-length" not in head
    assert f"{SAYS}: {APP}\r\n" in head
    assert "access-control-allow-headers: content-type,x-chroma-token\r\n" in head
    assert "access-control-allow-credentials: true\r\n" in head
    methods = head.split("access-control-allow-methods: ")[1].split("\r\n")[0]
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= set(methods.split(", "))
    assert {"vary: origin", "vary: access-control-request-headers"} <= set(head.split("\r\n"))
    client.send(preflight("http://localhost:3000"))
    assert client.answer().status == 204
    client.send(preflight("https://evil.example"))
    answer = client.answer()
    assert (answer.status, theirs(answer), answer.fields["vary"]) == (403, set(), "origin")
    assert "--cors-origins" in json.loads(answer.body)["message"]
    for odd in ("x\x0by", "a b", "a,,b", ", ".join(["x" * 50] * 60)):
        client = knock(open_door(cors=NAMED))
        client.send(preflight(wanted=odd))
        answer = client.answer()
        if answer.status == 204:
            assert "x-chroma-token" in answer.fields["access-control-allow-headers"]
            assert odd not in answer.fields["access-control-allow-headers"]
        else:
            assert answer.status == 400  # a control character
    assert backend.unasked()


class Closed(Plain):
    """A guard that lets nobody in."""

    def rule(self, head: RequestHead, account: Account) -> Refusal:
        return Refusal(401, "AuthError", "no")


def test_a_preflight_needs_no_key_and_a_page_can_read_a_refusal(
    backend: Backend, open_door: Open, knock: Knock
) -> None:
    """Browsers send no credentials with it; what they ask then is judged."""
    client = knock(open_door(cors=NAMED, guard=Closed()))
    client.send(preflight())
    assert client.answer().status == 204
    client.send(ask(origin=APP))
    answer = client.answer()
    assert (answer.status, answer.fields[SAYS]) == (401, APP)
    assert backend.unasked()


def test_answers_say_who_may_read_them(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Those that are passed on, whatever Chroma says itself, and those of our own: pages, refusals, errors."""
    own = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-max-age: 9\r\ncontent-length: 0\r\n\r\n"
    backend.serve(own)
    door = open_door(cors=NAMED, pages={"/readyz": lambda: Page(b"{}")}, limits=Limits(body_bytes=10))
    client = knock(door)
    for target in ("/api/v2", "/readyz"):
        client.send(ask(target=target, origin=APP))
        answer = client.answer()
        assert answer.status == 200
        assert (answer.fields[SAYS], answer.fields["access-control-allow-credentials"]) == (APP, "true")
        assert "retry-after" in answer.fields["access-control-expose-headers"]
        assert answer.fields["vary"] == "origin"
        assert "access-control-max-age" not in answer.fields
        client.send(ask(target=target, origin="https://evil.example"))
        answer = client.answer()
        assert (answer.status, theirs(answer), answer.fields["vary"]) == (200, set(), "origin")
        client.send(ask(target=target))
        answer = client.answer()
        assert (answer.status, theirs(answer), answer.fields["vary"]) == (200, set(), "origin")
    client.send(ask("POST", origin=APP, transfer_encoding="chunked") + b"14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.fields[SAYS]) == (413, APP)
    backend.close()
    client = knock(open_door(cors=NAMED, gate=Scripted(on_admit=lambda: Refusal(503, "E", "later", 1.0))))
    client.send(post(more=f"origin: {APP}\r\n"))
    answer = client.answer()
    assert (answer.status, answer.fields[SAYS], answer.fields["retry-after"]) == (503, APP, "1")


def test_any_origin_is_let_in_without_credentials(backend: Backend, open_door: Open, knock: Knock) -> None:
    backend.serve()
    client = knock(open_door(cors=ANY))
    for sent in (preflight("https://who.ever"), ask(origin="https://who.ever")):
        client.send(sent)
        answer = client.answer()
        assert answer.fields[SAYS] == "*"
        assert "access-control-allow-credentials" not in answer.fields
    client.send(ask())
    assert theirs(client.answer()) == set()


def test_one_answer_does_not_speak_for_the_next(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Pipelined requests of two origins, and one that is no request."""
    backend.serve()
    client = knock(open_door(cors=NAMED))
    client.send(ask(origin=APP) + ask(origin="https://evil.example") + preflight() + b"nonsense\r\n\r\n")
    first, second, third, last = client.answer(), client.answer(), client.answer(), client.answer()
    assert (first.fields[SAYS], theirs(second), third.status) == (APP, set(), 204)
    assert (last.status, theirs(last)) == (400, set())


def test_other_options_requests_go_on(backend: Backend, open_door: Open, knock: Knock) -> None:
    """Without a method that is asked about it is no preflight."""
    client = knock(open_door(cors=NAMED))
    client.send(ask("OPTIONS", origin=APP))
    wire = backend.accept()
    assert wire.until().startswith(b"OPTIONS ")
    wire.send(OK)
    assert client.answer().fields[SAYS] == APP


def test_nothing_is_said_where_nothing_is_configured(backend: Backend, open_door: Open, knock: Knock) -> None:
    """As stock: a preflight goes on, and Chroma's own answer comes back as it is."""
    assert cors_of([]) is None
    client = knock(open_door())
    client.send(preflight())
    wire = backend.accept()
    assert wire.until().startswith(b"OPTIONS ")
    wire.send(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\naccess-control-allow-origin: them\r\n\r\n")
    answer = client.answer()
    assert (answer.status, theirs(answer), answer.fields[SAYS]) == (405, {SAYS}, "them")
    assert "vary" not in answer.fields


@pytest.mark.parametrize(
    "origins", [[f"{APP}/"], ["app.example.com"], ["null"], ["*", APP], ["https://*.example.com"], [""], [APP.upper()]]
)
def test_what_is_no_origin(origins: list[str]) -> None:
    with pytest.raises(UsageError, match="cors-origins"):
        cors_of(origins)
