"""A server as a child process: started, waited for, and never left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

INSTALLED = Path(os.environ.get("CHROMAKEEP_TEST_SERVERS", Path(__file__).parents[2] / ".servers"))
"""Where tools/servers.sh put them."""


@contextmanager
def refused() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody answers, and nobody else can meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    """Whether an HTTP server is there and answers anything but a server error."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


class Process:
    """One server process; its output goes to ``log``. It dies with us, even if we are killed."""

    def __init__(self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        if not Path(argv[0]).exists():
            raise FileNotFoundError(f"{argv[0]} is not installed: run tools/servers.sh (make test does)")
        self.log = log
        tether = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [*tether, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when ``ready()``; raise with the end of the log when the process ends or the time is over."""
        end = time.monotonic() + seconds
        while not ready():
            if self._child.poll() is not None or time.monotonic() > end:
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.log.stem} did not start (see {self.log}):\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the process and what it started."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
