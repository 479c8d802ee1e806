"""What the suites of a server as source and as sink share: one server, and a database of its own for each test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from chromakeep.chroma.api import Api, tenant_path
from chromakeep.chroma.connection import Connection
from chromakeep.chroma.tokens import Token
from chromakeep.records import Definition

TENANT = "suite"


def cloud_key(value: str | None) -> Token:
    """A token as it is given to who asks Chroma Cloud."""
    return Token(("CHROMA_API_KEY",), value, "CHROMA_API_KEY") if value else Token(("CHROMA_API_KEY",))


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
