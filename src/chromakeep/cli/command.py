"""Command: what all commands share: common options, settings, progress and one reply."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from chromakeep.addresses import parse
from chromakeep.cli import failures, log, output, progress
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import KEYS, Settings
from chromakeep.errors import UsageError

if TYPE_CHECKING:
    from chromakeep.cli.failures import Failure
    from chromakeep.cli.log import Log
    from chromakeep.events import Observer
    from chromakeep.repository import Repository

METAVARS = {"text": "TEXT", "path": "PATH", "number": "N", "duration": "TIME"}


class Call:
    """One invocation of a command: its settings and who observes the operation."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self.settings, self.observer = settings, observer

    def repository(self, address: str) -> Repository:
        """Open the repository at ``address`` with the configured password."""
        from chromakeep.errors import RepositoryNotFound
        from chromakeep.repository import Repository
        from chromakeep.store.open import open_store

        place = parse(address)
        store = open_store(place)
        try:
            return Repository.open(store, password=self.settings.secret())
        except RepositoryNotFound as error:  # a repository does not know its address
            raise RepositoryNotFound(f"{place}: {error}", hint=error.hint) from None

    def create(self, address: str) -> Repository:
        """Make a repository at ``address``, encrypted when a password is configured."""
        from chromakeep.repository import Repository
        from chromakeep.store.open import open_store

        return Repository.create(open_store(parse(address), create=True), password=self.settings.secret())

    def needs(self, given: str | None, key: str, name: str) -> str:
        """The positional argument ``name``, or the setting that stands for it when it is left out."""
        value = given or self.settings.text(key)
        if value is None:
            raise UsageError(f"{name} is missing", hint=f"give it as an argument, or set {KEYS[key].variable}")
        return value


class Command(click.Command):
    """A command that shows an example below its options."""

    example: str = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            for line in self.example.strip().splitlines():
                formatter.write(f"  $ {line.strip()}\n")


def setting(name: str) -> Callable[[Any], Any]:
    """The option of one key; a value that is not given stays None, so that environment and file are asked."""
    key = KEYS[name]
    told = key.help if key.default in (None, False, 0) else f"{key.help} [default: {_default(key.kind, key.default)}]"
    if key.kind == "flag":
        return click.option(f"{key.flag}/--no-{name.replace('_', '-')}", name, default=None, help=told)
    metavar = "|".join(key.choices) if key.choices else METAVARS[key.kind]
    return click.option(key.flag, name, default=None, metavar=metavar, help=told, shell_complete=_complete(name))


def _default(kind: str, value: object) -> str:
    return f"{value:g}s" if kind == "duration" else str(value)


def _complete(name: str) -> Callable[[click.Context, click.Parameter, str], list[Any]] | None:
    key = KEYS[name]

    def complete(ctx: click.Context, param: click.Parameter, start: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        if key.kind == "path":
            return [CompletionItem(start, type="file")]
        return [CompletionItem(choice) for choice in key.choices if choice.startswith(start)]

    return complete if key.choices or key.kind == "path" else None


def place(parameter: str, shown: str, *, required: bool = False) -> Callable[[Any], Any]:
    """A positional argument that names a directory or a repository, ``shown`` so in the help."""
    return click.argument(
        parameter, required=required, type=click.Path(readable=False), metavar=shown if required else f"[{shown}]"
    )


def names(text: str | None) -> tuple[str, ...] | None:
    """The names in ``A,B``. Raises ``UsageError`` for an empty one."""
    if text is None:
        return None
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise UsageError(f"--collections: an empty name in {text!r}", hint="write it like books,laws")
    return found


def told_to_stop() -> threading.Event:
    """Set from now on by SIGTERM, SIGINT (Ctrl-C) and SIGHUP."""
    stop = threading.Event()
    on_stop(stop.set)
    return stop


def on_stop(then: Callable[[], None]) -> None:
    """Have this done whenever a signal asks for the end, as a terminal does that is closed, unless nohup said no."""

    def asked(number: int, frame: FrameType | None) -> None:
        if number == hangup:
            signal.signal(number, signal.SIG_IGN)  # the kernel and a shell both send it
        then()

    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        signal.signal(hangup, asked)


COMMON = (
    setting("password_file"),
    click.option("--config", metavar="PATH", help="Configuration file. [default: chromakeep.toml]"),
    setting("progress"),
    click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object on stdout."),
    click.option("--debug", is_flag=True, help="Show a traceback when something fails."),
)


def command(
    name: str, *, example: str, keys: tuple[str, ...] = (), service: bool = False, **extra: Any
) -> Callable[[Callable[..., Reply]], Command]:
    """Make a command of ``function(call, **arguments) -> Reply``; its docstring is the help, ``keys`` its settings.

    A ``service`` runs until it is told to stop, and may have a log.
    """

    def decorate(function: Callable[..., Reply]) -> Command:
        @click.pass_context
        def body(ctx: click.Context, /, as_json: bool, debug: bool, config: str | None, **given: Any) -> None:
            flags = {key: given.pop(key) for key in list(given) if key in KEYS}
            settings = Settings(flags, os.environ, config)
            name = ctx.command_path.removeprefix("chromakeep ")
            kept = log.wanted(settings) if service else None
            shown = kept or progress.choose(settings.text("progress") or "auto", service=service)
            try:
                reply = function(Call(settings, shown), **given)
            except Exception as error:  # whatever ends a service is in its log; it is raised all the same
                if kept:
                    _logged(ctx, kept, failures.understood(error, name), as_json=as_json, debug=debug)
                raise
            finally:
                shown.close()
            if kept:
                kept.ended(reply)
            said = reply.json(name) if as_json else "" if kept and kept.stream == 1 else reply.text
            if said:
                output.write(said)
            ctx.exit(reply.exit_status)

        body.__doc__ = function.__doc__
        shared: Any = body
        for option in reversed(COMMON):
            shared = option(shared)
        for key in reversed((*keys, *log.KEYS) if service else keys):
            shared = setting(key)(shared)
        own = getattr(function, "__click_params__", [])
        shared.__click_params__ += own  # click keeps them last first: a command's own options are shown before ours
        made: Command = click.command(name, cls=Command, **extra)(shared)
        made.example = example
        return made

    return decorate


def _logged(ctx: click.Context, kept: Log, failure: Failure, *, as_json: bool, debug: bool) -> None:
    """Tell of it in the log; where that is JSON on stderr, nothing else is said there."""
    kept.failed(failure)
    if kept.stream == 2 and not kept.text and not debug:
        if as_json:
            output.write(failure.json(ctx.command_path.removeprefix("chromakeep ")))
        ctx.exit(failure.status)
