"""An env file: one variable of it, read, written and put back; all other lines stay byte for byte as they are.

The form is that of Docker's ``env_file``, systemd's ``EnvironmentFile`` and a shell's ``. FILE``: a line is
``NAME=value``, perhaps with ``export`` before it. Of several lines of one name the last one counts.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from chromakeep.errors import ChromakeepError, UsageError
from chromakeep.operations.place import sync

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9@%_+=:,./~\[\]-]*")  # what no reader of such a file takes for anything else


class EnvFile:
    """The variable ``name`` in the file ``path``. Every write replaces the file in one step, with its mode and owner;
    a file that a symbolic link names is replaced where it is."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises ``UsageError`` for what is no name."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"--variable {name}: not a name of a variable")
        self.path, self.name = path.resolve(), name
        self._line = re.compile(rf"[ \t]*(export[ \t]+)?{name}[ \t]*=[ \t]*")

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.path.exists()

    def line(self) -> str | None:
        """The line that counts now, without its end; None if there is none. Raises ``UsageError`` if it cannot be
        read."""
        lines = self._lines()
        at = self._at(lines)
        return None if at is None else lines[at].rstrip("\r\n")

    def line_for(self, value: str) -> str:
        """The line that gives the variable this value, in the manner of the line that is there. Raises ``UsageError``
        for a value that could not be written."""
        old = self.line()
        found = self._line.match(old) if old is not None else None
        head = found[0] if found else f"{self.name}="
        quote = old[found.end() : found.end() + 1] if old is not None and found else ""
        if quote not in ("'", '"'):
            quote = "" if _PLAIN.fullmatch(value) else "'"
        if not value.isprintable() or (quote and (quote in value or "\\" in value or (quote == '"' and "$" in value))):
            raise UsageError(f"{self.path}: {value!r} cannot be written as a value", hint="give another --value")
        return f"{head}{quote}{value}{quote}"

    def put(self, line: str | None) -> None:
        """Make this the line that counts; None: remove the one that does. Nothing is written if it is so already."""
        lines = self._lines()
        at = self._at(lines)
        if (None if at is None else lines[at].rstrip("\r\n")) == line:
            return
        if line is None:
            assert at is not None
            del lines[at]
        elif at is not None:
            body = lines[at].rstrip("\r\n")
            lines[at] = line + lines[at][len(body) :]
        else:
            if lines and not lines[-1].endswith("\n"):
                lines[-1] += "\n"
            lines.append(f"{line}\n")
        self._write("".join(lines))

    def remove_if_empty(self) -> None:
        """Remove the file if it has no line any more."""
        if self.exists() and not self._lines():
            self.path.unlink()
            sync(self.path.parent)

    def _at(self, lines: list[str]) -> int | None:
        return next((n for n in reversed(range(len(lines))) if self._line.match(lines[n])), None)

    def _lines(self) -> list[str]:
        try:
            text = self.path.read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}", hint="is it the right --env-file?") from None
        return re.findall(r"[^\n]*\n|[^\n]+", text)

    def _write(self, text: str) -> None:
        new = self.path.with_name(f".{self.path.name}.chromakeep")
        try:
            new.unlink(missing_ok=True)
            before = self.path.stat() if self.path.exists() else None
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644 if before is None else 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
                if before is not None and os.name == "posix":
                    with suppress(PermissionError):
                        os.fchown(file.fileno(), before.st_uid, before.st_gid)
                    os.fchmod(file.fileno(), before.st_mode & 0o7777)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            raise ChromakeepError(
                f"{self.path}: {(error.strerror or str(error)).lower()}",
                hint="its directory must be writable, and the file no mount point: it is replaced in one step",
            ) from None
