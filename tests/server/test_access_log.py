"""The access log: a line for each request, whatever is in it, and never a request that waits for a line."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from chromakeep.errors import UsageError
from chromakeep.events import Event, Noted
from chromakeep.operations.outputs import Rotated
from chromakeep.operations.scribe import Scribe
from chromakeep.server import Door
from chromakeep.server.access_log import AccessLog, line_of
from server.accounts import COLLECTION, account
from server.wires import PATIENCE, Backend, Wire

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def rotated(path: Path, size: int = 1 << 20, age: float = 1e9, keep: int = 2, now: float = 1e9) -> Rotated:
    return Rotated(path, size, age, keep, clock=lambda: now)


def test_a_new_file_that_cannot_be_made_takes_no_old_one_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the process has too many files open: each attempt would move the old ones on, until none is left."""
    path = tmp_path / "log"
    output = rotated(path, size=10, keep=2)
    output.open()
    for line in (b"oldest line\n", b"older line\n", b"newest line\n"):
        output.write(line)
    kept = {name: (tmp_path / name).read_bytes() for name in ("log", "log.1", "log.2")}

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        for _ in range(5):
            with pytest.raises(OSError, match="Too many"):
                output.write(b"lost line\n")
    output.write(b"next line\n")
    assert path.read_bytes() == b"next line\n"
    assert ((tmp_path / "log.1").read_bytes(), (tmp_path / "log.2").read_bytes()) == (kept["log"], kept["log.1"])


