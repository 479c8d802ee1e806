"""Words: how a count is said to a person."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """``1 record``, ``2,000 records``."""
    return f"{count:,} {noun if count == 1 else noun + 's'}"
