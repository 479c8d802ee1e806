"""``transfer``: commands that move a live service from one place to another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chromakeep.cli import added, output
from chromakeep.cli.command import Call, command, names, place
from chromakeep.cli.commands.copy import FROM, TO, means_of, needs_arrow, renames, token_of, work_of
from chromakeep.cli.durations import seconds
from chromakeep.cli.output import Reply
from chromakeep.words import plural

if TYPE_CHECKING:
    from chromakeep.operations.doors import Doors
    from chromakeep.operations.standing import Standing
    from chromakeep.operations.transfer import Ends, Opening
    from chromakeep.operations.transfer_state import State, StateFile

STATE = click.option(
    "--state",
    metavar="PATH",
    default="chromakeep-transfer.json",
    show_default=True,
    type=click.Path(readable=False),
    help="File in which it is written down where the transfer stands.",
)
RESUME = click.option("--resume-writes", metavar="COMMAND", help="Begins again what --stop-writes ended.")


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group("transfer", cls=_InOrder)
def transfer() -> None:
    """Move a service that is in use, step by step."""


@command(
    "start",
    example="""
        chromakeep transfer start ./chroma http://new:8000
        chromakeep transfer start http://old:8000 http://new:8000/acme/prod --rename docs=docs-2024
    """,
)
@place("source", "A", required=True)
@place("target", "B", required=True)
@click.option("--collections", metavar="A,B", help="Only these collections; else all, also those made later.")
@click.option("--rename", multiple=True, metavar="A=B", help="What a collection is called at B; may be repeated.")
@click.option("--tenant", metavar="NAME", help="The tenant at B, instead of the one it was in.")
@click.option("--database", metavar="NAME", help="The database at B, instead of the one it was in.")
@click.option(
    "--on-conflict",
    "conflict",
    type=click.Choice(("fail", "upsert", "replace")),
    default="fail",
    show_default=True,
    help="What becomes of a collection that B has already: upsert overwrites records of the same id and never deletes"
    " any, replace puts the new one in its place and keeps the old.",
)
@click.option("--rate", type=click.FloatRange(min=0.001), metavar="N", help="At most N records a second.")
@click.option("--work", metavar="PATH", help="Where working copies are kept until the cleanup.")
@STATE
def _start(call: Call, source: str, target: str, work: str | None, state: str, **given: Any) -> Reply:
    """Copy all collections of A to B while A is in use.

    A is a Chroma directory or a server, B a server (http://host:8000/tenant/database, chroma-cloud://tenant/database).
    A copy that was killed goes on when the same command is run again.
    """
    needs_arrow()
    from chromakeep.operations.tracked import Options
    from chromakeep.operations.transfer import start
    from chromakeep.operations.transfer_ends import absolute, placed

    options = Options(
        names(given["collections"]),
        renames(given["rename"]),
        given["tenant"],
        given["database"],
        given["conflict"],
        given["rate"],
    )
    at = Path(work).absolute() if work else work_of(None, source, target).parent
    found = start(
        _file(state),
        absolute(source),
        target,
        placed(options, target),
        at,
        _opening(call),
        observer=call.observer,
    )
    return _reply(found, f"copied {plural(found.records, 'record')} to {found.target}")


@command(
    "follow",
    service=True,
    example="""
        chromakeep transfer follow --until-quiet
        chromakeep transfer follow --every 10s
    """,
)
@click.option("--until-quiet", is_flag=True, help="Round after round, until one had nothing to do.")
@click.option("--every", "interval", metavar="TIME", help="A round this often, until SIGTERM or Ctrl-C.")
@click.option("--allow-empty", is_flag=True, help="Go on though none of the collections is at A any more.")
@click.option("--discard", is_flag=True, help="After a rollback: undo what was written to B since, and go on.")
@STATE
def _follow(call: Call, until_quiet: bool, interval: str | None, allow_empty: bool, discard: bool, state: str) -> Reply:
    """Bring B up to what changed at A since: one round, or many.

    Records that are new or different are written, those that are gone at A are deleted at B, and so are collections,
    unless B had them before. Nothing is read while a directory A was not written to.
    """
    needs_arrow()
    from chromakeep.operations.transfer import follow, status

    file = _file(state)
    try:
        found = follow(
            file,
            _opening(call),
            until_quiet=until_quiet,
            every=None if interval is None else seconds(interval),
            allow_empty=allow_empty,
            discard=discard,
            observer=call.observer,
        )
    except (KeyboardInterrupt, SystemExit):
        if interval is None:
            raise
        found = status(file)  # whatever round it was in is made again by the next one
    return _reply(found)


@command("verify", example="chromakeep transfer verify")
@STATE
def _verify(call: Call, state: str) -> Reply:
    """Compare every record at B with A as it was when B was last brought up to it."""
    needs_arrow()
    from chromakeep.operations.transfer import verify

    return _reply(verify(_file(state), _opening(call), observer=call.observer))


@command(
    "switch",
    example="""
        chromakeep transfer switch --stop-writes "docker stop app" --env-file app.env --hook "docker start app"
    """,
)
@click.option(
    "--door",
    metavar="URL",
    help="Where `run` or `serve` serves A: writes are refused there. Found without it if A is given as that URL.",
)
@click.option("--stop-writes", metavar="COMMAND", help="Ends whatever writes to A.")
@RESUME
@click.option("--drain", metavar="TIME", default="2s", show_default=True, help="How long to wait after that.")
@click.option("--env-file", metavar="PATH", help="File in which the application finds the address.")
@click.option("--variable", metavar="NAME", default="CHROMA_URL", show_default=True, help="Its name in that file.")
@click.option("--value", metavar="TEXT", help="What is written there: the address of B unless given.")
@click.option("--hook", metavar="COMMAND", help="Run when all is switched.")
@click.option(
    "--recent",
    metavar="TIME",
    default="1h",
    show_default=True,
    help="Refuse if B was not brought up to A, or verified, for longer than this.",
)
@STATE
def _switch(
    call: Call,
    door: str | None,
    stop_writes: str | None,
    resume_writes: str | None,
    drain: str,
    env_file: str | None,
    variable: str,
    value: str | None,
    hook: str | None,
    recent: str,
    state: str,
) -> Reply:
    """Stop writes to A, bring B up to it for the last time, verify every record, and only then let B take over.

    If anything fails before the env file is written, writes are resumed and A is in use as before. Commands are run
    without a shell. The same command goes on where one was killed.
    """
    needs_arrow()
    from chromakeep.operations.switch import How, switch

    how = How(
        stop_writes,
        resume_writes,
        seconds(drain),
        Path(env_file) if env_file else None,
        variable,
        value,
        hook,
        seconds(recent),
        door,
    )
    return _reply(switch(_file(state), _opening(call), how, run=_run, doors=_doors(), observer=call.observer))


@command("rollback", example='chromakeep transfer rollback --hook "docker compose up -d app"')
@RESUME
@click.option("--hook", metavar="COMMAND", help="Run when all is back.")
@STATE
def _rollback(call: Call, resume_writes: str | None, hook: str | None, state: str) -> Reply:
    """Go back to A: the old line of the env file, writes at its door, --resume-writes of the switch, the hook.

    What was written to B after the switch is not carried back; how many records differ is told.
    """
    needs_arrow()
    from chromakeep.operations.switch import rollback

    return _reply(
        rollback(
            _file(state),
            _opening(call),
            run=_run,
            resume_writes=resume_writes,
            hook=hook,
            doors=_doors(),
            observer=call.observer,
        )
    )


@command("cleanup", example="chromakeep transfer cleanup")
@click.option("--force", is_flag=True, help="Also of a transfer that is not over.")
@STATE
def _cleanup(call: Call, force: bool, state: str) -> Reply:
    """Remove the working copies and the state file; nothing at A or B."""
    from chromakeep.operations.transfer import cleanup

    return _reply(cleanup(_file(state), force=force))


@command("status", example="chromakeep transfer status")
@STATE
def _status(call: Call, state: str) -> Reply:
    """Show where the transfer stands and what to run next."""
    needs_arrow()
    from chromakeep.operations.transfer import status

    return _reply(status(_file(state), _opening(call)))


for _command in (_start, _follow, _verify, _switch, _rollback, _cleanup, _status):
    transfer.add_command(_command)


def _file(state: str) -> StateFile:
    from chromakeep.operations.transfer_state import StateFile

    return StateFile(Path(state))


def _opening(call: Call) -> Opening:
    from chromakeep.operations.transfer_ends import ends_of

    def opening(state: State) -> Ends:
        at = Path(state.work)
        return ends_of(state, means_of(call, FROM, at), means_of(call, TO, at))

    return opening


def _doors() -> Doors:
    from chromakeep.operations.doors import Doors

    return Doors(token_of("CHROMA_TOKEN", FROM))


def _run(words: Sequence[str]) -> int:
    """Run a program; what it says is shown on stderr, as stdout belongs to our answer."""
    sys.stderr.flush()
    env = {name: value for name, value in os.environ.items() if name not in added}
    return subprocess.run(list(words), env=env, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode


def _reply(found: Standing, said: str = "") -> Reply:
    lines = [said] if said else []
    if found.phase == "gone":
        return Reply(found, "there is no transfer any more")
    lines += [
        f"from      {output.printable(found.source)}",
        f"to        {output.printable(found.target)}",
        f"phase     {found.phase} since {output.when(found.since)}",
    ]
    if last := found.last_round:
        did = f"{last.upserted:,} written, {last.deleted:,} deleted"
        did += f", {plural(last.created, 'collection')} copied" if last.created else ""
        did += f", {plural(last.dropped, 'collection')} dropped" if last.dropped else ""
        lines.append(f"round {found.rounds:<3} {output.when(last.at)}: {did}")
    if found.verified:
        what = f"{plural(found.verified.records, 'record')} compared"
        lines.append(f"verified  {found.verification}; {output.when(found.verified.at)}: {what}")
    if found.rolled_back and found.rolled_back.differing is not None:
        lines.append(f"differing {plural(found.rolled_back.differing, 'record')}")
    if found.collections:
        rows = [
            (each.name, each.target, f"{each.records:,}", "was there before" if each.existed else "")
            for each in found.collections
        ]
        lines += ["", output.table(("collection", "at B", "records", ""), rows, "records")]
    lines += [f"note: {output.printable(each)}" for each in found.told]
    lines += [f"next: {output.printable(each)}" for each in found.next_steps]
    return Reply(found, "\n".join(lines))
