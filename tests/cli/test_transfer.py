"""``transfer`` as a user runs it: a directory that an application goes on writing to, and a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chromakeep.chroma.server import ChromaServer
from cli.documentation import documented, same_fields

if TYPE_CHECKING:
    from cli.conftest import Cli

WRITER = """
import json, os, pathlib, random, sys
import chromadb
path, folder = sys.argv[1], pathlib.Path(sys.argv[2])
client = chromadb.PersistentClient(path)
books = client.get_collection("books")
held, rng, n = {}, random.Random(1), 0
(folder / "writing").write_text(str(os.getpid()))
while not (folder / "stop").exists():
    n += 1
    ids = [f"w{n}-{k}" for k in range(5)]
    books.add(ids=ids, embeddings=[[rng.random() for _ in range(384)] for _ in ids], documents=[f"{n}"] * 5)
    held.update(dict.fromkeys(ids, str(n)))
    changed = rng.choice(sorted(held))
    books.update(ids=[changed], embeddings=[[rng.random() for _ in range(384)]], documents=[f"changed {n}"])
    held[changed] = f"changed {n}"
    gone = rng.choice(sorted(held))
    books.delete(ids=[gone])
    del held[gone]
    if n == 10:
        client.create_collection("made-later").add(ids=["a", "b"], embeddings=[[1.0, 2.0], [3.0, 4.0]])
