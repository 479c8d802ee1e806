"""Azurite, Microsoft's own emulator of Azure Blob Storage."""

from __future__ import annotations

import base64
import hashlib
import hmac
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from chromakeep.chroma.ports import free_port
from servers.process import INSTALLED, Process, answers

ACCOUNT, KEY = "testaccount", base64.b64encode(b"a key for tests only, not a secret").decode()


@dataclass
class AzureServer:
    """A running Azurite. ``options`` are the credentials as ``open_store(options=...)`` takes them."""

    endpoint: str
    options: dict[str, str]
    process: Process

    def address(self, container: str, prefix: str = "") -> str:
        """The address of a container, which is made if it is not there."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02", "Content-Length": "0"}
        # Shared Key authorization of Azure's REST API: verb, ten empty standard headers and more, then x-ms-* and path.
        signed = "".join(f"{name}:{headers[name]}\n" for name in ("x-ms-date", "x-ms-version"))
        text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\n{signed}/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
        digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        url = f"{self.endpoint}/{container}?restype=container"
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers), timeout=30).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:  # it is there
                raise
        return f"az://{container}/{prefix}?account={ACCOUNT}&endpoint={self.endpoint}"

    def stop(self) -> None:
        """End the process."""
        self.process.stop()


def start_azurite(directory: Path) -> AzureServer:
    """Azurite: checks the account's key; its objects are files under ``directory``."""
    port = free_port()
    program = INSTALLED / "azurite" / "azurite-blob"
    where: list[str] = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "-l", str(directory)]
    argv: list[str | Path] = [program, *where, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    process = Process(argv, directory / "azurite.log", {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"})
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    process.wait_until(lambda: answers(endpoint))
    return AzureServer(endpoint, {"account_key": KEY}, process)
