"""``history``: the moments that one may want to go back to."""

from __future__ import annotations

from chromakeep.cli import output
from chromakeep.cli.command import Call, command, place
from chromakeep.cli.output import Reply


@command(
    "history",
    example="""
        chromakeep history s3://bucket/prefix
        chromakeep restore s3://bucket/prefix@before:books-deleted ./chroma
    """,
)
@place("repo", "REPO")
def history(call: Call, repo: str | None) -> Reply:
    """List the moments worth going back to.

    Collections created, renamed and deleted, many records written or removed: each with the instant just before it,
    which `restore REPO@TIME` brings back. They come from the log that `run` writes.
    """
    import msgspec

    from chromakeep.repository.moments import happenings

    found = happenings(call.repository(call.needs(repo, "repository", "REPO")))
    rows = [
        (
            output.when(one.time),
            f"{one.name} {one.kind}" if not one.records else f"{one.records:,} records {one.kind} in {one.name}",
            f"@{one.before}",
        )
        for one in found
    ]
    text = output.table(("time", "what", "just before it"), rows) if rows else "nothing worth going back to yet"
    return Reply({"moments": msgspec.to_builtins(found)}, text)
