"""Where a PostgreSQL is and how we connect to it: libpq's URLs, with what is good for a server that must not wait."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from chromakeep.errors import UsageError

_DEFAULTS: dict[str, Any] = {
    "application_name": "chromakeep",
    "target_session_attrs": "read-write",
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "client_encoding": "UTF8",
}


def connection_parameters(url: str) -> dict[str, Any]:
    """Of ``psycopg.connect``. The URL's own win, but for the encoding; it may name several hosts.

    Raises ``UsageError``, which does not repeat the URL: it may hold a password.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise UsageError("this is not the URL of a PostgreSQL", hint="write postgresql://USER@HOST:PORT/DATABASE")
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise UsageError(
            "the URL of the PostgreSQL is not well formed",
            hint="write postgresql://USER@HOST:PORT/DATABASE; escape what is special in a password, as %40 for @",
        ) from None
    return _DEFAULTS | given | {"client_encoding": "UTF8"}


def shown(url: str) -> str:
    """The URL for eyes: user, hosts and database, without password and options."""
    given = connection_parameters(url)
    hosts, ports = str(given.get("host") or "").split(","), str(given.get("port") or "").split(",")
    ports = ports if len(ports) == len(hosts) else ports * len(hosts)
    places = ",".join(f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False))
    user = f"{given['user']}@" if given.get("user") else ""
    return f"postgresql://{user}{places}/{given.get('dbname') or ''}"
