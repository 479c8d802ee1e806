"""The command line: options -> one operation -> output; events -> progress; error -> exit status."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

BLAS = "OPENBLAS_NUM_THREADS"  # one thread: numpy would start more at its import (40 ms), and nothing here uses them
added: list[str] = []  # variables that ``main`` added to the environment: not for other programs


def main() -> None:
    """Run ``chromakeep`` with the process's arguments and exit with its status (docs/reference.md lists them)."""
    _occupy()
    if sys.argv[1:] == ["--version"]:  # answered before anything heavier is imported
        from chromakeep import __version__
        from chromakeep.cli import output

        output.write(f"chromakeep {__version__}")
        return
    if BLAS not in os.environ:
        os.environ[BLAS] = "1"
        added.append(BLAS)
    gc.set_threshold(50_000)  # imports and tables of records make objects, not garbage (but see ``operations.memory``)
    from chromakeep.cli.app import invoke

    status = invoke(sys.argv[1:])
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError):  # whoever wrote something has flushed it and has been told
            stream.flush()
    os._exit(status)  # taking the interpreter apart takes 15 ms; and what `run` cut off goes on in threads


def _occupy() -> None:
    """A standard stream that was closed takes nothing: else a file, as a database, would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            at = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: that of the stream
            os.set_inheritable(at, True)
            setattr(sys, name, open(at, mode))  # noqa: PTH123, SIM115 - as long as we live
