"""Fixtures every test may ask for, and the order of files: what takes long is begun first, so that nothing is waited
for at the end where several files run at a time."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# How long examples take says something of the machine, not of us. Of one tree the examples are the same each time: what
# a new one shows should not stop somebody else's change. With SEEDS=new others are looked for, as by ``make stress``.
settings.register_profile(
    "ours",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("SEEDS") != "new",
)
settings.load_profile("ours")

pytest_plugins = ["servers.fixtures"]

LONG = ("run", "stress", "operations", "cli", "repository", "exchange")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of the longest directories first, each in its own order."""

    def place(item: pytest.Item) -> int:
        name = item.nodeid.split("/")[1]
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)
