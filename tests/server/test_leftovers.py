"""A connection that has ended is freed by its end, not by Python's search for cycles some day.

Over TLS each has a buffer of a quarter of a megabyte that is not Python's: that search does not know of it.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from chromakeep.access.keys import Keyring, mint
from chromakeep.server import Door, Page, Refusal, Request
from chromakeep.server import door as door_module
from chromakeep.server.admission import Admission
from chromakeep.server.guard import Account
from run.running import eventually
from server.certificates import Authority
from server.wires import GET, OK, PATIENCE, Backend, C, Scripted, Wire, post

TIMES = 2
OF_CONNECTIONS = frozenset({"ClientSide", "Exchange", "Visit", "SSLProtocol", "SSLObject"})
COLLECTIONS = C.rpartition("/")[0]
HALF = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\nhalf"
_KEY, TOKEN = mint("a", "admin")


class Patient:
    """A desk that answers never."""

    def __init__(self) -> None:
        self.asked = 0

    def takes(self, path: str) -> bool:
        return path == "/desk"

    async def admit(self, request: Request, account: Account) -> Refusal | int:
        return 1000

    async def answer(self, request: Request, body: bytearray) -> Page:
        self.asked += 1
        await asyncio.sleep(1000)
        raise AssertionError


class Scene:
    """A door, what is behind it, and clients that come to it."""

    def __init__(self, backend: Backend, context: ssl.SSLContext | None, authority: Authority) -> None:
        self.backend, self._context = backend, context
        self.gate, self.desk = Scripted(), Patient()
        self.door = Door(
            "127.0.0.1",
            0,
            backend.address,
            gate=self.gate,
            desk=self.desk,
            guard=Admission(lambda: Keyring([_KEY]), time.time, shielded=False),
            tls=authority.tls() if context else None,
        )
        self.door.start()

    def plain(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.door.port), PATIENCE)

    def come(self) -> Wire:
        one = self.plain()
        return Wire(self._context.wrap_socket(one, server_hostname="localhost") if self._context else one)

    def ask(self, request: bytes) -> Wire:
        """A request of somebody who has a key, on a connection of its own."""
        client = self.come()
        client.send(request.replace(b"host: h\r\n", b"host: h\r\nx-chroma-token: " + TOKEN.encode() + b"\r\n"))
        return client


def answered(scene: Scene) -> None:
    client = scene.ask(GET.replace(b"/x", b"/api/v2/version"))
    _answer(scene)
    assert client.answer().status == 200
    client.close()


def says_nothing(scene: Scene) -> None:
    scene.come().close()


def ends_the_handshake(scene: Scene) -> None:
    one = scene.plain()
    one.sendall(b"\x16\x03\x01")
    one.close()


def refused(scene: Scene) -> None:
    client = scene.come()
    client.send(b"GET / HTTP/9.9\r\nhost: h\r\n\r\n")
    assert client.answer().status == 505
    client.close()


def leaves_at_once(scene: Scene) -> None:
    scene.ask(HALF).close()
    with suppress(TimeoutError):
        scene.backend.accept().gone()


def leaves_its_body(scene: Scene) -> None:
    client = scene.ask(HALF)
    behind = scene.backend.accept()
    behind.until()
    client.close()
    behind.gone()


def leaves_the_gate(scene: Scene) -> None:
    scene.gate.holds = "admit"
    client = scene.ask(post(path="/x"))
    assert scene.gate.asked.wait(PATIENCE)
    client.reset()


def leaves_its_acknowledgement(scene: Scene) -> None:
    scene.gate.holds = "acknowledge"
    client = scene.ask(post(path="/x"))
    _answer(scene)
    assert scene.gate.asked.wait(PATIENCE)
    client.reset()


def leaves_the_guard(scene: Scene) -> None:
    """Which looks up whose that collection is."""
    client = scene.ask(post(path=f"{COLLECTIONS}/00000000-0000-0000-0000-000000000000/get"))
    behind = scene.backend.accept()
    assert b"/by-id/" in behind.until()
    client.reset()
    behind.gone()


def leaves_the_desk(scene: Scene) -> None:
    before = scene.desk.asked
    client = scene.ask(post(path="/desk"))
    eventually(lambda: scene.desk.asked > before, "the question")
    client.reset()


def leaves_the_desk_its_body(scene: Scene) -> None:
    client = scene.ask(HALF.replace(b"/x", b"/desk"))
    client.close()


def half_an_answer(scene: Scene) -> None:
    client = scene.ask(GET.replace(b"/x", b"/api/v2/version"))
    behind = scene.backend.accept()
    behind.until()
    behind.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
    behind.close()
    client.gone()
    client.close()


def nobody_there(scene: Scene) -> None:
    scene.backend.close()
    for path in ("/api/v2/version", f"{COLLECTIONS}/00000000-0000-0000-0000-000000000000/count"):
        client = scene.ask(GET.replace(b"/x", path.encode()))
        assert client.answer().status in (502, 503)
        client.close()


ENDINGS: list[Callable[[Scene], None]] = [
    answered, says_nothing, ends_the_handshake, refused, leaves_at_once, leaves_its_body, leaves_the_gate,
    leaves_its_acknowledgement, leaves_the_guard, leaves_the_desk, leaves_the_desk_its_body, half_an_answer,
    nobody_there,
]  # fmt: skip


def _answer(scene: Scene) -> None:
    behind = scene.backend.accept()
    behind.until()
    behind.send(OK.replace(b"content-length", b"connection: close\r\ncontent-length"))


def _left() -> Counter[str]:
    return Counter(name for one in gc.get_objects() if (name := type(one).__name__) in OF_CONNECTIONS)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def no_search() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_nothing_is_left(
    ending: Callable[[Scene], None],
    tls: bool,
    loop: str,
    backend: Backend,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    no_search: None,
) -> None:
    """Of a connection, its exchange and its TLS, while Python does not look for cycles."""
    if loop == "asyncio":
        monkeypatch.setattr(door_module, "new_loop", asyncio.new_event_loop)
    else:
        pytest.importorskip("uvloop")
    before = _left()
    scene = Scene(backend, ssl.create_default_context(cafile=str(authority.file)) if tls else None, authority)
    try:
        for _ in range(TIMES):
            ending(scene)
        eventually(lambda: not _left() - before, f"the end of {_left() - before}", PATIENCE)
    finally:
        scene.door.stop(0)
