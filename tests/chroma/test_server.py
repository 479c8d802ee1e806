"""The child server, its client, its health, and who else writes: against a real `chroma run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chromakeep.chroma.client import Ref
from chromakeep.chroma.command import ServerOptions, command_line, find_chroma, parse_options
from chromakeep.chroma.health import ALIVE, BROKEN, DEAD_INSIDE, HUNG, UNREACHABLE, probe
from chromakeep.chroma.ports import free_port, port_is_free
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.writers import start_time, writers
from chromakeep.errors import ServerAnswered, ServerFailed, ServerSilent, UsageError

DATABASE = "/tenants/default_tenant/databases/default_database"
SRC = Path(__file__).parents[2] / "src"
ENV = dict(os.environ)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path / "data", env=ENV) as server:
        yield server


def create(server: ChromaServer, name: str, count: int = 0, **hnsw: object) -> Ref:
    """A collection of ``count`` records ``i0``... with 4-dimensional vectors ``[i, 1, 2, 3]``."""
    body: dict[str, object] = {"name": name, "configuration": {"hnsw": hnsw}} if hnsw else {"name": name}
    ref = Ref(server.client.request("POST", f"{DATABASE}/collections", body)["id"], name)
    if count:
        ids = [f"i{n}" for n in range(count)]
        body = {"ids": ids, "embeddings": [[n, 1, 2, 3] for n in range(count)], "documents": [f"text {i}" for i in ids]}
        server.client.request("POST", f"{ref.path}/add", body)
    return ref


def poison(server: ChromaServer, ref: Ref) -> None:
    """A write no Chroma can read again (API of 1.5.9): its document is a number."""
    with pytest.raises(ServerAnswered):
        server.client.request(
            "POST",
            f"{ref.path}/add",
            {"ids": ["poison"], "embeddings": [[9, 9, 9, 9]], "metadatas": [{"chroma:document": 5}]},
        )


def test_the_client_reads_and_writes_what_chroma_holds(server: ChromaServer) -> None:
    """Count, ids in order, vectors, query, and an upsert of vectors that leaves documents alone."""
    ref = create(server, "some", 2500)
    client = server.client
    assert client.count(ref) == 2500
    assert [i for page in client.ids(ref) for i in page] == [f"i{n}" for n in range(2500)]
    assert client.list_collections() == [ref]
    assert client.query(ref, np.array([21, 1, 2, 3], "<f4"), n=1) == ["i21"]  # now: updates may cut the way to a record
    client.upsert_vectors(ref, {f"i{n}": np.full(4, n / 7, "<f4") for n in range(1200)})
    assert client.get_vectors(ref, ["i7", "i2000"])["i7"].tolist() == [1, 1, 1, 1]
    got = client.request("POST", f"{ref.path}/get", {"ids": ["i7"]})
    assert got["documents"] == ["text i7"]
    client.delete(ref, ["i7"])
    assert client.count(ref) == 2499


def test_a_write_of_nothing_changes_no_record(server: ChromaServer) -> None:
    """The probe's write goes through the log and the compactor and leaves records and schema as they were."""
    ref = create(server, "some", 3)
    before = server.client.request("GET", f"{DATABASE}/collections/some")
    server.client.write_nothing(ref)
    assert server.client.count(ref) == 3
    assert server.client.request("GET", f"{DATABASE}/collections/some") == before


def test_a_dead_compactor_is_seen_behind_a_live_heartbeat(server: ChromaServer) -> None:
    """A poisoned write kills all writes while heartbeat and warm reads answer; the panic and a probe tell."""
    healthy, hit = create(server, "healthy", 3), create(server, "hit", 3)
    assert probe(server.client, [healthy], timeout=60, suspicious=True).state == ALIVE
    assert not server.panicked.is_set()
    poison(server, hit)
    server.client.heartbeat()
    assert server.panicked.wait(60)
    assert probe(server.client, [healthy], timeout=60).state == ALIVE  # a warm read does not need the compactor
    assert probe(server.client, [healthy], timeout=60, suspicious=True).state == DEAD_INSIDE
    server.stop()
    with ChromaServer(server.directory, env=ENV) as again:
        found = probe(again.client, [healthy, hit], timeout=60)
        assert (found.state, found.collections) == (DEAD_INSIDE, ("hit",))  # the first read names it


def test_one_broken_collection_is_not_a_dead_server(tmp_path: Path) -> None:
    """A truncated pickle makes one collection unreadable; the others, and the compactor, live."""
    with ChromaServer(tmp_path / "data", env=ENV) as server:
        whole, hit = create(server, "whole", 30), create(server, "hit", 30, sync_threshold=10)
    pickle = next((tmp_path / "data").glob("*/index_metadata.pickle"))
    os.truncate(pickle, 20)
    with ChromaServer(tmp_path / "data", env=ENV) as server:
        found = probe(server.client, [hit, whole], timeout=60, suspicious=True)
        assert (found.state, found.collections) == (BROKEN, ("hit",))
        assert "pickle" in found.message


def test_a_hang_and_an_end_are_told_apart(server: ChromaServer) -> None:
    """A stopped process times out: hung. A killed one refuses: unreachable."""
    os.kill(server.pid, signal.SIGSTOP)
    assert probe(server.client, [], timeout=0.5).state == HUNG
    with pytest.raises(ServerSilent) as caught:
        server.client.heartbeat(timeout=0.5)
    assert caught.value.timed_out
    os.kill(server.pid, signal.SIGCONT)
    server.kill()
    assert (probe(server.client, [], timeout=0.5).state, server.returncode) == (UNREACHABLE, -signal.SIGKILL)


