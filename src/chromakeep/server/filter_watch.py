"""What the filters of get, query and delete may hold.

Chroma 1.5.9 joins the conditions of ``$and`` and ``$or`` by calling itself for each: of 4500 of them (4000 passed) the
process dies of its stack. SQLite refuses more than 1000 in one list, so nothing that works is lost.
"""

from __future__ import annotations

from chromakeep.server.fields import Malformed
from chromakeep.server.pieces import Cutter

MOST_CONDITIONS = 2000  # objects in a body, of which each condition is at least one
_TOO_MANY = f"Invalid where clause: more than {MOST_CONDITIONS} conditions"


class FilterWatch:
    """A ``Watch``. Keeps nothing back."""

    __slots__ = ("_cutter", "_objects")
    records = None

    def __init__(self) -> None:
        self._cutter = Cutter()
        self._objects = 0

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        """All of it. Raises ``Malformed`` with 400."""
        pieces = self._cutter.cut(payload)
        if b"{" in payload:
            self._objects += b"".join(pieces[::2]).count(b"{")
            if self._objects > MOST_CONDITIONS:
                raise Malformed(_TOO_MANY)
        return payload
