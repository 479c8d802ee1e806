"""Entrance: whether a server is open, and the keys of the moment for one that is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from chromakeep.access.keys import Key, Keyring
from chromakeep.errors import ChromakeepError, RepositoryNotFound
from chromakeep.events import Noted, Observer
from chromakeep.operations.key_places import KeyPlace
from chromakeep.operations.keyring import reload
from chromakeep.operations.openness import loopback, refuse_open

if TYPE_CHECKING:
    from chromakeep.operations.issuer import Issuer, OidcSettings

EVERY = 5.0  # seconds between two looks: so long a key that was revoked elsewhere still opens
PATIENCE = 3.0  # seconds that a start waits for the first look: a bucket may be away
_SHUT = "nobody is let in; where no keys are used --open says so"


class Entrance:
    """Reads the keys where ``open_place`` finds them, and again every few seconds. ``start``, then ``stop``.

    What was read stays while it cannot be read again. ``accepted``: it was said that the server is to be open;
    ``oidc``: tokens of that issuer are keys too.
    """

    def __init__(
        self,
        open_place: Callable[[], KeyPlace],
        host: str,
        env: Mapping[str, str],
        *,
        accepted: bool,
        oidc: OidcSettings | None = None,
        observer: Observer,
    ) -> None:
        self._issuer = _issuer(oidc, observer) if oidc else None
        self._open_place, self._host, self._env, self._accepted = open_place, host, env, accepted
        self._observer = observer
        self._place: KeyPlace | None = None
        self._mark: str | None = None
        self._failure = ""
        self._over, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keys", daemon=True)
        # None: they could not be read yet, and nobody comes in, unless it was said that nobody needs one.
        self.ring = Keyring() if accepted and not oidc else None

    @property
    def closed(self) -> bool:
        """Whether nobody comes in without a key although there may be none: others than this machine reach it."""
        return self._issuer is not None or not (self._accepted or loopback(self._host))

    @property
    def local(self) -> bool:
        """Whether only programs of this machine are to come in while there is no key."""
        return not self._accepted and loopback(self._host)

    def shut(self) -> str | None:
        """Why nobody is let in for now, whatever he shows; None: that is not so."""
        if self.ring is None:
            return "the keys cannot be read yet"
        if self._issuer and not self.ring.keys and not self._issuer.known:
            return "the issuer's keys cannot be read yet"
        return None

    @property
    def foreign(self) -> Callable[[str, float], Key | None] | None:
        """What a token of the issuer's gives the right to at a time; None where there is no issuer."""
        return self._issuer.key if self._issuer else None

    def start(self) -> None:
        """Raises ``RefusedToServe`` where the server would be open and nobody said so."""
        self._thread.start()
        if self._issuer:
            self._issuer.start()
        self._looked.wait(PATIENCE)
        unknown = self.ring is None
        # Of keys that cannot be read nobody knows whether there are any: closed, then.
        keys = unknown or self._issuer is not None or bool(self.ring and self.ring.keys)
        refuse_open(self._host, self._env, keys=keys, accepted=self._accepted)
        if not keys and loopback(self._host):
            self._observer(Noted("no key was found: who is on this machine can read and delete everything"))
        elif not keys:
            self._observer(Noted(f"open: anybody who reaches {self._host} can read and delete everything", "warning"))

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._issuer:
            self._issuer.stop()

    def _watch(self) -> None:
        while not self._over.is_set():
            self._look()
            self._looked.set()
            self._over.wait(EVERY)

    def _look(self) -> None:
        try:
            self._place = self._place or self._open_place()
            found = reload(self._place, self._mark)
            if found:
                self.ring, self._mark = found
            self._failure = ""
        except RepositoryNotFound:  # and with it no key: it will be made
            self.ring = self.ring or Keyring()
        except Exception as error:  # whatever it is: were this thread gone, a revoked key would open for ever
            said = error.message if isinstance(error, ChromakeepError) else f"{type(error).__name__}: {error}"
            if said != self._failure:
                open_meanwhile = "it is open meanwhile, as it was told to be" if self.ring else _SHUT
                kept = "those read before stay" if self._mark is not None else open_meanwhile
                self._observer(Noted(f"the keys cannot be read: {said}; {kept}", "warning"))
            self._failure = said


def _issuer(settings: OidcSettings, observer: Observer) -> Issuer:
    from chromakeep.operations.issuer import Issuer  # few have one

    return Issuer(settings, observer)
