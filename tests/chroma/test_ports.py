"""Ports for servers of ours: nobody else is given them before the server listens."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from chromakeep.chroma.server import ChromaServer, free_port


def taken(port: int) -> bool:
    """Whether the system has it for nobody who does not name it as one that may be shared."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
            return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody could listen on a port that is held")
def test_a_port_is_nobody_elses_before_and_while_it_is_served(tmp_path: Path) -> None:
    """Chroma needs a second to listen, in which others open hundreds of sockets; nor between two lives of a server."""
    server = ChromaServer(tmp_path, env=dict(os.environ))
    port = server.options.port
    assert taken(port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with server:
        socket.create_connection(("127.0.0.1", port)).close()
        assert taken(port)
    kept = free_port()
    for _ in range(2):
        with socket.create_server(("127.0.0.1", kept)):
            socket.create_connection(("127.0.0.1", kept)).close()
        assert taken(kept)
