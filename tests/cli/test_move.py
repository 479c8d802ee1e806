"""Whole directories: push and pull are backup and restore, and send is a command that a user can trust a server to."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chromakeep.chroma.server import free_port
from cli.documentation import documented, same_fields

if TYPE_CHECKING:
    from cli.conftest import Cli

TOKEN = "a-token-for-tests-0123456789"
SECRET = {"CHROMAKEEP_RECEIVE_TOKEN": TOKEN}


def test_push_and_pull_are_backup_and_restore(cli: Cli, chroma: Path) -> None:
    """The same objects, under their own names, and the same options."""
    cli.json("init", "keep")
    pushed = cli.json("push", "chroma", "keep")
    same_fields({**pushed, "command": "backup"}, documented("backup"))
    assert pushed["command"] == "push"
    pulled = cli.json("pull", "keep", "to")
    same_fields({**pulled, "command": "restore"}, documented("restore"))
    assert pulled["snapshot"] == pushed["snapshot"]
    assert "--replace" in cli.fails(2, "pull", "keep", "to")
    again = cli.json("pull", f"keep@{pushed['snapshot']}", "to", "--replace", "--collections", "books")
    assert Path(cli.cwd / again["old"]).is_dir()
    assert [c["name"] for c in again["collections"]] == ["books"]
    assert cli.json("check", "chroma", "to", "--collections", "books")["ok"]
    shutil.rmtree(cli.cwd / "chroma")
    assert "chroma" in cli.fails(15, "push", "chroma", "keep")


@contextmanager
def receiver(cli: Cli, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A run that receives, with a repository; its address."""
    port = free_port()
    command = cli.command("run", "--data", "data", "--port", str(port), "--every", "1h", *arguments)
    with (cli.cwd / "log").open("w") as log:
        running = subprocess.Popen(command, cwd=cli.cwd, env={**cli.environ, **SECRET}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not ready(port):
            assert time.monotonic() < deadline and running.poll() is None, (cli.cwd / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", running  # type: ignore[misc]
    finally:
        running.kill()
        running.wait()


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
            return True
    except OSError:
        return False


@pytest.mark.slow
def test_a_directory_is_sent_and_swapped_back(cli: Cli, chroma: Path) -> None:
    """The object of the reference, a line for people, progress for programs; the token is nowhere to be seen."""
    with receiver(cli, "--repository", "keep") as (url, running):
        assert "there is no token" in cli.fails(2, "send", "chroma", url)
        assert "16 or more" in cli.fails(2, "send", "chroma", url, env={"CHROMAKEEP_RECEIVE_TOKEN": "short"})
        assert "401" in cli.fails(18, "send", "chroma", url, env={"CHROMAKEEP_RECEIVE_TOKEN": TOKEN[::-1]})
        assert "URL" in cli.fails(2, "send", env=SECRET)
        assert "s3://" in cli.fails(2, "send", "chroma", "s3://bucket/x", env=SECRET)
        assert cli.fails(15, "send", "nowhere", url, env=SECRET)
        assert cli.fails(13, "send", "--rollback", url, env=SECRET)
        assert "alone" in cli.fails(2, "send", "--rollback", "chroma", url, env=SECRET)
        done = cli.json("send", "chroma", url, env=SECRET)
        same_fields(done, documented("send"))
        assert [(c["name"], c["count"]) for c in done["collections"]] == [("books", 300), ("laws", 150)]
        assert Path(done["kept"]).is_dir()
        (cli.cwd / "secret").write_text(TOKEN + "\n")
        environ = {"CHROMAKEEP_DATA": "chroma"}
        told = cli("send", url, "--receive-token-file", "secret", "--progress", "json", env=environ)
        assert told.returncode == 0, told.stderr
        assert f"{url} serves 450 records in 2 collections" in told.stdout
        phases = [json.loads(line)["phase"] for line in told.stderr.splitlines() if '"PhaseStarted"' in line]
        assert phases[:2] == ["capture", "send"]
        assert set(phases[2:]) <= {"verifying", "keeping", "exchanging", "recording"}
        back: dict[str, Any] = cli.json("send", "--rollback", url, env=SECRET)
        fields = ["command", "ok", "target", "restored", "kept", "snapshot", "down_seconds", "seconds"]
        assert list(back) == fields
        snapshots = [s["id"] for s in cli.json("snapshots", "keep")["snapshots"]]
        assert {done["snapshot"], done["snapshot_before"], back["snapshot"]} <= {*snapshots, None}
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert [c["name"] for c in cli.json("show", "data")["collections"]] == ["books", "laws"]
    seen = (cli.cwd / "log").read_text() + told.stdout + told.stderr + cli("config", "show", env=SECRET).stdout
    assert TOKEN not in seen
    assert "receive_token" in seen


def test_a_token_is_told_to_be_wrong_before_anything_is_served(cli: Cli) -> None:
    """Too short, with spaces, or in the file of settings, where it does not belong."""
    for token in ("short", "with spaces in it, and long", "ünïcödé-ünïcödé-ünïcödé"):
        told = cli.fails(2, "run", "--data", "data", "--ephemeral", env={"CHROMAKEEP_RECEIVE_TOKEN": token})
        assert "CHROMAKEEP_RECEIVE_TOKEN" in told and token not in told
    (cli.cwd / "chromakeep.toml").write_text(f'receive_token = "{TOKEN}"')
    told = cli.fails(2, "config", "show")
    assert "receive_token_file" in told and TOKEN not in told
    assert not (cli.cwd / "data" / "chroma.sqlite3").exists()
