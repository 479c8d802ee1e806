"""What one client may cost: sizes in bytes, times in seconds."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Defaults let every Chroma client through and bound what a hostile one can hold.

    ``connections`` is lowered to what the process's limit on open files allows (each may need a second one upstream).
    """

    connections: int = 1000
    head_bytes: int = 32 << 10  # request line and fields: 431 above
    fields: int = 100  # 431 above
    body_bytes: int = 1 << 30  # 413 above; Chroma has a limit of its own, 40 MiB unless configured
    head: float = 15.0  # for a whole head, from its first byte; for a new connection from its start: 408
    idle: float = 75.0  # between requests; more than the 40 s for which chromadb's client keeps a connection
    body: float = 30.0  # of grace for a body, and one second more for every ``body_rate`` bytes received: 408
    body_rate: int = 4096  # bytes a second
    stall: float = 60.0  # without taking a byte of a waiting answer: cut
    half_closed: float = 30.0  # of waiting for the answer to a client that has closed its sending side, or all of it
    linger: float = 30.0  # of discarding what a refused client still sends, so that it reads the refusal
    connect: float = 5.0  # to the backend: 503


BUFFER = 64 << 10  # bytes kept of one side before it is no longer read: twice per exchange, beside the transports'
