"""The shipped nginx configuration, with other addresses, in an nginx of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chromakeep.chroma.ports import free_port
from servers.process import Process, listens

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
SHIPPED, ENGINE = DEPLOY / "nginx.conf", DEPLOY / "nginx-engine.conf"
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
WHOLE = """
daemon off;
pid {base}/pid;
error_log {base}/error.log info;
worker_processes 2;
{user}
events {{}}
http {{
    log_format tries '$request $status to $upstream_addr ($upstream_status) sent $upstream_bytes_sent';
    access_log {base}/access.log tries;
    client_body_temp_path {base}/body;
    proxy_temp_path {base}/proxy;
    fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi;
    scgi_temp_path {base}/scgi;
    include {base}/chromakeep.conf;
}}
"""


def readdressed(shipped: Path, instances: Sequence[int]) -> str:
    """A configuration with three ports of this machine in the place of its instances."""
    text = shipped.read_text()
    for number, port in enumerate(instances, 1):
        assert f"10.0.0.{number}:8000" in text
        text = text.replace(f"10.0.0.{number}:8000", f"127.0.0.1:{port}")
    return text


@contextmanager
def nginx(base: Path, instances: Sequence[int], shipped: Path = SHIPPED) -> Iterator[tuple[int, int]]:
    """Its two ports, 8000 and 8001 in the file, in front of three ports of this machine. ``ENGINE`` has only one."""
    assert PROGRAM, "nginx is not installed: run tools/packages.sh nginx (make test does)"
    base.mkdir(parents=True, exist_ok=True)
    balanced, latest = free_port(), free_port()
    text = readdressed(shipped, instances)
    text = text.replace("listen 8000;", f"listen 127.0.0.1:{balanced};").replace("    8001 0;", f"    {latest} 0;")
    text = text.replace("listen 8001;", f"listen 127.0.0.1:{latest};")
    (base / "chromakeep.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers, who are nobody, could not write here
    (base / "nginx.conf").write_text(WHOLE.format(base=base, user=user))
    command = [PROGRAM, "-p", str(base), "-e", str(base / "error.log"), "-c", str(base / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and "[warn]" not in checked.stderr, checked.stderr
    process = Process(command, base / "output")
    try:
        process.wait_until(lambda: listens(balanced))
        yield balanced, latest
    finally:
        process.stop()
