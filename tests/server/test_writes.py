"""Writes that are refused on purpose: who may say so, what is answered, and that none is under way when it is done."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chromakeep.access.keys import Keyring, mint
from chromakeep.errors import ChromakeepError
from chromakeep.operations.audit import Audit
from chromakeep.operations.duty import SERVING, SNAPSHOTS, Duty, Front
from chromakeep.operations.writes import FILE, Writes
from chromakeep.server import Door, Request, writes_desk
from chromakeep.server.bookkeeping import BookedDoor
from chromakeep.server.front import open_door as open_front
from chromakeep.server.guard import Account
from chromakeep.server.unlocked import Unlocked
from server.wires import GET, OK, Answer, Backend, Wire, post

Opened = Callable[..., Wire]
REFUSE = {"allow": False, "reason": "moved to http://b"}


@pytest.fixture
def duty(tmp_path: Path) -> Duty:
    found = Duty(SNAPSHOTS, None)
    found.role, found.writes = SERVING, Writes(tmp_path)
    return found


@pytest.fixture
def knock_at(backend: Backend, duty: Duty) -> Iterator[Opened]:
    """A connection to one door of a run, which is made with what is given first."""
    doors: list[BookedDoor] = []
    wires: list[Wire] = []

    def make(**more: Any) -> Wire:
        if not doors:
            doors.append(open_front(Front("127.0.0.1", 0, backend.address, duty, 0.0, **more)))
            doors[0].start()
        door: Door = doors[0].door
        wires.append(Wire(socket.create_connection(("127.0.0.1", door.port))))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()
    for door in doors:
        door.stop(0)


def say(wire: Wire, body: Any = None, *, kind: str = "application/json", more: str = "") -> Answer:
    """Ask how it is, or say how it is to be."""
    if body is None:
        wire.send(f"GET {writes_desk.PATH} HTTP/1.1\r\nhost: h\r\n{more}\r\n".encode())
    else:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        wire.send(post(data, writes_desk.PATH, f"content-type: {kind}\r\n{more}"))
    return wire.answer()


def test_writes_are_refused_and_allowed_again(knock_at: Opened, backend: Backend, tmp_path: Path) -> None:
    """Reads pass meanwhile; the refusal says why, and that it was not done; twice is once."""
    wire = knock_at()
    assert json.loads(say(wire).body) == {"allow": True, "reason": "", "since": "", "under_way": 0}
    first = json.loads(say(wire, REFUSE).body)
    assert first == {**REFUSE, "since": first["since"], "under_way": 0}
    assert json.loads(say(wire, REFUSE).body) == json.loads(say(wire).body) == first
    wire.send(post())
    answer = wire.answer()
    assert (answer.status, answer.fields["retry-after"]) == (503, "30")
    assert "writes are refused here: moved to http://b" in json.loads(answer.body)["message"]
    backend.serve(OK)
    wire.send(GET)
    assert wire.answer().body == b"ok"
    wire.send(b"GET /_keep/status HTTP/1.1\r\nhost: h\r\n\r\n")
    assert "moved to http://b" in json.loads(wire.answer().body)["refuses_writes"]
    assert Writes(tmp_path).refusal() is not None
    assert json.loads(say(wire, {"allow": True}).body)["allow"] is True
    wire.send(post())
    assert wire.answer().status == 200
    assert Writes(tmp_path).refusal() is None


def test_it_is_answered_when_no_write_is_under_way(knock_at: Opened, backend: Backend) -> None:
    """One write is at the backend: what refuses writes waits for its answer, and others are refused meanwhile."""
    writer, other, admin = knock_at(), knock_at(), knock_at()
    writer.send(post())
    behind = backend.accept()
    behind.until()
    behind.exactly(2)
    data = json.dumps(REFUSE).encode()
    admin.send(post(data, writes_desk.PATH, "content-type: application/json\r\n"))
    while True:
        other.send(b"GET /_keep/status HTTP/1.1\r\nhost: h\r\n\r\n")
        if "refuses_writes" in json.loads(other.answer().body):
            break
    other.send(post())
    assert other.answer().status == 503
    assert admin.silent()
    behind.send(OK)
    assert writer.answer().status == 200
    assert json.loads(admin.answer().body)["under_way"] == 0


def test_a_write_that_does_not_end(knock_at: Opened, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says it is told to ask again; a writer that goes away is not waited for."""
    monkeypatch.setattr(writes_desk, "PATIENCE", 0.05)
    writer, admin = knock_at(), knock_at()
    writer.send(post())
    behind = backend.accept()
    behind.until()
    answer = say(admin, REFUSE)
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    assert json.loads(answer.body)["under_way"] == 1
    monkeypatch.setattr(writes_desk, "PATIENCE", 20.0)
    writer.reset()
    assert say(admin, REFUSE).status == 200


