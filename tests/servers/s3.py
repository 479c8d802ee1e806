"""Two servers of the S3 protocol: moto (in memory, quick) and OpenStack Swift (persistent, checks signatures)."""

from __future__ import annotations

import getpass
import json
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import obstore
from obstore.store import S3Store

from chromakeep.chroma.ports import free_port
from servers.process import INSTALLED, Process, answers, listens


@dataclass
class S3Server:
    """A running server. ``options`` are the credentials as ``open_store(options=...)`` takes them."""

    endpoint: str
    options: dict[str, str]
    processes: list[Process]

    def address(self, bucket: str, prefix: str = "") -> str:
        """The address of a bucket, which is made if it is not there."""
        request = urllib.request.Request(self.presigned("PUT", bucket), method="PUT")
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:  # it is there
                raise
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def presigned(self, method: Literal["GET", "PUT"], bucket: str) -> str:
        """A URL that does ``method`` to a bucket as a whole: the signature of an object whose name is empty."""
        config: Any = {"endpoint": self.endpoint, "region": "us-east-1", **self.options}
        return obstore.sign(S3Store(bucket, config=config), method, "", timedelta(hours=1))

    def stop(self) -> None:
        """End all its processes."""
        for process in self.processes:
            process.stop()


# moto looks whether a name is taken and puts then, in a thread for each request: of eight writers who meet, two win
# once in a hundred times. And a reader may find the place in a value's buffer moved by who hashes it. So: in turn.
_ONE_AT_A_TIME = """
import io, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import main

answer, lock = DomainDispatcherApplication.__call__, threading.Lock()

def in_turn(self, environ, start_response):
    if size := environ.get("CONTENT_LENGTH"):  # before it is its turn: a client may be slow, or break off
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(size)))
    with lock:
        return list(answer(self, environ, start_response))

DomainDispatcherApplication.__call__ = in_turn
main(sys.argv[1:])
"""


def start_moto(directory: Path) -> S3Server:
    """moto: checks no signature, forgets everything when it ends; its conditional put holds, by what we add to it."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    program = INSTALLED / "moto" / "bin" / "python"
    process = Process([program, "-c", _ONE_AT_A_TIME, "-H", "127.0.0.1", "-p", str(port)], directory / "moto.log")
    process.wait_until(lambda: answers(f"{endpoint}/moto-api/"))
    options = {"access_key_id": "test", "secret_access_key": "test"}
    return S3Server(endpoint, options, [process])


def start_swift(directory: Path) -> S3Server:
    """Swift with s3api: objects are files with extended attributes under ``directory``, which outlive the processes.

    Called again with the same directory it serves what is there, on the same ports.
    """
    programs, known = INSTALLED / "swift" / "bin", directory / "ports.json"
    if not known.exists():
        known.write_text(json.dumps(_configure_swift(directory, programs)))
    ports = json.loads(known.read_text())
    processes = [
        Process([programs / f"swift-{kind}-server", directory / f"{kind}.conf"], directory / f"{kind}.log")
        for kind in ports
    ]
    for process, port in zip(processes, ports.values(), strict=True):
        process.wait_until(partial(listens, port))
    endpoint = f"http://127.0.0.1:{ports['proxy']}"
    processes[-1].wait_until(lambda: answers(f"{endpoint}/healthcheck"))
    return S3Server(endpoint, {"access_key_id": "test:tester", "secret_access_key": "testing"}, processes)


_RINGS = """
import sys
from swift.common.ring import RingBuilder
directory = sys.argv[1]
for kind, port in zip(("account", "container", "object"), map(int, sys.argv[2:])):
    builder = RingBuilder(4, 1, 1)
    builder.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=port, device="disk", weight=1.0,
                         replication_ip="127.0.0.1", replication_port=port))
    builder.rebalance()
    builder.get_ring().save(f"{directory}/{kind}.ring.gz")
"""

_PIPELINE = (
    "catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo dlo symlink proxy-server"
)

# On a busy machine Swift would otherwise put off updates of a listing (after 1 s) and take a node for dead.
_PATIENT = "conn_timeout = 30\nnode_timeout = 60\nrecoverable_node_timeout = 60\ncontainer_update_timeout = 60\n"


def _configure_swift(directory: Path, programs: Path) -> dict[str, int]:
    """Write rings and configuration for one device and one replica; return the ports, the proxy's last."""
    ports = {kind: free_port() for kind in ("account", "container", "object", "proxy")}
    (directory / "disk").mkdir(parents=True)
    (directory / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n"
        "[storage-policy:0]\nname = only\ndefault = yes\n"
    )
    for kind, port in ports.items():
        common = (
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nuser = {getpass.getuser()}\n"
            f"swift_dir = {directory}\ndevices = {directory}\nmount_check = false\nlog_address = {directory}/none\n"
            f"{_PATIENT}"
        )
        if kind == "proxy":
            filters = {name: name for name in _PIPELINE.split()[:-1]} | {"cache": "memcache"}
            extra = {
                "cache": "memcache_servers = 127.0.0.1:1\n",  # none: every look-up goes to the databases
                "s3api": "location = us-east-1\n",
                "tempauth": "user_test_tester = testing .admin\n",
            }
            sections = "".join(
                f"[filter:{name}]\nuse = egg:swift#{egg}\n{extra.get(name, '')}" for name, egg in filters.items()
            )
            common += (
                f"[pipeline:main]\npipeline = {_PIPELINE}\n"
                f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
                f"error_suppression_limit = 1000000\n{_PATIENT}{sections}"
            )
        else:
            common += f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        (directory / f"{kind}.conf").write_text(common)
    backends = [str(ports[kind]) for kind in ("account", "container", "object")]
    subprocess.run([programs / "python", "-c", _RINGS, directory, *backends], check=True, timeout=120)
    return ports
