"""Settings: flags before environment before TOML file before default, each value with its origin."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from chromakeep.cli import durations
from chromakeep.errors import UsageError

PREFIX = "CHROMAKEEP_"
FILE = "chromakeep.toml"
FILE_LIMIT = 1 << 20
SECRETS = ("password", "new_password", "receive_token")  # each by its variable, or in the file that SECRET_file names
TOKEN = PREFIX + "RECEIVE_TOKEN"
NOT_SETTINGS = {"config", "debug", *SECRETS}  # environment variables of ours that are not keys of the file
_TOKEN = re.compile(r"[\x21-\x7e]{16,4096}")
# What Kubernetes puts into every pod beside a Service named "chromakeep": not ours, and not a typing error.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP)(_.+)?")


class Key(msgspec.Struct, frozen=True):
    """One setting: ``--key-name``, ``CHROMAKEEP_KEY_NAME`` and ``key_name`` in the file are the same thing."""

    name: str
    kind: str  # text, path, flag, number, duration or choice
    help: str
    default: str | int | float | bool | None = None
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    def read(self, raw: object) -> str | int | float | bool:
        """The value of ``raw`` as flag, variable or TOML gives it; ``UsageError`` when it is not of this kind."""
        if self.kind == "duration" and isinstance(raw, (str, int, float)):
            return durations.seconds(raw)
        if self.kind == "flag":
            if isinstance(raw, bool):
                return raw
            if str(raw).lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
                return str(raw).lower() in ("1", "true", "yes", "on")
            raise UsageError(f"not yes or no: {raw!r}", hint="write true or false")
        if self.kind == "number" and not isinstance(raw, bool) and re.fullmatch(r"[0-9]{1,9}", str(raw)):
            return int(str(raw))
        if self.kind == "choice" and raw not in self.choices:
            raise UsageError(f"not a choice: {raw!r}", hint="one of " + ", ".join(self.choices))
        if self.kind in ("text", "path", "choice") and isinstance(raw, str) and raw and "\0" not in raw:
            return raw
        raise UsageError(f"not a {self.kind}: {raw!r}")


KEYS = {
    key.name: key
    for key in (
        Key("data", "path", "The Chroma data directory."),
        Key("repository", "text", "Address of the repository."),
        Key("password_file", "path", "File whose first line is the repository's password."),
        Key("new_password_file", "path", "File whose first line is the password that `key` adds or changes to."),
        Key(
            "receive_token_file", "path", "File whose first line is the token that `send` and a receiving `run` share."
        ),
        Key("progress", "choice", "How progress is shown on stderr.", "auto", ("auto", "bar", "json", "none")),
        Key("stage", "path", "Keep the working copy here between backups: the next one copies only what changed."),
        Key("every", "duration", "Take a snapshot this often when something changed.", 60.0),
        Key(
            "durability",
            "choice",
            "What a killed container loses: a second at most, nothing, or what came after the last snapshot.",
            "async",
            ("async", "sync", "snapshots"),
        ),
        Key("hold_writes", "duration", "How long a write waits where it cannot be taken at the moment.", 0.0),
        Key(
            "advertise", "text", "URL at which other instances reach this one: writes are forwarded to who takes them."
        ),
        Key(
            "advertise_ca", "path", "Authority (PEM) that signed their certificates; those of the system unless given."
        ),
        Key("grace", "duration", "Time from SIGTERM to the end, the last snapshot included.", 10.0),
        Key("ephemeral", "flag", "Accept that everything is lost when the container stops.", False),
        Key("open", "flag", "Accept that whoever reaches the port may do everything: no key is needed.", False),
        Key("host", "text", "Address on which Chroma listens: localhost unless its own options say otherwise."),
        Key("port", "number", "Port on which Chroma listens: 8000 unless its own options say otherwise."),
        Key("engine", "text", "URL of a PostgreSQL with pgvector that keeps all data; or postgresql: a private one."),
        Key("engine_storage", "choice", "How vectors are stored there.", "vector", ("vector", "halfvec")),
        Key("engine_connections", "number", "How many connections to it are used at a time.", 10),
        Key("allow_reset", "flag", "Let clients reset, which deletes everything.", False),
        Key("chroma", "path", "The chroma program: the one on PATH unless given."),
        Key(
            "log_format",
            "choice",
            "How a service tells what happens: lines for people or JSON.",
            "text",
            ("text", "json"),
        ),
        Key("log_file", "path", "File that gets these lines in place of stderr; - is stdout."),
        Key("log_size", "number", "Megabytes at which a new file of them is begun.", 100),
        Key("log_keep", "number", "How many older ones are kept.", 5),
        Key("metrics_port", "number", "A port of their own for the metrics; they are on the main port too."),
        Key("metrics_host", "text", "Address on which that port listens.", "127.0.0.1"),
        Key("access_log", "path", "File that gets a line for each request; - is stdout."),
        Key("access_log_size", "number", "Megabytes at which a new access log is begun.", 100),
        Key("access_log_age", "duration", "Age at which a new access log is begun.", 604800.0),
        Key("access_log_keep", "number", "How many older access logs are kept.", 5),
        Key("audit_log", "path", "File of the audit log: writes, denials and the use of keys, in a chain of hashes."),
        Key("audit_size", "number", "Megabytes at which a new file of the audit log is begun; all are kept.", 64),
        Key(
            "audit_full",
            "choice",
            "What becomes of writes while the audit log cannot be written, as on a full disk.",
            "continue",
            ("continue", "refuse"),
        ),
        Key("oidc_issuer", "text", "OpenID Connect issuer whose tokens let in, as they name it."),
        Key("oidc_audience", "text", "Audience that such a token must be for."),
        Key("oidc_prefix", "text", "Of its claims with rights: PREFIXrole and so on.", "chromakeep_"),
        Key(
            "traces",
            "flag",
            "Send a span of each request to where OTEL_EXPORTER_OTLP_ENDPOINT says.",
            False,
        ),
        Key("tls_certificate", "path", "Speak TLS, with this certificate and its chain (PEM); read again on change."),
        Key("tls_key", "path", "Its key (PEM), without a password: in the file of the certificate unless given."),
        Key("tls_client_ca", "path", "Let in only clients with a certificate that this authority (PEM) has signed."),
        Key("tls_self_signed", "flag", "Speak TLS with a certificate of its own making, for a test.", False),
        Key("cors_origins", "text", "Origins whose pages may ask from a browser, with commas between; or *."),
        Key("keep_last", "number", "Keep the newest N snapshots.", 0),
        Key("keep_hourly", "number", "Keep the newest snapshot of each of the last N hours that have one.", 0),
        Key("keep_daily", "number", "Keep the newest snapshot of each of the last N days that have one.", 0),
        Key("keep_weekly", "number", "Keep the newest snapshot of each of the last N weeks that have one.", 0),
        Key("keep_monthly", "number", "Keep the newest snapshot of each of the last N months that have one.", 0),
        Key("keep_within", "duration", "Keep every snapshot that is at most this much older than the newest."),
    )
}


class Setting(msgspec.Struct, frozen=True):
    """A key's value and where it comes from: a flag, a variable, a file or ``default``."""

    key: str
    value: str | int | float | bool | None
    origin: str


