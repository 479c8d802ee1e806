"""The main job as `make up` runs it: serve, load the sample, stop, lose the disk, and come back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chromakeep.chroma.ports import free_port
from chromakeep.cli.doors import forwarding_of
from chromakeep.cli.settings import Settings
from chromakeep.errors import UsageError
from cli.documentation import documented, same_fields
from run.running import eventually

if TYPE_CHECKING:
    from cli.conftest import Cli

ROOT = Path(__file__).parent.parent.parent
COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"


def start(cli: Cli, port: int, *arguments: str) -> subprocess.Popen[str]:
    log = (cli.cwd / "log").open("a")
    command = cli.command("run", "--data", "data", "--port", str(port), *arguments, "--json")
    return subprocess.Popen(command, cwd=cli.cwd, env=cli.environ, stdout=subprocess.PIPE, stderr=log, text=True)


def load(cli: Cli, port: int, running: subprocess.Popen[str]) -> str:
    """Run the sample's loader against it, as make up does."""
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "sample" / "load.py",
            "--url",
            f"http://127.0.0.1:{port}",
            "--while-pid",
            str(running.pid),
        ],
        env={**cli.environ, "SAMPLE_DATA": str(ROOT / "sample")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + (cli.cwd / "log").read_text()
    return done.stdout


def counts(port: int) -> dict[str, int]:
    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{COLLECTIONS}{path}", timeout=30) as answer:
            return json.load(answer)

    return {c["name"]: get(f"/{c['id']}/count") for c in get("")}


def servers_of(parent: int) -> list[int]:
    """The processes of Chroma that it has started. It has others: one that looks into a copy is of our own program."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of all processes here some end just now
            starter = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(starter) == parent and b"\0--path\0" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def stop(running: subprocess.Popen[str], number: int) -> dict[str, Any]:
    """The object on stdout after a clean end."""
    running.send_signal(number)
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 0, out
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.mark.slow
def test_a_disk_is_lost_and_the_sample_comes_back(cli: Cli) -> None:
    """SIGTERM or Ctrl-C ends with 0 and a last snapshot; on an empty directory the next start restores it."""
    port = free_port()
    running = start(cli, port, "--repository", "keep", "--every", "1h")
    try:
        eventually(lambda: " snapshot 2" in (cli.cwd / "log").read_text(), "the first snapshot")
        assert "books 1,424, laws 647 records sent" in load(cli, port, running)
        first = stop(running, signal.SIGTERM)
        assert (first["command"], first["ok"], first["snapshots"]) == ("run", True, 2)  # first and last
        assert [s["id"] for s in cli.json("snapshots", "keep")["snapshots"]][-1] == first["snapshot"]

        shutil.rmtree(cli.cwd / "data")
        running = start(cli, port, "--repository", "keep", "--every", "1h")
        assert "nothing was sent" in load(cli, port, running)
        assert counts(port) == {"books": 1424, "laws": 647}
        second = stop(running, signal.SIGINT)
        assert second["outcome"] == "restored"
    finally:
        if running.poll() is None:
            running.kill()
    log = (cli.cwd / "log").read_text()
    assert " chroma | " in log
    assert "2,071" in log
    same_fields(first, documented("run"))


@pytest.mark.slow
def test_the_server_is_not_told_the_password(cli: Cli) -> None:
    """Chroma's process has none of our variables, and no line of the log has the secret."""
    port = free_port()
    cli.environ["CHROMAKEEP_PASSWORD"] = secret = "correct horse battery staple"
    running = start(cli, port, "--repository", "keep", "--every", "1h")
    try:
        load(cli, port, running)
        (server,) = servers_of(running.pid)
        environment = Path(f"/proc/{server}/environ").read_bytes()
        assert b"CHROMAKEEP" not in environment
        assert secret.encode() not in environment + Path(f"/proc/{server}/cmdline").read_bytes()
        stop(running, signal.SIGTERM)
    finally:
        if running.poll() is None:
            running.kill()
    assert secret not in (cli.cwd / "log").read_text()
    assert "is encrypted" in cli.fails(12, "snapshots", "keep", env={"CHROMAKEEP_PASSWORD": ""})


def test_what_cannot_serve_says_so_before_anything_starts(cli: Cli) -> None:
    """A port in use, a program that is not there, a wrong address, a repository with --ephemeral: one line each."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in cli.fails(18, "run", "--data", "data", "--host", "127.0.0.1", "--port", port, "--ephemeral")
    assert "no-chroma" in cli.fails(18, "run", "--data", "data", "--ephemeral", "--chroma", "./no-chroma")
    assert "ftp://" in cli.fails(2, "run", "--data", "data", "--repository", "ftp://x/y")
    assert "--data" in cli.fails(2, "run", "--repository", "keep")
    assert "--ephemeral" in cli.fails(2, "run", "--data", "data", "--repository", "keep", "--ephemeral")
    for wrong in (
        ("--tls-key", "key.pem"),
        ("--tls-client-ca", "ca.pem"),
        ("--tls-certificate", "certificate.pem"),
        ("--tls-self-signed", "--tls-key", "key.pem"),
        ("--cors-origins", "app.example.com"),
    ):
        said = cli.fails(2, "run", "--data", "new", "--ephemeral", *wrong)
        assert wrong[0] in said or "certificate.pem: no such file" in said
    assert not (cli.cwd / ".new.chromakeep").exists()
    assert "--data" in cli.fails(2, "run", "--data", "data", "--ephemeral", "--", "--path", "elsewhere")
    assert not (cli.cwd / "data" / "chroma.sqlite3").exists()


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("--advertise-ca without", {"advertise_ca": "no.pem"}),
        ("no log", {"advertise": "http://h", "repository": None}),
        ("no log", {"advertise": "http://h", "durability": "snapshots"}),
        ("do not go together", {"advertise": "http://h", "tls_client_ca": "no.pem"}),
        ("'h:8000': not the URL", {"advertise": "h:8000"}),
        ("'h': not the URL", {"advertise": "http://user:password@h"}),
        ("no.pem: no certificate of an authority", {"advertise": "https://h", "advertise_ca": "no.pem"}),
        ("not.pem: no such file", {"advertise": "https://h", "advertise_ca": "not.pem"}),
    ],
)
def test_what_cannot_be_forwarded_is_told(
    said: str, given: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("no.pem").write_text("no certificate")
    with pytest.raises(UsageError, match=re.escape(said)):
        forwarding_of(Settings({"repository": "keep", **given}, {}))
    assert forwarding_of(Settings({"repository": "keep", "advertise": "http://h:8000"}, {}))


def test_a_loader_without_a_server_gives_up(cli: Cli) -> None:
    """When the process that should serve is gone, the loader of make up ends, too."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "sample" / "load.py",
            "--url",
            f"http://127.0.0.1:{free_port()}",
            "--while-pid",
            str(gone.pid),
        ],
        env=dict(os.environ),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1


