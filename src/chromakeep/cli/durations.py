"""Duration: ``60s``, ``5m``, ``1h30m``, ``7d`` to seconds."""

from __future__ import annotations

import math
import re

from chromakeep.errors import UsageError

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
LONGEST = 100 * 365 * UNITS["d"]
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_BARE = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def seconds(text: str | int | float) -> float:
    """Read a duration; a bare number is seconds. ``UsageError`` for anything else, or for more than 100 years."""
    written = str(text).strip().lower() if not isinstance(text, bool) else "a truth value"
    if _BARE.fullmatch(written):
        value = float(written)
    elif _WHOLE.fullmatch(written):
        value = math.fsum(float(number) * UNITS[unit] for number, unit in _PART.findall(written))
    else:
        raise UsageError(f"not a duration: {text!r}", hint="write it like 500ms, 60s, 5m, 1h30m, 7d or 2w")
    if value > LONGEST:
        raise UsageError(f"too long a duration: {text!r}", hint="the longest is 100 years")
    return value
