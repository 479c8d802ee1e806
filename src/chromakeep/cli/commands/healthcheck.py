"""``healthcheck``: for images that have no curl."""

from __future__ import annotations

from pathlib import Path

import click

from chromakeep.addresses import authority
from chromakeep.cli import durations
from chromakeep.cli.command import Call, command, place
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import Settings
from chromakeep.errors import UsageError

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@command("healthcheck", keys=("host", "port"), example="chromakeep healthcheck http://localhost:8000")
@place("url", "URL")
@click.option("--live", is_flag=True, help="Ask only whether the process lives (/healthz), not whether it serves.")
@click.option("--timeout", metavar="TIME", default="5s", show_default=True, help="All must be over by then.")
@click.option("--insecure", is_flag=True, help="Take any certificate, such as a self-signed one, on this machine.")
@click.option("--client-certificate", metavar="PATH", help="Certificate and key (PEM) to show to a server that asks.")
def healthcheck(
    call: Call, url: str | None, live: bool, timeout: str, insecure: bool, client_certificate: str | None
) -> Reply:
    """Ask a server whether it is ready: exit status 0 or 1.

    URL is the server's, or that of one of its pages. Left out, it is where `chromakeep run` listens with the same
    environment: --host and --port, https where a certificate is configured.
    """
    from chromakeep.operations.healthcheck import healthcheck as operation

    seconds = durations.seconds(timeout)
    if not seconds:
        raise UsageError("--timeout 0 leaves no time to ask", hint="write it like 5s")
    if url and live and url.count("/") > 2 and url.split("/", 3)[3]:
        raise UsageError("--live asks for one page, and URL names another", hint="give one of the two")
    certificate = Path(client_certificate) if client_certificate else None
    health = operation(
        url or _own(call.settings), live=live, timeout=seconds, insecure=insecure, client_certificate=certificate
    )
    if health.healthy:
        return Reply(health, "alive" if live else "ready")
    return Reply(health, f"not {'alive' if live else 'ready'}: {health.url}: {health.why}", 1)


def _own(settings: Settings) -> str:
    """Where ``run`` listens with these settings."""
    host = settings.text("host") or "localhost"
    host = _ANYWHERE.get(host, host)
    secure = settings.text("tls_certificate") or settings.value("tls_self_signed")
    return f"{'https' if secure else 'http'}://{authority(host, settings.number('port') or 8000)}"
