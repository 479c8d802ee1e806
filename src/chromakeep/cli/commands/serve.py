"""``serve``: a closed door before any Chroma."""

from __future__ import annotations

import os
from functools import partial

import click

from chromakeep.addresses import local_path, parse
from chromakeep.cli import output
from chromakeep.cli.command import Call, command, told_to_stop
from chromakeep.cli.doors import DOOR_KEYS, books, facing_of, oidc_of
from chromakeep.cli.output import Reply
from chromakeep.errors import UsageError
from chromakeep.operations import memory


@command(
    "serve",
    keys=("repository", "data", "open", "host", "port", *DOOR_KEYS),
    service=True,
    example="""
        chromakeep serve http://chroma:8000 --repository s3://bucket/prefix --host 0.0.0.0
        chromakeep serve https://chroma.internal --data /data --tls-certificate cert.pem --tls-key key.pem
    """,
)
@click.argument("url")
def serve(call: Call, url: str) -> Reply:
    """Put a closed door before a Chroma.

    Clients of Chroma connect to it as to the server itself, with a key (see `keys`) in the headers that they send
    anyway. The keys are those of --repository, or of --data: a directory for nothing else will do. What ruins a
    server is refused. `run` has the same door before the Chroma that it starts.
    """
    memory.steady()
    stop = told_to_stop()
    from chromakeep.operations.serve import ServeSettings
    from chromakeep.operations.serve import serve as operation
    from chromakeep.server.front import open_door

    settings = call.settings
    host, port, secure = _backend(url)
    address, data = settings.text("repository"), settings.text("data")
    if not (address or data or settings.value("open")):
        raise UsageError("where are the keys?", hint="give --repository or --data as for `keys create`; or say --open")
    if address:
        parse(address)
        settings.secret()
    done = operation(
        ServeSettings(
            host=settings.text("host") or "localhost",
            port=int(settings.text("port") or 8000),
            backend=(host, port),
            secure=secure,
            door=open_door,
            data=local_path(data or "."),
            open_repository=partial(call.repository, address) if address else None,
            open=bool(settings.value("open")),
            oidc=oidc_of(settings),
            facing=facing_of(settings),
            writes=local_path(data) if data else None,
            books=books(settings, local_path(data) if data else None),
        ),
        observer=call.observer,
        stop=stop,
        env=os.environ,
    )
    return Reply(done, f"stopped after {output.duration(done.seconds)}")


def _backend(url: str) -> tuple[str, int, bool]:
    """Host, port and whether it speaks TLS. Raises ``UsageError`` for what is no server's URL, or more than that."""
    place = parse(url)
    scheme, _, rest = place.place.partition("://")
    if place.kind != "http" or str(place).count("/") > 2:
        raise UsageError(f"{place}: not the URL of a server", hint="write http://host:8000, without a path")
    host, _, port = rest.rpartition(":") if rest.rpartition(":")[2].isdigit() else (rest, "", "")
    return host.strip("[]"), int(port or (443 if scheme == "https" else 80)), scheme == "https"
