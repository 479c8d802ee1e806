"""The door: listens, and lives in a thread with an event loop of its own (uvloop's where it is installed)."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from msgspec.structs import replace

from chromakeep.errors import ServerFailed
from chromakeep.events import Observer, ignore
from chromakeep.server.backend import Backend
from chromakeep.server.client_side import ClientSide
from chromakeep.server.cors import Cors
from chromakeep.server.credentials import CARRIERS
from chromakeep.server.gate import Gate, Page, Refusal
from chromakeep.server.guard import Guard, Ledger
from chromakeep.server.inside import Answering, Inside
from chromakeep.server.limits import Limits
from chromakeep.server.reception import Reception
from chromakeep.server.relay import Relay
from chromakeep.server.request_head import NOTHING, reader
from chromakeep.server.service import Service
from chromakeep.server.tls import Certificates, Tls
from chromakeep.server.upstream import Pool, Remote
from chromakeep.server.visit import Desk

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_DEFAULT = Limits()
_SWEEP = 0.5  # seconds between looks at the deadlines
_LOOK = 1.0  # seconds between looks at the files of a certificate
_BACKLOG = 1024
_OTHER_FILES = 128  # of the process: what a door may not take


class Door:
    """Passes HTTP/1.1 from ``host:port`` to ``backend`` (address, port), writes through ``gate``.

    ``reads`` tells, in the door's thread, why no read may be passed on now, if so; it must not block.
    ``pages`` are answered here to GET and HEAD of exactly their path; they run in the door's thread and must not block.
    ``desk`` answers requests with a body; its own paths are never passed on.
    ``guard`` is asked who may come in, ``ledger`` is told of every request.
    ``answering``: what is passed on goes to an engine here, in so many ``threads``, and there is no backend.
    ``tls``: clients speak TLS. When its files change, new connections get what is in them, and none that there is ends.
    ``relay`` says where writes go on to while the gate would refuse them all.
    ``cors`` says which pages of browsers may ask; without one nothing is said about that, as Chroma does.
    ``observer`` is told in that thread about failures of the gate, of pages and of the backend's HTTP.
    """

    def __init__(
        self,
        host: str,
        port: int,
        backend: tuple[str, int],
        *,
        gate: Gate | None = None,
        reads: Callable[[], Refusal | None] = lambda: None,
        pages: Mapping[str, Callable[[], Page]] = {},
        desk: Desk | None = None,
        guard: Guard | None = None,
        ledger: Ledger | None = None,
        remote: Remote | None = None,
        answering: Answering | None = None,
        threads: int = 8,
        relay: Relay | None = None,
        tls: Tls | None = None,
        cors: Cors | None = None,
        limits: Limits = _DEFAULT,
        observer: Observer = ignore,
    ) -> None:
        self.host, self.port = host, port  # with port 0, the one the system chose, once started
        self._backend, self._gate, self._pages, self._observer = backend, gate, dict(pages), observer
        self._limits, self._reads, self._desk = limits, reads, desk
        self._guard, self._ledger, self._remote = guard, ledger, remote
        self._answering, self._threads = answering, threads
        self._tls, self._cors, self._relay = tls, cors, relay
        self._certificates: Certificates | None = None
        self._sockets: list[socket.socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self._drain = 0.0
        self._failure: Exception | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._live, name="door", daemon=True)

    def start(self) -> None:
        """Listen and serve. Raises ``ServerFailed`` when it cannot listen there. Once per door.

        Raises ``UsageError`` for files of a certificate that cannot be used.
        """
        if self._tls:
            self._certificates = Certificates(self._tls, self._observer)
        self._sockets = listening(self.host, self.port)
        self.port = int(self._sockets[0].getsockname()[1])
        self._thread.start()
        self._started.wait()
        if self._failure:
            raise ServerFailed(f"cannot serve on {self.host}:{self.port}: {self._failure}") from self._failure

    @property
    def serving(self) -> bool:
        """Whether it is there for clients. False again after ``stop``, or should its thread ever fail."""
        return self._started.is_set() and self._thread.is_alive()

    def stop(self, drain: float) -> None:
        """Take no new connections, close idle ones, give requests under way ``drain`` seconds, then cut them.

        Returns when all are closed. Does nothing when it is not running; from any thread but the door's own.
        """
        loop, stopping = self._loop, self._stopping
        if not self._started.is_set() or loop is None or stopping is None:
            return
        self._drain = drain
        with suppress(RuntimeError):  # the loop has just been closed by another stop
            loop.call_soon_threadsafe(stopping.set)
        self._thread.join()

    def _live(self) -> None:
        try:
            loop = new_loop()
            try:
                loop.run_until_complete(self._serve(loop))
            finally:
                loop.close()
        except Exception as error:  # told by ``start``, in the thread that asked
            self._failure = error
        finally:
            self._started.set()
            for one in self._sockets:
                one.close()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        limits = affordable(self._limits)
        pool: Backend = (
            Inside(loop, self._answering, self._threads, limits.body_bytes)
            if self._answering
            else Pool(loop, self._backend, limits.connect, self._remote)
        )
        service = Service(
            loop,
            pool,
            limits,
            reader(limits, CARRIERS if self._guard else NOTHING, pool.authority),
            self._gate,
            self._reads,
            self._pages,
            self._observer,
            self._desk,
            self._guard,
            self._ledger,
            self._cors,
            self._relay,
        )
        if limits.connections < self._limits.connections:
            service.warn(
                f"the door takes {limits.connections} clients at a time: more open files allow more (ulimit -n)"
            )
        if self._relay:
            self._relay.attach(loop, limits.connect)
        if self._guard:
            self._guard.attach(loop, pool)
        self._stopping = stopping = asyncio.Event()
        servers: list[asyncio.Server] = []
        works = [loop.create_task(_sweep(service))]
        reception = None
        if self._certificates:
            reception = Reception(service, self._certificates, self._sockets)
            works.append(loop.create_task(_watch(self._certificates, service)))
        else:
            servers = [
                await loop.create_server(lambda: ClientSide(service), sock=one, backlog=_BACKLOG)
                for one in self._sockets
            ]
        self._loop = loop
        self._started.set()
        await stopping.wait()
        for server in servers:
            server.close()
        if reception:
            await reception.close()
        service.closing = True
        for client in list(service.clients):
            client.wind_up()
        end = loop.time() + self._drain
        while service.clients and loop.time() < end:
            await asyncio.sleep(0.01)
        for client in list(service.clients):
            client.cut()
        pool.close()
        if self._relay:
            self._relay.close()
        for work in works:
            work.cancel()
        for _ in range(3):  # transports tell of their end in a later round of the loop
            await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(_SWEEP)
        _expire(service)
        if service.relay:
            service.relay.look()


def _expire(service: Service) -> None:
    """Of its own, so that nobody keeps the last client until the next look."""
    now = service.loop.time()
    for client in list(service.clients):
        client.expire(now)


async def _watch(certificates: Certificates, service: Service) -> None:
    while True:
        await asyncio.sleep(_LOOK)
        try:  # files may lie on a disk that is slow to answer
            await service.loop.run_in_executor(None, certificates.look)
        except Exception as error:  # a fault of ours: the certificate from before is still there
            service.warn(f"door: looking at the certificate failed: {type(error).__name__}: {error}")


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's if it can be imported: a sixth less processor time a request, and one buffer for all reads."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of ``host``. Raises ``ServerFailed`` with one line of why not."""
    found: list[socket.socket] = []
    failure: OSError | None = None
    if not 0 <= port <= 65535:
        raise ServerFailed(f"cannot listen on {host}:{port}: no such port")
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                found.append(_listening(family, kind, protocol, address))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failure = error  # a name may have an address of a family this machine does not speak
            if not port:
                break
        if not found and failure:
            raise failure
    except (OSError, UnicodeError) as error:
        for one in found:
            one.close()
        raise _explained(host, port, error) from None
    return found


def _listening(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # inherited: finds clients that vanished
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(_BACKLOG)
        one.setblocking(False)
    except BaseException:
        one.close()
        raise
    return one


def _explained(host: str, port: int, error: Exception) -> ServerFailed:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ServerFailed(f"{host}:{port} is in use by another program", hint="stop it, or choose another port")
    if isinstance(error, socket.gaierror | UnicodeError):
        why = error.strerror if isinstance(error, OSError) else "no host name"
        return ServerFailed(f"cannot listen on {host!r}: {why}", hint="0.0.0.0 is every interface")
    why = error.strerror if isinstance(error, OSError) else str(error)
    return ServerFailed(f"cannot listen on {host}:{port}: {why}")


def affordable(limits: Limits) -> Limits:
    """The limits with no more connections than the process may have files open, two for each.

    Where the system lets it, it may then have as many as that takes: 1024, which most begin with, are too few.
    """
    if resource is None:
        return limits
    wanted = 2 * limits.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if most > soft:
        with suppress(OSError, ValueError):  # as under a policy of the system's: then it stays as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return replace(limits, connections=max(1, min(limits.connections, (soft - _OTHER_FILES) // 2)))
