"""serve: a door before a Chroma that it did not start."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chromadb
import pytest

from chromakeep.chroma.ports import free_port
from chromakeep.chroma.server import ChromaServer
from chromakeep.operations.serve import Elsewhere

if TYPE_CHECKING:
    from cli.conftest import Cli


def asked(port: int, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def until_ready(port: int, running: subprocess.Popen[Any], page: str = "/readyz") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if asked(port, page) == 200:
                return
        except OSError:
            pass
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("where", ["--data", "--repository"])
def test_a_door_before_a_server_that_is_not_ours(cli: Cli, tmp_path: Path, where: str) -> None:
    """Closed to whoever has no key, open to chromadb's client that has one; not ready when the server is gone."""
    place = tmp_path / "keys"
    if where == "--repository":
        assert cli("init", str(place)).returncode == 0
    else:
        place.mkdir()
    token = cli("keys", "create", "app", "--role", "writer", where, str(place)).stdout.strip()
    port = free_port()
    with ChromaServer(tmp_path / "chroma", env=dict(os.environ)) as server:
        running = subprocess.Popen(
            cli.command("serve", f"http://127.0.0.1:{server.options.port}", where, place, "--port", port),
            cwd=cli.cwd,
            env=cli.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            until_ready(port, running)
            assert asked(port, "/api/v2/version") == asked(port, "/metrics") == 401
            assert asked(port, "/api/v2/version", authorization=f"Bearer {token}") == 200
            client = chromadb.HttpClient("127.0.0.1", port, headers={"x-chroma-token": token})
            collection = client.create_collection("books", embedding_function=None)
            collection.add(ids=["a"], embeddings=[[1.0, 2.0]])
            assert collection.count() == 1
            server.kill()
            deadline = time.monotonic() + 60
            while asked(port, "/readyz") == 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert asked(port, "/healthz") == 200
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
            assert running.stdout and "stopped" in running.stdout.read()
        finally:
            running.kill()
            running.wait()


def _without_nohup() -> None:
    """What runs the tests may ignore SIGHUP, as nohup does; then so would what it starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("stderr", ["/dev/full", "closed pipe"])
def test_a_log_that_nobody_takes_ends_nothing(cli: Cli, tmp_path: Path, stderr: str) -> None:
    """Events are told from all threads, that of the door and that of the keys among them: none ends by telling."""
    port, place = free_port(), tmp_path / "keys"
    place.mkdir()
    (place / "chromakeep-keys.json").write_text("damaged, of which a line is told")
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as full:
        running = subprocess.Popen(
            cli.command("serve", "http://127.0.0.1:1", "--data", place, "--port", port),
            cwd=cli.cwd,
            env=cli.environ,
            stderr=full if stderr == "/dev/full" else write,
            preexec_fn=_without_nohup,  # noqa: PLW1509 - which does nothing else
        )
    os.close(write)
    try:
        until_ready(port, running, "/healthz")
        assert asked(port, "/api/v2/version") == 503
        (place / "chromakeep-keys.json").unlink()
        token = cli("keys", "create", "boss", "--role", "admin", "--data", place).stdout.strip()
        deadline = time.monotonic() + 60
        while asked(port, "/_keep/status", authorization=f"Bearer {token}") != 200:  # its thread lives
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM if stderr == "/dev/full" else signal.SIGHUP)  # the terminal is gone, too
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()


def test_a_door_whose_keys_cannot_be_read_is_not_ready(cli: Cli, tmp_path: Path) -> None:
    """Whoever balances sends it nobody; its heart beats all the same, and it is ready when they can."""
    port, place = free_port(), tmp_path / "keys"
    place.mkdir()
    keys = place / "chromakeep-keys.json"
    keys.write_text("damaged")
    with ChromaServer(tmp_path / "chroma", env=dict(os.environ)) as server:
        running = subprocess.Popen(
            cli.command("serve", f"http://127.0.0.1:{server.options.port}", "--data", place, "--port", port),
            cwd=cli.cwd,
            env=cli.environ,
            stderr=subprocess.DEVNULL,
        )
        try:
            until_ready(port, running, "/api/v1/heartbeat")
            assert asked(port, "/api/v2/version") == asked(port, "/readyz") == asked(port, "/readyz/reads") == 503
            checked = cli("healthcheck", f"http://127.0.0.1:{port}")
            assert checked.returncode == 1 and "503: the keys cannot be read yet" in checked.stdout
            assert asked(port, "/healthz") == asked(port, "/api/v2/heartbeat") == 200
            keys.unlink()
            cli("keys", "create", "boss", "--role", "admin", "--data", place)
            until_ready(port, running)
        finally:
            running.kill()
            running.wait()


def test_writes_stay_refused_over_a_restart(cli: Cli, tmp_path: Path) -> None:
    """What an admin has said is kept where the keys are; nothing but the door is needed to say it."""
    place, port = tmp_path / "keys", free_port()
    place.mkdir()
    token = cli("keys", "create", "boss", "--role", "admin", "--data", str(place)).stdout.strip()

    def at_the_door(allow: bool | None) -> bool:
        """Of one life of the door: say it, or ask."""
        words = cli.command("serve", "http://127.0.0.1:1", "--data", place, "--port", port)
        running = subprocess.Popen(words, cwd=cli.cwd, env=cli.environ, stdout=subprocess.DEVNULL)
        try:
            until_ready(port, running, "/healthz")
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            body = None if allow is None else json.dumps({"allow": allow, "reason": "moved"})
            headers = {"x-chroma-token": token, "content-type": "application/json"}
            connection.request("POST" if body else "GET", "/_keep/writes", body, headers)
            answer = json.loads(connection.getresponse().read())
            connection.close()
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
            return bool(answer["allow"])
        finally:
            running.kill()
            running.wait()

    assert at_the_door(False) is False
    assert at_the_door(None) is False
    assert at_the_door(True) is True


@pytest.mark.parametrize("words", [(), ("--open",), ("--cors-origins", "https://app.example.com")])
def test_a_page_of_the_web_needs_a_key_or_a_word(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Without keys: a name that is made to point here, and a page that only writes."""
    port = free_port()
    command = cli.command("serve", "http://127.0.0.1:1", "--data", tmp_path, "--port", port, *words)
    running = subprocess.Popen(command, cwd=cli.cwd, env=cli.environ, stderr=subprocess.DEVNULL)
    try:
        until_ready(port, running, "/healthz")
        silent = 503  # it has come in, and nothing is behind
        assert asked(port, "/api/v2/version") == silent
        assert asked(port, "/api/v2/version", host="evil.example.com") == (silent if "--open" in words else 403)
        assert asked(port, "/_keep/writes", host="evil.example.com") == (200 if "--open" in words else 403)
        page = asked(port, "/api/v2/version", origin="https://app.example.com")
        assert page == (silent if words else 403)
    finally:
        running.terminate()
        assert running.wait(60) == 0


def test_a_door_of_an_issuer_alone_needs_no_place_for_keys(cli: Cli) -> None:
    """Its tokens are the keys, so nobody comes in without: no more than before the issuer could be asked."""
    port = free_port()
    words = ("--oidc-issuer", "http://127.0.0.1:1", "--oidc-audience", "chroma", "--port", port)
    running = subprocess.Popen(
        cli.command("serve", "http://127.0.0.1:1", *words), cwd=cli.cwd, env=cli.environ, stderr=subprocess.DEVNULL
    )
    try:
        until_ready(port, running, "/healthz")
        assert asked(port, "/api/v2/version") == 401
    finally:
        running.terminate()
        assert running.wait(60) == 0
    assert "an issuer" in cli.fails(2, "serve", "http://127.0.0.1:1")


def test_a_server_at_an_address_of_ipv6_and_a_certificate_of_its_own(cli: Cli, tmp_path: Path) -> None:
    """The server is called by what it may call itself, and no secret stays behind."""
    heads: list[bytes] = []
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:

        def answer() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                with one:
                    heads.append(one.recv(4096))
                    one.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

        threading.Thread(target=answer, daemon=True).start()
        behind, port, scratch = server.getsockname()[1], free_port(), tmp_path / "scratch"
        scratch.mkdir()
        words = (f"http://[::1]:{behind}", "--open", "--host", "::1", "--port", port, "--tls-self-signed")
        running = subprocess.Popen(
            cli.command("serve", *words),
            cwd=cli.cwd,
            env={**cli.environ, "TMPDIR": str(scratch)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stderr
        try:
            while (line := running.stderr.readline()) and "serving on" not in line:
                pass
            assert f"serving on https://[::1]:{port} what is at [::1]:{behind}" in line
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            asking = http.client.HTTPSConnection("::1", port, timeout=20, context=context)
            asking.request("GET", "/api/v2/version")
            assert asking.getresponse().status == 200
            asking.close()
        finally:
            running.terminate()
            assert running.wait(60) == 0
            running.stderr.close()
    assert heads and all(f"host: [::1]:{behind}\r\n".encode() in head.lower() for head in heads)
    assert list(scratch.iterdir()) == []


ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 64


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "as no Chroma does"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "as no Chroma does"),
        (b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "answers 302: Found"),
        (ENDLESS, "more than 65536 bytes"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 28\r\n\r\n{"nanosecond heartbeat": 17}', None),
    ],
)
def test_what_is_no_chroma_is_not_ready(answer: bytes, said: str | None) -> None:
    """Whatever it answers: another program may have the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answering() -> None:
            one, _ = server.accept()
            with one, suppress(OSError):
                one.recv(4096)
                one.sendall(answer)
                one.shutdown(socket.SHUT_WR)
                one.recv(1)

        threading.Thread(target=answering, daemon=True).start()
        trouble = Elsewhere(server.getsockname(), secure=False).trouble()
    assert (trouble is None) if said is None else (trouble is not None and said in trouble)


def test_what_is_wrong_is_told(cli: Cli, tmp_path: Path) -> None:
    """No place for keys, no key on an open address, variables that Chroma ignores, no URL of a server."""
    assert "keys" in cli.fails(2, "serve", "http://127.0.0.1:1")
    cli.fails(19, "serve", "http://127.0.0.1:1", "--data", tmp_path, "--host", "0.0.0.0", "--port", free_port())
    told = cli.fails(
        19,
        "serve",
        "http://127.0.0.1:1",
        "--data",
        tmp_path,
        "--port",
        free_port(),
        env={"CHROMA_SERVER_AUTHN_CREDENTIALS": "x"},
    )
    assert "ignores" in told
    for url in ("./chroma", "http://h/tenant", "s3://bucket/x"):
        cli.fails(2, "serve", url, "--open")
