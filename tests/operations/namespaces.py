"""Calls in a child process: as another user, or on a small file system of its own in its own mount namespace."""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable
from pathlib import Path

_NEWNS, _NEWUSER, _PRIVATE = 0x20000, 0x10000000, 1 << 18 | 1 << 14  # unshare(2); MS_PRIVATE | MS_REC of mount(2)


def forked(act: Callable[[], None]) -> int:
    """The process that runs ``act`` and ends with 0, or prints a traceback and ends with 1."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def in_child(act: Callable[[], None]) -> None:
    """Run ``act`` in a child process; it must succeed."""
    assert os.waitpid(forked(act), 0)[1] == 0


def on_small_disk(place: Path, size: int, act: Callable[[], None]) -> None:
    """Mount a tmpfs of ``size`` bytes on the directory ``place`` and run ``act`` there, in a child process.

    Needs root or user namespaces; where it has neither it fails and says so, for a test that is skipped proves nothing.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        answer = ""
        try:
            _mount(place, size)
            act()
        except BaseException:
            answer = traceback.format_exc()
        os.write(writer, answer.encode()[-60_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    assert status == 0 and not answer, answer or f"the child ended with status {status}"


def _mount(place: Path, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEWNS if user == 0 else _NEWNS | _NEWUSER):
        raise PermissionError(f"this test needs root or user namespaces: unshare: {os.strerror(ctypes.get_errno())}")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    libc.mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None)
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(0), f"size={size}".encode()):
        raise PermissionError(f"this test needs to mount a tmpfs: {os.strerror(ctypes.get_errno())}")


def fill(place: Path) -> Path:
    """Write a file until nothing more goes in."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as out:
        for piece in (1 << 20, 4096, 1):
            try:
                while True:
                    out.write(bytes(piece))
            except OSError:
                continue
    return filler
