"""The servers as fixtures: one of each for the whole session. A server that cannot start fails the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers.azure import AzureServer, start_azurite
from servers.s3 import S3Server, start_moto, start_swift


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto: S3's protocol in memory, no signatures checked."""
    server = start_moto(tmp_path_factory.mktemp("moto"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """OpenStack Swift: S3's protocol, persistent, signatures checked."""
    server = start_swift(tmp_path_factory.mktemp("swift"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """Azurite: Azure's protocol, persistent, key checked."""
    server = start_azurite(tmp_path_factory.mktemp("azurite"))
    yield server
    server.stop()
