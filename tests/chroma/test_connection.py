"""Connections to a server that is not well, not the right one, or hostile; and that a token stays a secret."""

from __future__ import annotations

import datetime
import email.utils
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chromakeep.chroma import connection as connections
from chromakeep.chroma import wire
from chromakeep.chroma.connection import ANYTHING, Connection
from chromakeep.chroma.ports import free_port
from chromakeep.chroma.tokens import Token
from chromakeep.chroma.wire import AnswerTooLarge, Reply
from chromakeep.errors import ChromakeepError, ServerAnswered, ServerFailed, ServerSilent, UsageError
from chromakeep.events import Event, Retried
from run.running import eventually
from servers.middle import Answer, Asked, Middle, of_json, told

TOKEN = "ck-very-secret"
HELD = Token(value=TOKEN, origin="CHROMA_TOKEN")
FINE = of_json({"ok": 1})


@pytest.fixture(autouse=True)
def no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_FIRST_DELAY", 0.02)


@pytest.fixture
def middle() -> Iterator[Middle]:
    middle = Middle(lambda asked: FINE)
    yield middle
    middle.stop()


def in_turn(*answers: Answer) -> Callable[[Asked], Answer]:
    """These answers, and then that all is fine."""
    left = iter(answers)
    return lambda asked: next(left, FINE)


def get(connection: Connection, path: str = "/x", body: bytes | None = None, **options: object) -> object:
    return connection.request("POST" if body else "GET", path, body, decoder=ANYTHING, **options)  # type: ignore[arg-type]


def failing(url: str, **options: object) -> ChromakeepError:
    with closing(Connection(url, patience=0.3, **options)) as connection, pytest.raises(ChromakeepError) as caught:  # type: ignore[arg-type]
        get(connection)
    assert "\n" not in caught.value.message and len(caught.value.message) < 500
    return caught.value


# -- kept connections -------------------------------------------------------------------------------------------------


def test_a_thread_keeps_its_connection(middle: Middle) -> None:
    """Ten requests of one thread take one connection; two threads take one each."""
    with closing(Connection(middle.url)) as connection:
        for _ in range(10):
            assert get(connection) == {"ok": 1}
        assert middle.connections == 1
        both = threading.Barrier(2)

        def ask() -> None:
            both.wait()
            get(connection)
            get(connection)

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(ask) for _ in range(2)]:
                future.result()
        assert middle.connections == 3


def test_a_kept_connection_that_was_closed_is_opened_again(middle: Middle) -> None:
    """At once, and nobody is told of it: servers close idle connections. Also after ``close``."""
    middle.answer = in_turn(Answer(close=True), Answer(close=True))
    events: list[Event] = []
    with closing(Connection(middle.url, observer=events.append)) as connection:
        for body in (None, b"{}", None):
            get(connection, body=body)
            time.sleep(0.05)  # until the server has closed it
        connection.close()
        get(connection)
    assert not events and middle.connections == 4


def test_requests_carry_path_and_token(middle: Middle) -> None:
    """A path of the base address comes first; x-chroma-token always, Authorization if asked for."""
    with closing(Connection(f"{middle.url}/behind/", token=HELD, bearer=True)) as connection:
        get(connection, "/tenants")
    with closing(Connection(middle.url, token=HELD)) as connection:
        get(connection, "/tenants")
    first, second = middle.asked
    assert first.path == "/behind/api/v2/tenants" and second.path == "/api/v2/tenants"
    assert first.headers["x-chroma-token"] == second.headers["x-chroma-token"] == TOKEN
    assert first.headers["authorization"] == f"Bearer {TOKEN}" and "authorization" not in second.headers


