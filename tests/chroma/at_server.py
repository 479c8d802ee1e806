"""What the suites of a server as source and as sink share: one server, and a database of its own for each test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from chromakeep.chroma.api import Api, tenant_path
from chromakeep.chroma.connection import Connection
from chromakeep.chroma.tokens import Token
from chromakeep.chroma.wire import Reply
from chromakeep.records import Definition
from servers.middle import Asked

TENANT = "suite"


def cloud_key(value: str | None) -> Token:
    """A token as it is given to who asks Chroma Cloud."""
    return Token(("CHROMA_API_KEY",), value, "CHROMA_API_KEY") if value else Token(("CHROMA_API_KEY",))


def impatient(connection: Connection, when: Callable[[Asked], bool]) -> None:
    """Of these requests no answer is waited for longer than 0.3 s. All others have the time that they have: what a busy
    machine takes for them is nobody's timeout."""
    exchange = connection._wire.exchange

    def hurried(
        method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, timeout: float, what: str
    ) -> Reply:
        timeout = 0.3 if when(Asked(method, path, headers, body or b"")) else timeout
        return exchange(method, path, body, headers, timeout=timeout, what=what)

    connection._wire.exchange = hurried  # type: ignore[method-assign]


class AtServer:
    """To be inherited before the suite. What a Chroma server cannot hold is left out."""

    url: str
    database: str

    databases = False
    bare = False
    unrounded = False
    carried = ("dimension", "metadata", "configuration")
    many = 600

    @pytest.fixture(autouse=True)
    def server(self, url: str, tmp_path: Path) -> None:
        self.url, self.database = url, hashlib.blake2b(str(tmp_path).encode(), digest_size=8).hexdigest()
        Api(Connection(url)).make(f"{tenant_path(TENANT)}/databases", self.database)

    def place(self, definition: Definition) -> tuple[str, str, str]:
        return TENANT, self.database, definition.name
