"""``serve``: a closed door before any Chroma, or before collections in PostgreSQL."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import click

from chromakeep.addresses import POSTGRES, local_path, parse
from chromakeep.cli import output
from chromakeep.cli.command import Call, command, told_to_stop
from chromakeep.cli.doors import DOOR_KEYS, books, facing_of, oidc_of
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import PREFIX, Settings
from chromakeep.errors import UsageError
from chromakeep.operations import memory
from chromakeep.operations.openness import loopback

if TYPE_CHECKING:
    from chromakeep.operations.serve import Behind

HOST, PORT = "localhost", 8000
ENGINE_KEYS = ("engine", "engine_storage", "engine_connections", "allow_reset")


@command(
    "serve",
    keys=("repository", "data", "open", "host", "port", *ENGINE_KEYS, *DOOR_KEYS),
    service=True,
    example="""
        chromakeep serve http://chroma:8000 --repository s3://bucket/prefix --host 0.0.0.0
        chromakeep serve https://chroma.internal --data /data --tls-certificate cert.pem --tls-key key.pem
        chromakeep serve --engine postgresql://app@db:5432/chroma --data /data --host 0.0.0.0
        chromakeep serve --engine postgresql --data /data
    """,
)
@click.argument("url", required=False)
def serve(call: Call, url: str | None) -> Reply:
    """Put a closed door before a Chroma, or be one on PostgreSQL.

    Clients of Chroma connect to it as to the server itself, with a key (see `keys`) in the headers that they send
    anyway. The keys are those of --repository, or of --data: a directory for nothing else will do. What ruins a
    server is refused. `run` has the same door before the Chroma that it starts.

    With --engine there is no Chroma: this process answers as one, and all data is in a PostgreSQL with pgvector. Any
    number of instances may have one database. `--engine postgresql` runs a private one in --data.
    """
    memory.steady()
    stop = told_to_stop()
    from chromakeep.operations.serve import ServeSettings
    from chromakeep.operations.serve import serve as operation
    from chromakeep.server.front import open_door

    settings = call.settings
    address, data = settings.text("repository"), settings.text("data")
    oidc = oidc_of(settings)
    if not (address or data or oidc or settings.value("open")):
        hint = "give --repository or --data as for `keys create`, or an issuer of tokens; or say --open"
        raise UsageError("where are the keys?", hint=hint)
    if address:
        parse(address)
        settings.secret()
    behind = _behind(call, url)
    done = operation(
        ServeSettings(
            host=settings.text("host") or HOST,
            port=int(settings.text("port") or PORT),
            behind=behind,
            door=open_door,
            data=local_path(data or "."),
            open_repository=partial(call.repository, address) if address else None,
            open=bool(settings.value("open")),
            oidc=oidc,
            facing=facing_of(settings),
            writes=local_path(data) if data else None,
            books=books(settings, local_path(data) if data else None),
        ),
        observer=call.observer,
        stop=stop,
        env=os.environ,
    )
    return Reply(done, f"stopped after {output.duration(done.seconds)}")


def _behind(call: Call, url: str | None) -> Behind:
    settings, engine = call.settings, call.settings.text("engine")
    if url and engine:
        raise UsageError("a Chroma's URL and --engine are two servers", hint="give one of the two")
    if engine:
        from chromakeep.operations.engine import PostgresBehind

        address = _engine(settings, engine)
        connections, data = settings.number("engine_connections"), settings.text("data")
        if not 1 <= connections <= 1000:
            raise UsageError("--engine-connections is from 1 to 1000")
        if address is None and not data:
            raise UsageError("where shall the data lie?", hint="give --data DIR, or --engine the URL of a PostgreSQL")
        return PostgresBehind(
            address,
            local_path(data or ".") / POSTGRES,
            connections=connections,
            storage=str(settings.text("engine_storage")),
            allow_reset=bool(settings.value("allow_reset")),
            observer=call.observer,
        )
    if not url:
        raise UsageError("what shall be served?", hint="give the URL of a Chroma, or --engine")
    from chromakeep.operations.serve import Elsewhere

    host, port, secure = _backend(url)
    own, listening = settings.text("host") or HOST, int(settings.text("port") or PORT)
    here = loopback(host) and (loopback(own) or own in ("0.0.0.0", "::"))
    if port == listening and (host == own or here):  # it would ask itself, without end
        raise UsageError(f"{url} is the address of the door itself", hint="--port another, or give the server's own")
    return Elsewhere((host, port), secure)


def _engine(settings: Settings, engine: str) -> str | None:
    """The URL; None: a private one. Only a variable may hold a password: others end up in logs and histories."""
    if engine == POSTGRES:
        return None
    if not engine.startswith((f"{POSTGRES}://", "postgres://")):
        raise UsageError("--engine is the URL of a PostgreSQL, or just the word postgresql")
    if settings.came_from("engine") != f"{PREFIX}ENGINE":
        parse(engine)
    return engine


def _backend(url: str) -> tuple[str, int, bool]:
    """Host, port and whether it speaks TLS. Raises ``UsageError`` for what is no server's URL, or more than that."""
    place = parse(url)
    scheme, _, rest = place.place.partition("://")
    if place.kind != "http" or str(place).count("/") > 2:
        raise UsageError(f"{place}: not the URL of a server", hint="write http://host:8000, without a path")
    host, _, port = rest.rpartition(":") if rest.rpartition(":")[2].isdigit() else (rest, "", "")
    return host.strip("[]"), int(port or (443 if scheme == "https" else 80)), scheme == "https"
