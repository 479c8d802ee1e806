"""Requests as a ledger is told of them."""

from __future__ import annotations

from dataclasses import dataclass

from chromakeep.server.guard import Account
from chromakeep.server.request_head import RequestHead

COLLECTION = "/api/v2/tenants/acme/databases/prod/collections/0e7c3c3e-8a53-4d5e-9a0e-6d1c3e1f5b11"


@dataclass
class Counted:
    """A watch that has seen this many records."""

    records: int | None

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        return payload


def account(
    method: str = "POST", target: str = COLLECTION + "/query", *, records: int | None = None, **known: object
) -> Account:
    """A request that came at 0 s by the loop's clock, with what is ``known`` of it."""
    made = Account(RequestHead(method, target, (), 0, True, True, False, b""), "192.0.2.7", 0.0)
    made.status = 200
    if records is not None:
        made.watch = Counted(records)
    for name, value in known.items():
        setattr(made, name, value)
    return made