def test_who_may(knock_at: Opened, tmp_path: Path) -> None:
    """A key that may do everything, and no other; it is in the audit log, with what came of it."""
    keys = {
        "admin": mint("admin", role="admin"),
        "writer": mint("writer", role="writer"),
        "of-a-tenant": mint("of-a-tenant", role="admin", tenant="acme"),
    }
    ring = Keyring(tuple(key for key, _ in keys.values()))
    audit = Audit(tmp_path / "audit.log", 1 << 20)
    wire = knock_at(keys=lambda: ring, closed=True, audit=audit)
    for name, (_, token) in keys.items():
        for body in (None, REFUSE):
            more = f"x-chroma-token: {token}\r\n"
            assert say(wire, body, more=more).status == (200 if name == "admin" else 403), name
    for body in (None, REFUSE):
        assert say(wire, body).status == 401
        assert say(wire, body, more="x-chroma-token: ck_wrong\r\n").status == 401
    audit.stop(20.0)
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    told = [(each["key"], each["outcome"]) for each in lines if each.get("path") == writes_desk.PATH]
    assert told.count(("admin", "done")) == 1
    assert told.count(("writer", "refused")) == told.count(("of-a-tenant", "refused")) == 2


@pytest.mark.parametrize("field", ["forwarded: for=1.2.3.4", "x-forwarded-for: 1.2.3.4"])
def test_without_keys_only_this_machine(knock_at: Opened, field: str) -> None:
    """A proxy on this machine speaks for others."""
    wire = knock_at()
    assert say(wire, more=f"{field}\r\n").status == 403
    assert say(wire).status == 200


def test_without_keys_another_machine() -> None:
    """By the address of the other end."""
    for peer, fine in (("127.0.0.1", True), ("::1", True), ("10.0.0.7", False), ("", False)):
        request = Request("GET", writes_desk.PATH, True, (), peer)
        account = Account.__new__(Account)
        assert (Unlocked().admin(request, account) is None) is fine


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", {"allow": 1}, {"allow": False, "reason": "two\nlines"}, {"allow": False, "x": 1},
             {"allow": False, "reason": "x" * 201}]
)  # fmt: skip
def test_what_makes_no_sense(knock_at: Opened, duty: Duty, body: Any) -> None:
    """Nothing changes."""
    assert say(knock_at(), body).status == 400
    assert duty.writes.said.allow


def test_other_requests(knock_at: Opened) -> None:
    """Another method, another content type (which a page of a browser could send), a large body."""
    assert say(knock_at(), REFUSE, kind="text/plain").status == 415
    assert say(knock_at(), b"x" * 5000).status == 413
    wire = knock_at()
    wire.send(f"DELETE {writes_desk.PATH} HTTP/1.1\r\nhost: h\r\n\r\n".encode())
    assert wire.answer().status == 405


def test_a_file_that_cannot_be_read_refuses(tmp_path: Path) -> None:
    """It was there because writes were refused, once."""
    (tmp_path / FILE).write_text("half")
    assert Writes(tmp_path).refusal() is not None
    assert Writes(tmp_path / "none").refusal() is None


def test_what_cannot_be_written_down_is_told(tmp_path: Path) -> None:
    """Refused all the same, but not allowed."""
    place = tmp_path / "file"
    place.write_text("")
    writes = Writes()
    writes._path = place / FILE
    with pytest.raises(ChromakeepError, match=r"writes\.json"):
        writes.put(allow=False, reason="moved")
    assert writes.refusal() is not None
    with pytest.raises(ChromakeepError, match=r"writes\.json"):
        writes.put(allow=True)
    assert writes.refusal() is not None
