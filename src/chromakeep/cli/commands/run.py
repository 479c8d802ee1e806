"""``run``: serve a Chroma directory and keep it."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from chromakeep.addresses import local_path, parse
from chromakeep.cli import added, output
from chromakeep.cli.command import Call, command
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import KEYS, PREFIX, Settings
from chromakeep.errors import UsageError

if TYPE_CHECKING:
    from chromakeep.operations.books import Books


@command(
    "run",
    keys=(
        "data",
        "repository",
        "every",
        "durability",
        "hold_writes",
        "receive_token_file",
        "grace",
        "ephemeral",
        "host",
        "port",
        "chroma",
        "stage",
        "metrics_port",
        "metrics_host",
        "access_log",
        "access_log_size",
        "access_log_age",
        "access_log_keep",
        "audit_log",
        "audit_size",
        "audit_full",
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
    stop, hurry = threading.Event(), threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)

    from chromakeep.operations.duty import SNAPSHOTS
    from chromakeep.operations.run import RunSettings
    from chromakeep.operations.run import run as operation

    settings = call.settings
    data, address = local_path(call.needs(None, "data", "--data")), settings.text("repository")
    if address:
        parse(address)  # a wrong address or password file is told before anything starts
        settings.secret()
    listen = [word for key in ("host", "port") if (value := settings.text(key)) for word in (KEYS[key].flag, value)]
    stage = settings.text("stage")
    durability = str(settings.value("durability"))
    open_door, token = None, settings.receive_token()
    books = _books(settings, data)
    if token or books or (address and durability != SNAPSHOTS):
        from chromakeep.server.front import open_door  # type: ignore[assignment]
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k not in added}
    done = operation(
        RunSettings(
            data=data,
            open_repository=partial(call.repository, address) if address else None,
            create_repository=partial(call.create, address) if address else None,
            every=settings.value("every"),
            durability=durability,
            door=open_door,
            receive_token=token,
            hold_writes=settings.value("hold_writes"),
            grace=settings.value("grace"),
            ephemeral=settings.value("ephemeral"),
            arguments=(*listen, *chroma_options),
            program=settings.text("chroma"),
            stage=Path(stage) if stage else None,
            books=books,
        ),
        observer=call.observer,
        stop=stop,
        hurry=hurry,
        env=theirs,  # Chroma is not told the password
    )
    newest = f", the newest {done.snapshot}" if done.snapshot else ""
    text = f"stopped after {output.duration(done.seconds)}: {output.plural(done.snapshots, 'snapshot')} taken{newest}"
    return Reply(done, text + (f", {output.plural(done.restarts, 'restart')}" if done.restarts else ""))


def _books(settings: Settings, data: Path) -> Books:
    """Which books are kept. Raises ``UsageError``."""
    from chromakeep.operations.books import MEGABYTE, Books

    port, audit = settings.text("metrics_port"), settings.text("audit_log")
    if min(settings.number("access_log_size"), settings.number("audit_size")) < 1:
        raise UsageError("a log of 0 megabytes", hint="give --access-log-size and --audit-size 1 or more")
    for key, path in (("audit_log", audit), ("access_log", settings.text("access_log"))):
        if path and data.absolute() in Path(path).absolute().parents:
            # With the directory it would be replaced by a restore, and lie in a place that is Chroma's.
            raise UsageError(f"{KEYS[key].flag} {path} is in the data directory", hint="put it beside that")
    return Books(
        metrics_port=int(port) if port else None,
        metrics_host=str(settings.text("metrics_host")),
        access_log=settings.text("access_log"),
        access_log_size=settings.number("access_log_size") * MEGABYTE,
        access_log_age=settings.value("access_log_age"),
        access_log_keep=settings.number("access_log_keep"),
        audit_log=Path(audit) if audit else None,
        audit_size=settings.number("audit_size") * MEGABYTE,
        audit_required=settings.text("audit_full") == "refuse",
    )
