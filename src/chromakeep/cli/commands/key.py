"""``key``: commands about the passwords of an encrypted repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chromakeep.cli import output
from chromakeep.cli.command import Call, command, place
from chromakeep.cli.output import Reply
from chromakeep.errors import UsageError

if TYPE_CHECKING:
    from chromakeep.operations.key import KeyReport

NEW = ("new_password_file",)


@click.group("key")
def key() -> None:
    """List, add, remove and change a repository's passwords."""


def _reply(report: KeyReport, said: str = "") -> Reply:
    rows = [(k.id, output.when(k.created), k.kdf) for k in report.keys]
    shown = (
        output.table(("key", "created", "stretched by"), rows) if rows else "no keys: the repository is not encrypted"
    )
    return Reply(report, f"{said}\n{shown}" if said else shown)


def _new(call: Call) -> str:
    password = call.settings.secret("new_password")
    if password is None:
        hint = "set CHROMAKEEP_NEW_PASSWORD, or --new-password-file to a file that holds it"
        raise UsageError("the new password is missing", hint=hint)
    return password


@command("list", example="chromakeep key list s3://bucket/prefix")
@place("repo", "REPO")
def _list(call: Call, repo: str | None) -> Reply:
    """List the passwords' keys, oldest first."""
    from chromakeep.operations.key import keys

    return _reply(keys(call.repository(call.needs(repo, "repository", "REPO"))))


@command("add", keys=NEW, example="chromakeep key add s3://bucket/prefix --new-password-file /run/secrets/second")
@place("repo", "REPO")
def _add(call: Call, repo: str | None) -> Reply:
    """Add a password that opens the repository, too.

    The new one comes from CHROMAKEEP_NEW_PASSWORD or --new-password-file.
    """
    from chromakeep.operations.key import add

    password = _new(call)
    report = add(call.repository(call.needs(repo, "repository", "REPO")), password)
    return _reply(report, f"added {report.added}")


@command("remove", example="chromakeep key remove s3://bucket/prefix 3f9a")
@place("repo", "REPO", required=True)
@click.argument("identity", metavar="KEY")
def _remove(call: Call, repo: str, identity: str) -> Reply:
    """Take a password away, by the beginning of its key; never the last one."""
    from chromakeep.operations.key import remove

    report = remove(call.repository(repo), identity)
    return _reply(report, f"removed {', '.join(report.removed)}")


@command("change", keys=NEW, example="CHROMAKEEP_NEW_PASSWORD_FILE=/run/secrets/new chromakeep key change ./keep")
@place("repo", "REPO")
def _change(call: Call, repo: str | None) -> Reply:
    """Make a new password the only one; no data is rewritten.

    The new one comes from CHROMAKEEP_NEW_PASSWORD or --new-password-file. Whoever copied the repository before can
    still open that copy with the old one.
    """
    from chromakeep.operations.key import change

    password = _new(call)
    report = change(call.repository(call.needs(repo, "repository", "REPO")), password)
    return _reply(report, f"added {report.added}, removed {', '.join(report.removed)}")


for _command in (_list, _add, _remove, _change):
    key.add_command(_command)
