"""Elsewhere: where the instance that takes the writes is reached, as it says in its lease; and what we say in ours."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from chromakeep.errors import UsageError
from chromakeep.repository.lease import Holder

_LONGEST = 300  # characters
_URL = re.compile(
    r"(https?)://([A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?/?", re.ASCII
)


class Forwarding(msgspec.Struct, frozen=True):
    """``url`` is where others reach the door of this instance. ``authority`` (PEM) has signed their certificates; None:
    one that the system trusts has."""

    url: str
    authority: Path | None = None


class Elsewhere(msgspec.Struct, frozen=True):
    """A door, and the reign in which it takes the writes. ``secure``: it speaks TLS."""

    epoch: int
    host: str
    port: int
    secure: bool
    authority: bytes  # what it is called in ``host``

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority.decode()}"


def door_at(url: str, epoch: int = 0) -> Elsewhere:
    """The door at ``http[s]://host[:port]``. Raises ``UsageError`` for anything else or more."""
    found = _URL.fullmatch(url) if len(url) <= _LONGEST else None
    if not found or not 0 < int(found[3] or 1) < 1 << 16:
        raise UsageError(
            f"{url.rpartition('@')[2][:80]!r}: not the URL of an instance",
            hint="write http://host:8000 or https://host, without a path, a name or a password",
        )
    secure = found[1] == "https"
    authority = found[2] + (f":{found[3]}" if found[3] else "")
    return Elsewhere(epoch, found[2].strip("[]"), int(found[3] or (443 if secure else 80)), secure, authority.encode())


def door_of(holder: Holder | None) -> Elsewhere | None:
    """Where a holder says that it is reached; None where it does not say so, or says what is no URL."""
    if holder is None or holder.address is None:
        return None
    try:
        return door_at(holder.address, holder.epoch)
    except UsageError:
        return None