# -- patience ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(middle: Middle, status: int) -> None:
    """With a growing pause that is told, whatever the body of the refusal is."""
    middle.answer = in_turn(told(status, "later"), Answer(status, b"You have been rate limited."))
    events: list[Event] = []
    with closing(Connection(middle.url, observer=events.append)) as connection:
        assert get(connection) == {"ok": 1}
    assert [(e.what, e.attempt) for e in events if isinstance(e, Retried)] == [("GET x", 1), ("GET x", 2)]
    assert "later" in events[0].error and "rate limited" in events[1].error  # type: ignore[attr-defined]


def test_retry_after_is_heeded(middle: Middle) -> None:
    """The pause is as long as the server asks for."""
    middle.answer = in_turn(told(429, "later", **{"Retry-After": "1"}))
    events: list[Event] = []
    with closing(Connection(middle.url, observer=events.append)) as connection:
        get(connection)
    assert [e.delay for e in events if isinstance(e, Retried)] == [1.0]


def test_retry_after_in_every_form() -> None:
    """Seconds or a date, bounded; what is neither is none."""

    def asked(text: str | None) -> float:
        headers = http.client.HTTPMessage()
        if text is not None:
            headers["Retry-After"] = text
        return connections._retry_after(Reply(429, headers, b""))

    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=30)
    assert 20 < asked(email.utils.format_datetime(soon)) <= 30
    assert asked("7") == 7.0 and asked("99999999999") == 60.0
    assert asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for text in (None, "", "soon", "-5", "1e9", "NaN", "٣", "Wed, 99 Oct 2015"):
        assert asked(text) in (0.0, 3.0)


def test_patience_ends(middle: Middle) -> None:
    """With the server's last words, as an error of its status."""
    middle.answer = lambda asked: told(503, "not yet")
    error = failing(middle.url)
    assert isinstance(error, ServerAnswered) and error.status == 503 and "not yet" in error.message


def test_success_of_another_thread_is_success() -> None:
    """A thread that is told to wait waits for as long as others are served."""
    connection = Connection("http://127.0.0.1:1", patience=10)
    connection._answered = 1000.0
    assert connection._deadline(980.0) == 1010.0
    assert connection._deadline(900.0) == 950.0, "not for ever"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answered is given up soon."""
    monkeypatch.setattr(connections, "FIRST_CONTACT", 0.3)
    events: list[Event] = []
    with (
        closing(Connection(f"http://127.0.0.1:{free_port()}", observer=events.append)) as connection,
        pytest.raises(ServerSilent, match="does not answer") as caught,
    ):
        get(connection)
    assert not caught.value.timed_out and events


def test_a_server_that_comes_up_is_waited_for() -> None:
    """The connection is refused at first."""
    events: list[Event] = []
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))  # nobody else's from now on, and nobody listens

        def told_of(event: Event) -> None:
            events.append(event)
            if len(events) == 2:
                _serve(late)

        with closing(Connection(_url(late), observer=told_of)) as connection:
            assert get(connection) == {}
    assert len(events) == 2


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _serving(answer: bytes, pause: float = 0) -> socket.socket:
    """A listener that ``_serve`` answers at."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    _serve(listener, answer, pause)
    return listener


def _serve(
    listener: socket.socket, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", pause: float = 0
) -> None:
    """Answer each connection with these bytes, ``pause`` seconds between one and the next if there is one."""
    listener.listen()

    def serve() -> None:
        while True:
            try:
                other, _ = listener.accept()
            except OSError:
                return
            with other:
                try:
                    other.recv(1 << 16)
                    for n in range(len(answer) if pause else 1):
                        other.sendall(answer[n : n + 1] if pause else answer)
                        time.sleep(pause)
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()


def test_who_would_rather_ask_for_less_is_told_at_once(middle: Middle) -> None:
    """Not patient: a timeout is raised after one try."""

    over = threading.Event()

    def slow(asked: Asked) -> Answer:
        over.wait(60)
        return FINE

    middle.answer = slow
    with closing(Connection(middle.url, timeout=0.1)) as connection, pytest.raises(ServerSilent) as caught:
        get(connection, patient=False)
    assert caught.value.timed_out
    eventually(lambda: middle.asked, "the request is read, if only when nobody waits for its answer any more")
    over.set()
    assert len(middle.asked) == middle.connections == 1


