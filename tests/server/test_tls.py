"""TLS: who is let in, who is not, what is wrong with files, and certificates that change under way."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from msgspec.structs import replace

from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import UsageError
from chromakeep.events import Noted
from chromakeep.server import Door, Limits
from chromakeep.server import door as door_module
from chromakeep.server.self_signed import new_pair, self_signed
from chromakeep.server.tls import Certificates, Tls, context_of, fingerprint, remark
from run.running import eventually
from server.certificates import Authority
from server.wires import GET, PATIENCE, Backend, Wire

Open = Callable[..., Door]
Knock = Callable[[Door], Wire]


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either event loop has TLS of its own."""
    if request.param == "asyncio":
        import asyncio

        monkeypatch.setattr(door_module, "new_loop", asyncio.new_event_loop)
    else:
        pytest.importorskip("uvloop")
    return str(request.param)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def trusting(file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(file))


def secure(door: Door, context: ssl.SSLContext) -> Wire:
    """A connection with its handshake done."""
    plain = socket.create_connection(("127.0.0.1", door.port), PATIENCE)
    return Wire(context.wrap_socket(plain, server_hostname="localhost"))


def served(door: Door, context: ssl.SSLContext) -> bytes:
    """The certificate that a new connection gets, after a request on it was answered."""
    wire = secure(door, context)
    try:
        wire.send(GET)
        assert wire.answer().status == 200
        assert isinstance(wire.socket, ssl.SSLSocket)
        found = wire.socket.getpeercert(binary_form=True)
        assert found
        return found
    finally:
        wire.close()


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def test_the_client_of_chroma_works_over_tls(authority: Authority, tmp_path: Path) -> None:
    """chromadb's own, which is told the authority, through the door to a real server; without it, it refuses."""
    with ChromaServer(tmp_path / "data", env=dict(os.environ)) as server:
        door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), tls=authority.tls())
        door.start()
        try:
            settings = Settings(chroma_server_ssl_verify=str(authority.file))
            client = chromadb.HttpClient("localhost", door.port, ssl=True, settings=settings)
            collection = client.create_collection("over-tls", embedding_function=None)
            vectors = np.random.default_rng(1).random((2000, 128), dtype=np.float32)
            collection.add(ids=[str(n) for n in range(2000)], embeddings=vectors, documents=["text"] * 2000)
            assert collection.count() == 2000
            found: Any = collection.get(include=["embeddings"])
            assert np.array_equal(np.asarray(found["embeddings"], np.float32), vectors)
            with pytest.raises(ValueError, match="Could not connect"):
                chromadb.HttpClient("localhost", door.port, ssl=True)
        finally:
            door.stop(5)


def test_http_1_1_over_tls_1_2_and_later(loop: str, backend: Backend, open_door: Open, authority: Authority) -> None:
    """1.1 is refused; ALPN says HTTP/1.1 to a client that offers more."""
    backend.serve()
    door = open_door(tls=authority.tls())
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = trusting(authority.file)
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        wire = secure(door, context)
        assert isinstance(wire.socket, ssl.SSLSocket)
        assert wire.socket.selected_alpn_protocol() == "http/1.1"
        wire.send(GET + GET)
        assert [wire.answer().body, wire.answer().body] == [b"ok", b"ok"]
        wire.close()
    old = trusting(authority.file)
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")  # or the client's own library would not even ask
    with pytest.raises((ssl.SSLError, ConnectionError)):  # the event loops close without the alert that says why
        secure(door, old)
    hello, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        old.wrap_bio(answered, hello, server_hostname="localhost").do_handshake()
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol"):
        context_of(authority.tls()).wrap_bio(hello, answered, server_side=True).do_handshake()


def test_a_plain_request_is_told(
    loop: str, backend: Backend, open_door: Open, knock: Knock, authority: Authority
) -> None:
    """400 that says what to write, then the end; nothing of it goes on."""
    door = open_door(tls=authority.tls())
    client = knock(door)
    client.send(GET)
    answer = client.answer()
    assert (answer.status, answer.fields["connection"]) == (400, "close")
    assert b"https://" in answer.body
    client.half_close()
    assert client.rest() == b""
    assert backend.unasked()
    silent = knock(door)
    silent.close()  # nothing at all was said
    noise = knock(door)
    noise.send(b"\x16\x03\x01\x00\x05hello" + b"\x00" * 100)
    assert noise.gone()


