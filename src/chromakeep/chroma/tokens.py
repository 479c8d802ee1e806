"""Tokens: what a server asks for, and the environment variable that one is from."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from chromakeep.errors import UsageError


class Token(msgspec.Struct, frozen=True):
    """The token for a server, or that there is none: then ``value`` and ``origin`` are empty.

    ``names``: the variables it can be in, the one that goes first at the front; ``origin``: the one that it is from. To
    print one shows no secret.
    """

    names: tuple[str, ...] = ("CHROMA_TOKEN",)
    value: str = ""
    origin: str = ""

    @classmethod
    def read(cls, env: Mapping[str, str], *names: str) -> Token:
        """The first of the variables that holds anything."""
        origin = next((name for name in names if env.get(name)), "")
        return cls(names, env.get(origin, ""), origin)

    @property
    def settable(self) -> str:
        """The variables that can be set to have another token: those that go before its own, and that."""
        return " or ".join(self.names[: self.names.index(self.origin) + 1] if self.origin else self.names)

    def headers(self) -> dict[str, str]:
        """It as a header of a request; none without one. Raises ``UsageError`` for what no header can hold."""
        if not self.value:
            return {}
        if not (self.value.isascii() and self.value.isprintable()):
            raise UsageError(
                f"the token in {self.origin} holds characters that no header can",
                hint="is there a line break in it?",
            )
        return {"x-chroma-token": self.value}

    def masked(self, text: str) -> str:
        """A text of the server's, which may repeat it, without it."""
        return text.replace(self.value, "***") if self.value else text

    def __repr__(self) -> str:
        return f"Token({self.origin or 'none'})"
