"""The house's one rule of direction: faces -> operations -> nouns -> core, and nouns do not know each other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "chromakeep"
CORE = {"errors", "events", "records", "addresses", "layout", "changes", "digests", "batches", "tallying"} | {
    "conditions",
    "sets",
    "engine",
    "filters",
    "waiting",
    "words",
    "__init__",
}
NOUNS = {"store", "repository", "chroma", "postgres", "exchange", "access"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(CORE, CORE),
    "store": CORE | {"store"},
    "repository": CORE | {"store", "repository"},
    "chroma": CORE | {"chroma"},
    "postgres": CORE | {"postgres"},
    "exchange": CORE | {"exchange"},
    "access": CORE | {"access"},
    "testing": CORE | {"store", "testing"},
    "operations": CORE | NOUNS | {"operations"},
    "server": CORE | {"access", "operations", "server"},
    "cli": CORE | NOUNS | {"operations", "server", "cli"},
    "__main__": {"cli"},
}


def imports_of(path: Path) -> set[str]:
    """The first part below ``chromakeep`` of everything a module imports, local imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "chromakeep" else [module]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("chromakeep.")}
    return {name for name in found if name != "__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A module imports only what the table in docs/architecture.md allows its place."""
    place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imports_of(path) <= MAY_IMPORT[place]


def test_every_place_is_in_the_table() -> None:
    """A new package or module at the top must say what it may know."""
    places = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix in ("", ".py")}
    assert places - {"__pycache__"} <= set(MAY_IMPORT)


def test_core_has_no_circle() -> None:
    """What one must know to understand a module of core is below it; ``CycleError`` says where it is not."""
    TopologicalSorter({name: imports_of(PACKAGE / f"{name}.py") for name in CORE}).prepare()


def test_core_does_no_io() -> None:
    """Core is plain values: no os, socket, subprocess or files."""
    forbidden = {"os", "io", "socket", "subprocess", "sqlite3", "tempfile", "shutil"}
    for name in CORE - {"__init__"}:
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            heads = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            heads += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {h.split(".")[0] for h in heads} & forbidden, name
