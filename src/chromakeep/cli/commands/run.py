"""``run``: serve a Chroma directory and keep it."""

from __future__ import annotations

import click

from chromakeep.cli.command import Call, command
from chromakeep.cli.output import Reply


@command(
    "run",
    keys=("data", "repository", "every", "grace", "ephemeral", "host", "port", "chroma", "stage"),
    service=True,
    example="""
        chromakeep run --data ./chroma --repository s3://bucket/prefix
        chromakeep run --data /data --repository ./keep --every 5m --host 0.0.0.0 -- --config chroma.yaml
        chromakeep run --data /tmp/demo --ephemeral
    """,
)
@click.argument("chroma_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- CHROMA RUN OPTIONS]")
def run(call: Call, chroma_options: tuple[str, ...]) -> Reply:
    """Restore if empty, serve, take snapshots: the main job.

    DATA is restored from the repository when it is empty, served by a supervised `chroma run`, and captured into the
    repository whenever something changed.

    What follows -- goes to `chroma run`. On SIGTERM the server is stopped, a last snapshot is taken, and all ends
    within --grace; a second signal hastens the end.
    """
    raise NotImplementedError
