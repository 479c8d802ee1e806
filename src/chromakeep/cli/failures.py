"""Failure: any exception to one line, a hint and an exit status."""

from __future__ import annotations

import errno
import json
import sys
import traceback

import click
import msgspec

from chromakeep import __version__
from chromakeep.cli import output
from chromakeep.errors import ChromakeepError, DiskFull, UsageError

INTERRUPTED = 130
BUG = 70


class Failure(msgspec.Struct, frozen=True):
    """How an invocation ends: what is said, the exit status, the code."""

    known: ChromakeepError
    status: int
    code: str

    @property
    def message(self) -> str:
        """In one line."""
        return _one_line(self.known.message)

    @property
    def hint(self) -> str | None:
        return _one_line(self.known.hint) if self.known.hint else None

    def json(self, command: str | None) -> str:
        """The one object of ``--json``."""
        known = self.known
        document = {"command": command, "ok": False, "code": self.code, "message": known.message, "hint": known.hint}
        return json.dumps({**document, "exit_status": self.status}, ensure_ascii=False)


def understood(error: BaseException, command: str | None) -> Failure:
    """What ``error`` is; of one that nobody foresaw, a bug."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Failure(ChromakeepError("interrupted"), INTERRUPTED, "interrupted")
    if (seen := _known(error, command)) is not None:
        return Failure(seen, seen.exit_status, seen.code)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    where = f"please report it, with what the same command says with --debug, and: chromakeep {__version__}"
    python = ".".join(map(str, sys.version_info[:3]))
    bug = ChromakeepError(f"a bug in chromakeep: {what}", hint=f"{where}, Python {python}, {sys.platform}")
    return Failure(bug, BUG, "bug")


def report(error: BaseException, *, command: str | None, as_json: bool, debug: bool) -> int:
    """Tell of ``error`` on stderr, and on stdout as the one JSON object when ``as_json``; return the exit status."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and error.ctx is not None:
        output.write(error.ctx.get_help())
        return 0
    failure = understood(error, command)
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    output.write(f"chromakeep: {failure.message}", sys.stderr)
    if failure.hint:
        output.write(f"  hint: {failure.hint}", sys.stderr)
    if as_json:
        output.write(failure.json(command))
    return failure.status


def _known(error: BaseException, command: str | None) -> ChromakeepError | None:
    """``error`` as one of ours, or None: then it is a bug."""
    if isinstance(error, ChromakeepError):
        return error
    if isinstance(error, click.ClickException):
        asked = f"chromakeep {command} --help" if command else "chromakeep --help"
        return UsageError(error.format_message().rstrip("."), hint=f"see `{asked}`")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(_told(error), hint="free some space and run the same command again")
    if isinstance(error, PermissionError):
        return ChromakeepError(_told(error), hint="run as the user who owns it, or give this user the permission")
    if isinstance(error, OSError) and error.filename is not None:
        return ChromakeepError(_told(error))
    return None


def _told(error: OSError) -> str:
    what = (error.strerror or str(error)).lower()
    return f"{error.filename}: {what}" if error.filename else what


def _one_line(text: str) -> str:
    return output.printable(" ".join(text.split()))
