"""Chroma's HTTP API v2, as far as copies need it: what is asked, and what an answer must look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from chromakeep.chroma.client import Ref
from chromakeep.chroma.connection import ANYTHING, Connection
from chromakeep.chroma.outline import resolved
from chromakeep.errors import ServerAnswered, SourceBusy, UsageError
from chromakeep.records import Definition

_PAGE = 100
_MOST_PAGES = 100_000
_LISTINGS = 5
_DEPTH = 64


class Found(msgspec.Struct):
    """A collection as the server tells it; all of it but the id may be missing. What is nested deeper than any setting
    is none of Chroma's."""

    id: str
    name: str = ""
    configuration_json: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    dimension: int | None = None

    def __post_init__(self) -> None:
        if any(_deeper(each, _DEPTH) for each in (self.configuration_json, self.schema, self.metadata)):
            raise ValueError("it is nested too deeply")


def definition_of(found: Found, tenant: str, database: str, count: int | None = None) -> Definition:
    """The definition of a collection that was found.

    Of one made before Chroma 1.0 the configuration is what its index was made by, which its metadata tells and the
    server's answer does not.
    """
    return Definition(
        found.name,
        found.id,
        tenant,
        database,
        found.dimension,
        found.metadata,
        resolved(found.configuration_json, found.metadata, found.schema),
        found.schema,
        count,
    )


class Preflight(msgspec.Struct):
    """What the server takes in one request."""

    max_batch_size: int = 5461
    supports_base64_encoding: bool = False


class _Named(msgspec.Struct):
    name: str


class _Ids(msgspec.Struct):
    ids: list[str]


_FOUND = msgspec.json.Decoder(Found)
_ALL_FOUND = msgspec.json.Decoder(list[Found])
_NAMES = msgspec.json.Decoder(list[_Named])
_NUMBER = msgspec.json.Decoder(int)
_IDS = msgspec.json.Decoder(_Ids)
_PREFLIGHT = msgspec.json.Decoder(Preflight)


def _deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth == 0 or any(_deeper(each, depth - 1) for each in inner)


def database_path(tenant: str, database: str) -> str:
    """The place of a database below ``/api/v2``."""
    return f"{tenant_path(tenant)}/databases/{quote(database, safe='')}"


def tenant_path(tenant: str) -> str:
    """The place of a tenant below ``/api/v2``."""
    return f"/tenants/{quote(tenant, safe='')}"


