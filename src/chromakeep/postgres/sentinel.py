"""Sentinel: it asks a PostgreSQL to end when this process is gone, however it went.

It is a shell that waits for the end of a pipe, whose other end only we hold. (Linux' parent-death signal would come at
the end of the *thread* that started the child, and nothing like it is anywhere else.)
"""

from __future__ import annotations

import subprocess
from pathlib import Path

# After our death: only if the file still names the process, as its number may be another's by then.
_SCRIPT = """
read _
[ "$(head -n 1 "$2/postmaster.pid" 2>/dev/null)" = "$1" ] && kill -INT "$1"
"""


class Sentinel:
    """For the process ``number``, which runs on ``data``."""

    def __init__(self, number: int, data: Path) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "sh", str(number), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """It has nothing left to wait for."""
        self._shell.kill()
        self._shell.wait()
        if self._shell.stdin is not None:
            self._shell.stdin.close()
