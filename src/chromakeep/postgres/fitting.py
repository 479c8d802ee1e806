"""Settings of a private PostgreSQL that fit the machine or container that it runs in."""

from __future__ import annotations

import os
from pathlib import Path

_MB = 1 << 20
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def settings(memory: int | None = None) -> dict[str, str]:
    """Names and values. ``memory``: bytes to count on; None: all there are."""
    memory, processors = memory or available(), os.cpu_count() or 1
    building = _bounded(memory // 8, 64 * _MB, 2048 * _MB)  # the graph of one index should have room in it
    return {
        "shared_buffers": _megabytes(_bounded(memory // 4, 128 * _MB, 16384 * _MB)),
        "effective_cache_size": _megabytes(max(memory // 2, 256 * _MB)),
        "maintenance_work_mem": _megabytes(building),
        "autovacuum_work_mem": "64MB",
        "work_mem": _megabytes(_bounded(memory // 256, 8 * _MB, 64 * _MB)),
        "max_parallel_maintenance_workers": str(max(1, processors // 2)),
        "max_worker_processes": str(processors + 8),
        "dynamic_shared_memory_type": "posix" if _shared() > building * 5 // 4 else "mmap",
        "max_connections": "100",
        "max_locks_per_transaction": "256",
        "jit": "off",  # it costs more than it gives where a query takes a millisecond
        "random_page_cost": "1.1",
        "effective_io_concurrency": "64",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "autovacuum_naptime": "15s",
        "log_timezone": "UTC",
        "timezone": "UTC",
        "log_checkpoints": "off",
    }


def available() -> int:
    """Bytes of memory of this machine, or fewer where a control group says so."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in _LIMITS:
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


def _shared() -> int:
    """Bytes free in /dev/shm: containers often have 64 MB, and an index that is built in parallel needs its memory
    there."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 1 << 62  # no such place: POSIX shared memory lies elsewhere
    return found.f_bavail * found.f_frsize


def _bounded(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _megabytes(value: int) -> str:
    return f"{value // _MB}MB"
