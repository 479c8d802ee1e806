"""Every module can be imported, by every Python that is promised: what only some commands import, too."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import chromakeep

PROGRAMS = ("__main__",)
MODULES = sorted(m.name for m in pkgutil.walk_packages(chromakeep.__path__, "chromakeep.", onerror=lambda name: None))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith(PROGRAMS)])
def test_a_module_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__name__ == name
