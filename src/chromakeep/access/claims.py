"""Claims: what an identity provider says of somebody, as a key with its rights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec

from chromakeep.access.keys import ROLES, Key, timestamp

PREFIX = "chromakeep_"
NOBODY = "0" * 64  # the digest of a key that no token of ours opens
_ODD = re.compile(r"[^A-Za-z0-9._@-]+")


class _Limits(msgspec.Struct):
    """As in ``Key``."""

    rate: float | None
    concurrency: int | None
    body: int | None
    time: float | None


def key_of(claims: Mapping[str, Any], prefix: str = PREFIX) -> Key | None:
    """The key of verified claims: ``<prefix>role``, and ``<prefix>tenant``, ``database``, ``collections`` (patterns, as
    a list or with commas between), ``rate``, ``concurrency``, ``body`` and ``time`` (numbers, or text of one), each of
    which may be missing. None where they give no role, or make no sense.

    Its name is ``oidc.`` and the subject, in the letters that a key's name has; its id is the subject's own.
    """
    role, subject, ends = claims.get(f"{prefix}role"), claims.get("sub"), claims.get("exp")
    patterns = claims.get(f"{prefix}collections") or ()
    if isinstance(patterns, str):
        patterns = [one.strip() for one in patterns.split(",")]
    if role not in ROLES or not isinstance(subject, str) or not subject or not isinstance(patterns, list | tuple):
        return None
    tenant, database = claims.get(f"{prefix}tenant"), claims.get(f"{prefix}database")
    if not all(one is None or isinstance(one, str) for one in (tenant, database)):
        return None
    if not all(isinstance(one, str) for one in patterns) or not isinstance(ends, int | float):
        return None
    try:
        return Key(
            sha256(f"{claims.get('iss')} {subject}".encode()).hexdigest()[:16],
            ("oidc." + _ODD.sub("-", subject))[:64],
            role,
            NOBODY,
            timestamp(0),
            tenant,
            database,
            tuple(patterns),
            expires=timestamp(float(ends)),
            **_limits(claims, prefix),
        )
    except (ValueError, UnicodeError):
        return None


def _limits(claims: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Raises ``ValueError`` for what is no number: nobody is let in without the limit that was meant for him."""
    found = {name: claims.get(f"{prefix}{name}") for name in _Limits.__struct_fields__}
    return msgspec.structs.asdict(msgspec.convert(found, _Limits, strict=False))
