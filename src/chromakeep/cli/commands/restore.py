"""``restore`` and ``rollback``: commands that write a Chroma directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from chromakeep.addresses import local_path, split_selector
from chromakeep.cli import output, summary
from chromakeep.cli.command import Call, command, names, place
from chromakeep.cli.output import Reply

_OPTIONS = (
    click.option("--collections", metavar="A,B", help="Restore only these collections."),
    click.option("--replace", is_flag=True, help="TO may hold something; it is kept as TO.old-TIME."),
    click.option("--discard-old", is_flag=True, help="Remove what was at TO after the restored data is in place."),
    click.option("--dry-run", is_flag=True, help="Say what would be restored, change nothing."),
)


def restoring(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a restore."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@command(
    "restore",
    example="""
        chromakeep restore s3://bucket/prefix ./chroma
        chromakeep restore ./keep@2026-08-01T12:00:05Z ./chroma --replace
        chromakeep restore ./keep ./books-only --collections books
    """,
)
@place("repo", "REPO[@SNAPSHOT]")
@place("to", "TO")
@restoring
def restore(call: Call, repo: str | None, to: str | None, **options: Any) -> Reply:
    """Restore a snapshot into a directory, verified.

    Every record is compared with what was recorded at the backup before the directory is put in place.

    SNAPSHOT is latest (also when left out), an id or the beginning of one, or a time: the newest snapshot not after it.
    """
    return put_back(call, repo, to, **options)


def put_back(
    call: Call,
    repo: str | None,
    to: str | None,
    *,
    collections: str | None,
    replace: bool,
    discard_old: bool,
    dry_run: bool,
) -> Reply:
    """``restore``, under whatever name."""
    from chromakeep.operations.restore import restore as operation

    address, selector = split_selector(call.needs(repo, "repository", "REPO"))
    target = local_path(call.needs(to, "data", "TO"))
    wanted = names(collections)
    done = operation(
        call.repository(address),
        selector,
        target,
        collections=wanted,
        replace=replace,
        discard_old=discard_old,
        dry_run=dry_run,
        observer=call.observer,
    )
    said = "would restore" if dry_run else "restored"
    text = f"{said} {done.snapshot} to {done.target}: {summary.collections(done.collections)}, "
    text += output.size(done.total_bytes)
    if not dry_run:
        text += f", {output.size(done.fetched_bytes)} fetched, {output.duration(done.seconds)}"
    if done.old:
        text += f"\nwhat was there {'would be' if dry_run else 'is'} kept as {done.old}"
        text += "" if dry_run else f"; `chromakeep rollback {done.target}` brings it back"
    return Reply(done, text)


@command("rollback", example="chromakeep rollback ./chroma")
@place("to", "TO")
@click.option("--dry-run", is_flag=True, help="Say what would be brought back, change nothing.")
def rollback(call: Call, to: str | None, dry_run: bool) -> Reply:
    """Bring back what the last restore into TO replaced.

    What is there now is kept aside in its place.
    """
    from chromakeep.operations.restore import rollback as operation

    done = operation(local_path(call.needs(to, "data", "TO")), dry_run=dry_run)
    if dry_run:
        text = f"would bring {done.restored} back to {done.target} and keep what is there as {done.kept}"
    else:
        text = f"{done.target} is again what was kept as {done.restored}; what was there is kept as {done.kept}"
    return Reply(done, text)
