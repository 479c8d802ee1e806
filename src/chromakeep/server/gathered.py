"""Gathered: a watch of bodies that are small, such as what describes a collection: looked at as a whole."""

from __future__ import annotations

import msgspec

from chromakeep.server.fields import Malformed

MOST_BYTES = 1 << 20


class Gathered:
    """A ``Watch`` that keeps a body back until it is there, and passes it on as it came."""

    records: int | None = None

    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        """Nothing, and with the last payload the body. Raises ``Malformed``: 413, 400 for what cannot be decoded, and
        what ``look`` raises."""
        self._body += payload
        if len(self._body) > MOST_BYTES:
            raise Malformed(f"the description of a collection has more than {MOST_BYTES} bytes", 413)
        if not last:
            return b""
        body, self._body = bytes(self._body), bytearray()
        try:
            self.look(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
            raise Malformed(f"Failed to parse the request body as JSON: {error}") from None
        return body

    def look(self, body: bytes) -> None:
        """Raise ``Malformed`` for one that must not pass."""
        raise NotImplementedError
