"""What applications use, unmodified, through the door: JavaScript's client, LangChain's store, LlamaIndex's.

tools/clients.sh installs them. Each script makes the whole round of its client and asserts what it gets.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.server import Door
from server.wires import Scripted
from servers.process import INSTALLED

HERE = Path(__file__).parent
PYTHON = INSTALLED / "pyclients" / "bin" / "python"
NODE = INSTALLED / "jsclient" / "node"
COMMANDS = {
    "javascript": ([NODE, HERE / "round.mjs"], [INSTALLED / "jsclient" / "x.js"], b"x-chroma-token", b"ck-javascript"),
    "langchain": ([PYTHON, HERE / "langchain_round.py"], [], b"authorization", b"Bearer ck-langchain"),
    "llamaindex": ([PYTHON, HERE / "llamaindex_round.py"], [], b"x-chroma-token", b"ck-llamaindex"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("clients") / "data", env=dict(os.environ)) as server:
        yield server


@pytest.mark.timeout(900)  # to import LangChain for the first time takes minutes on a machine with much to do
@pytest.mark.parametrize("client", COMMANDS)
def test_the_whole_round(server: ChromaServer, client: str) -> None:
    """And every write brought the key that the client was given."""
    program, more, field, value = COMMANDS[client]
    if not program[0].exists():
        pytest.fail("the clients are not installed: run tools/clients.sh (make test does)")
    gate = Scripted()
    door = Door("127.0.0.1", 0, ("127.0.0.1", server.options.port), gate=gate)
    door.start()
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    quiet = {
        "ANONYMIZED_TELEMETRY": "False",
        "HF_HUB_OFFLINE": "1",
        "TIKTOKEN_CACHE_DIR": "",
        "LANGSMITH_TRACING": "false",
    }
    ran = subprocess.run(
        [*program, "127.0.0.1", str(door.port), *more],
        env={**env, **quiet},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    door.stop(5)
    assert (ran.returncode, ran.stdout.splitlines()[-1:]) == (0, ["done"]), ran.stderr[-3000:]
    assert len(gate.acknowledged) >= 4
    assert {request.field(field) for request in gate.admitted} == {value}
