"""The program ``chromakeep``: its commands, and how an invocation ends."""

from __future__ import annotations

import os
import signal
from types import FrameType

import click

from chromakeep import __version__
from chromakeep.cli import failures
from chromakeep.cli.commands import (
    configuration,
    copy,
    directory,
    history,
    key,
    move,
    replicate,
    repository,
    restore,
    run,
    transfer,
)

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
    """The group of all commands, in the order in which a new user meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.commands, n=1)
            raise click.UsageError(f"no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Program, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="chromakeep %(version)s")
def program() -> None:
    """Keep a ChromaDB: exact hot snapshots to any bucket, verified restores, a server that survives its container."""


for _command in (
    repository.init,
    run.run,
    replicate.replicate,
    directory.backup,
    restore.restore,
    restore.rollback,
    move.push,
    move.pull,
    move.send,
    repository.snapshots,
    history.history,
    directory.show,
    copy.copy,
    copy.export,
    copy.import_,
    transfer.transfer,
    repository.check,
    repository.prune,
    repository.unlock,
    key.key,
    configuration.config,
    configuration.completion,
):
    program.add_command(_command)


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit status; nothing but the status and the output leaves here."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    command = next((a for a in ours if not a.startswith("-")), None)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        status = int(program.main(arguments, prog_name="chromakeep", standalone_mode=False) or 0)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        debug = "--debug" in ours or os.environ.get("CHROMAKEEP_DEBUG", "").lower() in ("1", "true", "yes", "on")
        known = command if command in program.commands else None
        status = failures.report(error, command=known, as_json="--json" in ours, debug=debug)
    return status


def _terminated(number: int, frame: FrameType | None) -> None:
    """End by exception, so that a half-made directory is removed on the way out."""
    raise SystemExit(128 + number)