class Api:
    """The requests, over one connection; threads may share it. All raise what ``Connection.request`` raises."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    # -- tenants and databases ------------------------------------------------------------------------------------

    def has(self, path: str) -> bool:
        """Whether a tenant, database or collection is there, by its path."""
        try:
            with self._named(path):
                self.connection.request("GET", path, decoder=ANYTHING)
        except ServerAnswered as error:
            if error.status == 404:
                return False
            raise
        return True

    def make(self, path: str, name: str) -> None:
        """Create a tenant (path ``/tenants``) or database; one that is there already is fine."""
        with self._named(path, name):
            self._post(path, {"name": name}, fine=(409,))

    def databases(self, tenant: str) -> list[str]:
        """The names of a tenant's databases."""
        found: dict[str, None] = {}
        path = f"{tenant_path(tenant)}/databases?limit={_PAGE}&offset="
        while page := self.connection.request("GET", f"{path}{len(found)}", decoder=_NAMES):
            before = len(found)
            found.update((each.name, None) for each in page)
            if len(found) == before or len(found) > _PAGE * _MOST_PAGES:
                break  # it does not know offsets
        return list(found)

    # -- collections ----------------------------------------------------------------------------------------------

    def collections(self, tenant: str, database: str) -> list[Found]:
        """All collections of a database. Raises ``SourceBusy`` if they change too fast to be listed."""
        path = f"{database_path(tenant, database)}/collections"
        for _ in range(_LISTINGS):
            found: dict[str, Found] = {}
            offset = 0
            while page := self._page(database_path(tenant, database), offset):
                offset += len(page)
                found.update((each.id, each) for each in page)
                if offset > _PAGE * _MOST_PAGES:
                    break
            # The order is that of random ids: a collection that is created or deleted moves others between pages.
            count = self.connection.request("GET", f"{path}_count", decoder=_NUMBER)
            if count == len(found) == offset:
                return list(found.values())
        raise SourceBusy(f"the collections of {database} change faster than they can be listed")

    def _page(self, database: str, offset: int) -> list[Found]:
        path = f"{database}/collections?limit={_PAGE}&offset={offset}"
        with self._named(database):
            return self.connection.request("GET", path, decoder=_ALL_FOUND)

    def collection(self, tenant: str, database: str, name: str) -> Found | None:
        """The collection of that name, if there is one."""
        place = database_path(tenant, database)
        try:
            with self._named(place):
                return self.connection.request("GET", f"{place}/collections/{quote(name, safe='')}", decoder=_FOUND)
        except ServerAnswered as error:
            if error.status == 404:
                return None
            raise

    def create(self, tenant: str, database: str, name: str, body: Mapping[str, Any]) -> Found:
        """Create a collection under a name that nobody else takes: if an answer was lost, the one that is there is
        ours."""
        path = f"{database_path(tenant, database)}/collections"
        data = msgspec.json.encode({"name": name, **body, "get_or_create": False})
        try:
            return self.connection.request("POST", path, data, decoder=_FOUND)
        except ServerAnswered as error:
            found = self.collection(tenant, database, name) if error.status == 409 else None
            if found is None:
                raise
            return found

    def change(self, ref: Ref, **changes: Any) -> None:
        """PUT: ``new_name``, ``new_metadata``."""
        self.connection.request("PUT", ref.path, msgspec.json.encode(changes), decoder=ANYTHING)

    def drop(self, tenant: str, database: str, name: str) -> None:
        """Delete a collection, if it is there."""
        path = f"{database_path(tenant, database)}/collections/{quote(name, safe='')}"
        try:
            self.connection.request("DELETE", path, decoder=ANYTHING)
        except ServerAnswered as error:
            if error.status != 404:
                raise

    def count(self, ref: Ref) -> int:
        """How many records a collection has."""
        return max(
            0, self.connection.request("GET", f"{ref.path}/count", decoder=_NUMBER, timeout=self.connection.slow)
        )

    def preflight(self) -> Preflight:
        """What the server takes; the least of it where it does not say."""
        try:
            return self.connection.request("GET", "/pre-flight-checks", decoder=_PREFLIGHT)
        except ServerAnswered:
            return Preflight()

    # -- records --------------------------------------------------------------------------------------------------

    def ids(self, ref: Ref, offset: int, limit: int, where: Mapping[str, Any] | None) -> Sequence[str]:
        """Ids in the order of insertion."""
        body: dict[str, Any] = {"offset": offset, "limit": limit, "include": []}
        if where is not None:
            body["where"] = where
        data = msgspec.json.encode(body)
        return self.connection.request(
            "POST", f"{ref.path}/get", data, decoder=_IDS, timeout=self.connection.slow, patient=limit <= 100
        ).ids

    def _post(self, path: str, body: Mapping[str, Any], *, fine: Sequence[int] = ()) -> None:
        try:
            self.connection.request("POST", path, msgspec.json.encode(body), decoder=ANYTHING)
        except ServerAnswered as error:
            if error.status not in fine:
                raise

    @contextmanager
    def _named(self, path: str, *more: str) -> Iterator[None]:
        """Of a request to a tenant or database in which nothing can be refused but its name: that is ``UsageError``."""
        try:
            yield
        except ServerAnswered as error:
            if error.status != 400:
                raise
            names = "/".join([*map(unquote, path.split("/")[2::2]), *more])
            raise UsageError(
                f"{self.connection.where}/{names}: {error.message}",
                hint="name another tenant or database: 3 to 512 of A-Z a-z 0-9 . _ -, a letter or digit at both ends",
            ) from None
