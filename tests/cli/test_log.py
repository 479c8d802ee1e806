"""The log of a service: one event a line, in a file that is rotated or on a stream, and no secret in it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chromakeep.chroma.ports import free_port
from chromakeep.chroma.server import ChromaServer
from chromakeep.cli.failures import understood
from chromakeep.cli.log import Log
from chromakeep.cli.output import Reply
from chromakeep.errors import NotNow, UsageError
from chromakeep.events import Noted, PhaseStarted, Progressed, RecordsMoved, Retried, ServerLine
from chromakeep.operations.outputs import Rotated

if TYPE_CHECKING:
    from cli.conftest import Cli

TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
TOKEN = "a-token-of-32-characters-or-more"
PASSWORD = "correct-horse-battery-staple"


class Kept:
    """An output that keeps what it gets, or fails while ``broken``."""

    def __init__(self) -> None:
        self.data, self.broken = b"", False

    def open(self) -> None:
        pass

    def write(self, lines: bytes) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        self.data += lines

    @property
    def lines(self) -> list[dict[str, Any]]:
        assert self.data.endswith(b"\n")
        return [json.loads(line) for line in self.data.splitlines()]


def test_an_event_is_a_line_of_json() -> None:
    """Time, level, event, message first; then the event's own fields. What is continual is for bars."""
    to = Kept()
    log = Log(to, text=False)
    log(Noted("ready"))
    log(Noted("behind", "warning"))
    log(Retried("put x", "503", 2, 0.25))
    log(PhaseStarted("restore", 10))
    log(Progressed("restore", 5))
    log(RecordsMoved("copy", "a", 1))
    log(ServerLine("\x1b[32mlistening\x1b[0m on 8000\n"))
    log(ServerLine("\x1b[0m \n"))
    log.failed(understood(NotNow("not yet", hint="wait"), "run"))
    log.ended(Reply({"seconds": 1.5, "event": "x"}, "stopped"))
    told = to.lines
    assert all(list(line)[:4] == ["time", "level", "event", "message"] for line in told)
    assert all(re.fullmatch(TIME, line.pop("time")) for line in told)
    assert told == [
        {"level": "info", "event": "Noted", "message": "ready"},
        {"level": "warning", "event": "Noted", "message": "behind"},
        {
            "level": "warning",
            "event": "Retried",
            "message": "put x: 503; attempt 2, again in 0.2 s",
            **{"what": "put x", "error": "503", "attempt": 2, "delay": 0.25},
        },
        {"level": "info", "event": "PhaseStarted", "message": "begun: restore", "phase": "restore", "total_bytes": 10},
        {"level": "info", "event": "ServerLine", "message": "listening on 8000"},
        {
            "level": "error",
            "event": "Failed",
            "message": "not yet",
            **{"code": NotNow.code, "hint": "wait", "exit_status": NotNow.exit_status},
        },
        {"level": "info", "event": "Ended", "message": "stopped", "seconds": 1.5, "exit_status": 0},
    ]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("said", ["a\r\nb", "\x1b[2J", '"}\n{"level":"x"', "\u2028\u0085\x00", "\ud800", "é\U0001f600"])
def test_nothing_that_is_said_can_forge_a_line(said: str, text: bool) -> None:
    """Whoever splits lines finds one for each event."""
    to = Kept()
    log = Log(to, text=text)
    log(Noted(said, "warning"))
    assert to.data.count(b"\n") == 1
    assert len(to.data.decode().splitlines()) == 1
    assert b"\x1b" not in to.data
    if not text:
        assert to.lines[0]["message"] == said