def test_stop_ends_waiting(middle: Middle) -> None:
    """Whoever waits to try again stops when told."""
    middle.answer = lambda asked: told(503, "later", **{"Retry-After": "50"})
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with closing(Connection(middle.url)) as connection, pytest.raises(ServerAnswered):
        get(connection, stop=stop)


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_is_asked_for(middle: Middle, status: int) -> None:
    """By the names of the variables it can be in; one that is refused by the name of the one it is from."""
    middle.answer = lambda asked: told(status, "Forbidden", "AuthError")
    error = failing(middle.url)
    assert "asks for a token" in error.message and "CHROMA_TOKEN" in (error.hint or "")
    names = ("CHROMA_API_KEY_TO", "CHROMA_API_KEY")
    assert "CHROMA_API_KEY_TO or CHROMA_API_KEY " in (failing(middle.url, token=Token(names)).hint or "")
    for origin, settable in zip(names, ("CHROMA_API_KEY_TO", "CHROMA_API_KEY_TO or CHROMA_API_KEY"), strict=True):
        error = failing(middle.url, token=Token.read({origin: TOKEN}, *names))
        assert f"refuses the token in {origin} (" in error.message
        assert error.hint == f"set {settable} to a token that may do this"


def test_a_token_is_in_no_message(middle: Middle) -> None:
    """Also if the server repeats it, in whatever place."""
    for answer in (
        told(401, f"bad token {TOKEN}"),
        told(400, f"x-chroma-token: {TOKEN}"),
        told(503, TOKEN),
        Answer(200, f'"{TOKEN}'.encode()),
        Answer(500, TOKEN.encode()),
        Answer(302, b"", {"Location": f"https://elsewhere/{TOKEN}"}),
    ):
        middle.answer = lambda asked, answer=answer: answer  # type: ignore[misc]
        events: list[Event] = []
        error = failing(middle.url, token=HELD, observer=events.append)
        assert TOKEN not in f"{error.message} {error.hint} {error!r} {events}"


@pytest.mark.parametrize("token", ["a\nb", "a\r\nX: y", "ü", "\0"])
def test_a_token_that_no_header_takes(token: str) -> None:
    """It is refused, and not repeated; not even by a traceback that shows values."""
    held = Token.read({"CHROMA_TOKEN_FROM": token}, "CHROMA_TOKEN_FROM", "CHROMA_TOKEN")
    with pytest.raises(UsageError, match="in CHROMA_TOKEN_FROM holds characters that no header can") as caught:
        Connection("http://localhost:8000", token=held)
    assert token not in f"{caught.value.message} {held!r} {held}"


def test_which_variable_a_token_is_from() -> None:
    """The first that holds anything; an empty one counts as not set."""
    names = ("CHROMA_TOKEN_TO", "CHROMA_TOKEN")
    for env, origin in (
        ({}, ""),
        ({"CHROMA_TOKEN": "", "CHROMA_TOKEN_FROM": "c"}, ""),
        ({"CHROMA_TOKEN": "a", "CHROMA_TOKEN_TO": ""}, "CHROMA_TOKEN"),
        ({"CHROMA_TOKEN": "a", "CHROMA_TOKEN_TO": "b"}, "CHROMA_TOKEN_TO"),
    ):
        found = Token.read(env, *names)
        assert (found.origin, found.value) == (origin, env.get(origin, ""))


@pytest.mark.parametrize(
    "url", ["", "localhost", "ftp://x", "http://", "http://u:p@h", "http://h:99999", "http://h?x=1"]
)
def test_an_address_that_is_none(url: str) -> None:
    """It is refused, and what may be a password in it is not repeated."""
    with pytest.raises(UsageError) as caught:
        Connection(url)
    assert "u:p" not in caught.value.message


