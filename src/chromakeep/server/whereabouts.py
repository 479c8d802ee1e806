"""Whereabouts: which tenant, database and name a collection's UUID belongs to. Chroma itself does not check that."""

from __future__ import annotations

from collections import OrderedDict
from urllib.parse import quote

import msgspec

from chromakeep.server.asking import Unanswered, ask
from chromakeep.server.backend import Backend

_KEPT = 50_000
FRESH = 5.0  # seconds for which a name is believed that another door may have changed


class _Told(msgspec.Struct):
    id: str
    name: str


_DECODER = msgspec.json.Decoder(_Told)


class Whereabouts:
    """Asked in the door's thread. A collection never moves, so only names are looked up again.

    Of a collection that is not where the path says nothing is remembered: it may be made there.
    """

    def __init__(self, pool: Backend) -> None:
        self._pool = pool
        self._known: OrderedDict[tuple[str, str, str], tuple[str, float]] = OrderedDict()

    def known(self, tenant: str, database: str, identity: str, since: float) -> str | None:
        """Its name, if that has been looked up since then."""
        found = self._known.get((tenant, database, identity))
        return found[0] if found and found[1] >= since else None

    async def find(self, tenant: str, database: str, identity: str, now: float) -> str | None:
        """Its name in that database, None where that has none of this id. Raises ``Unanswered``."""
        path = f"/api/v2/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}"
        status, body = await ask(self._pool, f"{path}/collections/by-id/{identity}")
        if status == 404:
            return None
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            told = _DECODER.decode(body)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Unanswered(f"it cannot tell of a collection ({error})") from None
        self._known[tenant, database, identity] = (told.name, now)
        self._known.move_to_end((tenant, database, identity))
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return told.name

    def forget(self, tenant: str, database: str, identity: str) -> None:
        """It may be renamed at this moment."""
        self._known.pop((tenant, database, identity), None)
