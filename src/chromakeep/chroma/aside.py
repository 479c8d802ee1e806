"""An inspection beside other work: in a forked process, which has an interpreter lock of its own, or in a thread.

Reading every record for its digest is Python's work; in a thread, it and whoever compresses or writes take turns.
"""

from __future__ import annotations

import gc
import os
import signal
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
from chromakeep.chroma.inspection import Inspection, inspect

ALL = 3  # stages


def aside(path: Path, *, quick_check: bool = True) -> Aside:
    """An inspection of ``path`` that begins with the first ``go``.

    It forks only where no other thread of Python's could hold a lock that nobody would release in the child. Threads
    of libraries (BLAS, an object store) do not matter to a child that calls none of them.
    """
    alone = sys.platform.startswith("linux") and threading.active_count() == 1
    return Forked(path, quick_check=quick_check) if alone else Threaded(path, quick_check=quick_check)


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

    def __init__(self, path: Path, *, quick_check: bool) -> None:
        self._gone = threading.Semaphore(0)
        self._closed = False
        self._pool = ThreadPoolExecutor(1, "inspect")

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


class _Answer(msgspec.Struct, frozen=True):
    """What comes back from the process: one of the two."""

    found: Inspection | None = None
    error: errors.Flat | None = None


class Forked(Aside):
    """In a process that shares this one's memory until either writes to it, and never returns into its code."""

    def __init__(self, path: Path, *, quick_check: bool) -> None:
        asked, self._ask = os.pipe()
        self._answer, answered = os.pipe()
        self._path = path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see ``aside``
            self._pid: int | None = os.fork()
        if not self._pid:
            self._child(asked, answered, quick_check)
        os.close(asked)
        os.close(answered)

    def _child(self, asked: int, answered: int, quick_check: bool) -> NoReturn:
        status = 1
        try:
            for number in (signal.SIGINT, signal.SIGTERM):  # the parent's handlers would unwind the parent's work
                signal.signal(number, signal.SIG_DFL)
            gc.freeze()
            gc.disable()  # it makes no cycles, and ends with its answer
            os.close(self._ask)  # or the end of the parent would not be seen

            def wait() -> None:
                if not os.read(asked, 1):
                    os._exit(1)

            wait()
            try:
                answer = _Answer(inspect(self._path, quick_check=quick_check, index_files=wait))
            except errors.ChromakeepError as error:
                answer = _Answer(error=errors.flat(error))
            view = memoryview(msgspec.msgpack.encode(answer))
            while view:
                view = view[os.write(answered, view) :]
            status = 0
        finally:
            os._exit(status)

    def go(self, stages: int = 1) -> None:
        with suppress(BrokenPipeError):  # ``result`` tells
            os.write(self._ask, b"g" * stages)

    def result(self) -> Inspection:
        data = b""
        while piece := os.read(self._answer, 1 << 16):
            data += piece
        self._reap()
        if not data:
            raise errors.SourceError(f"{self._path}: the process that inspects it died", hint="memory may have run out")
        answer = msgspec.msgpack.decode(data, type=_Answer)
        if answer.error:
            raise errors.revived(*answer.error)
        assert answer.found
        return answer.found

    def _reap(self) -> None:
        if self._pid:
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = None

    def close(self) -> None:
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._reap()
        os.close(self._ask)
        os.close(self._answer)