# -- hostile and foreign servers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>"),
        Answer(200, b"\xff\xfe"),
        Answer(200, b'{"a": "\xff"}'),
        Answer(200, b"[" * 100_000),
        Answer(200, b'{"a": 1'),
        Answer(404, b"<html>\n<h1>Not\x1b[31m here</h1>"),
        Answer(404, b""),
        Answer(500, b'{"message": ["a"]}'),
        Answer(500, b"[" * 100_000),
        Answer(418, b'{"message": "' + b"long " * 1000 + b'"}'),
        Answer(301, b"", {"Location": "https://elsewhere.example/" + "x" * 5000}),
    ],
)
def test_an_answer_that_is_none_of_chromas(middle: Middle, answer: Answer) -> None:
    """It is an error of one line, without control characters."""
    middle.answer = lambda asked: answer
    error = failing(middle.url)
    assert isinstance(error, ServerFailed) and error.message.isprintable()


def test_an_answer_too_large_is_not_read(middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has more bytes than anyone could want ends the request."""
    monkeypatch.setattr(wire, "MOST", 5000)
    middle.answer = lambda asked: Answer(200, b'"' + b"x" * 10_000_000 + b'"')
    assert isinstance(failing(middle.url), AnswerTooLarge)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
)
def test_bytes_that_are_no_answer(answer: bytes) -> None:
    """A server that lies about lengths, speaks another protocol, or says nothing."""
    with closing(_serving(answer)) as listener:
        assert isinstance(failing(_url(listener), timeout=0.5), ServerSilent)


def test_an_answer_byte_by_byte_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is in time, the whole is not."""
    monkeypatch.setattr(wire, "_DRIBBLE", 3)
    monkeypatch.setattr(wire, "_PIECE", 1)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000
    with (
        closing(_serving(answer, pause=0.01)) as listener,
        closing(Connection(_url(listener), timeout=0.1)) as connection,
        pytest.raises(ServerSilent) as caught,
    ):
        get(connection, patient=False)
    assert caught.value.timed_out


def test_a_body_that_is_refused_unread() -> None:
    """A server that answers 413 and closes, without reading a body: its answer is heard."""
    answer = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with (
        closing(_serving(answer)) as listener,
        closing(Connection(_url(listener), patience=0.3)) as connection,
        pytest.raises((ServerAnswered, ServerSilent)),
    ):
        get(connection, body=b"x" * (20 << 20))


def test_no_host_of_that_name() -> None:
    """A name that nobody has is an error at once."""
    error = failing("http://no-such-host.invalid:8000")
    assert isinstance(error, ServerFailed)


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))
    return path


def test_tls(middle: Middle, certificate: Path) -> None:
    """A certificate that nobody trusts is refused, one that is trusted is not; plain HTTP is no TLS."""
    inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inner.load_cert_chain(certificate)
    with closing(Connection(middle.url)) as connection:
        get(connection)  # the loop that accepts has begun: it must not find the socket on its way into its wrapping
    middle._server.socket = inner.wrap_socket(middle._server.socket, server_side=True)
    url = middle.url.replace("http://", "https://")
    assert "not trusted" in failing(url).message
    with closing(Connection(url, context=ssl.create_default_context(cafile=str(certificate)))) as connection:
        assert get(connection) == {"ok": 1}
    plain = Middle(lambda asked: FINE)
    assert "no TLS" in failing(plain.url.replace("http://", "https://")).message
    plain.stop()


def test_a_decoder_of_ones_own(middle: Middle) -> None:
    """What is asked for is parsed as that, and anything else is none of Chroma's."""
    middle.answer = lambda asked: of_json([1, 2])
    with closing(Connection(middle.url)) as connection:
        assert connection.request("GET", "/x", decoder=msgspec.json.Decoder(list[int])) == [1, 2]
        with pytest.raises(ServerFailed, match="none of Chroma's"):
            connection.request("GET", "/x", decoder=msgspec.json.Decoder(list[str]))
