"""Ports for servers of ours: nobody else is given them before the server listens, nor between two of its lives."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from chromakeep.chroma.command import ServerOptions
from chromakeep.chroma.ports import HeldPort, free_port, port_is_free
from chromakeep.chroma.server import ChromaServer

ENV = dict(os.environ)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody could listen on a port that is held")


def refused_to_others(port: int) -> bool:
    """Whether nobody has it who binds without being told to share."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError as error:
            assert "in use" in str(error)
            return True
    return False


def test_a_held_port_is_given_to_nobody_but_a_server(tmp_path: Path) -> None:
    """Which needs a second to listen there, in which others open hundreds of sockets; in each of its lives."""
    held = HeldPort()
    options = ServerOptions(host="127.0.0.1", port=held.number)
    assert port_is_free("127.0.0.1", held.number)
    for _ in range(2):
        assert refused_to_others(held.number)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", held.number))
        with ChromaServer(tmp_path / "data", env=ENV, options=options) as server:
            assert server.client.heartbeat()
            assert not port_is_free("127.0.0.1", held.number)
    held.close()
    held.close()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the server may linger
        other.bind(("127.0.0.1", held.number))


def test_a_server_without_options_holds_its_port(tmp_path: Path) -> None:
    """From the moment in which it is chosen."""
    server = ChromaServer(tmp_path, env=ENV)
    assert refused_to_others(server.options.port)
    with server:
        assert refused_to_others(server.options.port)


def test_ports_are_not_given_twice() -> None:
    """What is asked for before a server of the first one listens is another one."""
    ports = [free_port() for _ in range(200)]
    for start in range(150):
        assert len({*ports[start : start + 50]}) == 50
