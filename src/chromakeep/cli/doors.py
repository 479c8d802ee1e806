"""Doors: the settings of a port, the same for every command that opens one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.cli.settings import KEYS, Settings
from chromakeep.errors import UsageError

if TYPE_CHECKING:
    from chromakeep.operations.books import Books
    from chromakeep.operations.duty import Facing
    from chromakeep.operations.elsewhere import Forwarding
    from chromakeep.operations.issuer import OidcSettings

DOOR_KEYS = (
    "oidc_issuer",
    "oidc_audience",
    "oidc_prefix",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "tls_self_signed",
    "cors_origins",
    "metrics_port",
    "metrics_host",
    "access_log",
    "access_log_size",
    "access_log_age",
    "access_log_keep",
    "audit_log",
    "audit_size",
    "audit_full",
    "traces",
)


def books(settings: Settings, data: Path | None) -> Books:
    """Which books are kept. Raises ``UsageError``."""
    from chromakeep.operations.books import MEGABYTE, Books
    from chromakeep.operations.outputs import STDOUT

    port, audit, access = (settings.text(name) for name in ("metrics_port", "audit_log", "access_log"))
    if min(settings.number("access_log_size"), settings.number("audit_size")) < 1:
        raise UsageError("a log of 0 megabytes", hint="give --access-log-size and --audit-size 1 or more")
    for key, path in (("audit_log", audit), ("access_log", access)):
        if path and data and data.absolute() in Path(path).absolute().parents:
            # With the directory it would be replaced by a restore, and lie in a place that is Chroma's.
            raise UsageError(f"{KEYS[key].flag} {path} is in the data directory", hint="put it beside that")
    if audit and access and access != STDOUT and Path(access).resolve() == Path(audit).resolve():
        # Its rotation removes what is old: of an audit log nothing is ever removed.
        raise UsageError(f"--access-log {access} is the audit log, too", hint="give each its own file")
    return Books(
        metrics_port=int(port) if port else None,
        metrics_host=str(settings.text("metrics_host")),
        access_log=access,
        access_log_size=settings.number("access_log_size") * MEGABYTE,
        access_log_age=settings.value("access_log_age"),
        access_log_keep=settings.number("access_log_keep"),
        audit_log=Path(audit) if audit else None,
        audit_size=settings.number("audit_size") * MEGABYTE,
        audit_required=settings.text("audit_full") == "refuse",
        traces=bool(settings.value("traces")),
    )


def facing_of(settings: Settings) -> Facing:
    """How clients are spoken to. Raises ``UsageError`` for files and origins that will not do, or not together."""
    from chromakeep.operations.duty import Facing

    certificate, key, authority = (settings.text(f"tls_{name}") for name in ("certificate", "key", "client_ca"))
    own = bool(settings.value("tls_self_signed"))
    if own and (certificate or key):
        raise UsageError("--tls-self-signed makes a certificate, and one is given", hint="give one of the two")
    if (key or authority) and not (certificate or own):
        raise UsageError(f"{'--tls-key' if key else '--tls-client-ca'} without --tls-certificate", hint="give both")
    origins = settings.text("cors_origins")
    facing = Facing(
        Path(certificate) if certificate else None,
        Path(key) if key else None,
        Path(authority) if authority else None,
        own,
        tuple(one.strip() for one in origins.split(",")) if origins else (),
    )
    if facing != Facing():
        from chromakeep.server.front import check

        check(facing)  # what is wrong is told before anything starts
    return facing


def forwarding_of(settings: Settings) -> Forwarding | None:
    """Where this instance is reached by others. Raises ``UsageError`` for what cannot be."""
    url, authority = settings.text("advertise"), settings.text("advertise_ca")
    if not url:
        if authority:
            raise UsageError("--advertise-ca without --advertise", hint="give both")
        return None
    if settings.text("durability") == "snapshots" or not settings.text("repository"):
        raise UsageError("--advertise, and no log by which another instance could stand by", hint="see --durability")
    if settings.text("tls_client_ca"):
        hint = "an instance that forwards a write has no client's certificate: keys do for both"
        raise UsageError("--advertise and --tls-client-ca do not go together", hint=hint)
    from chromakeep.operations.elsewhere import Forwarding, door_at
    from chromakeep.server.front import trust

    door_at(url)
    forwarding = Forwarding(url, Path(authority) if authority else None)
    trust(forwarding)
    return forwarding


def oidc_of(settings: Settings) -> OidcSettings | None:
    """Whose tokens are believed. Raises ``UsageError``."""
    issuer, audience = settings.text("oidc_issuer"), settings.text("oidc_audience")
    if not issuer and not audience:
        return None
    if not issuer or not audience:
        raise UsageError("--oidc-issuer and --oidc-audience go together", hint="a token must be meant for this server")
    from chromakeep.operations.issuer import OidcSettings

    return OidcSettings(issuer, audience, settings.text("oidc_prefix") or "")
