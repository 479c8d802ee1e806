"""The command that an image without curl asks: exit statuses, one line of why, and nothing heavy on the way."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from chromakeep.operations.healthcheck import healthcheck
from chromakeep.server import Door, Page
from chromakeep.server.self_signed import self_signed
from cli.documentation import documented, same_fields
from server.certificates import Authority
from server.wires import Backend

if TYPE_CHECKING:
    from cli.conftest import Cli

Open = Callable[..., Door]
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture
def backend() -> Iterator[Backend]:
    one = Backend()
    yield one
    one.close()


@pytest.fixture
def open_door(backend: Backend) -> Iterator[Open]:
    made: list[Door] = []

    def make(**options: object) -> Door:
        made.append(Door("127.0.0.1", 0, backend.address, **options))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    for door in made:
        door.stop(0)


def pages(ready: Page) -> dict[str, Callable[[], Page]]:
    return {"/readyz": lambda: ready, "/healthz": lambda: Page(b"{}"), "/readyz/reads": lambda: Page(b"{}")}


READY, WAITING = Page(b'{"role":"serving"}'), Page(b'{"role":"standby"}', status=503)


def url(door: Door, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{door.port}"


def test_ready_and_not(cli: Cli, open_door: Open) -> None:
    """0 and a word, or 1 and a line; whether it lives, and whether it answers reads, are other questions."""
    good, waiting = open_door(pages=pages(READY)), open_door(pages=pages(WAITING))
    done = cli("healthcheck", url(good))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")
    done = cli("healthcheck", url(waiting))
    said = f"not ready: {url(waiting)}/readyz: 503: this instance is standby\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, said, "")
    assert cli("healthcheck", url(waiting), "--live").stdout == "alive\n"
    assert cli("healthcheck", f"{url(waiting)}/readyz/reads").returncode == 0
    answer = cli.json("healthcheck", url(good))
    same_fields(answer, documented("healthcheck"))
    answer = cli.json("healthcheck", url(waiting), status=1)
    assert (answer["ok"], answer["healthy"], answer["status"]) == (False, False, 503)


def test_it_finds_the_server_by_the_settings_of_run(cli: Cli, open_door: Open, tmp_path: Path) -> None:
    """Host, port and TLS; every interface is this machine."""
    door = open_door(pages=pages(READY))
    env = {"CHROMAKEEP_HOST": "0.0.0.0", "CHROMAKEEP_PORT": str(door.port)}
    assert cli("healthcheck", env=env).stdout == "ready\n"
    assert cli("healthcheck", "--host", "127.0.0.1", "--port", str(door.port)).stdout == "ready\n"
    secure = open_door(pages=pages(READY), tls=self_signed(tmp_path))
    env = {"CHROMAKEEP_PORT": str(secure.port), "CHROMAKEEP_TLS_SELF_SIGNED": "1", "CHROMAKEEP_HOST": "127.0.0.1"}
    assert cli("healthcheck", "--insecure", env=env).stdout == "ready\n"
    done = cli("healthcheck", env=env)
    assert done.returncode == 1
    assert "its certificate is not trusted: self-signed certificate" in done.stdout
    assert cli("healthcheck", env=env | {"SSL_CERT_FILE": str(tmp_path / "certificate.pem")}).returncode == 0
    done = cli("healthcheck", url(secure))
    assert "400: this port speaks TLS" in done.stdout


def test_a_server_that_wants_a_certificate(cli: Cli, open_door: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    door = open_door(pages=pages(READY), tls=replace(authority.tls(), client_ca=authority.file))
    certificate, key = authority.pair("client")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate + key)
    asks = ("healthcheck", url(door, "https"), "--insecure")
    assert cli(*asks, "--client-certificate", both).stdout == "ready\n"
    without = cli(*asks)
    assert without.returncode == 1 and "certificate" in without.stdout
    assert "no certificate with its key" in cli.fails(2, *asks, "--client-certificate", authority.file)
    locked = authority.pair("locked", password=b"secret")
    both.write_bytes(b"".join(locked))
    assert "no certificate with its key" in cli.fails(2, *asks, "--client-certificate", both)


@pytest.mark.parametrize(
    ("error", "said", "may"),
    [
        (http.client.RemoteDisconnected(), "it ended the connection without an answer", True),
        (ConnectionResetError(104, "Connection reset by peer"), "connection reset by peer", True),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "eof occurred in violation of protocol", True),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused", False),
        (http.client.BadStatusLine("x"), "its answer is not HTTP (BadStatusLine)", False),
    ],
)
@pytest.mark.parametrize("shown", [False, True])
def test_an_end_without_a_word_may_want_a_certificate(
    error: Exception, said: str, may: bool, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of these it is depends on who is quicker; in TLS 1.3 a client sends before it hears of that."""
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(Authority(tmp_path).pair("client")))

    def ends(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(http.client.HTTPConnection, "request", ends)
    secure = healthcheck("https://127.0.0.1:1", timeout=60, client_certificate=both if shown else None).why
    assert secure == said + ("; it may want a --client-certificate" if may and not shown else "")
    assert healthcheck("http://127.0.0.1:1", timeout=60).why == said


def test_a_chroma_without_a_door(cli: Cli, backend: Backend, open_door: Open) -> None:
    """It has no page for that: its heartbeat is asked, and only where no page was named."""
    asked: list[bytes] = []

    def serve() -> None:
        for _ in range(3):
            wire = backend.accept()
            asked.append(wire.until().split(b" ")[1])
            beats = asked[-1] == b"/api/v2/heartbeat"
            wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}" if beats else NOT_FOUND)

    threading.Thread(target=serve, daemon=True).start()
    bare = f"http://127.0.0.1:{backend.address[1]}"
    assert cli("healthcheck", bare).stdout == "ready\n"
    done = cli("healthcheck", f"{bare}/readyz/reads")
    assert (done.returncode, "404: there is no such page" in done.stdout) == (1, True)
    assert asked == [b"/readyz", b"/api/v2/heartbeat", b"/readyz/reads"]


