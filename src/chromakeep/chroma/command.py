"""The `chroma run` command line: which program it is, and what may follow ``--``.

A Python installation's ``chroma`` script imports the whole client before it hands over to the Rust server; that import
is most of a cold start. ``launch.py`` beside this file calls the same Rust entry point under the script's own
interpreter (``chromadb_rust_bindings.cli``, which is all that ``chromadb/cli/cli.py`` does for ``run`` in 1.0 to 1.5),
and runs the script itself where that module is not to be had.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from chromakeep.errors import ServerFailed, UsageError

DATABASE = "chroma.sqlite3"
_SCALAR = re.compile(r"^(port|listen_address|sqlite_filename)\s*:\s*(.*?)\s*(?:#.*)?$")
_ELSEWHERE = re.compile(r"^\s+(url|persist_path)\s*:\s*\S")
_MAX_CONFIG = 1 << 20

_LAUNCH = Path(__file__).with_name("launch.py")


class ServerOptions(msgspec.Struct, frozen=True):
    """Where the server listens, and its configuration file if it has one. The data path is never among them."""

    host: str = "localhost"
    port: int = 8000
    config: Path | None = None

    @property
    def probe_host(self) -> str:
        """The address to reach it at from this machine."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)


def parse_options(arguments: Sequence[str], env: Mapping[str, str]) -> ServerOptions:
    """Read what follows ``--``: ``--host H``, ``--port P``, or one configuration file (YAML).

    With a file, ``chroma run`` takes its settings from it and from ``CHROMA_*``; its ``persist_path`` is then
    overridden with the directory that is kept, and ``--host`` and ``--port`` override its address. Raises
    ``UsageError`` for ``--path`` and for files that put the data anywhere else.
    """
    values: dict[str, str] = {}
    config: Path | None = None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--path":
            raise UsageError("--path is not an option of the server here", hint="name the directory with --data")
        if name in ("--host", "--port"):
            if not equals and not rest:
                raise UsageError(f"{name} needs a value")
            values[name] = value if equals else rest.pop(0)
        elif word.startswith("-") or config is not None:
            raise UsageError(f"unknown server option {word!r}", hint="after -- come --host, --port or one config file")
        else:
            config = Path(word)
    settings = _read_config(config, env) if config else {"host": "localhost", "port": "8000"}
    host, port = values.get("--host", settings["host"]), values.get("--port", settings["port"])
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{port!r} is not a port", hint="a port is a number from 1 to 65535")
    return ServerOptions(host=host, port=int(port), config=config)


def _read_config(path: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Address in a configuration file (top-level scalars only, defaults of chroma 1.5.9 ``config.rs``)."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read(_MAX_CONFIG).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the server's configuration {path}: {error}") from None
    found = {m[1]: m[2].strip("\"'") for line in lines if (m := _SCALAR.match(line))}
    found |= {k: env[v] for k in ("port", "listen_address", "sqlite_filename") if (v := f"CHROMA_{k.upper()}") in env}
    if found.get("sqlite_filename", DATABASE) != DATABASE or any(_ELSEWHERE.match(line) for line in lines):
        raise UsageError(
            f"{path} puts Chroma's data outside the directory that is kept",
            hint="remove sqlite_filename, sqlitedb.url and segment_manager.persist_path from it",
        )
    return {"host": found.get("listen_address", "0.0.0.0"), "port": found.get("port", "8000")}


def find_chroma(explicit: str | None, env: Mapping[str, str]) -> str:
    """Path of the ``chroma`` program: the one given, the one on PATH, or the one beside this interpreter."""
    beside = str(Path(sys.executable).parent)
    places = [explicit] if explicit else [shutil.which("chroma", path=env.get("PATH", os.defpath)), f"{beside}/chroma"]
    for place in places:
        if place and (found := shutil.which(place)):
            return found
    raise ServerFailed(
        f"{explicit} is not a program" if explicit else "the `chroma` program is not installed",
        hint="pip install chromadb, or name it with --chroma PATH",
    )


def interpreter(program: str) -> str | None:
    """The Python a console script runs under, or None for a native program."""
    with Path(program).open("rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    first = head.partition("\n")[0].split()
    if not first or not first[0].startswith("#!") or "chromadb" not in head:
        return None
    python = first[-1] if first[0] == "#!/usr/bin/env" else first[0][2:]
    return shutil.which(python) if "python" in python else None


def command_line(program: str, directory: Path, options: ServerOptions) -> tuple[list[str], dict[str, str]]:
    """The argv that starts the server on ``directory``, and the variables to add to its environment."""
    if options.config:
        arguments = ["run", str(options.config)]
        extra = {
            "CHROMA_PERSIST_PATH": str(directory),
            "CHROMA_LISTEN_ADDRESS": options.host,
            "CHROMA_PORT": str(options.port),
        }
    else:
        arguments = ["run", "--path", str(directory), "--host", options.host, "--port", str(options.port)]
        extra = {}
    # A native program needs nothing of an interpreter's surroundings: -I -S start ours in a few milliseconds.
    python = interpreter(program)
    launch = [python, str(_LAUNCH)] if python else [sys.executable, "-I", "-S", str(_LAUNCH)]
    return [*launch, str(os.getpid()), program, *arguments], extra
