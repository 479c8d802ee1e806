"""What the door costs: the same requests to a ``chroma run`` directly and through a door, in turns.

``python bench/door.py`` prints one line a figure. The door is a process of its own, as is the server; loads of the
machine's own fall on both sides alike, for the sides take turns every fraction of a second. An nginx that only passes
on is a third side, where it is installed: what any process in between costs on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from chromakeep.access.keys import Key, Keyring, mint
from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.ports import free_port
from chromakeep.chroma.server import ChromaServer
from chromakeep.server import Door, Limits
from chromakeep.server.gatehouse import Gatehouse
from chromakeep.server.metrics import Metrics

NGINX = """daemon off; {user} pid {base}/nginx.pid; worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off; client_max_body_size 0; client_body_buffer_size 1m; proxy_buffers 16 64k;
    client_body_temp_path {base}/body; proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
    upstream chroma {{ server 127.0.0.1:{backend}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port}; keepalive_requests 1000000;
        location / {{ proxy_pass http://chroma; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering off; }}
    }}
}}
"""
COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
HEADERS = {"content-type": "application/json"}
KEY = "BENCH_KEY"  # variable by which a closed door's process is given its key
RANDOM = np.random.default_rng(7)


def serve(port: int, backend: int, asyncio_only: bool) -> None:
    """Be the door, until standard input ends."""
    if asyncio_only:
        sys.modules["uvloop"] = None  # type: ignore[assignment]
    limits, key = Limits(connections=4000), os.environ.get(KEY)
    if key:
        ring = Keyring([msgspec.json.decode(key, type=Key)])
        guard = Gatehouse(lambda: ring, closed=True)
        door = Door("127.0.0.1", port, ("127.0.0.1", backend), limits=limits, guard=guard, ledger=Metrics())
    else:
        door = Door("127.0.0.1", port, ("127.0.0.1", backend), limits=limits)
    door.start()
    print("ready", flush=True)
    sys.stdin.read()
    door.stop(1)


def records(start: int, count: int, dimension: int) -> bytes:
    """The body of an add, as chromadb's client sends it."""
    vectors = RANDOM.random((count, dimension), dtype=np.float32)
    ids = [f"i{n}" for n in range(start, start + count)]
    coded = [base64.b64encode(v.tobytes()).decode() for v in vectors]
    return json.dumps({"ids": ids, "embeddings": coded, "documents": [f"text of {i} " * 6 for i in ids]}).encode()


def queries(dimension: int, count: int = 50) -> list[bytes]:
    """Bodies of queries for ten neighbours."""
    vectors = RANDOM.random((count, dimension), dtype=np.float32)
    return [json.dumps({"query_embeddings": [v.tolist()], "n_results": 10}).encode() for v in vectors]


class Connection:
    """One kept connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port)
        self._http.connect()
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: bytes) -> float:
        """Seconds from the first byte sent to the last received."""
        started = time.perf_counter()
        self._http.request("POST", path, body, HEADERS)
        answer = self._http.getresponse()
        answer.read()
        assert answer.status in (200, 201), answer.status
        return time.perf_counter() - started


def latency(ports: dict[str, int], path: str, bodies: list[bytes], rounds: int) -> dict[str, float]:
    """Median of one client's queries, in ms, the sides taking turns of 50."""
    connections = {side: Connection(port) for side, port in ports.items()}
    times: dict[str, list[float]] = {side: [] for side in ports}
    for connection in connections.values():
        for body in bodies:
            connection.post(path, body)
    for turn in range(rounds):
        for side in sorted(ports, reverse=bool(turn % 2)):
            times[side] += [connections[side].post(path, body) for body in bodies]
    return {side: statistics.median(t) * 1e3 for side, t in times.items()}


async def _load(port: int, path: str, bodies: list[bytes], width: int, seconds: float) -> int:
    done = 0
    end = time.perf_counter() + seconds
    fields = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: "

    async def one(n: int) -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        while time.perf_counter() < end:
            body = bodies[n % len(bodies)]
            n += 1
            writer.write(head.encode() + b"%d\r\n\r\n" % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(f.split(b":")[1]) for f in answer.lower().split(b"\r\n") if f.startswith(b"content-length")
            )
            await reader.readexactly(length)
            done += 1
        writer.close()

    await asyncio.gather(*(one(n) for n in range(width)))
    return done


def throughput(ports: dict[str, int], path: str, bodies: list[bytes], width: int, rounds: int) -> dict[str, float]:
    """Queries a second of ``width`` clients: the median of turns of 1.5 s."""
    rates: dict[str, list[float]] = {side: [] for side in ports}
    for turn in range(rounds):
        for side in sorted(ports, reverse=bool(turn % 2)):
            started = time.perf_counter()
            done = asyncio.run(_load(ports[side], path, bodies, width, 1.5))
            rates[side].append(done / (time.perf_counter() - started))
    return {side: statistics.median(r) for side, r in rates.items()}


def adds(ports: dict[str, int], make: Callable[[str], str], rounds: int) -> dict[str, float]:
    """Median of one add of 1,000 x 768, in ms, always into a new collection."""
    connections = {side: Connection(port) for side, port in ports.items()}
    times: dict[str, list[float]] = {side: [] for side in ports}
    body = records(0, 1000, 768)
    for turn in range(rounds + 1):
        for side in sorted(ports, reverse=bool(turn % 2)):
            seconds = connections[side].post(f"{COLLECTIONS}/{make(f'add-{turn}-{side}')}/add", body)
            times[side] += [seconds] if turn else []  # the first of each warms up
    return {side: statistics.median(t) * 1e3 for side, t in times.items()}