def test_why_not(cli: Cli, backend: Backend) -> None:
    """Nobody there, no answer in time, one that drips, one that is no HTTP, and one that would be a page of text."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and it is nobody else's
        assert "connection refused" in cli("healthcheck", f"http://127.0.0.1:{nobody.getsockname()[1]}").stdout
    silent = f"http://127.0.0.1:{backend.address[1]}"
    over = threading.Event()

    def drip() -> None:
        wire = backend.accept()
        wire.until()
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
        while not over.wait(0.05):
            wire.send(b"x")

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    done = cli("healthcheck", silent, "--timeout", "300ms")
    over.set()
    dripping.join(60)  # it has taken its connection, and takes none of those below
    assert (done.returncode, "no answer within 0.3 s" in done.stdout) == (1, True)

    for sent in (
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 500 \r\n\r\n" + b"\x1b[31m\n" * 1000,
        b"HTTP/1.1 302 F\r\nlocation: /\r\n\r\n",
    ):

        def answer(sent: bytes = sent) -> None:
            wire = backend.accept()
            wire.until()
            wire.send(sent)
            wire.close()

        threading.Thread(target=answer, daemon=True).start()
        done = cli("healthcheck", silent)
        assert done.returncode == 1
        assert done.stderr == ""
        assert (len(done.stdout.splitlines()), "\x1b" in done.stdout) == (1, False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://x"],
        ["http://user:secret@x"],
        ["http://x:99999"],
        ["localhost:8000"],
        ["http://a b"],
        ["https://db.example.com", "--insecure"],
        ["http://localhost/readyz", "--live"],
        ["--timeout", "0"],
        ["--timeout", "soon"],
    ],
)
def test_what_is_no_question(cli: Cli, arguments: list[str]) -> None:
    """Status 2 with a hint; a password in a URL is not repeated."""
    said = cli.fails(2, "healthcheck", *arguments)
    assert "hint: " in said
    assert "secret" not in said


def test_it_starts_without_what_is_heavy(cli: Cli) -> None:
    """Neither numpy nor any client of HTTP but Python's own."""
    code = (
        "import sys; from chromakeep.cli.app import invoke; "
        "invoke(['healthcheck', 'http://127.0.0.1:9']); print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=cli.environ, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "ssl" in loaded
    assert not loaded & {"numpy", "httpx", "obstore", "cryptography", "rich", "chromadb", "zstandard", "asyncio"}
