"""The shipped Caddyfile, with other addresses, in a Caddy of our own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chromakeep.chroma.ports import free_port
from servers.nginx import SHIPPED, readdressed
from servers.process import Process, listens

PROGRAM = shutil.which("caddy")


@contextmanager
def caddy(base: Path, instances: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Its two ports, 8000 and 8001 in the file, in front of three ports of this machine."""
    assert PROGRAM, "caddy is not installed: run tools/packages.sh caddy (make test does)"
    base.mkdir(parents=True, exist_ok=True)
    balanced, latest = free_port(), free_port()
    text = readdressed(SHIPPED.with_name("Caddyfile"), instances)
    text = text.replace("\n:8000 {", f"\n:{balanced} {{").replace("\n:8001 {", f"\n:{latest} {{")
    (base / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text)
    command = [PROGRAM, "run", "--config", str(base / "Caddyfile"), "--adapter", "caddyfile"]
    homes = {"XDG_DATA_HOME": str(base), "XDG_CONFIG_HOME": str(base)}
    process = Process(command, base / "output", homes)
    try:
        process.wait_until(lambda: listens(balanced) and listens(latest))
        yield balanced, latest
    finally:
        process.stop()
