"""Where credentials and endpoints come from: the variables each cloud documents, and AWS's shared files.

obstore itself reads its environment variables (``AWS_ACCESS_KEY_ID``, ``AWS_REGION``, ``AZURE_STORAGE_ACCOUNT_KEY``,
``GOOGLE_APPLICATION_CREDENTIALS``, ...) and asks the metadata service of the machine it runs on. What it does not do
is done here: ``AWS_PROFILE`` and ``~/.aws``, and the endpoints and variables of R2 and Spaces.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path

from chromakeep.addresses import Address
from chromakeep.errors import StoreDenied, UsageError

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ELSEWHERE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


def configuration(address: Address, environ: Mapping[str, str]) -> dict[str, str]:
    """Options for CloudStore that the address and the environment imply, in obstore's names; the address wins.

    Raises UsageError when R2's account or Spaces' region is not known, StoreDenied when AWS_PROFILE names a profile
    that is not there or holds no keys.
    """
    if address.kind == "gs":
        return {}
    endpoint = address.option("endpoint")
    if address.kind == "az":
        variable = environ.get("AZURE_STORAGE_ENDPOINT") or environ.get("AZURE_ENDPOINT")
        return _given(endpoint=endpoint or variable, account_name=address.option("account"))
    if address.kind == "r2":
        options = _given(endpoint=endpoint or _r2_endpoint(address, environ), region="auto")
    elif address.kind == "spaces":
        # Spaces takes any region in a signature and documents this one; the datacenter is in the host's name.
        options = _given(endpoint=endpoint or _spaces_endpoint(address, environ), region="us-east-1")
        options |= _given(
            access_key_id=environ.get("SPACES_ACCESS_KEY_ID"), secret_access_key=environ.get("SPACES_SECRET_ACCESS_KEY")
        )
    else:
        variable = next((environ[name] for name in _ENDPOINTS if environ.get(name)), None)
        options = _given(endpoint=endpoint or variable, region=address.option("region"))
    if "endpoint" in options and environ.get("AWS_ENDPOINT_URL_S3"):
        options["aws_endpoint_url_s3"] = options["endpoint"]  # obstore would prefer the variable to `endpoint`
    if "access_key_id" not in options and not any(environ.get(name) for name in _ELSEWHERE):
        options = _shared_files(environ) | options
    return options


def _given(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value}


def _r2_endpoint(address: Address, environ: Mapping[str, str]) -> str:
    account = address.option("account") or environ.get("CLOUDFLARE_ACCOUNT_ID")
    if not account:
        raise UsageError(
            f"{address} does not say which Cloudflare account",
            hint="add ?account=ID to the address or set CLOUDFLARE_ACCOUNT_ID",
        )
    return f"https://{account}.r2.cloudflarestorage.com"


def _spaces_endpoint(address: Address, environ: Mapping[str, str]) -> str:
    region = address.option("region") or environ.get("SPACES_REGION")
    if not region:
        raise UsageError(
            f"{address} does not say in which region the Space is",
            hint="add a region such as ?region=nyc3 to the address or set SPACES_REGION",
        )
    return f"https://{region}.digitaloceanspaces.com"


def _shared_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Keys and region of the profile in ``~/.aws/credentials`` and ``~/.aws/config``; nothing when there is none."""
    asked = environ.get("AWS_PROFILE")
    profile = asked or "default"
    home = Path(environ.get("HOME") or "/nonexistent") / ".aws"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(Path(environ.get(variable) or home / file).read_text())
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        if parser.has_section(section):
            found |= dict(parser.items(section))
    keys = {
        "access_key_id": found.get("aws_access_key_id"),
        "secret_access_key": found.get("aws_secret_access_key"),
        "session_token": found.get("aws_session_token"),
        "region": None if environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") else found.get("region"),
    }
    if asked and not (keys["access_key_id"] and keys["secret_access_key"]):
        raise StoreDenied(
            f"the AWS profile {asked!r} holds no access key",
            hint='for SSO and roles run: eval "$(aws configure export-credentials --format env)"',
        )
    return _given(**keys)
