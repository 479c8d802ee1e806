"""Failure: any exception to one line, a hint and an exit status."""

from __future__ import annotations

import errno
import json
import sys
import traceback

import click

from chromakeep import __version__
from chromakeep.cli import output
from chromakeep.errors import ChromakeepError, DiskFull, UsageError

INTERRUPTED = 130
BUG = 70


def report(error: BaseException, *, command: str | None, as_json: bool, debug: bool) -> int:
    """Tell of ``error`` on stderr, and on stdout as the one JSON object when ``as_json``; return the exit status."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and error.ctx is not None:
        output.write(error.ctx.get_help())
        return 0
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        known, status, code = ChromakeepError("interrupted"), INTERRUPTED, "interrupted"
    elif (seen := _known(error, command)) is not None:
        known, status, code = seen, seen.exit_status, seen.code
    else:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        where = f"please report it, with what the same command says with --debug, and: chromakeep {__version__}"
        python = ".".join(map(str, sys.version_info[:3]))
        known = ChromakeepError(f"a bug in chromakeep: {what}", hint=f"{where}, Python {python}, {sys.platform}")
        status, code = BUG, "bug"
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    output.write(f"chromakeep: {_one_line(known.message)}", sys.stderr)
    if known.hint:
        output.write(f"  hint: {_one_line(known.hint)}", sys.stderr)
    if as_json:
        document = {"command": command, "ok": False, "code": code, "message": known.message, "hint": known.hint}
        output.write(json.dumps({**document, "exit_status": status}, ensure_ascii=False))
    return status


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
