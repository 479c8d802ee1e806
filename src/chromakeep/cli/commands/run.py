"""``run``: serve a Chroma directory and keep it."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path

import click

from chromakeep.addresses import local_path, parse
from chromakeep.cli import added, output
from chromakeep.cli.command import Call, command, on_stop
from chromakeep.cli.doors import DOOR_KEYS, books, facing_of, forwarding_of, oidc_of
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import KEYS, PREFIX
from chromakeep.operations import memory
from chromakeep.words import plural


@command(
    "run",
    keys=(
        "data",
        "repository",
        "every",
        "durability",
        "hold_writes",
        "advertise",
        "advertise_ca",
        "receive_token_file",
        "grace",
        "ephemeral",
        "open",
        "host",
        "port",
        "chroma",
        "stage",
        *DOOR_KEYS,
    ),
    service=True,
    example="""
        chromakeep run --data ./chroma --repository s3://bucket/prefix
        chromakeep run --data /data --repository ./keep --every 5m --host 0.0.0.0 -- chroma.yaml
        chromakeep run --data /tmp/demo --ephemeral
    """,
)
@click.argument("chroma_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- CHROMA RUN OPTIONS]")
def run(call: Call, chroma_options: tuple[str, ...]) -> Reply:
    """Restore if empty, serve, take snapshots: the main job.

    DATA is restored from the repository when it is empty, served by a supervised `chroma run`, and captured into the
    repository whenever something changed.

    Between snapshots every commit goes into the repository's log: --durability async within a fraction of a second,
    sync before the write is acknowledged; snapshots keeps no log.

    What follows -- goes to `chroma run`. On SIGTERM the server is stopped, a last snapshot is taken, and all ends
    within --grace; a second signal hastens the end.

    Where CHROMAKEEP_RECEIVE_TOKEN is set, whoever knows it may send a directory that is served from then on.
    """
    memory.steady()
    stop, hurry = threading.Event(), threading.Event()

    def asked() -> None:
        (hurry if stop.is_set() else stop).set()

    on_stop(asked)

    from chromakeep.operations.run import run as operation
    from chromakeep.operations.run_settings import RunSettings
    from chromakeep.server.front import open_door

    settings = call.settings
    data, address = local_path(call.needs(None, "data", "--data")), settings.text("repository")
    if address:
        parse(address)  # a wrong address or password file is told before anything starts
        settings.secret()
    listen = [word for key in ("host", "port") if (value := settings.text(key)) for word in (KEYS[key].flag, value)]
    stage = settings.text("stage")
    durability = str(settings.value("durability"))
    kept, facing = books(settings, data), facing_of(settings)
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k not in added}
    done = operation(
        RunSettings(
            data=data,
            open_repository=partial(call.repository, address) if address else None,
            create_repository=partial(call.create, address) if address else None,
            every=settings.value("every"),
            durability=durability,
            door=open_door,
            facing=facing,
            forwarding=forwarding_of(settings),
            receive_token=settings.receive_token(),
            hold_writes=settings.value("hold_writes"),
            grace=settings.value("grace"),
            ephemeral=settings.value("ephemeral"),
            open=settings.value("open"),
            oidc=oidc_of(settings),
            arguments=(*listen, *chroma_options),
            program=settings.text("chroma"),
            stage=Path(stage) if stage else None,
            books=kept,
        ),
        observer=call.observer,
        stop=stop,
        hurry=hurry,
        env=theirs,  # Chroma is not told the password
    )
    newest = f", the newest {done.snapshot}" if done.snapshot else ""
    text = f"stopped after {output.duration(done.seconds)}: {plural(done.snapshots, 'snapshot')} taken{newest}"
    return Reply(done, text + (f", {plural(done.restarts, 'restart')}" if done.restarts else ""))