class Settings:
    """All settings of one invocation. Every source is checked whole, so a misspelt key is told at once."""

    def __init__(self, flags: Mapping[str, object], environ: Mapping[str, str], config: str | None = None) -> None:
        """``flags`` by key name (None: not given); ``config`` is ``--config``."""
        chosen = config or environ.get(PREFIX + "CONFIG") or None
        self.file = Path(chosen) if chosen else Path(FILE)
        self._environ = environ
        sources: list[list[tuple[str, object, str]]] = [
            [(name, value, KEYS[name].flag) for name, value in flags.items() if value is not None],
            [(name, value, PREFIX + name.upper()) for name, value in _variables(environ)],
            [(name, value, str(self.file)) for name, value in _file(self.file, required=bool(chosen)).items()],
        ]
        self._settings = {name: Setting(name, key.default, "default") for name, key in KEYS.items()}
        for name, raw, origin in (entry for source in reversed(sources) for entry in source):
            try:
                self._settings[name] = Setting(name, KEYS[name].read(raw), origin)
            except UsageError as error:
                said = f"{origin}: {name}" if origin == str(self.file) else origin
                raise UsageError(f"{said}: {error}", hint=error.hint) from None

    def all(self) -> list[Setting]:
        """Every setting, in the order of ``KEYS``."""
        return [self._settings[name] for name in KEYS]

    def value(self, name: str) -> Any:
        return self._settings[name].value

    def came_from(self, name: str) -> str:
        """The origin of a setting's value."""
        return self._settings[name].origin

    def text(self, name: str) -> str | None:
        value = self._settings[name].value
        return None if value is None else str(value)

    def number(self, name: str) -> int:
        return int(self._settings[name].value or 0)

    def secret(self, name: str = "password") -> str | None:
        """A secret: its ``CHROMAKEEP_*`` variable, else the first line of the file that ``name_file`` names, else None.

        A ``--name-file`` flag goes before the variable.
        """
        origin, path = self.origin(name), self.text(f"{name}_file")
        if origin == PREFIX + name.upper():
            return self._environ[origin]
        return None if path is None else _first_line(Path(path), str(origin))

    def receive_token(self) -> str | None:
        """The secret that sender and receiver share. Raises ``UsageError`` for one that could be guessed."""
        token = self.secret("receive_token")
        if token is not None and not _TOKEN.fullmatch(token):
            hint = "take what `openssl rand -hex 32` prints"
            raise UsageError(f"{TOKEN} must be 16 or more characters of ASCII without spaces", hint=hint)
        return token

    def origin(self, name: str) -> str | None:
        """Where ``secret`` takes it from, without reading it."""
        path, variable = self._settings[f"{name}_file"], PREFIX + name.upper()
        if self._environ.get(variable) and path.origin != KEYS[path.key].flag:
            return variable
        return path.origin if path.value else None


