"""What a service gives back of its memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

# How many blocks lie apart after one of 20 MB was freed, which moves glibc's bound, and one of 300 kB was taken.
PROGRAM = """
import ctypes, gc, sys
gc.set_threshold(50_000)
from chromakeep.operations.memory import steady
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


def _env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}


def _said(how: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env={**_env(), **more}, capture_output=True, text=True, check=False
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


def test_free_pages_go_back_though_something_lies_behind_them() -> None:
    """What a burst of small things has left, below one that stays."""
    program = """
import ctypes, sys
from pathlib import Path
from chromakeep.operations.memory import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4
taken = [libc.malloc(60_000) for _ in range(1000)]
for one in taken: libc.memset(one, 1, 60_000)
last = libc.malloc(60_000)
for one in taken: libc.free(one)
before = resident()
give_back()
print(before - resident())
"""
    if not Path("/proc/self/statm").exists() or "glibc" not in platform.libc_ver():
        pytest.skip("not glibc")
    done = subprocess.run([sys.executable, "-c", program], env=_env(), capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50_000  # kB of 60,000
