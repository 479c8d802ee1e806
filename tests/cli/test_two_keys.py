"""Two servers with keys of their own: each end of a copy, a comparison and a transfer gets its own token."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromakeep.chroma.ports import free_port
from chromakeep.chroma.server import ChromaServer
from cli.conftest import Cli
from cli.test_serve import until_ready

FROM, TO, BOTH = "CHROMA_TOKEN_FROM", "CHROMA_TOKEN_TO", "CHROMA_TOKEN"


class Door:
    """A door with a key of the role admin, and nothing else that opens it."""

    def __init__(self, cli: Cli, keys: Path, upstream: str, path: str) -> None:
        keys.mkdir()
        self.token = cli("keys", "create", "boss", "--role", "admin", "--data", keys).stdout.strip()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}{path}"
        self.process = subprocess.Popen(
            cli.command("serve", upstream, "--data", keys, "--port", str(port)),
            cwd=cli.cwd,
            env=cli.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        until_ready(port, self.process)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Door, Door]]:
    """A and B, which lead to two databases: one with three records, the other one not there yet."""
    folder = tmp_path_factory.mktemp("doors")
    found: list[Door] = []
    with ChromaServer(folder / "chroma", env=os.environ) as server:
        at = "/tenants/default_tenant/databases/default_database/collections"
        made = server.client.request("POST", at, {"name": "books"})["id"]
        records = {"ids": ["a", "b", "c"], "embeddings": [[1, 2], [3, 4], [5, 6]]}
        server.client.request("POST", f"{at}/{made}/add", records)
        upstream, cli = f"http://{server.client.host}:{server.client.port}", Cli(folder, {})
        try:
            for name, path in (("a", ""), ("b", "/acme/prod")):
                found.append(Door(cli, folder / name, upstream, path))
            yield found[0], found[1]
        finally:
            for door in found:
                door.process.kill()
                door.process.wait()


def nothing_told(cli: Cli, said: str, *doors: Door) -> None:
    """No token is in what was said, nor in anything that was written down."""
    kept = b"".join(path.read_bytes() for path in cli.cwd.rglob("*") if path.is_file())
    assert not [door for door in doors if door.token in said or door.token.encode() in kept]


def test_each_end_has_its_own(cli: Cli, doors: tuple[Door, Door]) -> None:
    """In a variable of its own or the one for both; one that is refused is named by its variable."""
    a, b = doors
    to = ("--on-conflict", "replace", "--debug")
    refused = (
        ({BOTH: a.token}, b, "the token in CHROMA_TOKEN ", "set CHROMA_TOKEN_TO or CHROMA_TOKEN to"),
        ({BOTH: b.token}, a, "the token in CHROMA_TOKEN ", "set CHROMA_TOKEN_FROM or CHROMA_TOKEN to"),
        ({FROM: b.token, BOTH: b.token}, a, "the token in CHROMA_TOKEN_FROM ", "set CHROMA_TOKEN_FROM to"),
        ({TO: b.token}, a, "asks for a token", "set CHROMA_TOKEN_FROM or CHROMA_TOKEN to"),
        ({FROM: a.token}, b, "asks for a token", "set CHROMA_TOKEN_TO or CHROMA_TOKEN to"),
        ({FROM: a.token, TO: b.token + "\nx"}, None, "the token in CHROMA_TOKEN_TO holds", "line break"),
    )
    for env, at, *words in refused:
        said = cli("copy", a.url, b.url, *to, env=env)
        assert said.returncode not in (0, 1), said.stderr
        for word in [*words, *([at.url.removesuffix("/acme/prod")] if at else [])]:
            assert word in said.stderr, (env.keys(), said.stderr)
        nothing_told(cli, said.stdout + said.stderr, a, b)
    for env in ({FROM: a.token, TO: b.token}, {BOTH: a.token, TO: b.token}, {FROM: a.token, BOTH: b.token}):
        assert cli.json("copy", a.url, b.url, *to[:2], "--verify", env=env)["verified"]
    env, only = {FROM: a.token, TO: b.token}, ("--collections", "books")
    assert cli("check", a.url, b.url, *only, env=env).returncode == 0
    assert "CHROMA_TOKEN_TO" in cli.fails(18, "check", a.url, b.url, *only, env={BOTH: a.token})
    assert cli("check", b.url, a.url, *only, env={FROM: b.token, TO: a.token}).returncode == 0
    assert cli("export", b.url, "x.parquet", *only, env={FROM: b.token}).returncode == 0
    nothing_told(cli, "", a, b)


def test_a_transfer_between_them(cli: Cli, doors: tuple[Door, Door]) -> None:
    """Every phase takes both from the environment again; the door of A is told with the key of A."""
    a, b = doors
    both, said = {FROM: a.token, TO: b.token}, []

    def step(*words: str, env: dict[str, str] = both, status: int = 0) -> str:
        done = cli("transfer", *words, env=env)
        assert done.returncode == status, done.stderr
        said.append(done.stdout + done.stderr)
        return said[-1]

    step("start", a.url, b.url, "--collections", "books", "--on-conflict", "replace")
    assert "in CHROMA_TOKEN_TO " in step("follow", env={FROM: a.token, TO: a.token}, status=18)
    step("follow", env={BOTH: a.token, TO: b.token})
    step("verify")
    assert "in CHROMA_TOKEN_FROM may not stop writes" in step("switch", env={**both, FROM: "wrong"}, status=2)
    assert "phase     switched" in step("switch", "--drain", "0s")
    asking = urllib.request.Request(f"{a.url}/_keep/writes", headers={"x-chroma-token": a.token})
    with urllib.request.urlopen(asking, timeout=20) as answer:
        assert json.load(answer)["allow"] is False
    assert "admin" in step("rollback", env={**both, FROM: ""}, status=18)
    assert "phase     rolled-back" in step("rollback")
    nothing_told(cli, "".join(said), a, b)
    assert json.loads((cli.cwd / "chromakeep-transfer.json").read_text())["switch"]["door"] == a.url