def _variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Our variables that are set and not empty (``${X:-}`` in a compose file means: not set)."""
    found = []
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or not value:
            continue
        name = variable[len(PREFIX) :]
        if _SERVICE_LINK.fullmatch(name) or (name == "PORT" and value.startswith(("tcp://", "udp://"))):
            continue
        if name.lower() in NOT_SETTINGS:
            continue
        if name.lower() not in KEYS:
            raise _unknown(f"unknown environment variable {variable}", variable, [k.variable for k in KEYS.values()])
        found.append((name.lower(), value))
    return found


def _file(path: Path, *, required: bool) -> dict[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except FileNotFoundError:
        if required:
            raise UsageError(f"{path}: no such configuration file", hint="see --config and CHROMAKEEP_CONFIG") from None
        return {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", hint="the configuration file must be readable") from None
    try:
        if len(data) > FILE_LIMIT:
            raise ValueError("larger than 1 MiB")
        table: dict[str, object] = tomllib.loads(data.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path}: not TOML: {error}") from None
    for name in table.keys() & set(SECRETS):
        hint = f"use {name}_file, or {PREFIX}{name.upper()}"
        raise UsageError(f"{path}: a {name.replace('_', ' ')} does not belong in this file", hint=hint)
    for name in table:
        if name not in KEYS:
            raise _unknown(f"{path}: unknown key {name}", name, list(KEYS))
    return table


def _unknown(message: str, name: str, known: list[str]) -> UsageError:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return UsageError(message, hint=f"did you mean {near[0]}?" if near else "known: " + ", ".join(known))


def _first_line(path: Path, origin: str) -> str:
    try:
        with path.open("rb") as file:
            line = file.readline(4097).rstrip(b"\r\n")
        if not 0 < len(line) <= 4096:
            raise ValueError("its first line is empty" if not line else "its first line is longer than 4096 bytes")
        return line.decode()
    except UnicodeDecodeError:
        what = "its first line is not UTF-8"
    except OSError as error:
        what = error.strerror or str(error)
    except ValueError as error:
        what = str(error)
    raise UsageError(f"file {path} (from {origin}): {what}", hint="its first line is the password or token")
