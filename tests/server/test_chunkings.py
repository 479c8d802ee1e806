"""However the bytes of requests and answers are cut on their way, what arrives is the same.

Without sockets: the protocols are driven as a loop would, so that every cut is one the protocols really see.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.events import ignore
from chromakeep.server.client_side import ClientSide
from chromakeep.server.limits import Limits
from chromakeep.server.request_head import reader
from chromakeep.server.service import Service
from chromakeep.server.upstream import Pool, Upstream


class Transport:
    """Remembers what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        pass


class Clock:
    """As much of a loop as is needed where nothing waits."""

    def time(self) -> float:
        return 0.0


class Message(NamedTuple):
    """A request or an answer: what must arrive, and the bytes that say it."""

    line: str
    body: bytes
    raw: bytes


def framed(line: str, fields: bytes, body: bytes, sizes: list[int]) -> Message:
    """Counted without sizes, else in chunks of these sizes and one of the rest."""
    head = line.encode() + b"\r\n" + fields
    if not sizes:
        return Message(line, body, head + b"content-length: %d\r\n\r\n" % len(body) + body)
    raw, at = b"", 0
    for size in [*sizes, len(body)]:
        if part := body[at : at + size]:
            raw += b"%X\r\n%b\r\n" % (len(part), part)
            at += len(part)
    return Message(line, body, head + b"transfer-encoding: chunked\r\n\r\n" + raw + b"0\r\n\r\n")


large = st.binary(min_size=1, max_size=3).map(lambda part: part * 90_000)
bodies = st.one_of(st.binary(max_size=40), st.just(b"\r\n0\r\n\r\n"), large)
sizes = st.lists(st.integers(1, 30), max_size=4)
requests = st.builds(
    lambda n, body, sizes: framed(f"POST /{n} HTTP/1.1", b"host: h\r\n", body, sizes), st.integers(0, 99), bodies, sizes
)
answers = st.builds(
    lambda n, body, sizes: framed(f"HTTP/1.1 {n} R", b"", body, sizes), st.integers(200, 203), bodies, sizes
)
exchanges = st.lists(st.tuples(requests, answers), min_size=1, max_size=4)


cuts = st.lists(st.sampled_from([1, 2, 3, 4, 7, 20, 111, 1000, 65_536, 1 << 20]), min_size=1, max_size=9)


def cut(data: bytes, widths: Iterator[int]) -> Iterator[bytes]:
    """``data`` in pieces of these widths; what is beyond the 300th comes at once, for the sake of time."""
    at = 0
    for size in itertools.islice(widths, 300):
        if at < len(data):
            yield data[at : at + size]
            at += size
    if at < len(data):
        yield data[at:]


def read(data: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    """Whole messages at the beginning of ``data``, and the rest."""
    found = []
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        named = dict(f.split(": ") for f in fields)
        if "content-length" in named:
            length = int(named["content-length"])
            if len(rest) < length:
                break
            body, rest = rest[:length], rest[length:]
        else:
            body, ended = b"", False
            while not ended and b"\r\n" in rest:
                size, _, after = rest.partition(b"\r\n")
                if len(after) < int(size, 16) + 2:
                    break
                ended = int(size, 16) == 0
                body += after[: int(size, 16)]
                rest = after[int(size, 16) + 2 :]
            if not ended:
                break
        found.append((line, body))
        data = rest
    return found, data


@settings(max_examples=80, deadline=None)
@given(exchanges, cuts)
def test_every_cut_gives_the_same(planned: list[tuple[Message, Message]], drawn: list[int]) -> None:
    """Pipelined requests, counted and chunked, and their answers: every line and body, in order, and nothing else."""
    widths = itertools.cycle(drawn)
    loop = cast(asyncio.AbstractEventLoop, Clock())
    pool = Pool(loop, ("", 0), 1)
    service = Service(loop, pool, Limits(), reader(Limits()), None, lambda: None, {}, ignore)
    client_end, backend_end = Transport(), Transport()
    upstream = Upstream(pool)
    upstream.connection_made(cast(asyncio.Transport, backend_end))
    pool.keep(upstream)
    client = ClientSide(service)
    client.connection_made(cast(asyncio.Transport, client_end))
    seen: list[tuple[str, bytes]] = []

    def backend() -> None:
        """Answer what has come whole."""
        while True:
            whole, backend_end.written = read(backend_end.written)
            if not whole:
                return
            assert len(whole) == 1, "a second request before the first was answered"
            answer = planned[len(seen)][1]
            seen.extend(whole)
            for piece in cut(answer.raw, widths):
                assert backend_end.reading
                upstream.data_received(piece)

    waiting = list(cut(b"".join(request.raw for request, _ in planned), widths))
    while waiting:
        assert client_end.reading
        client.data_received(waiting.pop(0))
        backend()
    assert seen == [(request.line, request.body) for request, _ in planned]
    assert read(client_end.written) == ([(answer.line, answer.body) for _, answer in planned], b"")
    assert not client_end.closed
    assert not backend_end.closed
