"""Ports of this machine for servers that are to come."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import deque

from chromakeep.errors import ServerFailed


class HeldPort:
    """A loopback port, ``number``, that nobody is given who asks the system for any, until ``close``: not before a
    server listens there, nor between two of its lives.

    Bound, and not listened on: on Linux a server that takes it by its number (with SO_REUSEADDR, as nearly all do) can.
    Elsewhere it was only free a moment ago.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 0))
            self.number = int(probe.getsockname()[1])
            # Of a descriptor that nobody has closed at the end of the process nothing is told, of a socket it is.
            if sys.platform == "linux":
                self._descriptor = os.dup(probe.fileno())

    def close(self) -> None:
        """Let go."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


_HELD: deque[HeldPort] = deque(maxlen=64)


def free_port() -> int:
    """A loopback port that nobody else is given before many more have been asked for here."""
    held = HeldPort()
    _HELD.append(held)  # which lets go of the oldest
    return held.number


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there. Raises ``ServerFailed`` for an address that is not this machine's."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror as error:
        raise ServerFailed(f"cannot listen on {host!r}: {error.strerror}", hint="0.0.0.0 is every interface") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise ServerFailed(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return True
