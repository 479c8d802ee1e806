"""Openness: a server that anybody may use is started on purpose or not at all."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from chromakeep.errors import RefusedToServe

# What Chroma below 1.0 read. Chroma 1.x passes over it without a word, and is open.
IGNORED = (
    "CHROMA_SERVER_AUTHN_PROVIDER",
    "CHROMA_SERVER_AUTHN_CREDENTIALS",
    "CHROMA_SERVER_AUTHN_CREDENTIALS_FILE",
    "CHROMA_SERVER_AUTHZ_PROVIDER",
    "CHROMA_SERVER_AUTHZ_CONFIG",
    "CHROMA_SERVER_AUTHZ_CONFIG_FILE",
    "CHROMA_SERVER_AUTH_PROVIDER",
    "CHROMA_SERVER_AUTH_CREDENTIALS",
    "CHROMA_SERVER_AUTH_CREDENTIALS_FILE",
    "CHROMA_SERVER_AUTH_CREDENTIALS_PROVIDER",
    "CHROMA_AUTH_TOKEN_TRANSPORT_HEADER",
    "CHROMA_SERVER_AUTH_TOKEN_TRANSPORT_HEADER",
)


def refuse_open(host: str, env: Mapping[str, str], *, keys: bool, accepted: bool) -> None:
    """Raise ``RefusedToServe`` where nobody needs a key and somebody may think otherwise, or anybody may come.

    ``keys``: a key exists. ``accepted``: it was said that the server is to be open.
    """
    if keys or accepted:
        return
    if found := [name for name in IGNORED if env.get(name)]:
        raise RefusedToServe(
            f"{found[0]} is set, which Chroma 1.x ignores: the server would be open",
            hint="chromakeep keys create NAME --role admin (--repository ADDRESS), and unset it; or say --open",
        )
    if not loopback(host):
        raise RefusedToServe(
            f"{host}: anybody who reaches this address could read and delete everything, for there is no key",
            hint="chromakeep keys create NAME --role admin (--repository ADDRESS); or say --open, or --host 127.0.0.1",
        )


def loopback(host: str) -> bool:
    """Whether only programs of this machine reach that address. A name other than ``localhost`` may be any."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
