"""``config show`` and ``completion``: commands about the command line itself."""

from __future__ import annotations

import click

from chromakeep.addresses import parse, without_password
from chromakeep.cli import output
from chromakeep.cli.command import Call, Command, command
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import KEYS, SECRETS

SHELLS = {
    "bash": "~/.local/share/bash-completion/completions/chromakeep",
    "zsh": "a directory of your fpath, as _chromakeep",
    "fish": "~/.config/fish/completions/chromakeep.fish",
}
MASK = "********"


@click.group("config")
def config() -> None:
    """Show the configuration."""


@command(
    "show", keys=tuple(k for k in KEYS if k not in ("password_file", "progress")), example="chromakeep config show"
)
def _show(call: Call) -> Reply:
    """Show every setting with where it comes from; secrets are masked.

    Flags go before CHROMAKEEP_* variables, these before the file, the file before the default. The file is --config,
    else CHROMAKEEP_CONFIG, else ./chromakeep.toml.
    """
    found = [{"key": s.key, "value": _shown(s.key, s.value), "origin": s.origin} for s in call.settings.all()]
    secrets = [(name, origin) for name in SECRETS if (origin := call.settings.origin(name))]
    found += [{"key": name, "value": MASK, "origin": origin} for name, origin in secrets]
    rows = [(str(s["key"]), _text(s["value"]), str(s["origin"])) for s in found]
    return Reply({"settings": found}, output.table(("setting", "value", "origin"), rows))


config.add_command(_show)


def _shown(key: str, value: object) -> object:
    """An address may carry credentials: the one way to print it is the address's own."""
    if key == "engine" and isinstance(value, str) and "://" in value:
        return without_password(value)
    return str(parse(value)) if key == "repository" and isinstance(value, str) else value


def _text(value: object) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


class _Script(Command):
    example = "chromakeep completion bash > " + SHELLS["bash"]


@click.command("completion", cls=_Script)
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands in SHELL.

    \b
    bash  save it as ~/.local/share/bash-completion/completions/chromakeep
    zsh   save it as _chromakeep in a directory of your fpath
    fish  save it as ~/.config/fish/completions/chromakeep.fish
    """
    from click.shell_completion import get_completion_class

    program, made = ctx.find_root().command, get_completion_class(shell)
    assert made is not None, shell
    output.write(made(program, {}, "chromakeep", "_CHROMAKEEP_COMPLETE").source())
