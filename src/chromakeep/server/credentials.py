"""Credentials: what a request says who it is, in the ways of Chroma's clients; and the lock against guessing."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict

from chromakeep.server.fields import Fields

CARRIERS = frozenset({b"authorization", b"x-chroma-token"})  # fields that are not passed on
_LONGEST = 8192
_FREE = 5  # wrong tokens before the first wait
_FIRST, _LAST = 1.0, 300.0  # seconds of waiting
_FORGET = 3600.0  # seconds without another one
_MOST = 10_000  # of those that are remembered


def token_of(fields: Fields | tuple[tuple[bytes, bytes], ...]) -> str | None:
    """The token of ``Authorization: Bearer`` or ``Basic`` (its password, or the name where that is empty), or of
    ``X-Chroma-Token`` (``Bearer`` before it or not). None without one; "" for what cannot be one, or for two."""
    found = [_plain(name, value) for name, value in fields if name in CARRIERS]
    if not found:
        return None
    return found[0] if len(set(found)) == 1 else ""


def _plain(name: bytes, value: bytes) -> str:
    if len(value) > _LONGEST:
        return ""
    word, _, rest = value.partition(b" ")
    kind, rest = word.lower(), rest.strip()
    if kind == b"basic" and name == b"authorization":
        try:
            user, _, password = base64.b64decode(rest, validate=True).partition(b":")
        except binascii.Error:
            return ""
        return _text(password or user)
    if kind == b"bearer":
        return _text(rest)
    return _text(value) if name == b"x-chroma-token" and not rest else ""


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace") if value.isascii() else ""


class Lock:
    """Who guesses has to wait, twice as long each time: an address, for the key that it guesses at.

    Others at that address (behind one proxy, say) go on with their own keys meanwhile, and so does whoever has another
    token of an issuer: such a one ends often, and is no guess.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()  # times, and when last

    @staticmethod
    def _who(peer: str, token: str) -> tuple[str, str]:
        if token.startswith("ck_"):
            return peer, token[:20]
        return peer, token[-20:] if token.count(".") == 2 else ""  # of its signature

    def wait(self, peer: str, token: str, now: float) -> float:
        """Seconds for which this is not even looked at; 0 for none."""
        found = self._wrong.get(self._who(peer, token))
        if found is None or found[0] < _FREE:
            return 0.0
        return max(0.0, found[1] + min(_LAST, _FIRST * 2.0 ** min(found[0] - _FREE, 20)) - now)

    def wrong(self, peer: str, token: str, now: float) -> None:
        """It was a wrong one."""
        who = self._who(peer, token)
        times, last = self._wrong.pop(who, (0, now))
        self._wrong[who] = (1 if now - last > _FORGET else times + 1, now)
        while len(self._wrong) > _MOST:
            self._wrong.popitem(last=False)
