"""Progress: a bar on a terminal, JSON lines when asked for, nothing in a log; warnings everywhere."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chromakeep.cli import progress
from chromakeep.events import Noted, PhaseStarted, Progressed, RecordsMoved, Retried, ServerLine

if TYPE_CHECKING:
    from cli.conftest import Cli


def test_json_lines_end_with_the_true_count(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a burst the first and the last are told, so a phase never ends at a stale number."""
    watch = progress.choose("json")
    watch(PhaseStarted("read", 5000))
    for done in range(5001):
        watch(Progressed("read", done))
    watch(Noted("half"))
    for done in range(10):
        watch(Progressed("write", done))
    watch.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines if line["event"] != "Progressed"] == ["PhaseStarted", "Noted"]
    assert [line["done_bytes"] for line in lines if line.get("phase") == "write"][-1] == 9
    before = lines[: [line["event"] for line in lines].index("Noted")]
    assert before[-1]["done_bytes"] == 5000
    assert len(lines) < 100
    assert all(isinstance(line["time"], float) for line in lines)


def test_records_end_with_the_true_count_of_each_collection(capsys: pytest.CaptureFixture[str]) -> None:
    """Thousands of batches are few lines, and the last number of a collection is always told."""
    watch = progress.choose("json")
    for name in ("a", "b"):
        for done in range(0, 3001):
            watch(RecordsMoved("copy", name, done, 3000))
    watch.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [max(line["done"] for line in lines if line["collection"] == name) for name in ("a", "b")] == [3000, 3000]
    assert len(lines) < 100


def test_a_bar_of_records(capsys: pytest.CaptureFixture[str]) -> None:
    """Records of one collection after another, then bytes, then records again: the columns change, nothing breaks."""
    watch = progress.Bar()
    for name in ("a[b]", "c\nd"):
        for done in range(50):
            watch(RecordsMoved("copy", name, done, 50 if name == "c\nd" else None))
    watch(PhaseStarted("store", 10))
    watch(Progressed("store", 10))
    watch(RecordsMoved("verify", "x", 1, 2))
    watch.close()
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_gets_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    """No progress and no chatter where nobody looks; what a person must know is always told, in one line."""
    watch = progress.choose("auto")  # stderr is captured: not a terminal
    watch(PhaseStarted("read", 10))
    watch(Progressed("read", 10))
    watch(Noted("chatter"))
    watch(Noted("two\nlines", "warning"))
    watch(Retried("put x", "503", 2, 0.25))
    watch.close()
    told = capsys.readouterr().err.splitlines()
    assert told == ["warning: two\\x0alines", "warning: put x: 503; attempt 2, again in 0.2 s"]


def test_a_service_tells_everything_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The server's lines are marked as its own, without their colours and blank lines."""
    watch = progress.choose("auto", service=True)
    watch(Noted("ready"))
    watch(ServerLine("\x1b[32mlistening\x1b[0m on 8000\n"))
    watch(ServerLine("\x1b[0m \n"))
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" ready")
    assert first.startswith("20")
    assert second.endswith(" chroma | listening on 8000")


def test_progress_of_a_backup_as_json(cli: Cli, kept: Path) -> None:
    """stderr is JSON lines and nothing else; stdout is the result."""
    done = cli("backup", "chroma", "keep", "--progress", "json", "--json")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert any(line["event"] == "PhaseStarted" for line in lines)
    assert json.loads(done.stdout)["ok"]


def test_a_terminal_gets_a_bar(cli: Cli, kept: Path) -> None:
    """On a pseudo-terminal there is a bar with bytes; it is gone at the end, and stdout has the result alone."""
    master, terminal = pty.openpty()
    done = subprocess.Popen(
        cli.command("restore", "keep", "to"),
        cwd=cli.cwd,
        env={**cli.environ, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # Linux answers EIO when the last writer has closed
        pass
    out, _ = done.communicate(timeout=60)
    assert done.returncode == 0
    assert b"B" in shown and b"\x1b[" in shown
    assert out.startswith(b"restored ")
    assert b"\x1b" not in out
