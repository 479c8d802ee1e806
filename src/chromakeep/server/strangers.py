"""Strangers: pages of the web that reach a door without keys through a browser on its machine.

A browser sends what any page tells it to ``localhost``, and a name of the page's owner may be made to point there (DNS
rebinding), after which the page reads the answers too. It cannot lie about the names: ``host`` is what the page called
the door, ``origin`` where the page is from, and comes with every request that is no plain GET.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from chromakeep.operations.openness import loopback
from chromakeep.server.cors import Cors
from chromakeep.server.gate import Refusal

_NOBODYS = (".localhost", ".internal")  # the domain name system gives such names to nobody


class Strangers:
    """``cors`` says which pages are none; ``names`` are hosts by which others are told to call this door."""

    def __init__(self, cors: Cors | None = None, names: Iterable[str] = ()) -> None:
        self._cors, self._names = cors, frozenset(name.lower() for name in names)

    def refusal(self, fields: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
        """Why the request with these fields (names in lower case) is not let in. Programs send no origin."""
        host = origin = None
        for name, value in fields:
            if name == b"host":
                host = value
                if not self._ours(_name(value)):
                    return _refusal(f"{value.decode('latin-1')!r} is no name of this machine")
            elif name == b"origin":
                origin = value
        if origin is None or (self._cors and self._cors.lets_in(origin)):
            return None
        scheme, found, authority = origin.lower().partition(b"://")
        if found and scheme not in (b"http", b"https"):  # a program with a browser in it, or an extension
            return None
        if found and (authority == (host or b"").lower() or loopback(_name(authority))):
            return None
        return _refusal(f"a page of {origin[:200].decode('latin-1')!r} may not ask")

    def _ours(self, name: str) -> bool:
        """Whether nobody else can have this name: an address, or one that only this network knows."""
        name = name.rstrip(".")
        if "." not in name or name in self._names or name.endswith(_NOBODYS):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(authority: bytes) -> str:
    """The host of ``host:port``, without the brackets of an IPv6 address."""
    text = authority.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _refusal(what: str) -> Refusal:
    return Refusal(403, "AuthError", f"{what}: without keys this door is for this machine only; make a key, or --open")
