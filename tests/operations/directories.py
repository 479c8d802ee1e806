"""Real Chroma directories for the tests, written and read by chromadb in processes of their own."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from chromakeep.chroma.layout import file_layouts

SCRIPT = Path(__file__).with_name("chroma_process.py")


def write_generations(folder: Path) -> list[Path]:
    """Three directories at rest, each some changes after the one before."""
    subprocess.run([sys.executable, str(SCRIPT), "write", str(folder)], check=True, timeout=120)
    return [folder / "g0", folder / "g1", folder / "g2"]


def as_chroma_tells(*directories: Path, scratch: Path) -> list[Any]:
    """What chromadb, in a fresh process, finds in copies of directories: collection -> id -> record, or an error."""
    copies = []
    for number, directory in enumerate(directories):
        copies.append(scratch / f"copy{number}")
        shutil.copytree(directory, copies[-1])
    out = scratch / "answers"
    subprocess.run([sys.executable, str(SCRIPT), "read", str(out), *map(str, copies)], check=True, timeout=120)
    answers = pickle.loads(out.read_bytes())
    for copy in copies:
        shutil.rmtree(copy)
    return [answers[str(copy)] for copy in copies]


def content(directory: Path) -> dict[str, bytes]:
    """The bytes of the files that a capture takes: the database and the segments it names."""
    return {name: (directory / name).read_bytes() for name in file_layouts(directory)}


def everything(directory: Path) -> dict[str, bytes]:
    """The bytes of all files below a directory; the empty dictionary for one that is not there."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