def test_a_file_that_cannot_be_moved_grows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a directory that belongs to somebody else, in which only the file is ours."""
    output = rotated(tmp_path / "log", size=10, keep=2)
    output.open()

    def not_ours(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", not_ours)
    for _ in range(3):
        output.write(b"a line\n")
    assert (tmp_path / "log").read_bytes() == b"a line\n" * 3


def test_a_line_has_what_is_known_and_no_query() -> None:
    """Fields in a fixed order; the trace is the id only, and only of a well-formed field."""
    one = account(
        target=COLLECTION + "/get?token=SECRET&x=1",
        route="collection.get",
        key="app",
        tenant="acme",
        database="prod",
        collection="books",
        received=12,
        sent=34,
        trace=f"00-{TRACE}-00f067aa0ba902b7-01".encode(),
    )
    line = line_of(1.5e9, one, 0.0123456)
    assert json.loads(line) == {
        "time": "2017-07-14T02:40:00.000Z",
        "method": "POST",
        "route": "collection.get",
        "path": COLLECTION + "/get",
        "status": 200,
        "seconds": 0.012346,
        "received": 12,
        "sent": 34,
        "key": "app",
        "tenant": "acme",
        "database": "prod",
        "collection": "books",
        "peer": "192.0.2.7",
        "trace": TRACE,
    }
    assert b"SECRET" not in line
    for wrong in (b"", b"\xff" * 55, TRACE.encode(), f"00-{TRACE.upper()}-00f067aa0ba902b7-01".encode()):
        assert json.loads(line_of(0, account(trace=wrong), 0))["trace"] == ""


@pytest.mark.parametrize(
    "name", ["a\r\nb", "\x1b[31m", '","status":200}\n{"x":"', "\u2028\u0085\x00", "\ud800", "é\U0001f600"]
)
def test_no_name_can_forge_a_line(name: str) -> None:
    """Whoever splits lines, in whatever way, finds one, and in it what was sent."""
    one = account(tenant=name, collection=name, key=name, method=name)
    line = line_of(0, one, 0)
    assert line.endswith(b"\n")
    assert len(line.decode("ascii").splitlines()) == 1
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line)["collection"] == name


def test_requests_that_pass_the_door_are_logged_without_their_secrets(
    tmp_path: Path, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """Key, token and query are nowhere in the file."""
    backend.serve()
    log = AccessLog(rotated(tmp_path / "access.log"))
    log.start()
    door = open_door(ledger=log)
    wire = knock(door)
    for _ in range(3):
        wire.send(
            b"GET /api/v2/heartbeat?key=SECRET HTTP/1.1\r\nhost: x\r\nauthorization: Bearer SECRET\r\n"
            b"x-chroma-token: SECRET\r\ncookie: SECRET\r\n\r\n"
        )
        assert wire.answer().status == 200
    door.stop(0)
    log.stop(PATIENCE)
    text = (tmp_path / "access.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["method"], line["path"], line["status"], line["peer"]) for line in lines] == 3 * [
        ("GET", "/api/v2/heartbeat", 200, "127.0.0.1")
    ]
    assert "SECRET" not in text
    assert (tmp_path / "access.log").stat().st_mode & 0o007 == 0


def test_a_file_is_rotated_by_size_and_so_many_are_kept(tmp_path: Path) -> None:
    """No line is cut, none is lost but those of files that are too many."""
    path = tmp_path / "a.log"
    log = rotated(path, size=100, keep=2)
    log.open()
    for number in range(10):
        log.write(f"{number}".encode() * 59 + b"\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert [p.read_bytes()[:1] for p in (path, tmp_path / "a.log.1", tmp_path / "a.log.2")] == [b"9", b"8", b"7"]
    assert all(len(p.read_bytes()) == 60 for p in tmp_path.iterdir())


def test_a_file_is_rotated_by_age_also_across_restarts(tmp_path: Path) -> None:
    """Its age is that of its first line."""
    path = tmp_path / "a.log"
    first = rotated(path, age=60, now=1.5e9)
    first.open()
    first.write(line_of(1.5e9, account(), 0))
    soon = rotated(path, age=60, now=1.5e9 + 59)
    soon.open()
    soon.write(line_of(1.5e9 + 59, account(), 0))
    assert not (tmp_path / "a.log.1").exists()
    late = rotated(path, age=60, now=1.5e9 + 61)
    late.open()
    late.write(line_of(1.5e9 + 61, account(), 0))
    assert len((tmp_path / "a.log.1").read_bytes().splitlines()) == 2
    assert len(path.read_bytes().splitlines()) == 1


def test_another_program_may_move_the_file_away(tmp_path: Path) -> None:
    """A new one is begun, as logrotate expects."""
    path = tmp_path / "a.log"
    log = rotated(path)
    log.open()
    log.write(b"one\n")
    path.rename(tmp_path / "moved")
    log.write(b"two\n")
    assert (path.read_bytes(), (tmp_path / "moved").read_bytes()) == (b"two\n", b"one\n")


def test_a_place_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    """In one line, before anything is served."""
    with pytest.raises(UsageError, match=r"a\.log: No such file or directory"):
        AccessLog(rotated(tmp_path / "nowhere" / "a.log")).start()


def test_a_full_disk_costs_lines_and_is_told_once() -> None:
    """/dev/full answers every write as a full disk does."""
    told: list[Event] = []
    log = AccessLog(Rotated(Path("/dev/full"), 1, 1, 1), told.append)
    log.start()
    for _ in range(2):
        log.ended(account(), 1.0)
        while log._scribe._waiting:
            pass
    log.ended(account(), 1.0)
    log.stop(PATIENCE)
    assert log.dropped == 3
    assert [e.message for e in told if isinstance(e, Noted)] == [
        "the access log cannot be written: No space left on device; its lines are dropped"
    ]


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    """What does not fit is dropped and counted at once; what was taken is written in order."""
    begun, go = threading.Event(), threading.Event()
    written: list[int] = []

    def write(batch: list[int]) -> None:
        if batch:
            begun.set()
            go.wait(PATIENCE)
            written.extend(batch)

    scribe = Scribe("test", write, most=10)
    scribe.start()
    scribe.put(0)
    assert begun.wait(PATIENCE)  # the writer hangs now
    taken = [number for number in range(1, 100) if scribe.put(number)]
    assert taken == list(range(1, 11))
    assert scribe.dropped == 89
    assert not scribe.stop(0.01)
    go.set()
    assert scribe.stop(PATIENCE)
    assert written == [0, *taken]


def test_a_pipe_whose_reader_has_gone_ends_nothing(tmp_path: Path) -> None:
    """As with stdout into a program that ended."""
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(Rotated(Path(f"/dev/fd/{writer}"), 1, 1, 1))
    try:
        log._output._descriptor, log._output._plain = writer, False  # type: ignore[union-attr]
        log._write([(0.0, account(), 0.0)])
        assert log.dropped == 1
    finally:
        os.close(writer)
