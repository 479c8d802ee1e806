"""Doors: of a server that chromakeep serves, told from outside to refuse writes or to allow them again."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from typing import Any

import msgspec

from chromakeep.addresses import parse, split_selector
from chromakeep.chroma.tokens import Token
from chromakeep.chroma.wire import one_line
from chromakeep.errors import ChromakeepError, ServerAnswered, ServerSilent, UsageError
from chromakeep.exchange.open import is_exchange

ROUTE = "/_keep/writes"
TIMEOUT = 60.0  # seconds for one answer, for which writes under way are waited for
PATIENCE = 60.0  # seconds for which what passes is asked again
_PAUSE = 0.5
_LARGEST = 1 << 16


class Doors:
    """``token``: an admin's key, where the doors have any."""

    def __init__(
        self, token: Token | None = None, *, patience: float = PATIENCE, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._token, self._patience, self._sleep = token or Token(), patience, sleep

    def find(self, place: str) -> str | None:
        """The URL of the door, if the place is a server that has one. Raises ``UsageError`` if it has, and the token
        does not open it."""
        if is_exchange(place):
            return None
        address, selector = split_selector(place)
        found = parse(address)
        if selector is not None or found.kind != "http":
            return None
        try:
            status, told = self._ask(found.place, "GET", None)
        except ServerSilent:
            return None  # whoever reads it tells more
        if status in (401, 403) and told.get("error") == "AuthError":
            who = f"the key in {self._token.origin} may not" if self._token.value else "nobody without a key may"
            raise UsageError(
                f"{found.place} is served by chromakeep, but {who} stop writes there: {self._said(told)}",
                hint=f"set {self._token.settable} to a key of the role admin, or give --stop-writes",
            )
        return found.place if status == 200 and isinstance(told.get("allow"), bool) else None

    def put(self, url: str, *, allow: bool, reason: str = "") -> None:
        """Allow writes, or refuse them: then none is under way when this returns. Twice is once.

        Raises ``ServerSilent``, ``ServerAnswered``, ``UsageError``.
        """
        place = parse(url).place
        body, end = msgspec.json.encode({"allow": allow, "reason": reason}), time.monotonic() + self._patience
        while True:
            failure: ChromakeepError
            try:
                status, told = self._ask(place, "POST", body)
            except ServerSilent as error:
                failure = error
            else:
                if status == 200 and told.get("allow") is allow:
                    return
                hint = (
                    f"is it a door of `chromakeep run` or `serve`, and {self._token.settable} a key of the role admin?"
                )
                failure = ServerAnswered(status, f"{place}{ROUTE}: {self._said(told)}", hint=hint)
                if status not in (429, 502, 503, 504):
                    raise failure
            if time.monotonic() > end:
                raise failure
            self._sleep(_PAUSE)

    def _ask(self, place: str, method: str, body: bytes | None) -> tuple[int, dict[str, Any]]:
        scheme, _, host = place.partition("://")
        headers = self._token.headers() | ({"content-type": "application/json"} if body else {})
        connection: http.client.HTTPConnection
        try:
            if scheme == "https":
                connection = http.client.HTTPSConnection(host, timeout=TIMEOUT, context=ssl.create_default_context())
            else:
                connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
            try:
                connection.request(method, ROUTE, body, headers)
                answer = connection.getresponse()
                data = answer.read(_LARGEST)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            what = one_line(self._token.masked(str(error))) or type(error).__name__
            raise ServerSilent(f"{place} does not answer: {what}", timed_out=isinstance(error, TimeoutError)) from None
        try:
            told = msgspec.json.decode(data) if data else {}
        except msgspec.MsgspecError:
            told = {}
        return answer.status, told if isinstance(told, dict) else {}

    def _said(self, told: dict[str, Any]) -> str:
        return one_line(self._token.masked(str(told.get("message") or "it does not say why")))
