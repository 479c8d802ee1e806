"""The program ``chromakeep``: its commands, and how an invocation ends."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from importlib import import_module
from types import FrameType

import click

from chromakeep import __version__
from chromakeep.cli import failures

# In the order in which a new user meets them: name -> where it is. One is imported when it is asked for.
COMMANDS = {
    "init": "repository:init",
    "run": "run:run",
    "healthcheck": "healthcheck:healthcheck",
    "serve": "serve:serve",
    "replicate": "replicate:replicate",
    "backup": "directory:backup",
    "restore": "restore:restore",
    "rollback": "restore:rollback",
    "push": "move:push",
    "pull": "move:pull",
    "send": "move:send",
    "snapshots": "repository:snapshots",
    "history": "history:history",
    "show": "directory:show",
    "copy": "copy:copy",
    "export": "copy:export",
    "import": "copy:import_",
    "transfer": "transfer:transfer",
    "check": "repository:check",
    "prune": "repository:prune",
    "unlock": "repository:unlock",
    "keys": "keys:keys",
    "key": "key:key",
    "audit": "audit:audit",
    "config": "configuration:config",
    "completion": "configuration:completion",
}

EXAMPLE = """
  \b
  Example:
    $ chromakeep backup ./chroma s3://bucket/prefix
    $ chromakeep restore s3://bucket/prefix@latest ./chroma
    $ chromakeep run --data ./chroma --repository s3://bucket/prefix

  Arguments go from left to right: VERB FROM TO. Every option can also be set as CHROMAKEEP_OPTION in the environment
  or as option = ... in chromakeep.toml.
"""


class Program(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        found: click.Command = getattr(import_module(f"chromakeep.cli.commands.{module}"), name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(f"no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Program, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="chromakeep %(version)s")
def program() -> None:
    """Keep a ChromaDB: exact hot snapshots to any bucket, verified restores, a server that survives its container."""


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit status; nothing but the status and the output leaves here."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    signal.signal(signal.SIGTERM, _terminated)
    try:
        status = int(program.main(arguments, prog_name="chromakeep", standalone_mode=False) or 0)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        debug = "--debug" in ours or os.environ.get("CHROMAKEEP_DEBUG", "").lower() in ("1", "true", "yes", "on")
        known = _command(ours)
        status = failures.report(error, command=known, as_json="--json" in ours, debug=debug)
    return status


def _command(arguments: list[str]) -> str | None:
    """The name of the command that they are for, with that of its group."""
    words = [one for one in arguments if not one.startswith("-")]
    first, second = [*words, "", ""][:2]
    if first not in COMMANDS:
        return None
    with suppress(ImportError):  # that it cannot be imported is what went wrong then
        group = program.get_command(click.Context(program), first)
        if isinstance(group, click.Group) and second in group.commands:
            return f"{first} {second}"
    return first


def _terminated(number: int, frame: FrameType | None) -> None:
    """End by exception, so that a half-made directory is removed on the way out."""
    raise SystemExit(128 + number)
