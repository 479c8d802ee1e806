"""Names: what collections, databases and tenants may be called, in Chroma's words where not."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address

from chromakeep.server.api.json_reader import debug

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_EXPECTED = (
    "Expected a name containing 3-512 characters from [a-zA-Z0-9._-], starting and ending with a character in "
    "[a-zA-Z0-9]. Got: "
)
SHORT_DATABASE = "database name must be at least 3 characters"


def fault_of_name(name: str) -> str | None:
    """What is wrong with the name of a collection or database. One ``+`` may join two names: a topology before it."""
    topology, plus, rest = name.partition("+")
    if plus:
        if len(name.encode()) > 512:
            return f"Expected a name containing 3-512 characters. Got: {len(name.encode())}"
        if "+" in rest:
            return "Expected a name to contain at most one topology:  Got two `+` characters."
        return fault_of_name(topology) or fault_of_name(rest)
    if not _NAME.fullmatch(name):
        return _EXPECTED + name
    if ".." in name:
        return f"Expected a name that does not contains two consecutive periods (..). Got {name}"
    try:
        IPv4Address(name)
    except AddressValueError:
        return None
    return f"Expected a name that is not a valid ip address. Got {name}"


def fault_of_tenant(name: str) -> str | None:
    """What is wrong with a tenant's name: only that it is short."""
    if len(name) >= 3:
        return None
    return f'Validation error: length [{{"min": Number(3), "value": String({debug(name)})}}]'