def test_a_slow_handshake_keeps_nobody_out_and_ends(
    loop: str, backend: Backend, open_door: Open, knock: Knock, authority: Authority
) -> None:
    """Those that say nothing, or begin and stop, are dropped after the time for a head; others are served meanwhile."""
    backend.serve()
    patient, context = open_door(tls=authority.tls()), trusting(authority.file)
    slow = [knock(patient) for _ in range(20)]
    for wire in slow[:10]:
        wire.send(b"\x16\x03\x01\x02\x00\x01")
    served(patient, context)
    assert all(wire.silent() for wire in slow)
    hasty = open_door(tls=authority.tls(), limits=Limits(head=0.1))
    silent, begun = knock(hasty), knock(hasty)
    begun.send(b"\x16\x03\x01\x02\x00\x01")
    assert silent.gone()
    assert begun.gone()


def test_connections_that_have_not_said_hello_are_counted(
    backend: Backend, open_door: Open, knock: Knock, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that they cannot take all files of the process: for each that comes after that many an old one goes, be it
    silent or begun; who speaks comes in."""
    monkeypatch.setattr("chromakeep.server.reception.TOLD", 0)
    backend.serve()
    door = open_door(tls=authority.tls(), limits=Limits(connections=3))
    silent, begun = knock(door), knock(door)
    begun.send(b"\x16\x03\x01\x02\x00\x01")
    more = [knock(door) for _ in range(30)]
    assert silent.gone() and begun.gone()
    served(door, trusting(authority.file))
    assert all(wire.gone() for wire in more[:20])


def test_only_clients_that_the_authority_knows(
    loop: str, backend: Backend, open_door: Open, authority: Authority, tmp_path: Path
) -> None:
    """Mutual TLS: no certificate, or one of another authority, and no request comes in."""
    backend.serve()
    door = open_door(tls=replace(authority.tls(), client_ca=authority.file))
    known = authority.tls("client")
    context = trusting(authority.file)
    context.load_cert_chain(known.certificate, known.key)
    served(door, context)
    stranger = Authority(tmp_path, "elsewhere").tls("stranger")
    other = trusting(authority.file)
    other.load_cert_chain(stranger.certificate, stranger.key)
    for refused in (trusting(authority.file), other):
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            served(door, refused)


def test_a_client_whose_authority_was_taken_out_does_not_come_back(
    backend: Backend, open_door: Open, authority: Authority
) -> None:
    """There is no session to resume: it would not be verified again."""
    backend.serve()
    tls = authority.tls("client")
    door = open_door(tls=replace(authority.tls(), client_ca=authority.file))
    context = trusting(authority.file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    wire = secure(door, context)
    assert isinstance(wire.socket, ssl.SSLSocket)
    assert not wire.socket.session or not wire.socket.session.has_ticket
    wire.close()


class Told:
    """An observer that keeps what it heard."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.changed = threading.Event()

    def __call__(self, event: object) -> None:
        assert isinstance(event, Noted)
        self.said.append(event.message)
        self.changed.set()


def put(tls: Tls, pair: tuple[bytes, bytes], *, in_place: bool = False) -> None:
    """Replace both files, one after the other, as ``certbot`` and ``cp`` do."""
    assert tls.key
    for path, data in zip((tls.certificate, tls.key), pair, strict=True):
        if in_place:
            path.write_bytes(data)
        else:
            beside = path.with_suffix(".new")
            beside.write_bytes(data)
            beside.replace(path)


def test_a_new_pair_is_taken_when_it_is_whole(authority: Authority) -> None:
    """Half-written, mismatched or missing: the old context stays, and it is said once."""
    tls, told = authority.tls(), Told()
    kept = Certificates(tls, told)
    first = kept.context
    new = authority.pair()
    tls.certificate.write_bytes(new[0])  # the key has still to come
    kept.look()
    assert (kept.context, told.said) == (first, [])
    kept.look()
    kept.look()
    assert kept.context is first
    assert len(told.said) == 1
    assert "does not belong to the certificate" in told.said[0]
    assert tls.key
    tls.key.write_bytes(new[1])
    kept.look()
    assert kept.context is first  # it may not be whole yet
    kept.look()
    second = kept.context
    assert second is not first
    assert "has changed" in told.said[1]
    tls.certificate.unlink()
    for _ in range(3):
        kept.look()
    assert kept.context is second
    assert len(told.said) == 3
    tls.certificate.write_bytes(new[0][:100])
    for _ in range(3):
        kept.look()
    assert kept.context is second
    assert len(told.said) == 4
    tls.certificate.write_bytes(new[0])
    for _ in range(3):
        kept.look()
    assert kept.context is not second
    assert len(told.said) == 5


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(door_module, "_LOOK", 0.02)
    yield


@pytest.mark.usefixtures("quick_looks")
def test_certificates_change_under_load_without_a_failed_request(
    loop: str, backend: Backend, open_door: Open, authority: Authority
) -> None:
    """Twenty times, while clients ask on kept and on new connections; in the end it is the last."""
    backend.serve()
    tls, told = authority.tls(), Told()
    door, context = open_door(tls=tls, observer=told), trusting(authority.file)
    over = threading.Event()
    failures: list[BaseException] = []
    asked = [0, 0, 0, 0]

    def keep_asking(number: int, fresh: bool) -> None:
        try:
            client = http.client.HTTPSConnection("localhost", door.port, context=context, timeout=PATIENCE)
            while not over.is_set():
                client.request("GET", "/x")
                assert client.getresponse().read() == b"ok"
                asked[number] += 1
                if fresh:
                    client.close()  # the next request connects anew
            client.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_asking, args=(n, n % 2 == 1)) for n in range(4)]
    for thread in threads:
        thread.start()
    pair = authority.pair()
    for turn in range(20):
        told.changed.clear()
        pair = authority.pair()
        put(tls, pair, in_place=turn % 2 == 1)
        before = list(asked)
        while served(door, context) != der(pair[0]):
            assert told.changed.wait(PATIENCE)
            told.changed.clear()
        # Each of them in each turn, and twice: one of these began after the change.
        eventually(
            lambda before=before: failures or all(a >= b + 2 for a, b in zip(asked, before, strict=True)), "load"
        )
    over.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    assert min(asked) >= 40
    assert sum("has changed" in said for said in told.said) == 20
    assert served(door, context) == der(pair[0])


