"""An inspection beside other work, in a process that has an interpreter lock of its own: forked, or started anew.

Reading every record for its digest is Python's work; in a thread, it and whoever compresses, writes or answers requests
take turns. A thread it is only where this program is not Python's own, so that there is nothing to start.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import msgspec

from chromakeep import errors
from chromakeep.chroma import spool
from chromakeep.chroma.inspection import Inspection, inspect

ALL = 3  # stages


def aside(path: Path, *, quick_check: bool = True, scratch: Path | None = None) -> Aside:
    """An inspection of ``path`` that begins with the first ``go``. Files without a name lie in ``scratch``, if given.

    It forks only where no other thread of Python's could hold a lock that nobody would release in the child. Threads
    of libraries (BLAS, an object store) do not matter to a child that calls none of them.
    """
    if sys.platform.startswith("linux") and threading.active_count() == 1:
        return Forked(path, scratch, quick_check=quick_check)
    if Path(sys.executable or "").name.startswith("python"):  # not, say, that of a web server which embeds it
        return Spawned(path, scratch, quick_check=quick_check)
    return Threaded(path, scratch, quick_check=quick_check)


class Aside:
    """``go()`` when the database is there, again when the files of the segments are there but data_level0.bin, and for
    the third time when these are too; then ``result()``.

    A context: leaving it without the result ends the inspection.
    """

    def go(self, stages: int = 1) -> None:
        """Let it read on; ``ALL`` where everything is there."""
        raise NotImplementedError

    def result(self) -> Inspection:
        """What ``inspect`` returned, or raised."""
        raise NotImplementedError

    def close(self) -> None:
        """End it, done or not."""
        raise NotImplementedError

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Threaded(Aside):
    """In a thread of this process."""

    def __init__(self, path: Path, scratch: Path | None = None, *, quick_check: bool) -> None:
        self._gone = threading.Semaphore(0)
        self._closed = False
        self._pool = ThreadPoolExecutor(1, "inspect")
        spool.instead = scratch  # the whole process's: a file without a name may lie anywhere

        def work() -> Inspection:
            self._wait()
            return inspect(path, quick_check=quick_check, index_files=self._wait)

        self._future = self._pool.submit(work)

    def _wait(self) -> None:
        self._gone.acquire()
        if self._closed:
            raise CancelledError

    def go(self, stages: int = 1) -> None:
        self._gone.release(stages)

    def result(self) -> Inspection:
        return self._future.result()

    def close(self) -> None:
        self._closed = True
        self._gone.release(ALL)
        self._pool.shutdown()
        spool.instead = None


class _Answer(msgspec.Struct, frozen=True):
    """What comes back from the process: one of the two."""

    found: Inspection | None = None
    error: errors.Flat | None = None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Answer)  # at import, as all: see ``repository.snapshots``


def _serve(path: Path, scratch: Path | None, asked: int, answered: int, *, quick_check: bool) -> None:
    """In the process: inspect as one is told to by bytes, and write the answer."""

    def wait() -> None:
        if not os.read(asked, 1):
            os._exit(1)

    wait()
    spool.instead = scratch
    try:
        answer = _Answer(inspect(path, quick_check=quick_check, index_files=wait))
    except errors.ChromakeepError as error:
        answer = _Answer(error=errors.flat(error))
    view = memoryview(_ENCODER.encode(answer))
    while view:
        view = view[os.write(answered, view) :]


class Apart(Aside):
    """In a process that is told to go on through one pipe, ``ask``, and answers through another."""

    path: Path
    pid: int | None
    _ask: int
    _answer: int

    def go(self, stages: int = 1) -> None:
        with suppress(OSError):  # it is gone: ``result`` tells
            os.write(self._ask, b"g" * stages)

    def result(self) -> Inspection:
        data = b""
        while piece := os.read(self._answer, 1 << 16):
            data += piece
        self._reap()
        if not data:
            raise errors.SourceError(f"{self.path}: the process that inspects it died", hint="memory may have run out")
        answer = _DECODER.decode(data)
        if answer.error:
            raise errors.revived(*answer.error)
        assert answer.found
        return answer.found

    def _reap(self) -> None:
        raise NotImplementedError


class Forked(Apart):
    """In a process that shares this one's memory until either writes to it, and never returns into its code."""

    def __init__(self, path: Path, scratch: Path | None = None, *, quick_check: bool) -> None:
        asked, self._ask = os.pipe()
        self._answer, answered = os.pipe()
        self.path = path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see ``aside``
            self.pid = os.fork()
        if not self.pid:
            self._child(scratch, asked, answered, quick_check)
        os.close(asked)
        os.close(answered)

    def _child(self, scratch: Path | None, asked: int, answered: int, quick_check: bool) -> NoReturn:
        status = 1
        try:
            for number in (signal.SIGINT, signal.SIGTERM):  # the parent's handlers would unwind the parent's work
                signal.signal(number, signal.SIG_DFL)
            gc.freeze()
            gc.disable()  # it makes no cycles, and ends with its answer
            os.close(self._ask)  # or the end of the parent would not be seen
            _serve(self.path, scratch, asked, answered, quick_check=quick_check)
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        if self.pid:
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = None

    def close(self) -> None:
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._reap()
        os.close(self._ask)
        os.close(self._answer)


class Spawned(Apart):
    """In an interpreter of its own, beside threads that may hold any lock: some 0.25 s more than ``Forked``."""

    def __init__(self, path: Path, scratch: Path | None = None, *, quick_check: bool) -> None:
        self.path = path
        command = [sys.executable, "-m", __name__, str(path.absolute()), "quick check" if quick_check else ""]
        command += [str(scratch.absolute())] if scratch else []
        paths = os.pathsep.join(p for p in sys.path if p)  # this program may have found itself anywhere
        # What is ours in the environment may be a password, and who reads files of strangers needs none.
        env = {name: value for name, value in os.environ.items() if not name.startswith("CHROMAKEEP_")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**env, "PYTHONPATH": paths}
        )
        assert self._process.stdin and self._process.stdout
        self._ask, self._answer = self._process.stdin.fileno(), self._process.stdout.fileno()
        self.pid = self._process.pid

    def _reap(self) -> None:
        self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._reap()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe and pipe.close()


def main() -> None:
    """The process of ``Spawned``: ends with its parent, and not by a Ctrl-C that was meant for that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    scratch = Path(sys.argv[3]) if sys.argv[3:] else None
    _serve(Path(sys.argv[1]), scratch, 0, 1, quick_check=bool(sys.argv[2]))
    os._exit(0)  # taking the interpreter apart takes time


if __name__ == "__main__":
    main()
