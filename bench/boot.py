"""From process start to the first query answered: plain ``chroma run``, ``chromakeep run``, and out of a bucket."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from chromakeep.chroma.ports import free_port

BIN = Path(sys.executable).parent
BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"


def _ask(port: int, method: str, path: str, body: object = None) -> object:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        data = json.dumps(body).encode() if body is not None else None
        connection.request(method, path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise OSError(f"{answer.status}: {found}")
        return found
    finally:
        connection.close()


def first_query(command: Sequence[str | Path], port: int, dimension: int, env: Mapping[str, str]) -> float:
    """Start a server, ask until a query of its first collection is answered, stop it; the seconds until then."""
    started = time.monotonic()
    log = subprocess.DEVNULL
    process = subprocess.Popen([str(c) for c in command], env={**os.environ, **env}, stdout=log, stderr=log)
    try:
        while True:
            try:
                found = _ask(port, "GET", BASE)
                assert isinstance(found, list) and found
                query = {
                    "query_embeddings": [[0.1] * dimension],
                    "n_results": 10,
                    "include": ["documents", "distances"],
                }
                answer = _ask(port, "POST", f"{BASE}/{found[0]['id']}/query", query)
                assert isinstance(answer, dict) and len(answer["ids"][0]) == 10
                return time.monotonic() - started
            except (OSError, http.client.HTTPException):
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with status {process.returncode}") from None
                if time.monotonic() - started > 120:
                    raise SystemExit(f"{command[0]}: no answer in 120 s") from None
                time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def plain(data: Path, dimension: int) -> float:
    """``chroma run`` by itself."""
    port = free_port()
    return first_query([BIN / "chroma", "run", "--path", data, "--port", str(port)], port, dimension, {})


def kept(data: Path, repository: str, dimension: int, env: Mapping[str, str] | None = None) -> float:
    """``chromakeep run`` on a directory, or out of its repository where the directory is empty."""
    port = free_port()
    command = [BIN / "chromakeep", "run", "--data", data, "--repository", repository, "--port", str(port)]
    return first_query(command, port, dimension, env or {})


def forget(data: Path) -> None:
    """The container's disk is gone: the directory, and what chromakeep keeps beside it."""
    shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(data.with_name(f".{data.name}.chromakeep"), ignore_errors=True)
