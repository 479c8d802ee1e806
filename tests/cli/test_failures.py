"""Bad input: one clear line, a hint where there is something to do, and a status that a script can rely on."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli.conftest import Cli


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bakup", "a", "b"], "did you mean backup?"),
        (["backup", "a", "b", "c"], "c"),
        (["backup", "a", "b", "--stagee", "x"], "--stage"),
        (["snapshots", "keep", "--progress", "loud"], "--progress: not a choice"),
        (["prune", "keep"], "--keep-last"),
        (["prune", "keep", "--keep-within", "soon"], "--keep-within: not a duration: 'soon'"),
        (["prune", "keep", "--keep-last", "-1"], "--keep-last: not a number"),
        (["backup"], "CHROMAKEEP_DATA"),
        (["backup", "chroma"], "CHROMAKEEP_REPOSITORY"),
        (["restore", "keep", "to", "--collections", "a,,b"], "empty name"),
        (["snapshots", "ftp://host/keep"], "ftp://"),
        (["snapshots", "s3://"], "bucket"),
        (["snapshots", ""], "REPO"),
        (["show", "keep@-"], "after @"),
        (["backup", "s3://bucket/chroma", "keep"], "local"),
        (["backup", "http://localhost:8000", "keep"], "local"),
        (["restore", "keep", "https://host/chroma"], "local"),
        (["completion", "csh"], "bash"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(cli: Cli, arguments: list[str], said: str) -> None:
    """Status 2, before anything is opened or made."""
    assert said in cli.fails(2, *arguments)
    assert list(cli.cwd.iterdir()) == []


@pytest.mark.parametrize("command", [["snapshots"], ["check"], ["prune", "--keep-last", "1"], ["unlock"], ["show"]])
def test_an_address_without_a_repository(cli: Cli, command: list[str]) -> None:
    """Status 10, the address and how to make one; and nothing is made by looking."""
    told = cli.fails(10, command[0], "nowhere", *command[1:])
    assert "nowhere" in told
    assert "init" in told
    assert list(cli.cwd.iterdir()) == []


def test_a_place_that_is_taken(cli: Cli) -> None:
    """init never makes a repository anew where one is."""
    first = cli.json("init", "keep")["id"]
    assert "already" in cli.fails(2, "init", "keep")
    assert cli.json("show", "keep")["snapshots"] == 0
    assert first


@pytest.mark.parametrize("place", ["missing", "empty", "file"])
def test_what_is_no_chroma_directory(cli: Cli, place: str) -> None:
    """Status 15: an empty backup is the failure that is noticed too late."""
    (cli.cwd / "empty").mkdir()
    (cli.cwd / "file").write_text("x")
    assert cli("init", "keep").returncode == 0
    assert place in cli.fails(15, "backup", place, "keep")
    assert cli.json("snapshots", "keep")["snapshots"] == []


def test_wrong_and_missing_password(cli: Cli, chroma: Path) -> None:
    """Status 12, and what to set; the right one opens it."""
    right = {"CHROMAKEEP_PASSWORD": "right"}
    assert cli("init", "keep", env=right).returncode == 0
    assert "CHROMAKEEP_PASSWORD" in cli.fails(12, "backup", "chroma", "keep")
    assert "opens none" in cli.fails(12, "backup", "chroma", "keep", env={"CHROMAKEEP_PASSWORD": "wrong"})
    assert cli.json("backup", "chroma", "keep", env=right)["collections"]


def test_a_snapshot_that_is_not_there(cli: Cli, kept: Path) -> None:
    """Status 13 for an unknown id and for a time before the first; the target is not made."""
    for selector in ("20200101T000000Z-abcdef", "1999-01-01T00:00:00Z"):
        assert selector in cli.fails(13, "restore", f"keep@{selector}", "to")
    assert not (cli.cwd / "to").exists()


def test_a_target_that_holds_something(cli: Cli, kept: Path) -> None:
    """Status 2 without --replace, and nothing there is touched."""
    (cli.cwd / "to").mkdir()
    (cli.cwd / "to" / "mine").write_text("mine")
    assert "--replace" in cli.fails(2, "restore", "keep", "to")
    assert [p.name for p in (cli.cwd / "to").iterdir()] == ["mine"]


def test_a_format_of_the_future(cli: Cli) -> None:
    """Status 14 and the advice to upgrade, whatever else the future holds."""
    from chromakeep.repository.sealed import seal

    assert cli("init", "keep").returncode == 0
    (cli.cwd / "keep" / "config").write_bytes(seal("C", "config", b'{"format": 99, "new": []}', None))
    told = cli.fails(14, "snapshots", "keep")
    assert "99" in told
    assert "upgrade" in told


def _without_override() -> None:
    """Take from a process of root what lets it read anything (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH), before exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; without root there is nothing to drop


