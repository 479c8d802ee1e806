"""``backup`` and ``show``: commands that read a Chroma directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from chromakeep.addresses import local_path, parse, split_selector
from chromakeep.cli import output, summary
from chromakeep.cli.command import Call, command, place
from chromakeep.cli.output import Reply
from chromakeep.errors import RepositoryNotFound

if TYPE_CHECKING:
    from chromakeep.chroma.inspection import Inspection

DATABASE = "chroma.sqlite3"
NEITHER = "the one holds chroma.sqlite3, the other is made by `chromakeep init`"


@command(
    "backup",
    keys=("stage",),
    example="""
        chromakeep backup ./chroma s3://bucket/prefix
        chromakeep backup /data /mnt/backup/keep --json
    """,
)
@place("source", "FROM")
@place("repo", "REPO")
@click.option("--allow-empty", is_flag=True, help="Also take a snapshot of a database without any collection.")
def backup(call: Call, source: str | None, repo: str | None, allow_empty: bool) -> Reply:
    """Take an exact snapshot of a Chroma directory, in use or not.

    FROM is the directory (CHROMAKEEP_DATA), REPO the repository (CHROMAKEEP_REPOSITORY). Writers are not stopped; they
    wait only while what changed during the copy is copied again. A capture that is not exact never becomes a snapshot.
    """
    return back_up(call, source, repo, allow_empty)


def back_up(call: Call, source: str | None, repo: str | None, allow_empty: bool) -> Reply:
    """``backup``, under whatever name."""
    from chromakeep.operations.backup import backup as operation

    directory = local_path(call.needs(source, "data", "FROM"))
    repository = call.repository(call.needs(repo, "repository", "REPO"))
    stage = call.settings.text("stage")
    done = operation(
        directory, repository, stage=Path(stage) if stage else None, allow_empty=allow_empty, observer=call.observer
    )
    return Reply(
        done,
        f"snapshot {done.snapshot}: {summary.collections(done.collections)}, {output.size(done.total_bytes)}, "
        f"{output.size(done.new_bytes)} new, {output.duration(done.seconds)}, "
        f"writers waited {output.duration(done.pause_seconds)}",
    )


@command(
    "show",
    example="""
        chromakeep show ./chroma
        chromakeep show s3://bucket/prefix
        chromakeep show s3://bucket/prefix@latest --json
    """,
)
@place("address", "ADDRESS", required=True)
def show(call: Call, address: str) -> Reply:
    """Show a repository, a snapshot of it, or a Chroma directory.

    Of a directory that is in use, a copy is examined. Exit status 15 when it has problems.
    """
    repo, selector = split_selector(address)
    if selector is not None:
        return summary.snapshot(call.repository(repo).find(selector))
    at = parse(repo)
    if not at.is_url and (Path(at.place) / DATABASE).exists():
        return _directory(call, Path(at.place))
    if not at.is_url and not (Path(at.place) / "config").exists():
        raise RepositoryNotFound(f"{at}: neither a Chroma directory nor a repository", hint=NEITHER)
    return summary.repository(call.repository(repo), str(at))


def _directory(call: Call, path: Path) -> Reply:
    from chromakeep.chroma.signature import signature

    before = signature(path)
    found = _inspect(call, path)
    if signature(path) != before:  # somebody writes: what was read may be a mixture
        found = _inspect_copy(call, path)
    files = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return summary.directory(path, files, found)


def _inspect(call: Call, path: Path) -> Inspection:
    from chromakeep.chroma.inspection import inspect

    return inspect(path, digests=False, observer=call.observer)


def _inspect_copy(call: Call, path: Path) -> Inspection:
    import tempfile

    from chromakeep.chroma.capture import capture

    with tempfile.TemporaryDirectory(prefix="chromakeep-show-") as into:
        capture(path, Path(into), observer=call.observer)
        return _inspect(call, Path(into))