def test_what_is_wrong_with_files(authority: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line that names the file; nothing is asked on the terminal."""
    good = authority.tls()
    assert good.key
    locked, other = authority.tls("locked", password=b"secret"), authority.tls("other")
    empty, garbage = tmp_path / "empty", tmp_path / "garbage"
    empty.touch()
    garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    large = tmp_path / "large"
    large.write_bytes(b" " * ((1 << 20) + 1))
    wrong = {
        "no such file": Tls(tmp_path / "missing", good.key),
        f"{tmp_path / 'missing'}: no such file": Tls(good.certificate, tmp_path / "missing"),
        "not a file": Tls(tmp_path, good.key),
        "larger than": Tls(large, good.key),
        "protected by a password": locked,
        "does not belong to the certificate": Tls(good.certificate, other.key),
        "no certificate in it": Tls(good.key, good.key),
        f"{empty}: no private key in it": Tls(good.certificate, empty),
        f"{good.certificate}: no private key in it": Tls(good.certificate),
        "no certificate with its key": Tls(garbage, good.key),
        "no certificate of an authority": replace(good, client_ca=empty),
    }
    for said, tls in wrong.items():
        with pytest.raises(UsageError) as caught:
            context_of(tls)
        assert said in caught.value.message, said
        assert "\n" not in caught.value.message
    assert capfd.readouterr().out == ""
    both = tmp_path / "both.pem"
    both.write_bytes(good.key.read_bytes() + good.certificate.read_bytes())
    assert context_of(Tls(both))


def test_a_door_with_wrong_files_does_not_open(backend: Backend, open_door: Open, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_door(tls=Tls(tmp_path / "missing"))


def test_one_that_has_expired_is_served_with_a_warning(authority: Authority) -> None:
    """Clients will refuse it, but it may be all that there is."""
    told = Told()
    Certificates(authority.tls(ends=-1), told)
    assert len(told.said) == 1
    assert "expired at" in told.said[0]
    assert "expires at" in (remark(authority.tls(ends=3)) or "")
    assert remark(authority.tls(ends=30)) is None


def test_self_signed(loop: str, backend: Backend, open_door: Open, tmp_path: Path) -> None:
    """Who is given the file trusts it, by any name of this machine; others do not. A restart keeps it."""
    backend.serve()
    folder = tmp_path / "a" / "tls"
    tls = self_signed(folder)
    assert tls.key
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "certificate.pem": 0o600,
        "key.pem": 0o600,
    }
    door, context = open_door(tls=tls), trusting(tls.certificate)
    for name in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
        plain = socket.create_connection(("127.0.0.1", door.port), PATIENCE)
        context.wrap_socket(plain, server_hostname=name).close()
    with pytest.raises(ssl.SSLCertVerificationError):
        served(door, ssl.create_default_context())
    strict = trusting(tls.certificate)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    found = served(door, strict)
    assert hashlib.sha256(found).hexdigest().upper() == fingerprint(tls.certificate).replace(":", "")
    pem = tls.certificate.read_bytes()
    assert self_signed(folder).certificate.read_bytes() == pem
    for path, data in zip((tls.certificate, tls.key), new_pair(days=3), strict=True):
        path.write_bytes(data)
    self_signed(folder)
    assert remark(tls) is None
    tls.key.write_bytes(b"half")
    self_signed(folder)
    assert context_of(tls)
