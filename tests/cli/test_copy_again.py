"""A copy that did not end well, and what the next one makes of what it left: never a mixture of both, never less than
all."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chromakeep.chroma.server import ChromaServer

if TYPE_CHECKING:
    from cli.conftest import Cli

BAD = '{"id": "bad", "embedding": [1], "metadata": {}}'


def lines(name: str, count: int) -> list[str]:
    """A collection as lines of JSONL."""
    records = [{"id": f"{name}-{n}", "embedding": [n / 2, 1.0], "metadata": {"n": n}} for n in range(count)]
    return [json.dumps({"collection": {"name": name}}), *map(json.dumps, records)]


def test_a_stream_that_was_cut_is_written_from_its_beginning(cli: Cli) -> None:
    """Nothing that was read from a pipe is there for a second process to go on behind."""
    (cli.cwd / "many.jsonl").write_text("\n".join(lines("many", 6000)))
    command = cli.command("copy", "many.jsonl", "-")
    with subprocess.Popen(command, cwd=cli.cwd, env=cli.environ, stdout=-1, stderr=-1) as cut:
        assert cut.stdout is not None
        for _ in range(2049):  # of a first batch
            cut.stdout.readline()
        cut.stdout.close()
        assert cut.wait(60) == 16
    again = cli("copy", "many.jsonl", "-")
    assert len(again.stdout.splitlines()) == 6001


@pytest.mark.parametrize("target", ["out", "out.parquet/", "out.jsonl"])
@pytest.mark.parametrize("change", ["source", "options"])
def test_what_is_begun_anew_has_nothing_of_the_attempt_before(cli: Cli, target: str, change: str) -> None:
    """One collection was finished and another one begun. Then the source was changed, or something else is asked
    for."""
    (cli.cwd / "in.jsonl").write_text("\n".join([*lines("first", 5), *lines("second", 2100), BAD]))
    assert "2108" in cli.fails(15, "copy", "in.jsonl", target)
    kept = lines("first", 5) if change == "options" else []
    (cli.cwd / "in.jsonl").write_text("\n".join([*kept, *lines("second", 7)]))
    options = ("--collections", "second") if change == "options" else ()
    assert cli.json("copy", "in.jsonl", target, *options)["records"] == 7
    found = cli.json("check", "in.jsonl", target, status=14 if change == "options" else 0)
    assert [c["records"] for c in found["collections"]] == [[7, 7]]
    assert found["only_second"] == []


def test_a_server_is_listed_anew_when_a_copy_is_given_up(cli: Cli, chroma: Path) -> None:
    """The list of ids that a killed copy kept is of its time: one with other options must find what came since."""
    with ChromaServer(chroma, env=os.environ) as server:
        url = f"http://127.0.0.1:{server.client.port}"
        command = cli.command("export", url, "laws.jsonl", "--collections", "laws", "--rate", "1")
        cut = subprocess.Popen(command, cwd=cli.cwd, env=cli.environ)
        deadline = time.monotonic() + 60
        while not list(cli.cwd.rglob("*.ids")) and time.monotonic() < deadline:
            time.sleep(0.02)
        cut.kill()
        cut.wait()
        (laws,) = [each for each in server.client.list_collections() if each.name == "laws"]
        server.client.request("POST", f"{laws.path}/add", {"ids": ["late"], "embeddings": [[0.5] * 384]})
        done = cli.json("export", url, "laws.jsonl", "--collections", "laws", "--verify")
        assert done["records"] == 151


def test_a_comparison_leaves_a_copy_that_is_to_be_gone_on_with(cli: Cli) -> None:
    """How far it has come is what somebody looks for whose copy has failed."""
    (cli.cwd / "in.jsonl").write_text("\n".join([*lines("first", 5), *lines("second", 2100), BAD]))
    cli.fails(15, "copy", "in.jsonl", "out.parquet/")
    (left,) = cli.cwd.rglob("checkpoint.json")
    cli("check", "in.jsonl", "out.parquet/")
    assert left.exists()


def test_a_home_that_is_none_is_told_with_what_to_do(cli: Cli) -> None:
    """As that of many a container's user."""
    (cli.cwd / "in.jsonl").write_text("\n".join(lines("first", 5)))
    for words in (("copy", "in.jsonl", "x.parquet"), ("check", "in.jsonl", "in.jsonl")):
        assert "--work" in cli.fails(2, *words, env={"HOME": "/proc/none"})
        assert cli(*words, "--work", "w", env={"HOME": "/proc/none"}).returncode == 0


def test_comparing_twice_at_once(cli: Cli, chroma: Path) -> None:
    """Each has working copies of its own, and none is left; so has each dry run."""
    for words in (("check", "chroma", "chroma"), ("copy", "chroma", "out", "--dry-run")):
        some = [
            subprocess.Popen(cli.command(*words), cwd=cli.cwd, env=cli.environ, stdout=-1, stderr=-2, text=True)
            for _ in range(3)
        ]
        for each in some:
            told, _ = each.communicate(timeout=120)
            assert each.returncode == 0, told
    assert not list(cli.cwd.rglob("copy-*"))