(folder / "held").write_text(json.dumps(held))
(folder / "writing").unlink()
"""
STOP = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "stop").touch()
while (folder / "writing").exists():
    time.sleep(0.01)
print("the writer has ended")
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    """An empty server."""
    with ChromaServer(tmp_path_factory.mktemp("server"), env=os.environ) as running:
        yield running


@pytest.fixture
def writer(cli: Cli, chroma: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An application that embeds the directory, and writes until ``./stop`` is there."""
    (cli.cwd / "writer.py").write_text(WRITER)
    (cli.cwd / "stop.py").write_text(STOP)
    process = subprocess.Popen([sys.executable, cli.cwd / "writer.py", chroma, cli.cwd])
    try:
        _wait(lambda: (cli.cwd / "writing").exists() or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.wait()


def _wait(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_live_directory_moves_to_a_server(cli: Cli, server: ChromaServer, writer: subprocess.Popen[bytes]) -> None:
    """Copied while it is written to, the copy killed on the way; followed by one process while others look; switched
    without the loss of a write, rolled back, and cleaned up: with every object as it is documented."""
    to = f"http://{server.client.host}:{server.client.port}/acme/prod"

    def step(name: str, *arguments: str, status: int = 0) -> dict[str, Any]:
        answer = cli.json("transfer", name, *arguments, status=status)
        same_fields({**answer, "command": "transfer status"}, documented("transfer status"), name)
        return answer

    copying = subprocess.Popen(
        cli.command("transfer", "start", "chroma", to, "--rename", "laws=rules", "--rate", "10"),
        cwd=cli.cwd,
        env=cli.environ,
    )
    state = cli.cwd / "chromakeep-transfer.json"
    _wait(lambda: state.exists() and '"id"' in state.read_text())
    time.sleep(0.5)
    copying.kill()
    copying.wait()
    assert step("status")["phase"] == "starting"
    assert step("start", "chroma", to, "--rename", "laws=rules")["phase"] == "copied"
    following = subprocess.Popen(
        cli.command("transfer", "follow", "--every", "100ms"),
        cwd=cli.cwd,
        env=cli.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait(lambda: (json.loads(state.read_text())["last_round"] or {}).get("upserted"))
    found = step("verify")
    assert found["verified"]["equal"]
    assert "made-later" in [each["name"] for each in found["collections"]] or found["rounds"] < 3
    (cli.cwd / "app.env").write_text("# ours\nCHROMA_URL=http://a\n")
    python = f"'{sys.executable}'"
    hook = f"""{python} -c 'open("hooked", "w")'"""
    done = cli(
        *["transfer", "switch", "--env-file", "app.env", "--hook", hook, "--drain", "100ms"],
        *["--stop-writes", f"{python} stop.py .", "--resume-writes", f"{python} -c 'raise SystemExit(1)'"],
    )
    assert done.returncode == 0, done.stderr
    assert "the writer has ended" in done.stderr
    assert "phase     switched" in done.stdout
    assert following.wait(60) == 0, following.communicate()
    assert "nothing more to follow" in following.communicate()[1]
    assert (cli.cwd / "app.env").read_text() == f"# ours\nCHROMA_URL={to}\n"
    assert (cli.cwd / "hooked").exists()
    assert writer.wait(30) == 0
    held = json.loads((cli.cwd / "held").read_text())
    there = {ref.name: ref for ref in server.client.list_collections("acme", "prod")}
    assert set(there) == {"books", "rules", "made-later"}
    books = server.client.request("POST", f"{there['books'].path}/get", {"include": ["documents"]})
    documents = dict(zip(books["ids"], books["documents"], strict=True))
    assert {id_: text for id_, text in documents.items() if id_.startswith("w")} == held
    assert len(documents) == 300 + len(held)
    assert cli("check", "chroma", to, "--collections", "books").returncode == 0
    server.client.delete(there["rules"], server.client.request("POST", f"{there['rules'].path}/get", {})["ids"][:4])
    cli.fails(1, "transfer", "rollback")  # its --resume-writes cannot
    assert step("rollback", "--resume-writes", f"{python} -c pass")["rolled_back"]["differing"] == 4
    assert (cli.cwd / "app.env").read_text() == "# ours\nCHROMA_URL=http://a\n"
    assert step("follow", "--discard", "--until-quiet")["phase"] == "copied"
    assert server.client.count(there["rules"]) == 150
    work = Path(step("status")["state"]).parent
    assert work == Path()
    assert "not over" in cli.fails(2, "transfer", "cleanup")
    assert cli.json("transfer", "cleanup", "--force")["phase"] == "gone"
    assert not state.exists()
    assert "there is no transfer" in cli.fails(2, "transfer", "status")


def test_from_one_server_to_another(cli: Cli, server: ChromaServer, chroma: Path) -> None:
    """Each round lists and reads A anew: what was added, changed, deleted and created there is at B, and only that."""
    with ChromaServer(chroma, env=os.environ) as old:
        a, b = (f"http://{each.client.host}:{each.client.port}" for each in (old, server))
        assert cli("transfer", "start", a, b, "--on-conflict", "replace").returncode == 0
        books, laws = sorted(old.client.list_collections(), key=lambda ref: ref.name)
        path = f"{books.path.rpartition('/')[0]}"
        ids = old.client.request("POST", f"{books.path}/get", {"limit": 10, "include": []})["ids"]
        body = {"ids": ids[:2], "embeddings": [[1.0] * 384] * 2, "documents": ["new", "newer"], "metadatas": [None] * 2}
        old.client.request("POST", f"{books.path}/upsert", body)
        old.client.delete(books, ids[4:7])
        old.client.request("DELETE", f"{path}/laws")
        made = old.client.request("POST", path, {"name": "notes"})
        old.client.request(
            "POST", f"{path}/{made['id']}/add", {"ids": ["n"], "embeddings": [[1.0]], "documents": ["x"]}
        )
        last = cli.json("transfer", "follow")["last_round"]
        assert [last[name] for name in ("upserted", "deleted", "created", "dropped")] == [3, 3, 1, 1]
        assert cli.json("transfer", "follow")["last_round"]["upserted"] == 0
        assert cli.json("transfer", "verify")["verification"] == "equal"
        assert cli("check", a, b).returncode == 0
        assert sorted(ref.name for ref in server.client.list_collections()) == ["books", "notes"]
        assert laws.name == "laws"


def test_what_cannot_be_followed_is_refused(cli: Cli, chroma: Path) -> None:
    """In one line, before anything is begun: a directory or a file as the target, a tenant named twice."""
    for target in ("other", "x.parquet", "keep@latest"):
        assert "cannot be caught up with" in cli.fails(2, "transfer", "start", "chroma", target)
    assert "different tenants" in cli.fails(
        2, "transfer", "start", "chroma", "http://localhost:1/acme", "--tenant", "other"
    )
    assert not (cli.cwd / "chromakeep-transfer.json").exists()
    assert not (cli.cwd / ".local").exists()


def test_a_home_that_is_none_is_told(cli: Cli, server: ChromaServer, chroma: Path) -> None:
    """Working copies go below it; nothing is begun."""
    (cli.cwd / "file").touch()
    place = f"http://127.0.0.1:{server.client.port}"
    told = cli.fails(2, "transfer", "start", "chroma", place, env={"HOME": str(cli.cwd / "file" / "none")})
    assert "working copies cannot be kept there" in told
    assert "--work PATH" in told
    assert not (cli.cwd / "chromakeep-transfer.json").exists()


def test_following_ends_quietly_at_a_signal(cli: Cli, server: ChromaServer, chroma: Path) -> None:
    """SIGTERM is how ``--every`` is ended: status 0 and where it stands. In a directory at rest nothing is read."""
    to = f"http://{server.client.host}:{server.client.port}"
    assert cli("transfer", "start", "chroma", to).returncode == 0
    following = subprocess.Popen(
        cli.command("transfer", "follow", "--every", "10ms", "--json"),
        cwd=cli.cwd,
        env=cli.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    state = cli.cwd / "chromakeep-transfer.json"
    _wait(lambda: json.loads(state.read_text())["rounds"] > 3)
    following.send_signal(signal.SIGTERM)
    out, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    answer = json.loads(out)
    assert (answer["phase"], answer["last_round"]["read"], answer["changed"]) == ("copied", 0, None)
    assert cli.json("transfer", "status")["changed"] is False
