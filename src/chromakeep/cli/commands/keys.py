"""``keys``: commands about the keys with which clients come in through the door."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chromakeep.cli import durations, output
from chromakeep.cli.command import Call, command
from chromakeep.cli.output import Reply
from chromakeep.errors import UsageError

if TYPE_CHECKING:
    from chromakeep.operations.keyring import KeyPlace

WHERE = ("repository", "data")
ONCE = "this token is not kept and not shown again: give it to the client now"


@click.group("keys")
def keys() -> None:
    """Make, list, revoke and rotate clients' keys for the door."""


def _place(call: Call) -> KeyPlace:
    """The repository if there is one, else the data directory; a flag goes before what is only configured."""
    from chromakeep.operations.keyring import DirectoryKeys, RepositoryKeys

    found = {one.key: one for one in call.settings.all() if one.key in WHERE and one.value is not None}
    flags = [key for key, one in found.items() if one.origin == f"--{key}"]
    if len(flags) == 2:
        raise UsageError("--repository and --data: keys lie in one place", hint="name the one that the server uses")
    chosen = flags[0] if flags else next((key for key in WHERE if key in found), None)
    if chosen is None:
        raise UsageError("nothing says where the keys lie", hint="--repository ADDRESS, or --data DIR without one")
    address = str(found[chosen].value)
    if chosen == "repository":
        return RepositoryKeys(call.repository(address), call.observer)
    return DirectoryKeys(Path(address))


def _patterns(text: str | None) -> tuple[str, ...]:
    found = tuple(one.strip() for one in text.split(",")) if text is not None else ()
    if not all(found):
        raise UsageError(f"--collections: an empty pattern in {text!r}", hint="write it like 'docs-*,laws'")
    return found


@command(
    "create",
    keys=WHERE,
    example="""
        chromakeep keys create app --role writer --repository s3://bucket/prefix
        chromakeep keys create search --role reader --collections 'docs-*,faq' --expires 90d --data ./chroma
    """,
)
@click.argument("name")
@click.option("--role", type=click.Choice(("reader", "writer", "admin")), required=True, help="What it may do.")
@click.option("--tenant", metavar="T", help="Only in this tenant.")
@click.option("--database", metavar="D", help="Only in databases of this name.")
@click.option("--collections", metavar="A,B", help="Only collections whose names match; * is any characters.")
@click.option("--expires", metavar="TIME", help="Valid for this long.")
@click.option("--rate", type=float, metavar="N", help="At most N requests a second.")
@click.option("--concurrency", type=int, metavar="N", help="At most N requests at a time.")
@click.option("--body", type=int, metavar="BYTES", help="No request larger than this.")
@click.option("--time", "longest", metavar="TIME", help="No request longer than this.")
def _create(
    call: Call,
    name: str,
    role: str,
    tenant: str | None,
    database: str | None,
    collections: str | None,
    expires: str | None,
    rate: float | None,
    concurrency: int | None,
    body: int | None,
    longest: str | None,
) -> Reply:
    """Make a key and print its token, this once.

    What is kept is a digest, from which nobody gets the token back. A client sends it as `Authorization: Bearer TOKEN`
    or `X-Chroma-Token: TOKEN`.
    """
    from chromakeep.operations.keyring import create, shown

    key, token = create(
        _place(call),
        name,
        role,  # type: ignore[arg-type]  # one of click's choices
        tenant=tenant,
        database=database,
        collections=_patterns(collections),
        lifetime=None if expires is None else durations.seconds(expires),
        rate=rate,
        concurrency=concurrency,
        body=body,
        time=None if longest is None else durations.seconds(longest),
    )
    output.write(ONCE, sys.stderr)
    return Reply({"key": shown(key, time.time()), "token": token}, token)


@command("list", keys=WHERE, example="chromakeep keys list --repository s3://bucket/prefix")
def _list(call: Call) -> Reply:
    """List the keys, oldest first; a revoked one for 90 days more."""
    from chromakeep.operations.keyring import load, shown

    now = time.time()
    found = [shown(key, now) for key in load(_place(call)).keys]
    rows = [
        (k.id, k.name, k.role, k.state, k.tenant or "any", k.database or "any", ",".join(k.collections) or "all", end)
        for k in found
        for end in [min((t for t in (k.expires, k.revoked) if t), default="never")]
    ]
    heads = ("id", "name", "role", "state", "tenant", "database", "collections", "ends")
    return Reply({"keys": found}, output.table(heads, rows) if rows else "no keys")


@command("revoke", keys=WHERE, example="chromakeep keys revoke app --repository s3://bucket/prefix")
@click.argument("name")
def _revoke(call: Call, name: str) -> Reply:
    """End a key, and what a rotation of it has left valid.

    A running server knows some seconds later.
    """
    from chromakeep.operations.keyring import revoke, shown

    now = time.time()
    found = [shown(key, now) for key in revoke(_place(call), name)]
    return Reply({"revoked": found}, "\n".join(f"revoked {k.name} ({k.id})" for k in found))


@command("rotate", keys=WHERE, example="chromakeep keys rotate app --overlap 1h --repository s3://bucket/prefix")
@click.argument("name")
@click.option("--overlap", metavar="TIME", default="0", help="The old token stays valid for this long. [default: 0s]")
def _rotate(call: Call, name: str, overlap: str) -> Reply:
    """Give a key a new secret and print its token, this once.

    Name, rights and length of life stay. Without --overlap all older tokens of the key end at once.
    """
    from chromakeep.operations.keyring import rotate, shown

    key, token, old = rotate(_place(call), name, overlap=durations.seconds(overlap))
    now = time.time()
    output.write(ONCE, sys.stderr)
    return Reply({"key": shown(key, now), "token": token, "replaced": [shown(one, now) for one in old]}, token)


for _command in (_create, _list, _revoke, _rotate):
    keys.add_command(_command)
