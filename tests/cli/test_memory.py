"""What a service gives back of its memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# How many blocks lie apart after one of 20 MB was freed, which moves glibc's bound, and one of 300 kB was taken.
PROGRAM = """
import ctypes, gc, sys
gc.set_threshold(50_000)
from chromakeep.cli.memory import steady
told = steady() if sys.argv[1] == "steady" else None
libc = ctypes.CDLL(None)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
libc.free(libc.malloc(20_000_000))
before = libc.mallinfo2().hblks
libc.malloc(300_000)
print(told, libc.mallinfo2().hblks - before, gc.get_threshold()[0])
"""


def _said(how: str, **more: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env={**env, **more}, capture_output=True, text=True, check=False
    )
    if "mallinfo2" in done.stderr:
        pytest.skip("not glibc, or one before 2.33")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_large_blocks_go_back_when_they_are_freed() -> None:
    """Also after a larger one was: they are not taken from the pools of small ones."""
    assert _said("not") == "None 0 50000"
    assert _said("steady") == "True 1 700"


def test_an_operators_choice_stays() -> None:
    assert _said("steady", MALLOC_MMAP_THRESHOLD_="100000000") == "False 0 700"
