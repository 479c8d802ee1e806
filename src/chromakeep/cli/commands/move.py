"""``push``, ``pull`` and ``send``: a whole directory to another place, by a repository or straight to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from chromakeep.addresses import local_path
from chromakeep.cli import output, summary
from chromakeep.cli.command import Call, command, place
from chromakeep.cli.commands.directory import back_up
from chromakeep.cli.commands.restore import put_back, restoring
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import TOKEN
from chromakeep.errors import UsageError
from chromakeep.words import plural


@command(
    "push",
    keys=("stage",),
    example="""
        chromakeep push ./chroma s3://bucket/prefix
    """,
)
@place("source", "FROM")
@place("repo", "REPO")
@click.option("--allow-empty", is_flag=True, help="Also push a database without any collection.")
def push(call: Call, source: str | None, repo: str | None, allow_empty: bool) -> Reply:
    """Put a Chroma directory, in use or not, into a repository.

    The same as `backup`: `pull` brings it to another machine from there.
    """
    return back_up(call, source, repo, allow_empty)


@command(
    "pull",
    example="""
        chromakeep pull s3://bucket/prefix /data/chroma
        chromakeep pull s3://bucket/prefix /data/chroma --replace
    """,
)
@place("repo", "REPO[@SNAPSHOT]")
@place("to", "TO")
@restoring
def pull(call: Call, repo: str | None, to: str | None, **options: Any) -> Reply:
    """Get a Chroma directory out of a repository, verified.

    The same as `restore`: into a fresh directory, or with --replace in the place of what is there, which is kept.
    """
    return put_back(call, repo, to, **options)


@command(
    "send",
    keys=("receive_token_file", "stage"),
    example="""
        chromakeep send ./chroma https://target.example
        chromakeep send --rollback https://target.example
    """,
)
@place("source", "FROM")
@place("url", "URL")
@click.option("--rollback", is_flag=True, help="Have URL serve again what it served before it received a directory.")
@click.option("--take-over", is_flag=True, help="End what another sender has under way there, and go on with it.")
def send(call: Call, source: str | None, url: str | None, rollback: bool, take_over: bool) -> Reply:
    """Send a Chroma directory to a running chromakeep.

    FROM may be in use. URL is that of `chromakeep run` on another machine; CHROMAKEEP_RECEIVE_TOKEN is the same on
    both. The receiver keeps its own backup first, verifies every record and then serves the directory. A link that
    is cut is taken up again; the same command run again sends only what is missing.
    """
    from chromakeep.operations.send import send as operation
    from chromakeep.operations.send import send_back

    if url is None:  # FROM is left out, or there is none
        source, url = None, source
    if url is None:
        raise UsageError("URL is missing", hint="write https://HOST[:PORT], where chromakeep run listens")
    if rollback and (source or take_over):
        raise UsageError("send --rollback takes the URL alone", hint="chromakeep send --rollback URL")
    token = call.settings.receive_token()
    if token is None:
        raise UsageError("there is no token for the receiver", hint=f"set {TOKEN} to what it is there")
    if rollback:
        back = send_back(url, token, observer=call.observer)
        text = f"{back.target} serves {back.restored} again; what it served is kept there as {back.kept}"
        return Reply(back, f"{text}; {output.duration(back.seconds)}")
    stage = call.settings.text("stage")
    done = operation(
        local_path(call.needs(source, "data", "FROM")),
        url,
        token,
        stage=Path(stage) if stage else None,
        take_over=take_over,
        observer=call.observer,
    )
    text = f"{done.target} serves {summary.collections(done.collections)}, {output.size(done.total_bytes)}: "
    text += f"{output.size(done.sent_bytes)} in {done.chunks_sent} of {plural(done.chunks, 'chunk')} sent, "
    text += f"{output.duration(done.seconds)}, it was away for {output.duration(done.down_seconds)}"
    if done.kept:
        text += f"\nwhat it served before is kept there as {done.kept}; "
        text += f"`chromakeep send --rollback {done.target}` brings it back"
    if done.snapshot:
        text += f"\nits repository has both: {done.snapshot_before or 'nothing'} before, {done.snapshot} now"
    return Reply(done, text)
