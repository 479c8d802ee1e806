"""Query strings: the few parameters that Chroma reads there."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from chromakeep.engine import Refused

_LEVELS = ("index_and_wal", "index_only", "index_and_bounded_wal")
_FAILED = "Failed to deserialize query string: "
_NUMBER = re.compile(r"\+?[0-9]+", re.ASCII)


def page(query: str) -> tuple[int | None, int]:
    """Limit and offset. Raises ``Refused``."""
    found = _parameters(query, ("limit", "offset"))
    return _u32("limit", found.get("limit")), _u32("offset", found.get("offset")) or 0


def check_level(query: str) -> None:
    """Raises ``Refused`` for a level of reading that there is not; they are all the same here."""
    level = _parameters(query, ("read_level",)).get("read_level", _LEVELS[0])
    if level not in _LEVELS:
        names = ", ".join(f"`{name}`" for name in _LEVELS)
        raise Refused(400, f"{_FAILED}read_level: unknown variant `{level}`, expected one of {names}")


def _parameters(query: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=None):
        if name in known:
            if name in found:
                raise Refused(400, f"{_FAILED}duplicate field `{name}`")
            found[name] = value
    return found


def _u32(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text:
        raise Refused(400, f"{_FAILED}{name}: cannot parse integer from empty string")
    if not _NUMBER.fullmatch(text):
        raise Refused(400, f"{_FAILED}{name}: invalid digit found in string")
    if len(text.lstrip("+0")) > 10 or int(text) >= 2**32:
        raise Refused(400, f"{_FAILED}{name}: number too large to fit in target type")
    return int(text)