def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the process that started it leaves no writer behind, not even one whose starting thread is gone."""
    code = f"""
import os, threading, time
from pathlib import Path
from chromakeep.chroma.server import ChromaServer
server = ChromaServer(Path({str(tmp_path / "data")!r}), env=dict(os.environ))
thread = threading.Thread(target=server.start); thread.start(); thread.join()
server.client.heartbeat()
time.sleep(0.3); server.client.heartbeat()  # the thread that called start has ended, the server has not
print(server.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**ENV, "PYTHONPATH": str(SRC)}
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert start_time(pid) is not None
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while start_time(pid) is not None:
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.02)


def test_lines_are_passed_on_and_the_exit_is_noticed(tmp_path: Path) -> None:
    """What the server writes arrives as it comes, and a watcher that fails does not take the server with it."""
    lines: list[str] = []

    def watch(line: str) -> None:
        lines.append(line)
        raise RuntimeError("a watcher's fault")

    with ChromaServer(tmp_path / "data", env=ENV, on_line=watch) as server:
        server.client.heartbeat()
        os.kill(server.pid, signal.SIGTERM)
        assert server.exited.wait(60)
        assert server.returncode == 0
    assert any("Saving data to" in line for line in lines)


def test_a_taken_port_is_refused_before_anything_starts(server: ChromaServer, tmp_path: Path) -> None:
    """Another server's heartbeat is never taken for ours."""
    other = ChromaServer(tmp_path / "other", env=ENV, options=server.options)
    with pytest.raises(ServerFailed, match="in use"):
        other.start()
    assert not (tmp_path / "other").exists()


def test_a_server_that_cannot_start_tells_its_last_words(tmp_path: Path) -> None:
    """The directory is a file: chroma ends, and what it said is in the error."""
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(ServerFailed, match="ended while starting"):
        ChromaServer(tmp_path / "data", env=ENV).start()


def test_an_unknown_host_is_one_clear_line() -> None:
    with pytest.raises(ServerFailed, match="cannot listen on"):
        port_is_free("no such host", 8000)


def test_writers_names_processes_that_write(server: ChromaServer) -> None:
    """A server has its database open for writing; a reader of the same file is none."""
    create(server, "some", 3)
    code = f"f = open({str(server.directory / 'chroma.sqlite3')!r}, 'rb'); print(1, flush=True); input()"
    reader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout and reader.stdout.readline()
    assert [w.pid for w in writers(server.directory)] == [server.pid]
    reader.kill()
    reader.wait()
    server.stop()
    assert writers(server.directory) == []


@pytest.mark.parametrize(
    ("arguments", "host", "port"),
    [
        ([], "localhost", 8000),
        (["--host", "0.0.0.0", "--port", "9000"], "0.0.0.0", 9000),
        (["--port=9000"], "localhost", 9000),
    ],
)
def test_options_are_those_of_chroma_run(arguments: list[str], host: str, port: int) -> None:
    assert parse_options(arguments, {}) == ServerOptions(host, port)


@pytest.mark.parametrize(
    "arguments",
    [["--path", "x"], ["--path=x"], ["--port", "x"], ["--port", "0"], ["--port"], ["--what"], ["a", "b"], ["a"]],
)
def test_options_that_are_not_ours_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_options(arguments, {})


def test_a_configuration_file_serves_the_directory_that_is_kept(tmp_path: Path) -> None:
    """Its persist_path is overridden, its other settings hold, its address is read and can be overridden."""
    config = tmp_path / "chroma.yaml"
    address = f"port: {free_port()}\nlisten_address: '127.0.0.1'  # here\n"
    config.write_text(f"{address}persist_path: ./elsewhere\nallow_reset: true\n")
    options = parse_options([str(config)], {})
    assert options.host == "127.0.0.1"
    assert parse_options([str(config), "--port", "9001"], {}).port == 9001
    assert parse_options([str(config)], {"CHROMA_PORT": "9002"}).port == 9002
    with ChromaServer(tmp_path / "data", env=ENV, options=options) as server:
        create(server, "some", 3)
        assert server.client.request("POST", "/reset", {}) is True
    assert (tmp_path / "data" / "chroma.sqlite3").exists()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("line", ["sqlite_filename: x", "sqlitedb:\n  url: x", "segment_manager:\n  persist_path: x"])
def test_a_configuration_that_moves_the_data_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "chroma.yaml").write_text(line + "\n")
    with pytest.raises(UsageError, match="outside"):
        parse_options([str(tmp_path / "chroma.yaml")], {})


def test_a_native_program_is_executed_itself(tmp_path: Path) -> None:
    """The Rust binary of the Docker image has no interpreter of its own; it runs with our tie to the parent."""
    program = tmp_path / "chroma"
    program.write_text('#!/bin/sh\necho native "$@"\n')
    program.chmod(0o755)
    argv, _ = command_line(find_chroma(str(program), {}), tmp_path / "d", ServerOptions())
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"native run --path {tmp_path / 'd'} --host localhost --port 8000\n"
    argv[argv.index(str(os.getpid()))] = "1"
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 143  # its parent is gone already


def test_a_missing_program_is_one_clear_line() -> None:
    with pytest.raises(ServerFailed, match="not a program"):
        find_chroma("/nowhere/chroma", {})
