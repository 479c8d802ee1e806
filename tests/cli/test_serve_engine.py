"""serve --engine: this process is the server, and its data is in PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import chromadb
import numpy as np
import pytest

from chromakeep.chroma.ports import free_port
from chromakeep.postgres.embedded import Embedded
from cli.test_serve import asked, until_ready
from server.test_metrics import checked, values

if TYPE_CHECKING:
    from cli.conftest import Cli


@contextlib.contextmanager
def serving(cli: Cli, *options: str | Path, **environ: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A port and the process that serves on it, with a private group so that it can be killed alone."""
    port = free_port()
    running = subprocess.Popen(
        cli.command("serve", *options, "--port", str(port)),
        cwd=cli.cwd,
        env=cli.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        until_ready(port, running)
        yield port, running
    finally:
        running.kill()
        running.wait()


def measured(port: int, token: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The numbers of its page, when there are some."""
    deadline = time.monotonic() + 60
    while True:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"x-chroma-token": token})
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=20) as answer:
            page = answer.read()
            if b"chromakeep_ready 1" in page:
                checked(page)
                return values(page)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_private_server_keeps_what_was_acknowledged_over_a_kill(cli: Cli, tmp_path: Path) -> None:
    """Killed in the middle of writes: every one that was answered is there at the next start."""
    place, answered = tmp_path / "place", []
    place.mkdir()
    token = cli("keys", "create", "app", "--role", "admin", "--data", place).stdout.strip()
    with serving(cli, "--engine", "postgresql", "--data", place) as (port, running):
        assert asked(port, "/api/v2/version") == 401
        client = chromadb.HttpClient("127.0.0.1", port, headers={"x-chroma-token": token})
        books = client.create_collection("books", embedding_function=None)
        enough = threading.Event()

        def write() -> None:
            try:
                for number in range(100_000):
                    books.add(ids=[str(number)], embeddings=[[float(number), 0.0]])
                    answered.append(str(number))
                    if number == 20:
                        enough.set()
            except Exception:  # of whatever kind its client has for a server that was killed
                return

        writer = threading.Thread(target=write)
        writer.start()
        assert enough.wait(60)
        running.kill()
        writer.join(60)
    with serving(cli, "--engine", "postgresql", "--data", place) as (port, running):
        client = chromadb.HttpClient("127.0.0.1", port, headers={"x-chroma-token": token})
        books = client.get_collection("books", embedding_function=None)
        assert set(answered) <= set(books.get(include=[])["ids"])
        assert books.query(query_embeddings=[[3.2, 0.0]], n_results=1)["ids"] == [["3"]]
        with pytest.raises(Exception, match="Reset is disabled"):
            client.reset()
        found = measured(port, token)  # the kill took PostgreSQL's statistics
        labels = (("collection", "books"), ("database", "default_database"), ("tenant", "default_tenant"))
        assert found["chromakeep_collection_records", labels] == books.count()
        assert found["chromakeep_collection_unindexed_records", labels] == 0
        assert found["chromakeep_server_restarts_total", ()] == 0
        assert found["chromakeep_ready", ()] == found["chromakeep_collections", ()] == 1
        assert not [name for name, _ in found if "snapshot" in name]
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert running.stdout and "stopped" in running.stdout.read()


def test_a_private_server_that_dies_is_started_again(cli: Cli, tmp_path: Path) -> None:
    with serving(cli, "--engine", "postgresql", "--data", tmp_path) as (port, running):
        client = chromadb.HttpClient("127.0.0.1", port)
        books = client.create_collection("books", embedding_function=None)
        books.add(ids=["a"], embeddings=[[1.0]])
        os.kill(int((tmp_path / "postgresql/data/postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert books.count() == 1
                break
            except Exception:  # as which its client tells the 503 of a PostgreSQL that is away
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert running.poll() is None


def test_two_instances_on_one_database(cli: Cli, tmp_path: Path) -> None:
    """The URL with its password is in the variable; what is shown of it has none."""
    server = Embedded(tmp_path / "postgresql", memory=1 << 30)
    server.start()
    try:
        password = (tmp_path / "postgresql" / "password").read_text().strip()
        shown = cli("config", "show", env={"CHROMAKEEP_ENGINE": server.url})
        assert "postgresql://postgres@" in shown.stdout
        assert password not in shown.stdout + shown.stderr
        halves = ("--engine-storage", "halfvec")
        with (
            serving(cli, "--open", "--allow-reset", *halves, CHROMAKEEP_ENGINE=server.url) as (one, _),
            serving(cli, "--open", CHROMAKEEP_ENGINE=server.url) as (two, _),
        ):
            first, second = chromadb.HttpClient("127.0.0.1", one), chromadb.HttpClient("127.0.0.1", two)
            first.create_collection("books", embedding_function=None).add(ids=["a"], embeddings=[[1.0]])
            assert second.get_collection("books", embedding_function=None).count() == 1
            for client, name, kept in ((first, "halves", np.float16(0.1)), (second, "wholes", np.float32(0.1))):
                made = client.create_collection(name, embedding_function=None)
                made.add(ids=["a"], embeddings=[[0.1]])
                assert np.float32(made.get(include=["embeddings"])["embeddings"][0][0]) == np.float32(kept)
            first.reset()
            assert second.count_collections() == 0
            assert asked(two, "/readyz") == 200
            server.stop()
            deadline = time.monotonic() + 60
            while asked(two, "/readyz") == 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert asked(two, "/api/v2/tenants/default_tenant") == 503
            server.start()
            deadline = time.monotonic() + 60
            while asked(two, "/readyz") != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert second.count_collections() == 0
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http://chroma:8000", "--engine", "postgresql"), "two servers"),
        ((), "what shall be served"),
        (("http://localhost:8000",), "the door itself"),
        (("http://127.0.0.1:8001", "--port", "8001", "--host", "0.0.0.0"), "the door itself"),
        (("--engine", "postgresql"), "where shall the data lie"),
        (("--engine", "mysql://db/chroma"), "the URL of a PostgreSQL"),
        (("--engine", "postgresql://app:geheim@db/chroma"), "credentials"),
        (("--engine", "postgresql://app@db/chroma?password=geheim"), "credentials"),
        (("--engine", "postgresql://app@db/chroma", "--engine-connections", "0"), "from 1 to 1000"),
    ],
)
def test_what_cannot_be_served(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    told = cli.fails(2, "serve", *arguments, "--open")
    assert said in told
    assert "geheim" not in told


def test_a_database_that_is_not_there(cli: Cli) -> None:
    told = cli.fails(18, "serve", "--engine", "postgresql://app@127.0.0.1:1/chroma", "--open")
    assert "is it running" in told
