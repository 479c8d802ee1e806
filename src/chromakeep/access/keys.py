"""Keys: what a client shows to be let in, what is kept of one, and how one is found."""

from __future__ import annotations

import hmac
import math
import re
import secrets
import time as clock
from collections.abc import Iterable
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any, Literal

import msgspec

from chromakeep.errors import UsageError

Role = Literal["reader", "writer", "admin"]
ROLES: tuple[Role, ...] = ("reader", "writer", "admin")
MOST_KEYS = 10_000
MOST_PATTERNS = 64
LONGEST = 512  # characters of a tenant's or database's name, or of a pattern
MOST_BYTES = 16 << 20  # of a keyring as JSON
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TOKEN = 63  # characters of a token
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", re.ASCII)
_NOBODY = "0" * 64  # the digest that is compared with for an id that nobody has


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is kept of a key: all but its secret. Times are RFC 3339, UTC, ending in ``Z``.

    ``tenant`` and ``database`` of None are any; ``collections`` are ``fnmatch`` patterns, empty: all. ``rate`` is in
    requests a second, ``concurrency`` in requests at a time, ``body`` in bytes, ``time`` in seconds that a request may
    take; None: no limit of this key's own. ``revoked`` is the time from which it opens nothing, which may be to come.
    What is left out has no bytes, so that who knows no such limit reads the keys without it.
    Raises ``ValueError`` for a value out of bounds (msgspec's ``ValidationError`` when decoded).
    """

    id: str  # 16 hex digits, random
    name: str
    role: Role
    digest: str  # 64 hex digits
    created: str
    tenant: str | None = None
    database: str | None = None
    collections: tuple[str, ...] = ()
    expires: str | None = None
    rate: float | None = None
    concurrency: int | None = None
    body: int | None = None
    revoked: str | None = None
    time: float | None = None

    def __post_init__(self) -> None:
        _must(_ID.fullmatch(self.id), "its id is not 16 hex digits")
        _must(_NAME.fullmatch(self.name), f"not a key's name: {self.name[:80]!r}")
        _must(self.role in ROLES, f"not a role: {self.role[:80]!r}")
        _must(_DIGEST.fullmatch(self.digest), "its digest is not 64 hex digits")
        for moment in (self.created, self.expires, self.revoked):
            _must(moment is None or math.isfinite(seconds(moment)), "a time is out of bounds")
        for text in (self.tenant, self.database, *self.collections):
            _must(text is None or (0 < len(text) <= LONGEST and text.isprintable()), f"not a name: {text!r:.80}")
        _must(len(self.collections) <= MOST_PATTERNS, f"more than {MOST_PATTERNS} patterns of collections")
        _must(not (self.collections and self.role == "admin"), "an admin has all collections")
        _must(self.rate is None or 0 < self.rate <= 1e6, "a rate is more than 0 and at most 1,000,000")
        _must(self.concurrency is None or 0 < self.concurrency <= 10**6, "a concurrency is from 1 to 1,000,000")
        _must(self.body is None or 0 < self.body <= 1 << 50, "a body is from 1 byte to 1 PiB")
        _must(self.time is None or 0.001 <= self.time <= 1e6, "a time is from 1 ms to 1,000,000 s")

    @property
    def ends(self) -> float:
        """When it stops to open anything, in seconds since 1970; infinity for one that never does."""
        return min((seconds(t) for t in (self.expires, self.revoked) if t is not None), default=math.inf)

    def __repr__(self) -> str:
        return f"Key({self.id}, {self.name!r}, {self.role})"  # never the digest: a repr ends up in a log

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("id", self.id), ("name", self.name), ("role", self.role)]


def mint(
    name: str,
    role: Role,
    *,
    tenant: str | None = None,
    database: str | None = None,
    collections: tuple[str, ...] = (),
    expires: str | None = None,
    rate: float | None = None,
    concurrency: int | None = None,
    body: int | None = None,
    time: float | None = None,
    now: float | None = None,
) -> tuple[Key, str]:
    """A new key, and its token ``ck_<id>_<secret>``, which is nowhere else. Raises ``UsageError`` for bad values."""
    identity, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    try:
        key = Key(
            identity,
            name,
            role,
            _digest(secret),
            timestamp(clock.time() if now is None else now),
            tenant,
            database,
            collections,
            expires,
            rate,
            concurrency,
            body,
            time=time,
        )
    except ValueError as error:
        raise UsageError(str(error), hint=_hint(name)) from None
    return key, f"ck_{identity}_{secret}"


class Keyring:
    """Keys, to be found by what a client shows. Always the same ones; safe to share among threads.

    Raises ``ValueError`` for two keys of one id, or more than ``MOST_KEYS``.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.keys = tuple(sorted(keys, key=lambda k: (k.created, k.id)))  # oldest first
        self._by_id = {key.id: (key, key.digest, key.ends) for key in self.keys}
        self._shown: dict[str, tuple[Key, float]] = {}  # tokens that were right, one of a key; and when each ends
        if len(self._by_id) != len(self.keys):
            raise ValueError("two keys have one id")
        if len(self.keys) > MOST_KEYS:
            raise ValueError(f"more than {MOST_KEYS:,} keys")

    def find(self, token: str, now: float) -> Key | None:
        """The key of this token; None for one that is unknown, expired or revoked at ``now`` (seconds since 1970).

        Takes the same time whether the id is known or not, and however much of a wrong secret is right. One that was
        right before is found sooner, among tokens by their hash, which tells nothing of those that are nearly right.
        """
        if again := self._shown.get(token):
            return again[0] if now < again[1] else None
        form = len(token) == _TOKEN and token.isascii() and token.startswith("ck_") and token[19] == "_"
        identity, secret = (token[3:19], token[20:]) if form else ("", "")
        key, digest, ends = self._by_id.get(identity, (None, _NOBODY, 0.0))
        same = hmac.compare_digest(_digest(secret), digest)
        if not same or key is None or now >= ends:
            return None
        self._shown[token] = key, ends
        return key

    def remembers(self, token: str) -> bool:
        """Whether this very token was right before; it may have ended since."""
        return token in self._shown

    def go_on_from(self, before: Keyring) -> None:
        """Remember the tokens that one remembered, of keys that are here too."""
        for token, (key, _) in before._shown.items():
            mine, digest, ends = self._by_id.get(key.id, (None, "", 0.0))
            if mine is not None and digest == key.digest:
                self._shown[token] = mine, ends

    def named(self, name: str, now: float) -> tuple[Key, ...]:
        """The keys of that name in force at ``now``, oldest first. One, but while a rotation's overlap lasts."""
        return tuple(key for key in self.keys if key.name == name and now < key.ends)

    def holders(self, name: str, now: float) -> tuple[Key, ...]:
        """Of those, the ones that nobody has taken back yet: they hold the name. At most one, unless two were made at
        the very same time."""
        return tuple(key for key in self.named(name, now) if key.revoked is None)

    def encode(self) -> bytes:
        """As JSON. Raises ``ValueError`` above ``MOST_BYTES``."""
        data = msgspec.json.format(msgspec.json.encode(_Stored(1, self.keys)), indent=1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB of keys")
        return data

    @staticmethod
    def decode(data: bytes) -> Keyring:
        """What ``encode`` made. Raises ``ValueError`` for anything else."""
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB of keys")
        try:
            stored = _STORED.decode(data)
        except RecursionError:  # of what is nested deeper than anything of ours
            raise ValueError("is not a list of keys") from None
        if stored.format != 1:
            raise ValueError(f"its format is {stored.format}, this chromakeep reads 1")
        return Keyring(stored.keys)


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    keys: tuple[Key, ...]


_STORED = msgspec.json.Decoder(_Stored)


def timestamp(moment: float) -> str:
    """Seconds since 1970 as RFC 3339, UTC, to the millisecond. Raises ``ValueError`` outside of the years 1 to 9999."""
    try:
        return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        raise ValueError("a time is out of bounds") from None


def seconds(text: str) -> float:
    """What ``timestamp`` made, as seconds since 1970. Raises ``ValueError``."""
    if not _TIME.fullmatch(text):
        raise ValueError(f"not a time in UTC: {text[:80]!r}")
    return datetime.fromisoformat(text[:-1] + "+00:00").timestamp()


def _digest(secret: str) -> str:
    # A fast hash is right: the secret is 256 random bits, which no number of guesses finds. Slow ones protect
    # passwords that people make up, and would cost every request milliseconds.
    return sha256(secret.encode()).hexdigest()


def _must(holds: object, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _hint(name: str) -> str | None:
    if not _NAME.fullmatch(name):
        return "1 to 64 letters, digits, dots, dashes, underscores and @, the first a letter or digit"
    return None
