"""Numbers: metadata as the JSON of which jsonb gives back every value, an integer as an integer, a float as a float.

jsonb keeps a number as decimal digits with a scale and compares by value. So a float is written with a point and
without an exponent (``1e300`` as its 301 digits and ``.0``), from 2**53 on with all digits of its exact value: then a
float and an integer are equal in PostgreSQL where they are in Python. -0.0 becomes 0.0, as in Chroma.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from chromakeep.engine import Refused
from chromakeep.postgres.text import MARKS, held

_encode = msgspec.json.encode
_SPECIAL = re.compile(rb"\d[eE]|\d{19}|\\u0000|null|\[\]|" + MARKS)
_HELD = re.compile("\U0010ffff([\U0010fffe\U0010ffff])|\U0010fffe")
_INTEGERS = range(-(2**63), 2**63)
_EXACT = 2.0**53


def encoded(metadata: Mapping[str, Any] | None, *, patch: bool = False) -> bytes | None:
    """The JSON of metadata, None where nothing is left of it. A value None, or an empty list, takes its key away: with
    ``patch`` it is written as null (for ``jsonb_strip_nulls(old || new)``), else not at all. Raises ``Refused``."""
    if not metadata:
        return None
    try:
        text = _encode(metadata)
        if _SPECIAL.search(text) is None:
            return text
    except (OverflowError, msgspec.MsgspecError):  # an integer beyond 64 bits
        pass
    parts = [
        _encode(held(key)) + b":" + (b"null" if value is None or value == [] else value_json(value))
        for key, value in metadata.items()
        if patch or (value is not None and value != [])
    ]
    return b"{" + b",".join(parts) + b"}" if parts else None


def value_json(value: Any) -> bytes:
    """The JSON of one value of metadata."""
    if isinstance(value, str):
        return _encode(held(value))
    if isinstance(value, (bool, int, float)):
        return number(value).encode()
    if isinstance(value, list):
        return b"[" + b",".join(map(value_json, value)) + b"]"
    if isinstance(value, Mapping):
        return b"{" + b",".join(_encode(held(k)) + b":" + value_json(v) for k, v in value.items()) + b"}"
    raise Refused(400, f"Invalid metadata: a value of type {type(value).__name__}")


def number(value: bool | int | float) -> str:
    """A number in digits; ``true`` or ``false`` of a bool. An integer beyond 64 bits is a float, as in Chroma."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if value in _INTEGERS:
            return str(value)
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if not math.isfinite(value):
        raise Refused(400, "Invalid metadata: a number is not finite")
    if abs(value) >= _EXACT:
        return f"{int(value)}.0"
    digits = format(Decimal(repr(value + 0.0)), "f")
    return digits if "." in digits else f"{digits}.0"


def shown(text: bytes) -> bytes:
    """Metadata as jsonb wrote it, as Chroma shows it: without the keys that begin with ``chroma:``."""
    if MARKS in text:
        plain = _HELD.sub(lambda found: found[1] or "\\u0000", text.decode())
        text = plain.encode()
    if b'"chroma:' in text:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        kept = [_encode(key) + b": " + bytes(value) for key, value in members.items() if not key.startswith("chroma:")]
        text = b"{" + b", ".join(kept) + b"}"
    return text
