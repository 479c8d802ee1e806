"""A `chroma run` of our own: started on one directory, ready when it answers, gone when we are."""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.command import ServerOptions, command_line, find_chroma
from chromakeep.chroma.process import Child
from chromakeep.errors import ServerFailed

_HELD: deque[socket.socket] = deque(maxlen=64)  # the ports that were given last


class ChromaServer:
    """The server process and the client to it.

    Without ``options`` it listens on loopback, on a port the system chooses: a disposable server. ``inherit`` names
    file descriptors it keeps open for as long as it lives. ``panicked`` is set by any line in which a thread of the
    server reports a panic: the only sign a dead compactor gives of itself (see ``chromakeep.chroma.health``).
    """

    def __init__(
        self,
        directory: Path,
        *,
        env: Mapping[str, str],
        options: ServerOptions | None = None,
        program: str | None = None,
        on_line: Callable[[str], None] = lambda line: None,
        inherit: Sequence[int] = (),
    ) -> None:
        self.directory = directory
        self.options = options or ServerOptions(host="127.0.0.1", port=free_port())
        self.client = ChromaClient(self.options.probe_host, self.options.port)
        self.panicked = threading.Event()
        self._on_line = on_line
        argv, extra = command_line(find_chroma(program, env), directory.absolute(), self.options)
        self._child = Child(argv, env={**env, **extra}, on_line=self._line, inherit=inherit)

    def _line(self, line: str) -> None:
        if "panicked at" in line or "Handler panicked" in line:
            self.panicked.set()
        self._on_line(line)

    def start(self, timeout: float = 60.0, *, stop: threading.Event | None = None) -> None:
        """Start and wait for the heartbeat. Raises ``ServerFailed`` with the server's last words.

        Returns early, without a heartbeat, when ``stop`` is set meanwhile.
        """
        # Another server on the port would answer the heartbeat in this one's place.
        if not port_is_free(self.options.host, self.options.port):
            raise ServerFailed(
                f"{self.options.host}:{self.options.port} is in use by another program",
                hint="stop it, or choose another port: chromakeep run ... -- --port 8001",
            )
        try:
            self._child.start()
        except OSError as error:
            raise ServerFailed(f"chroma cannot be started: {error}") from error
        deadline = time.monotonic() + timeout
        while not (stop and stop.is_set()):
            try:
                self.client.heartbeat(timeout=2)
                if not self._child.exited.is_set():
                    return
            except ServerFailed as error:
                if time.monotonic() > deadline:
                    self.kill()
                    said = self.last_words(error)
                    raise ServerFailed(f"chroma does not answer after {timeout:g} s: {said}") from None
            if self._child.exited.wait(0.01):
                raise ServerFailed(f"chroma ended while starting ({self.ending}): {self.last_words()}")

    def last_words(self, error: ServerFailed | None = None) -> str:
        """Its last few lines in one, for an error message."""
        return " | ".join(list(self._child.last_lines)[-3:]) or (error.message if error else "it said nothing")

    @property
    def last_lines(self) -> tuple[str, ...]:
        """Up to 40 of its last lines."""
        return tuple(self._child.last_lines)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def exited(self) -> threading.Event:
        """Set when the process has ended."""
        return self._child.exited

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._child.returncode

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self.returncode
        return "still running" if code is None else f"signal {-code}" if code < 0 else f"exit status {code}"

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, and SIGKILL after ``timeout`` seconds. Returns the exit status; 0 is a clean end."""
        return self._child.stop(timeout)

    def kill(self) -> None:
        """SIGKILL, now."""
        self._child.kill()

    def __enter__(self) -> ChromaServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    """A loopback port that is free, and that the system gives to nobody else until a server of ours has it.

    A server binds it a second or more after it was chosen. In that time another process that asks for any port, as
    the next server does, must not get this one: of two servers one would end, or its starter take the other for it.
    """
    held = socket.socket()
    if sys.platform.startswith("linux"):
        # There who binds the very port may share it, with this option on both sides and as long as nobody listens.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _HELD.append(held)
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
    with held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


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