@pytest.mark.parametrize(
    ("closed", "command"),
    [
        ("keep", ["snapshots", "keep"]),
        ("keep", ["backup", "chroma", "keep"]),
        ("chroma", ["backup", "chroma", "keep"]),
        ("chroma/chroma.sqlite3", ["backup", "chroma", "keep"]),
        ("chroma/chroma.sqlite3", ["show", "chroma"]),
        (".", ["restore", "/proc/self/cwd/keep", "to"]),
        ("chromakeep.toml", ["config", "show"]),
    ],
)
def test_no_permission(cli: Cli, kept: Path, closed: str, command: list[str]) -> None:
    """What may not be read or written is named; no traceback, no status of a bug, nothing left behind."""
    (cli.cwd / "chromakeep.toml").touch()
    path = cli.cwd / closed
    mode = path.stat().st_mode
    path.chmod(0o500 if closed == "." else 0)
    try:
        done = cli(*command, preexec_fn=_without_override)
    finally:
        path.chmod(mode)
    assert done.returncode in (1, 2, 15, 16), done.stderr
    assert "ermission" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert sorted(p.name for p in cli.cwd.iterdir()) == ["chroma", "chromakeep.toml", "keep"]


def test_with_json_a_failure_is_one_object_too(cli: Cli) -> None:
    """stdout holds the object, with the same words as stderr, also when the command line itself is wrong."""
    answer = cli.json("snapshots", "nowhere", status=10)
    assert answer["command"] == "snapshots"
    assert (answer["ok"], answer["code"], answer["exit_status"]) == (False, "no-repository", 10)
    assert "nowhere" in answer["message"]
    assert "init" in answer["hint"]
    assert cli.json("prune", "keep", "--nonsense", status=2)["code"] == "usage"


def test_a_bug_is_one_line_and_a_traceback_only_when_asked(cli: Cli) -> None:
    """Status 70 and what to report; --debug and CHROMAKEEP_DEBUG=1 show where."""
    (cli.cwd / "blake3.py").write_text("raise RuntimeError('boom')")
    broken = {"PYTHONPATH": f"{cli.cwd}{os.pathsep}{cli.environ['PYTHONPATH']}"}
    done = cli("snapshots", "keep", "--json", env=broken)
    assert done.returncode == 70
    assert "RuntimeError: boom" in done.stderr
    assert "report" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in cli("snapshots", "keep", "--json", "--debug", env=broken).stderr
    assert "Traceback" in cli("snapshots", "keep", "--json", env={**broken, "CHROMAKEEP_DEBUG": "1"}).stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_and_leaves_nothing(cli: Cli, kept: Path, number: int, status: int) -> None:
    """Ctrl-C is 130 with one line, SIGTERM 143; what a restore had begun is removed."""
    (cli.cwd / "slow").mkdir()
    pipe = cli.cwd / "slow" / "chromakeep.toml"
    os.mkfifo(pipe)  # reading the configuration blocks until the signal comes
    # Not ignored, as it is in whatever a shell starts in the background: a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(
        cli.command("restore", "keep", "to", "--config", pipe), cwd=cli.cwd, env=cli.environ, stderr=subprocess.PIPE
    )
    with pipe.open("wb"):  # opens as soon as the other side reads
        time.sleep(0.1)
        running.send_signal(number)
        _, told = running.communicate(timeout=60)
    assert running.returncode == status
    assert b"Traceback" not in told
    assert not list(cli.cwd.glob("to*"))


def test_a_reader_that_goes_away_is_not_a_failure_of_ours(cli: Cli) -> None:
    """`chromakeep ... | head` ends quietly with 141, as a program that SIGPIPE ends."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        cli.command("config", "show"), cwd=cli.cwd, env=cli.environ, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


def test_a_stream_that_was_closed_takes_nothing(cli: Cli) -> None:
    """Nothing fails for that, what would be told there goes nowhere else, and its number becomes no other file's."""
    (cli.cwd / "abc.jsonl").write_text('{"id": "a", "embedding": [1, 2]}\n')
    copied, failed = (
        subprocess.run(
            ["sh", "-c", '"$@" 2>&-; echo $?', "sh", *cli.command("copy", source, "out.jsonl")],
            cwd=cli.cwd, env=cli.environ, capture_output=True, text=True, check=False, timeout=60,
        )
        for source in ("abc.jsonl", "nothing.jsonl")
    )  # fmt: skip
    assert copied.stdout.splitlines()[-1] == "0", copied
    assert (cli.cwd / "out.jsonl").read_text().count("\n") == 2
    assert failed.stdout == "15\n"
    assert copied.stderr == failed.stderr == ""