def test_what_cannot_be_written_is_dropped_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk ends no run, and its log goes on when there is room again."""
    to = Kept()
    log = Log(to, text=False)
    log(Noted("one"))
    to.broken = True
    log(Noted("two"))
    log(Noted("three"))
    to.broken = False
    log(Noted("four"))
    assert [line["message"] for line in to.lines] == ["one", "four"]
    assert capsys.readouterr().err.count("No space left") == 1


def test_a_full_file_is_set_aside(tmp_path: Path) -> None:
    """So many older ones are kept; no line is cut."""
    log = Log(Rotated(tmp_path / "log", 200, float("inf"), 2), text=False)
    for number in range(20):
        log(Noted(f"event {number}"))
    files = [tmp_path / name for name in ("log.2", "log.1", "log")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    told = [json.loads(line)["message"] for file in files for line in file.read_text().splitlines()]
    assert told == [f"event {number}" for number in range(20 - len(told), 20)]
    assert len(told) >= 5


def test_a_run_in_json(cli: Cli, tmp_path: Path) -> None:
    """From the start to the end; with its passwords and tokens nowhere in it, and nothing on stderr."""
    keep, port, log = tmp_path / "keep", free_port(), tmp_path / "log"
    env = {"CHROMAKEEP_PASSWORD": PASSWORD, "CHROMAKEEP_RECEIVE_TOKEN": TOKEN}
    command = cli.command(
        *("run", "--data", tmp_path / "data", "--repository", keep, "--port", port, "--stage", tmp_path / "stage"),
        *("--log-format", "json", "--log-file", log),
    )
    running = subprocess.Popen(
        command, cwd=cli.cwd, env={**cli.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert cli("healthcheck", f"http://127.0.0.1:{port}", "--timeout", "1s").returncode in (0, 1)
        for _ in range(200):
            if cli("healthcheck", f"http://127.0.0.1:{port}", "--timeout", "2s").returncode == 0:
                break
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0
    assert err == ""
    assert out.startswith("stopped after")
    said = log.read_text()
    lines = [json.loads(line) for line in said.splitlines()]
    assert all(datetime.fromisoformat(line["time"].replace("Z", "+00:00")) for line in lines)
    assert {"Noted", "ServerLine"} <= {line["event"] for line in lines}
    assert (lines[-1]["event"], lines[-1]["exit_status"]) == ("Ended", 0)
    assert out.strip() == lines[-1]["message"]
    assert PASSWORD not in said and TOKEN not in said


def test_a_service_that_cannot_start_says_so_in_its_log(cli: Cli, tmp_path: Path) -> None:
    """As JSON on stderr alone, or in the file and on stderr; on stdout a log has no other line beside it."""
    serve = ("serve", "http://127.0.0.1:1", "--data", tmp_path, "--host", "0.0.0.0", "--port", free_port())
    done = cli(*serve, "--log-format", "json")
    assert done.returncode == 19 and done.stdout == ""
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["level"], line["event"], line["exit_status"]) == ("error", "Failed", 19)
    cli.fails(19, *serve, "--log-file", tmp_path.with_name("text.log"))
    assert ": " in tmp_path.with_name("text.log").read_text()
    assert line["message"] in tmp_path.with_name("text.log").read_text()
    done = cli(*serve, "--log-format", "json", "--log-file", "-")
    assert json.loads(done.stdout)["message"] == line["message"]
    assert line["message"] in done.stderr
    assert cli.json(*serve, "--log-format", "json", status=19)["message"] == line["message"]


def test_a_door_tells_on_stdout_beside_its_access_log(cli: Cli, tmp_path: Path) -> None:
    """Lines of both, whole; the end is an event."""
    port, env = free_port(), {**cli.environ, "CHROMAKEEP_LOG_FORMAT": "json", "CHROMAKEEP_LOG_FILE": "-"}
    with ChromaServer(tmp_path / "chroma", env=cli.environ) as server:
        url = f"http://127.0.0.1:{server.options.port}"
        running = subprocess.Popen(
            cli.command("serve", url, "--open", "--port", port, "--access-log", "-"),
            cwd=cli.cwd,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            for _ in range(200):
                if cli("healthcheck", f"http://127.0.0.1:{port}", "--timeout", "2s").returncode == 0:
                    break
            running.send_signal(signal.SIGTERM)
            out, _ = running.communicate(timeout=60)
        finally:
            running.kill()
            running.wait()
    lines = [json.loads(line) for line in out.splitlines()]
    assert any(line.get("path") == "/readyz" for line in lines)
    assert lines[-1]["event"] == "Ended"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--log-file", "data/x"), "is in the data directory"),
        (("--log-file", "x", "--access-log", "x"), "is the access log, too"),
        (("--log-file", "x", "--audit-log", "x"), "is the audit log, too"),
        (("--log-file", "./link", "--audit-log", "x"), "is the audit log, too"),
        (("--access-log", "x", "--audit-log", "x"), "is the audit log, too"),
        (("--access-log", "nowhere/../x", "--audit-log", "link"), "is the audit log, too"),
        (("--log-file", "nowhere/x"), "no such file"),
        (("--log-file", "x", "--log-size", "0"), "0 megabytes"),
        (("--log-format", "yaml"), "not a choice"),
    ],
)
def test_a_log_that_cannot_be_is_refused(cli: Cli, options: tuple[str, ...], said: str) -> None:
    """Before anything starts."""
    (cli.cwd / "link").symlink_to("x")
    told = cli.fails(UsageError.exit_status, "run", "--data", "data", "--ephemeral", *options)
    assert said in told.lower()
    assert not (cli.cwd / "data").exists() and not (cli.cwd / "x").exists()


def test_a_door_refuses_one_file_for_two_of_its_logs(cli: Cli) -> None:
    """The rotation of one would take the other one's records away."""
    (cli.cwd / "link").symlink_to("x")
    serve = ("serve", "http://127.0.0.1:1", "--open", "--port", str(free_port()))
    assert "is the audit log, too" in cli.fails(2, *serve, "--access-log", "link", "--audit-log", "./x")
