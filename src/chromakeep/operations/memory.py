"""Memory of a process that lives for months: what was used once is not kept."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from functools import cache

_TRIM, _MMAP, _ARENAS = -1, -3, -8  # parameters of glibc's mallopt
# What is this large, as the buffer of a TLS connection or a block of a snapshot, lies apart and goes back when it is
# freed. glibc by itself moves this bound up with every such block that is freed, to 32 MiB; then they lie among small
# things that stay, in the pools of many threads, which was half of what `run` had after some minutes. One read of a
# socket is just below.
_APART = 256 << 10
_SPARE = 2 << 20  # bytes at the end of a pool that are kept, for the next ones
_POOLS = 2  # Python's lock lets hardly more threads allocate at a time


def steady(env: Mapping[str, str] | None = None) -> bool:
    """Have this process keep little of what it frees. Before it starts threads; whether the C library could be told.

    An operator's own choice (``MALLOC_...``, ``GLIBC_TUNABLES``) stays.
    """
    gc.set_threshold(700, 10, 10)  # Python's own, which the command line has raised for commands that end soon
    env = os.environ if env is None else env
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in env):
        return False
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    return all([mallopt(_MMAP, _APART), mallopt(_TRIM, _SPARE), mallopt(_ARENAS, _POOLS)])


def give_back() -> None:
    """Give pages in which nothing lies any more to the system, after work that needed much: a small thing that lies
    behind them would keep them. Some milliseconds, without Python's lock. Does nothing where the C library cannot."""
    if trim := _function("malloc_trim"):
        trim(0)


@cache
def _function(name: str) -> Callable[..., int] | None:
    """Of the C library, if it has it."""
    import ctypes

    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # another C library; Windows
        return None
    return found
