"""What the README shows is run: its session, command by command, and its lines of Python."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKE = """
import chromadb
client = chromadb.PersistentClient("chroma")
for name in ("books", "laws"):
    collection = client.create_collection(name, embedding_function=None)
    collection.add(ids=["a", "b"], embeddings=[[1, 0, 0], [0, 1, 0]], documents=["one", "two"])
"""


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a small Chroma directory called ``chroma``."""
    subprocess.run([sys.executable, "-c", MAKE], cwd=tmp_path, check=True, timeout=120)
    return tmp_path


def test_the_session_and_the_lines_of_python_run(place: Path) -> None:
    """Each command of the session succeeds and begins its answer with the words shown; then the Python runs on it."""
    session = next(b for b in blocks("console") if "chromakeep init" in b)
    shown = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(shown) >= 6
    for command, answer in shown:
        words = shlex.split(command)
        if words[0] == "chromakeep":
            words = [sys.executable, "-m", "chromakeep", *words[1:]]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.split()[:1] == answer.split()[:1], f"{command}: {done.stdout}"
    (program,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "name='books'" in done.stdout


def test_files_it_names_exist() -> None:
    """Every test and page that carries a claim is there."""
    named = set(re.findall(r"`(tests/[\w/.]+)`", README)) | set(re.findall(r"\]\((docs/[\w/.]+)\)", README))
    assert len(named) >= 10
    assert not [n for n in named if not (ROOT / n).exists()]
