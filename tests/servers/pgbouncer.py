"""A PgBouncer of our own before a PostgreSQL of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from chromakeep.chroma.ports import free_port
from servers.postgresql import USER
from servers.process import Process, listens

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {base}/users
pool_mode = {mode}
"""


@contextmanager
def pgbouncer(base: Path, url: str, mode: str, **settings: object) -> Iterator[str]:
    """The URL of the same database through it. ``mode``: session, transaction or statement."""
    assert PROGRAM, "pgbouncer is not installed: run tools/packages.sh pgbouncer (make test does)"
    base.mkdir(parents=True, exist_ok=True)
    there, own = conninfo_to_dict(url), free_port()
    (base / "users").write_text(f'"{there["user"]}" "{there["password"]}"\n')
    text = CONFIGURATION.format(host=there["host"], port=there.get("port", 5432), own=own, base=base, mode=mode)
    text += "".join(f"{name} = {value}\n" for name, value in settings.items())
    (base / "pgbouncer.ini").write_text(text)
    unshare = [shutil.which(USER[0]) or USER[0], *USER[1:]] if USER else []  # as root it does not run
    process = Process([*unshare, PROGRAM, base / "pgbouncer.ini"], base / "log")
    try:
        process.wait_until(lambda: listens(own))
        yield f"postgresql://{there['user']}:{there['password']}@127.0.0.1:{own}/{there['dbname']}"
    finally:
        process.stop()
