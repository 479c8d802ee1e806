"""The command line: options -> one operation -> output; events -> progress; error -> exit status."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``chromakeep`` with the process's arguments and exit with its status (docs/reference.md lists them)."""
    if sys.argv[1:] == ["--version"]:  # answered before anything heavier is imported
        from chromakeep import __version__
        from chromakeep.cli import output

        output.write(f"chromakeep {__version__}")
        return
    from chromakeep.cli.app import invoke

    sys.exit(invoke(sys.argv[1:]))
