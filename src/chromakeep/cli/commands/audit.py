"""``audit``: commands about the audit log of ``run``."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chromakeep.addresses import parse
from chromakeep.cli import output
from chromakeep.cli.command import Call, command, place
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import KEYS
from chromakeep.errors import RepositoryNotFound, UsageError, VerificationFailed
from chromakeep.words import plural

if TYPE_CHECKING:
    from chromakeep.repository import Repository

MOST = 100_000  # records that are shown at most
EVENTS = ("write", "denied", "denied more", "key", "opened", "torn", "lost")
_TIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?Z?)?)?)?", re.ASCII)
_EARLIEST = "0001-01-01T00:00:00"  # what a time that is cut short stands for


@click.group("audit")
def audit() -> None:
    """Verify, show and prune the audit log of `run`."""


def _places(call: Call, given: tuple[str, ...]) -> tuple[list[Path], dict[str, Repository]]:
    """Files as they are, everything else is a repository; where none is given, those that the settings name."""
    from chromakeep.operations.audit_file import files

    if not given:
        log, repository = call.settings.text("audit_log"), call.settings.text("repository")
        given = (*(map(str, files(Path(log))) if log else ()), *([repository] if repository else ()))
    if not given:
        raise UsageError("FILE or REPO is missing", hint=f"give one, or set {KEYS['audit_log'].variable}")
    addresses = [one for one in given if not Path(one).is_file()]
    for one in map(parse, addresses):
        if not one.is_url and not Path(one.place).exists():
            hint = "name files of an audit log, or the repository that has a copy"
            raise RepositoryNotFound(f"{one}: no such file or repository", hint=hint)
    return [Path(one) for one in given if Path(one).is_file()], {
        str(parse(address)): call.repository(address) for address in addresses
    }


def _since(text: str | None) -> str:
    """The beginning of what is not older, as records write their time. Raises ``UsageError`` for what is no time."""
    if text is None:
        return ""
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        begins = text.removesuffix("Z")
        datetime.fromisoformat(begins[:19] + _EARLIEST[len(begins) :])
    except ValueError:
        raise UsageError(f"--since {text}: no time", hint="write it in UTC, like 2026-11-25T12:00:00Z") from None
    return begins


@command(
    "verify",
    example="""
        chromakeep audit verify /var/log/audit.log*
        chromakeep audit verify s3://bucket/prefix
        chromakeep audit verify /var/log/audit.log* s3://bucket/prefix
    """,
)
@click.argument("places", nargs=-1, metavar="[FILE|REPO]...")
def _verify(call: Call, places: tuple[str, ...]) -> Reply:
    """Follow the chain of hashes, and compare files with what a repository has.

    A file by itself shows what was edited, removed, added or moved within it. That its end was cut off, or that all of
    it was written anew, only a comparison with the repository shows. Exit status 14 where a chain breaks.
    """
    from chromakeep.operations.audit_verify import verify

    report = verify(*_places(call, places))
    lines = [
        f"{c.where}: records {c.first:,} to {c.last:,} of {c.instance}, {c.hash}"
        + (f"; {plural(c.interrupted, 'line')} cut short by a crash" if c.interrupted else "")
        + ("; the last line is not whole" if c.open else "")
        for c in report.chains
    ]
    lines += [f"{p.place}{f', line {p.line}' if p.line else ''}: {p.what}" for p in report.problems]
    if not report.problems:
        lines.append("no problems")
    return Reply(
        report, "\n".join(map(output.printable, lines)), VerificationFailed.exit_status if report.problems else 0
    )


@command(
    "show",
    example="""
        chromakeep audit show /var/log/audit.log --event denied
        chromakeep audit show s3://bucket/prefix --key ingest --collection books --last 50
    """,
)
@click.argument("places", nargs=-1, metavar="[FILE|REPO]...")
@click.option("--event", type=click.Choice(EVENTS), metavar="NAME", help=f"Only these: {', '.join(EVENTS)}.")
@click.option("--key", metavar="NAME", help="Only what was done with this key.")
@click.option("--collection", metavar="NAME", help="Only what was done to this collection.")
@click.option("--since", metavar="TIME", help="Only what is not older than this, as 2026-11-25T12:00:00Z.")
@click.option("--last", type=click.IntRange(1, MOST), default=1000, metavar="N", help="The last N. [default: 1000]")
def _show(
    call: Call,
    places: tuple[str, ...],
    event: str | None,
    key: str | None,
    collection: str | None,
    since: str | None,
    last: int,
) -> Reply:
    """Show records of the audit log, oldest first. Nothing is verified."""
    from collections import deque

    from chromakeep.operations.audit_verify import records

    wanted, begins = {"event": event, "key": key, "collection": collection}, _since(since)
    found: deque[dict[str, Any]] = deque(maxlen=last)
    for record in records(*_places(call, places)):
        fits = all(value is None or record.get(name) == value for name, value in wanted.items())
        if fits and str(record.get("time", "")) >= begins:
            found.append(record)
    shown = [_row(record) for record in found]
    heads = ("record", "time", "event", "key", "peer", "what", "records", "outcome")
    text = output.table(heads, shown, "record records") if shown else "no such records"
    return Reply({"records": list(found)}, text)


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    def text(name: str) -> str:
        return "" if record.get(name) is None else str(record[name])

    what = " ".join(filter(None, (text("method"), text("route") or text("path"), text("collection"))))
    count = text("records") or text("requests")
    ended = f"{text('outcome')} {text('status')}".strip()
    return text("number"), text("time"), text("event"), text("key"), text("peer"), what, count, ended


@command(
    "prune",
    example="""
        chromakeep audit prune s3://bucket/prefix --keep-within 400d
        chromakeep audit prune ./keep --keep-within 90d --dry-run
    """,
)
@place("repo", "REPO")
@click.option("--keep-within", "within", metavar="TIME", required=True, help="Keep what came here within this time.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, change nothing.")
def _prune(call: Call, repo: str | None, within: str, dry_run: bool) -> Reply:
    """Remove old records of the audit log from a repository.

    Without this they are kept for ever. What stays says where it begins, so it still verifies; a chain that does not
    verify loses nothing, and has exit status 14. The files of an instance are not touched.
    """
    from chromakeep.cli.durations import seconds
    from chromakeep.operations.audit_prune import prune

    kept = seconds(within)
    report = prune(call.repository(call.needs(repo, "repository", "REPO")), kept, dry_run=dry_run)
    would = "would be " if dry_run else ""
    lines = [f"records {c.first:,} to {c.last:,} of {c.instance}, {c.hash}: {would}removed" for c in report.chains]
    lines += [f"{p.place}{f', line {p.line}' if p.line else ''}: {p.what}; all is kept" for p in report.problems]
    lines.append(
        f"{plural(report.deleted_objects, 'object')} {would}deleted, {output.size(report.freed_bytes)} {would}freed"
    )
    return Reply(
        report, "\n".join(map(output.printable, lines)), VerificationFailed.exit_status if report.problems else 0
    )


for _command in (_verify, _show, _prune):
    audit.add_command(_command)