@pytest.mark.slow
def test_a_directory_of_another_program_is_replicated(cli: Cli) -> None:
    """An application that embeds Chroma, and replicate beside it: after SIGTERM all it wrote can be restored."""
    script = """
import sys, time, chromadb
from pathlib import Path
collection = chromadb.PersistentClient("data").create_collection("mine", embedding_function=None)
for n in range(300):
    collection.add(ids=[f"i{n}"], embeddings=[[n, 1.0]], documents=[str(n)])
    while n == 150 and not Path("followed").exists():
        time.sleep(0.01)
Path("written").touch()
time.sleep(600)
"""
    command = cli.command("replicate", "data", "keep", "--every", "1h", "--json")
    log = (cli.cwd / "log").open("a")
    running = subprocess.Popen(command, cwd=cli.cwd, env=cli.environ, stdout=subprocess.PIPE, stderr=log, text=True)
    application = subprocess.Popen([sys.executable, "-c", script], cwd=cli.cwd)
    try:
        # What is written from now on is in the log, however long either of the two took to start.
        eventually(lambda: list((cli.cwd / "keep").glob("log/*/*")), "the log has begun", 120)
        (cli.cwd / "followed").touch()
        eventually(lambda: (cli.cwd / "written").exists() or application.poll() is not None, "all is written", 120)
        assert application.poll() is None
        answer = stop(running, signal.SIGTERM)
        same_fields(answer, documented("replicate"))
        assert answer["segment"] > 1 and answer["snapshots"] >= 1
    finally:
        for process in (application, running):
            process.kill()
            process.wait()
    shutil.rmtree(cli.cwd / "data")
    restored = cli.json("restore", "keep", "data")
    assert [(c["name"], c["count"]) for c in restored["collections"]] == [("mine", 300)]


def test_tls_and_cors_on_the_way_to_chroma(cli: Cli) -> None:
    """A certificate of its own in one flag: the check finds it ready, its file is what clients trust."""
    cli.environ |= {"CHROMAKEEP_PORT": str(free_port()), "CHROMAKEEP_TLS_SELF_SIGNED": "true"}
    running = start(cli, int(cli.environ["CHROMAKEEP_PORT"]), "--ephemeral", "--cors-origins", "https://a.example")
    try:
        end = time.monotonic() + 60
        while cli("healthcheck", "--insecure").returncode and time.monotonic() < end:
            assert running.poll() is None, (cli.cwd / "log").read_text()
        certificate = cli.cwd / ".data.chromakeep" / "tls" / "certificate.pem"
        trusting = ssl.create_default_context(cafile=str(certificate))
        address = f"https://localhost:{cli.environ['CHROMAKEEP_PORT']}/api/v2/heartbeat"
        asked = urllib.request.Request(address, headers={"Origin": "https://a.example"})
        with urllib.request.urlopen(asked, timeout=30, context=trusting) as answer:
            assert json.load(answer)["nanosecond heartbeat"] > 0
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
        stop(running, signal.SIGTERM)
    finally:
        if running.poll() is None:
            running.kill()
    log = (cli.cwd / "log").read_text()
    made = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).digest().hex(":").upper()
    assert f"SHA-256 {made}" in log
    assert f"serving on https://localhost:{cli.environ['CHROMAKEEP_PORT']}" in log
