"""Text as PostgreSQL can hold it: Chroma's may have U+0000, which neither ``text`` nor ``jsonb`` takes.

U+0000 is held as U+10FFFE, a code point that Unicode keeps for a program's own use and no text should have. So that
nothing is lost where one has it: U+10FFFE is held as U+10FFFF U+10FFFE, U+10FFFF as U+10FFFF twice. ``held`` of two
texts is equal where they are. A part of a text is held as a part of what it is held as, but for a lone U+0000 or
U+10FFFE within U+10FFFF U+10FFFE, of which the search for text in documents knows nothing.
"""

from __future__ import annotations

import re

_NUL, _MARK = "\U0010fffe", "\U0010ffff"
MARKS = b"\xf4\x8f\xbf"  # with which both begin in UTF-8: bytes without it are held as they are
_SPECIAL = re.compile("[\x00\U0010fffe\U0010ffff]")
_HELD = re.compile("\U0010ffff([\U0010fffe\U0010ffff])|\U0010fffe")


def held(text: str) -> str:
    """As it is held."""
    if text.isascii() and "\x00" not in text:
        return text
    return _SPECIAL.sub(lambda found: _NUL if found[0] == "\x00" else _MARK + found[0], text)


def told(text: str) -> str:
    """As it was before ``held``."""
    if text.isascii() or (_NUL not in text and _MARK not in text):
        return text
    return _HELD.sub(lambda found: found[1] or "\x00", text)
