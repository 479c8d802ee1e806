"""``init``, ``snapshots``, ``check``, ``prune`` and ``unlock``: commands about a repository."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from chromakeep.addresses import parse
from chromakeep.cli import output, summary
from chromakeep.cli.command import Call, command, place
from chromakeep.cli.output import Reply
from chromakeep.errors import UsageError, VerificationFailed
from chromakeep.words import plural

if TYPE_CHECKING:
    from chromakeep.operations.check import CheckReport

KEEPS = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_within")


@command(
    "init",
    example="""
        chromakeep init ./keep
        CHROMAKEEP_PASSWORD_FILE=/run/secrets/keep chromakeep init s3://bucket/prefix
    """,
)
@place("repo", "REPO")
def init(call: Call, repo: str | None) -> Reply:
    """Create a repository, encrypted when there is a password.

    The password comes from CHROMAKEEP_PASSWORD or a password file. Whoever loses it loses the snapshots.
    """
    address = call.needs(repo, "repository", "REPO")
    made, shown = call.create(address).config, str(parse(address))
    data = {
        "repository": shown,
        "id": made.id,
        "encrypted": made.encrypted,
        "conditional_put": made.conditional_put,
    }
    text = f"repository at {shown}, {'encrypted' if made.encrypted else 'not encrypted: no password was given'}"
    if not made.conditional_put:
        text += "\nthis store does not honour put-if-absent: prune deletes only what is older than a day"
    return Reply(data, text)


@command("snapshots", example="chromakeep snapshots s3://bucket/prefix")
@place("repo", "REPO")
def snapshots(call: Call, repo: str | None) -> Reply:
    """List the snapshots of a repository, oldest first."""
    found = call.repository(call.needs(repo, "repository", "REPO")).snapshots()
    rows = [
        (
            s.id,
            output.when(s.time),
            f"{sum(c.count for c in s.collections):,}",
            str(len(s.collections)),
            output.size(s.total_bytes),
            output.size(s.new_bytes),
            s.hostname,
        )
        for s in found
    ]
    heads = ("snapshot", "time", "records", "collections", "size", "new", "host")
    text = output.table(heads, rows, "records collections size new") if rows else "no snapshots yet"
    return Reply({"snapshots": [summary.public(s) for s in found]}, text)


@command(
    "check",
    example="""
        chromakeep check s3://bucket/prefix
        chromakeep check ./keep --read-data --progress json
        chromakeep check ./chroma http://localhost:8000 --collections books
    """,
)
@place("repo", "REPO")
@place("other", "B")
@click.option("--read-data", is_flag=True, help="Read and verify every byte, not only that every object is there.")
@click.option("--collections", metavar="A,B", help="Of two places, compare only these collections.")
@click.option(
    "--queries",
    type=click.IntRange(0, 10000),
    default=0,
    metavar="N",
    help="Of two places, search with N records: recall@10 of each.",
)
@click.option("--work", metavar="PATH", help="Of two places, where working copies are kept meanwhile.")
def check(
    call: Call,
    repo: str | None,
    other: str | None,
    read_data: bool,
    collections: str | None,
    queries: int,
    work: str | None,
) -> Reply:
    """Check a repository, or that two places hold the same.

    Of a repository, that all its snapshots need is there and undamaged: without --read-data only that every object is
    there and whole in size; with it every byte is read and verified. Of two places (see `copy`) every id, vector,
    document and metadata value is compared.

    Exit status 14 when something is missing, damaged or different: each problem of a repository names the snapshots
    that it breaks, each difference the first ids.
    """
    if other is not None:
        from chromakeep.cli.commands.copy import compare

        if repo is None or read_data:
            raise UsageError("--read-data is for one repository, not for two places")
        return compare(call, repo, other, collections=collections, queries=queries, work=work)
    if collections or work or queries:
        raise UsageError(
            "--collections, --queries and --work are for comparing two places", hint="chromakeep check A B"
        )
    from chromakeep.operations.check import check as operation

    repository = call.repository(call.needs(repo, "repository", "REPO"))
    report = operation(repository, read_data=read_data, observer=call.observer)
    lines = [f"{p.object}: {p.what} (needed by {', '.join(p.snapshots) or 'no snapshot'})" for p in report.problems]
    lines.append(
        f"{plural(report.snapshots, 'snapshot')}, {plural(report.objects, 'object')}, "
        f"{output.size(report.bytes_read)} read: " + (plural(len(lines), "problem") if lines else "no problems")
    )
    lines += _next_steps(report)
    return Reply(report, "\n".join(lines), VerificationFailed.exit_status if report.problems else 0)


def _next_steps(report: CheckReport) -> list[str]:
    """What somebody does at night who has read of problems."""
    steps = []
    if any(p.snapshots for p in report.problems):
        steps.append(
            "next: restore a snapshot that is not named above (chromakeep snapshots REPO); "
            "until that is done, throw no directory away that still has the data"
        )
    if any(p.object.startswith("log/") for p in report.problems):
        steps.append(
            "next: no moment behind the gap can be restored before there is a newer snapshot: "
            "chromakeep backup DIRECTORY REPO (a run makes them by itself)"
        )
    return steps


@command(
    "prune",
    keys=KEEPS,
    example="""
        chromakeep prune s3://bucket/prefix --keep-last 10 --keep-daily 14 --keep-within 2d
        chromakeep prune ./keep --keep-weekly 8 --dry-run
    """,
)
@place("repo", "REPO")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, change nothing.")
def prune(call: Call, repo: str | None, dry_run: bool) -> Reply:
    """Remove the snapshots that no --keep option keeps.

    What only they needed is deleted, too. Backups may run meanwhile.
    """
    from chromakeep.operations.prune import Retention
    from chromakeep.operations.prune import prune as operation

    counts = {name.removeprefix("keep_"): call.settings.number(name) for name in KEEPS[:-1]}
    within = call.settings.value("keep_within")
    if not any(counts.values()) and not within:
        raise UsageError("nothing says what to keep", hint="give at least one of --keep-last, --keep-daily, ...")
    policy = Retention(**counts, within=timedelta(seconds=within) if within else None)
    repository = call.repository(call.needs(repo, "repository", "REPO"))
    report = operation(repository, policy, dry_run=dry_run, observer=call.observer)
    rows = [(k.id, "keep", ", ".join(k.reasons)) for k in report.kept]
    rows += [(name, "would remove" if dry_run else "removed", "") for name in report.removed]
    lines = [output.table(("snapshot", "", "because"), sorted(rows))] if rows else []
    would = "would be " if dry_run else ""
    lines.append(
        f"{plural(report.deleted_objects, 'object')} {would}deleted, "
        f"{output.size(report.freed_bytes)} {would}freed, {output.size(report.repacked_bytes)} {would}repacked"
    )
    if report.deferred:
        lines.append("a backup was under way: its objects are left to the next prune")
    return Reply(report, "\n".join(lines))


@command("unlock", example="chromakeep unlock s3://bucket/prefix")
@place("repo", "REPO")
@click.option("--everything", is_flag=True, help="End the sessions of writers that may still be alive, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be ended, change nothing.")
def unlock(call: Call, repo: str | None, everything: bool, dry_run: bool) -> Reply:
    """End the sessions that dead writers left behind.

    A prune need not wait for them then. A writer whose session is ended cannot publish: it fails and must start again.
    """
    from chromakeep.operations.unlock import unlock as operation

    repository = call.repository(call.needs(repo, "repository", "REPO"))
    report = operation(repository, everything=everything, dry_run=dry_run)
    lines = [f"{'would end' if dry_run else 'ended'} {session}" for session in report.fenced]
    lines += [f"left {session}: it may be alive (--everything ends it, too)" for session in report.left]
    return Reply(report, "\n".join(lines) or "nothing to end")
