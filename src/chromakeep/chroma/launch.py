"""The program that becomes `chroma run`: ``python launch.py PARENT_PID CHROMA ARGUMENT...``.

It is run as a file, by the interpreter of the ``chroma`` script, where chromakeep need not be installed: it imports
nothing of chromakeep, and stays with what Python 3.8 knows.

On Linux it asks to be sent SIGTERM when chromakeep dies (PR_SET_PDEATHSIG survives the exec); the look at the parent
afterwards closes the gap between fork and request. SIGTERM and not SIGKILL: Chroma then finishes the write it is in,
and a killed write is what leaves a collection that can never be opened again.
"""

import os
import sys

PR_SET_PDEATHSIG, SIGTERM = 1, 15


def main() -> None:
    """Tie this process to its parent, then become the server."""
    parent, program, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(128 + SIGTERM)
    sys.path[:] = sys.path[1:]  # this file's own folder, whose modules are none of the server's
    with open(program, "rb") as file:  # noqa: PTH123
        script = file.read(4096)
    if not (script.startswith(b"#!") and b"chromadb" in script):
        os.execv(program, [program, *arguments])
    sys.argv[:] = [program, *arguments]
    try:
        from chromadb_rust_bindings import cli  # type: ignore[import-untyped]
    except ImportError:
        import runpy

        runpy.run_path(program, run_name="__main__")
    else:
        cli(["chroma", *arguments])


if __name__ == "__main__":
    main()
