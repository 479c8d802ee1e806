"""Issuer: an OpenID Connect provider whose tokens are believed, and its public keys."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import msgspec

from chromakeep.access.claims import PREFIX, key_of
from chromakeep.access.keys import Key
from chromakeep.errors import NotNow, UsageError
from chromakeep.events import Noted, Observer
from chromakeep.operations.openness import loopback

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")  # no secrets
EVERY = 600.0  # seconds between two looks at its keys
AGAIN = 30.0  # seconds at least between two looks for a key that is not known
PATIENCE = 10.0
LARGEST = 1 << 20  # bytes of an answer
MOST_KEYS = 100
REMEMBERED = 10_000  # tokens that were verified
LEEWAY = 30.0  # seconds that clocks may differ
WELL_KNOWN = "/.well-known/openid-configuration"


class OidcSettings(msgspec.Struct, frozen=True):
    """``issuer`` as it stands in its tokens; ``audience`` that they must be for; ``prefix`` of the claims with rights.
    Raises ``UsageError`` for an issuer that is asked without TLS over a network."""

    issuer: str
    audience: str
    prefix: str = PREFIX

    def __post_init__(self) -> None:
        parts = urlsplit(self.issuer)
        local = parts.scheme == "http" and parts.hostname is not None and loopback(parts.hostname)
        if not ((parts.scheme == "https" or local) and parts.hostname and not parts.query and not parts.fragment):
            raise UsageError(
                f"--oidc-issuer {self.issuer}: not the URL of an issuer", hint="write https://issuer.example.com"
            )


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


class _Keys(msgspec.Struct):
    keys: list[dict[str, Any]]


class Issuer:
    """Its keys are read in a thread; ``key`` only looks. ``start``, then ``stop``.

    What was read stays while it cannot be read again. Raises ``UsageError`` where the library is missing.
    """

    def __init__(self, settings: OidcSettings, observer: Observer) -> None:
        try:
            import jwt
        except ImportError:
            raise UsageError("OpenID Connect needs a library", hint="pip install 'chromakeep[oidc]'") from None
        self._jwt: Any = jwt
        self._settings, self._observer = settings, observer
        self._keys: dict[str, Any] | None = None  # by ``kid``; None: they could not be read yet
        # token -> what it gives, until when, and by which keys of the issuer
        self._known: OrderedDict[str, tuple[Key, float, object]] = OrderedDict()
        self._wanted, self._over, self._looked = threading.Event(), threading.Event(), threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._watch, name="issuer", daemon=True)

    def start(self) -> None:
        """Read its keys; it may be away for now."""
        self._thread.start()
        self._looked.wait(PATIENCE)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._wanted.set()

    @property
    def known(self) -> bool:
        """Whether its keys were ever read."""
        return self._keys is not None

    def key(self, token: str, now: float) -> Key | None:
        """What a token gives the right to at ``now`` (seconds since 1970): None for one that is not this issuer's, not
        for us, expired or without a role. From one thread. Raises ``NotNow`` while that cannot be told."""
        keys = self._keys
        if (found := self._known.get(token)) is not None:
            if now < found[1] and found[2] is keys:  # they may be others each time they are read
                return found[0]
            del self._known[token]
        if keys is None:
            self._wanted.set()
            raise NotNow("the issuer's keys cannot be read yet")
        claims = self._verified(token, keys)
        key = key_of(claims, self._settings.prefix) if claims else None
        if key is None or now >= key.ends + LEEWAY:
            return None
        self._known[token] = (key, key.ends, keys)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return key

    def _verified(self, token: str, keys: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            head = self._jwt.get_unverified_header(token)
            public = keys.get(str(head.get("kid", "")))
            if public is None:
                self._wanted.set()
                return None
            claims: dict[str, Any] = self._jwt.decode(
                token,
                public.key,
                algorithms=[public.algorithm_name] if public.algorithm_name in ALGORITHMS else [],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return claims
        except (self._jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return None

    # -- its keys ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._over.is_set():
            self._wanted.clear()
            begun = time.monotonic()
            try:
                self._keys = self._read()
                self._failure = ""
            except Exception as error:  # whatever it is: were this thread gone, a withdrawn key would count for ever
                if str(error) != self._failure:
                    said = f"the keys of {self._settings.issuer} cannot be read: {error}"
                    self._observer(Noted(said, "warning"))
                self._failure = str(error)
            self._looked.set()
            self._over.wait(AGAIN)
            self._wanted.wait(max(0.0, EVERY - (time.monotonic() - begun)))

    def _read(self) -> dict[str, Any]:
        told = msgspec.json.decode(_get(self._settings.issuer.rstrip("/") + WELL_KNOWN), type=_Discovery)
        if told.issuer != self._settings.issuer:
            raise ValueError(f"it calls itself {told.issuer[:200]!r}")
        if urlsplit(told.jwks_uri).scheme != urlsplit(self._settings.issuer).scheme:
            raise ValueError("its keys lie at an address of another kind")
        found: dict[str, Any] = {}
        for one in msgspec.json.decode(_get(told.jwks_uri), type=_Keys).keys[:MOST_KEYS]:
            if one.get("use", "sig") != "sig" or one.get("kty") == "oct":
                continue
            try:
                key = self._jwt.PyJWK(one)
            except self._jwt.PyJWTError:
                continue  # of a kind that is not known here
            found[str(one.get("kid", ""))] = key
        return found


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            data: bytes = answer.read(LARGEST + 1)
    except URLError as error:
        raise OSError(f"{url}: {error.reason}") from None
    if len(data) > LARGEST:
        raise ValueError(f"{url}: more than {LARGEST} bytes")
    return data