def status(pid: int, name: str) -> float:
    """A line of /proc/PID/status, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def cpu(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def large(port: int, megabytes: int) -> float:
    """MB a second of an upload to a socket that swallows it, through the door on ``port``."""
    part = b"x" * (1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as wire:
        started = time.perf_counter()
        wire.sendall(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % (megabytes << 20))
        for _ in range(megabytes):
            wire.sendall(part)
        assert wire.recv(100).startswith(b"HTTP/1.1 200")
        return megabytes * (1 << 20) / 1e6 / (time.perf_counter() - started)


def swallow(listener: socket.socket) -> None:
    """Take one request and answer it when its body has come."""
    wire, _ = listener.accept()
    had = b""
    while b"\r\n\r\n" not in had:
        had += wire.recv(1 << 20)
    head, _, rest = had.partition(b"\r\n\r\n")
    left = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) - len(rest)
    while left:
        left -= len(wire.recv(1 << 20))
    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


def open_door(port: int, backend: int, asyncio_only: bool) -> subprocess.Popen[bytes]:
    """A door in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(port), str(backend), *(["--asyncio"] if asyncio_only else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return process


def close_door(process: subprocess.Popen[bytes]) -> None:
    """End it."""
    assert process.stdin
    process.stdin.close()
    process.wait()


@contextlib.contextmanager
def nginx(base: Path, backend: int) -> Iterator[int]:
    """The port of one that passes on, on connections that it keeps."""
    port, user = free_port(), "user root;" if os.geteuid() == 0 else ""  # else nobody would have to write there
    (base / "nginx.conf").write_text(NGINX.format(base=base, port=port, backend=backend, user=user))
    process = subprocess.Popen(["nginx", "-p", base, "-e", base / "nginx.log", "-c", base / "nginx.conf"])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def bodies_and_memory(asyncio_only: bool) -> None:
    """A large upload, and idle connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = free_port()
        process = open_door(port, listener.getsockname()[1], asyncio_only)
        print(f"resident, idle:                {status(process.pid, 'VmRSS'):8.1f} MB")
        thread = threading.Thread(target=swallow, args=(listener,))
        thread.start()
        print(f"upload of 500 MiB:             {large(port, 500):8.1f} MB/s")
        thread.join()
        print(f"most resident until then:      {status(process.pid, 'VmHWM'):8.1f} MB")
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
        for one in held:
            one.sendall(b"GET /x HTTP/1.1\r\nhost")
        time.sleep(0.5)
        print(f"resident, 1,000 connections:   {status(process.pid, 'VmRSS'):8.1f} MB")
        for one in held:
            one.close()
        close_door(process)


def against_chroma(rounds: int, asyncio_only: bool) -> None:
    """Latency, throughput and adds."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        ChromaServer(Path(scratch) / "data", env={**os.environ, "RUST_LOG": "error"}) as server,
        contextlib.ExitStack() as stack,
    ):
        direct = server.options.port
        ports = {"direct": direct, "door": free_port()}
        if shutil.which("nginx"):
            ports["nginx"] = stack.enter_context(nginx(Path(scratch), direct))
        process = open_door(ports["door"], direct, asyncio_only)
        client = ChromaClient("127.0.0.1", direct)

        def make(name: str) -> str:
            return str(client.request("POST", COLLECTIONS.removeprefix("/api/v2"), {"name": name})["id"])

        path = f"{COLLECTIONS}/{make('queried')}"
        filling = Connection(direct)
        for start in range(0, 12_000, 1000):
            filling.post(f"{path}/add", records(start, 1000, 384))
        bodies = queries(384)

        def say(what: str, unit: str, found: dict[str, float]) -> None:
            ratios = "".join(
                f"  {side} {found[side]:8.2f} {unit} ({found[side] / found['direct']:.3f})" for side in list(ports)[1:]
            )
            print(f"{what:30} direct {found['direct']:8.2f} {unit}{ratios}", flush=True)

        say("query of 12k x 384, p50, c=1", "ms", latency(ports, f"{path}/query", bodies, 4 * rounds))
        before = cpu(process.pid)
        found = throughput(ports, f"{path}/query", bodies, 16, rounds)
        used = (cpu(process.pid) - before) / (found["door"] * 1.5 * rounds) * 1e6
        say("queries, c=16", "/s", found)
        print(f"door's processor time:         {used:8.0f} us a request")
        say("add of 1,000 x 768, p50", "ms", adds(ports, make, rounds))
        close_door(process)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, type=int, metavar=("PORT", "BACKEND"), help=argparse.SUPPRESS)
    parser.add_argument("--asyncio", action="store_true", help="without uvloop")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--open", action="store_true", help="without keys, shield and metrics: the bare door")
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve, options.asyncio)
        return
    bodies_and_memory(options.asyncio)
    if not options.open:
        key, HEADERS["x-chroma-token"] = mint("bench", "writer", tenant="default_tenant", collections=("*",))
        os.environ[KEY] = msgspec.json.encode(key).decode()
    against_chroma(options.rounds, options.asyncio)


if __name__ == "__main__":
    main()
