"""keyring: clients' keys are made, listed, rotated and revoked, and a server learns of it."""

from __future__ import annotations

import time as clock

import msgspec
from msgspec.structs import replace

from chromakeep.access.keys import MOST_KEYS, Key, Keyring, Role, mint, seconds, timestamp
from chromakeep.errors import RepositoryBusy, UsageError, VerificationFailed
from chromakeep.operations.key_places import DirectoryKeys, KeyPlace, RepositoryKeys

__all__ = ["DirectoryKeys", "KeyPlace", "RepositoryKeys", "create", "load", "reload", "revoke", "rotate", "shown"]
LONGEST_OVERLAP = 30 * 86400.0  # seconds
FORGOTTEN = 90 * 86400.0  # seconds for which a revoked key is still listed


class ShownKey(msgspec.Struct, frozen=True):
    """A key for people: without its digest. ``state``: ``valid``, ``replaced`` (by a rotation, and valid until
    ``revoked``), ``expired`` or ``revoked``."""

    id: str
    name: str
    role: Role
    state: str
    tenant: str | None
    database: str | None
    collections: tuple[str, ...]
    created: str
    expires: str | None
    revoked: str | None
    rate: float | None
    concurrency: int | None
    body: int | None
    time: float | None


def shown(key: Key, now: float) -> ShownKey:
    """What may be seen of a key at ``now``."""
    state = "valid" if key.revoked is None else "replaced"
    if now >= key.ends:
        state = "revoked" if key.revoked is not None and now >= seconds(key.revoked) else "expired"
    return ShownKey(state=state, **{f: getattr(key, f) for f in ShownKey.__struct_fields__ if f != "state"})


def load(place: KeyPlace) -> Keyring:
    """All keys, those that have ended among them. Raises ``UsageError`` where there is no such place,
    ``VerificationFailed``, ``StoreError``."""
    place.present()
    return place.read()


def reload(place: KeyPlace, since: str | None) -> tuple[Keyring, str] | None:
    """The keys and their mark, or None if nothing has changed since the mark ``since`` (None: tell them anyway).

    Costs a listing of the repository's keys, or a look at the file. Raises as ``load``, and ``VerificationFailed``
    where there are none any more, or none can be read: a disk may not be mounted, a restore may be exchanging the
    directory, and nobody opens a door by taking keys away.
    """
    mark = place.mark()  # before the keys: what is written between the two is then read again
    if mark == since:
        return None
    ring = place.read()
    if (since or mark) and not ring.keys:
        raise VerificationFailed("there are none where some were" if since else "none of those there can be read")
    return ring, mark


def create(
    place: KeyPlace,
    name: str,
    role: Role,
    *,
    tenant: str | None = None,
    database: str | None = None,
    collections: tuple[str, ...] = (),
    lifetime: float | None = None,
    rate: float | None = None,
    concurrency: int | None = None,
    body: int | None = None,
    time: float | None = None,
) -> tuple[Key, str]:
    """A new key that is valid for ``lifetime`` seconds, and its token, which cannot be had again.

    Raises ``UsageError`` for bad values, or where a valid key has that name; ``RepositoryBusy`` if one was being made
    or revoked at the same moment.
    """
    now = clock.time()
    if lifetime is not None and lifetime <= 0:
        raise UsageError("a key that ends at once opens nothing", hint="leave the limit out: it is then valid for ever")
    key, token = mint(
        name,
        role,
        tenant=tenant,
        database=database,
        collections=collections,
        expires=None if lifetime is None else _after(now, lifetime),
        rate=rate,
        concurrency=concurrency,
        body=body,
        time=time,
        now=now,
    )
    with place.changing(make=True):
        _add(place, key, (), now)
        _forget(place, now)
    return key, token


def revoke(place: KeyPlace, name: str) -> tuple[Key, ...]:
    """The keys of that name open nothing from now on, those that a rotation left valid included; which they were.

    A server knows when it looks next. Raises ``UsageError`` where there is none.
    """
    now = clock.time()
    with place.changing():
        ended: dict[str, Key] = {}
        # Until there is none: a rotation may put one meanwhile, and looks afterwards whether those before were revoked.
        while found := [k for k in place.read().named(name, now) if k.id not in ended]:
            for key in found:
                place.end(key, timestamp(now))
                ended[key.id] = replace(key, revoked=timestamp(now))
        if not ended:
            raise _unknown(name)
    return tuple(ended.values())


def rotate(place: KeyPlace, name: str, *, overlap: float = 0.0) -> tuple[Key, str, tuple[Key, ...]]:
    """A new secret for the same name, rights and length of life; its token; and the keys that it replaces.

    These stay valid for ``overlap`` seconds; without one, what earlier rotations left valid is among them. They end
    after the new key is there: whoever dies between leaves a name with two keys, which the next rotation or revocation
    ends. Raises as ``create``, and ``UsageError`` where no valid key has that name.
    """
    now = clock.time()
    if not 0 <= overlap <= LONGEST_OVERLAP:
        raise UsageError("an overlap is at most 30 days", hint="make a second key, and revoke the first one later")
    with place.changing():
        ring = place.read()
        old = ring.holders(name, now)
        if not old:
            raise _unknown(name)
        last = old[-1]
        lifetime = seconds(last.expires) - seconds(last.created) if last.expires else None
        fresh, token = mint(name, last.role, now=now)
        expires = None if lifetime is None else _after(now, lifetime)
        key = replace(last, id=fresh.id, digest=fresh.digest, created=fresh.created, expires=expires)
        _add(place, key, tuple(k.id for k in old), now)
        end, ending = timestamp(now + overlap), old if overlap else ring.named(name, now)
        for one in ending:
            place.end(one, end, rotated=overlap > 0)
        _forget(place, now)
    return key, token, tuple(replace(one, revoked=end) for one in ending)


def _add(place: KeyPlace, key: Key, instead: tuple[str, ...], now: float) -> None:
    ring = place.read()
    if len(ring.keys) >= MOST_KEYS:
        raise UsageError(f"there are {MOST_KEYS:,} keys, and no room for more", hint="revoke some")
    if _rivals(ring, key, instead, now):
        raise UsageError(
            f"there is a key {key.name!r} already",
            hint="choose another name; `chromakeep keys rotate` gives it a new secret",
        )
    place.put(key)
    ring = place.read()  # whoever was second sees the first, so at most one of two stays
    if _rivals(ring, key, instead, now) or not {*instead} <= {k.id for k in ring.holders(key.name, now)}:
        place.end(key, timestamp(now))
        raise RepositoryBusy(
            f"another key {key.name!r} was made or revoked at the same moment", hint="look, and run it again"
        )


def _rivals(ring: Keyring, key: Key, instead: tuple[str, ...], now: float) -> bool:
    return any(k.id not in (key.id, *instead) for k in ring.holders(key.name, now))


def _forget(place: KeyPlace, now: float) -> None:
    """Remove keys that were revoked long ago. Not expired ones: a clock that is wrong must not cost anybody a key."""
    for key in place.read().keys:
        if key.revoked is not None and seconds(key.revoked) + FORGOTTEN < now:
            place.forget(key)


def _after(now: float, lifetime: float) -> str:
    try:
        return timestamp(now + lifetime)
    except ValueError:
        raise UsageError(
            "a key cannot be valid for that long", hint="leave the limit out: it is then valid for ever"
        ) from None


def _unknown(name: str) -> UsageError:
    return UsageError(f"no valid key is called {name[:80]!r}", hint="list them: chromakeep keys list")
