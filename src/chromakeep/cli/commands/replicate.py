"""``replicate``: keep a directory that another program serves."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from chromakeep.addresses import local_path
from chromakeep.cli import output
from chromakeep.cli.command import Call, command, place, told_to_stop
from chromakeep.cli.output import Reply
from chromakeep.words import plural


@command(
    "replicate",
    keys=("every", "grace", "stage"),
    service=True,
    example="""
        chromakeep replicate ./chroma s3://bucket/prefix
        chromakeep replicate /data/chroma ./keep --every 5m
    """,
)
@place("source", "FROM")
@place("repo", "REPO")
def replicate(call: Call, source: str | None, repo: str | None) -> Reply:
    """Keep a directory that another program writes to.

    For an application that embeds PersistentClient: beside it, as a process of its own. What is committed is in the
    repository a fraction of a second later. Ends at SIGTERM; for a server use `run`.
    """
    stop = told_to_stop()
    from chromakeep.operations.replicate import replicate as operation

    settings = call.settings
    data, address = local_path(call.needs(source, "data", "FROM")), call.needs(repo, "repository", "REPO")
    stage = settings.text("stage")
    done = operation(
        data,
        partial(call.repository, address),
        partial(call.create, address),
        every=settings.value("every"),
        grace=settings.value("grace"),
        stage=Path(stage) if stage else None,
        observer=call.observer,
        stop=stop,
    )
    newest = f", the newest {done.snapshot}" if done.snapshot else ""
    taken = plural(done.snapshots, "snapshot")
    return Reply(done, f"stopped after {output.duration(done.seconds)}: {taken} taken{newest}")
