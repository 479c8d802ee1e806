"""A child process that never outlives us, whose lines are passed on as they come and whose end is noticed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

_MAX_LINE = 64 * 1024  # a longer line is passed on in pieces


class Child:
    """One process in a session of its own.

    One thread starts it, reads its output and reaps it. That is on purpose: Linux sends the parent-death signal when
    the *thread* that forked ends (prctl(2)), so the thread must live exactly as long as the child does.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        on_line: Callable[[str], None],
        inherit: Sequence[int] = (),
    ) -> None:
        self.last_lines: deque[str] = deque(maxlen=40)
        self.exited = threading.Event()
        self._on_line = on_line
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._live, args=(list(argv), dict(env), tuple(inherit)), daemon=True)

    def start(self) -> None:
        """Start it. Raises ``OSError`` when the program cannot be started."""
        self._thread.start()
        self._started.wait()
        if self._failure:
            raise self._failure

    def _live(self, argv: list[str], env: dict[str, str], inherit: tuple[int, ...]) -> None:
        try:
            self._process = process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=inherit,
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        assert process.stdout is not None
        with process.stdout as output:
            while raw := output.readline(_MAX_LINE):
                line = raw.decode("utf-8", "replace").rstrip()
                if line:
                    self.last_lines.append(line)
                try:
                    self._on_line(line)
                except Exception:  # a watcher's fault must not end this thread: the child would be killed with it
                    continue
        process.wait()
        self.exited.set()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.returncode if self._process and self.exited.is_set() else None

    def stop(self, timeout: float) -> int:
        """SIGTERM, then SIGKILL after ``timeout`` seconds, to all of its session. Returns the exit status."""
        self.signal(signal.SIGTERM)
        self.exited.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to all of its session, if it has not ended. Returns the exit status."""
        self.signal(signal.SIGKILL)
        self.exited.wait()
        assert self._process is not None
        return self._process.returncode

    def signal(self, number: int) -> None:
        """Send a signal to its process group; one that has ended is left alone."""
        if self._process is None or self.exited.is_set():
            return
        with contextlib.suppress(ProcessLookupError):  # it ended just now; the thread is about to say so
            os.killpg(self._process.pid, number)
